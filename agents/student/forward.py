"""Passes through the base model that stop at its hidden states, so that only response positions meet the output layer.

    passes = ForwardPasses(model, pad_token=0, end_token=2, decoder_prefix=())
    states = passes.before_response(rows, rows.action_mask.bool())      # [N, H], in the order of mask.nonzero()

Whether a model allows that is tried out once, on a few tokens: some scale or cap their logits on the way, and some keep
keys and values in ways of their own. Where it does not, the whole model is asked.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from humor_env.agents.student.shared_prompts import (
    LEAST_PREFIX_ROWS,
    PromptGroups,
    causal_states,
    common_prefix,
    prompt_groups,
)
from humor_env.agents.student.token_rows import TokenRows, make_rows, pack_left


class ForwardPasses:
    def __init__(
        self, base: PreTrainedModel, *, pad_token: int, end_token: int, decoder_prefix: tuple[int, ...]
    ) -> None:
        self.base = base
        self.is_seq2seq = bool(base.config.is_encoder_decoder)
        self.pad_token, self.end_token, self.decoder_prefix = pad_token, end_token, decoder_prefix
        self.states_give_logits = self._states_give_logits()

    @property
    def backbone(self) -> nn.Module | None:
        """The model without its output layer, where that is all there is between hidden states and logits."""
        return self._inner() if self.states_give_logits else None

    def logits(self, states: Tensor) -> Tensor:
        """What the output layer makes of hidden states."""
        logits = self.base.get_output_embeddings()(states)
        bias = getattr(self.base, "final_logits_bias", None)
        return logits if bias is None else logits + bias

    @property
    def output_layer(self) -> nn.Module | None:
        """The same as a layer, where no bias follows it."""
        bias = getattr(self.base, "final_logits_bias", None)
        return self.base.get_output_embeddings() if bias is None or not bool(bias.any()) else None

    def before_response(self, rows: TokenRows, mask: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states `[N, H]` just before each response token, in the order of `mask.nonzero()`; with the logits
        beside them where the model does not give them by its output layer alone."""
        backbone = self.backbone
        groups = prompt_groups(rows.tokens, rows.attention, mask) if backbone is not None else None
        if self.is_seq2seq:
            inputs, before = self._seq2seq_inputs(rows, mask)
            if groups is not None:
                inputs = self._encode_once(inputs, groups)
        else:
            apart = len(rows.tokens) if groups is None else len(groups.first)
            may_share = backbone is not None and apart >= LEAST_PREFIX_ROWS
            prefix = common_prefix(rows.tokens, rows.attention, mask) if may_share else 0
            if backbone is not None and (groups is not None or prefix) and self.prompts_can_be_shared:
                config = self.base.config.get_text_config()
                return causal_states(backbone, config, rows.tokens, mask, groups, prefix)
            inputs, before = self._causal_inputs(rows, mask)
        if backbone is not None:
            return backbone(**inputs, use_cache=False).last_hidden_state[before]
        whole = self.base(**inputs, use_cache=False, output_hidden_states=True)
        hidden = whole.decoder_hidden_states if self.is_seq2seq else whole.hidden_states
        return hidden[-1][before], whole.logits[before]

    def _states_give_logits(self) -> bool:
        """Whether output layer(hidden states) equals the model's own logits. Some models scale or cap them."""
        with torch.no_grad():
            prompt = torch.tensor([[self.end_token, self.end_token]], device=self.base.device)
            inputs: dict[str, Tensor] = {"input_ids": prompt}
            if self.is_seq2seq:
                inputs["decoder_input_ids"] = prompt
            whole = self.base(**inputs, use_cache=False)
            backbone = self._inner()
            if backbone is None:
                return False
            states = backbone(**inputs, use_cache=False).last_hidden_state
            logits = self.logits(states)
            return logits.shape == whole.logits.shape and bool(
                torch.allclose(logits.float(), whole.logits.float(), rtol=1e-3, atol=1e-3)
            )

    def _inner(self) -> nn.Module | None:
        inner = getattr(self.base, self.base.base_model_prefix, None)
        return inner if isinstance(inner, nn.Module) else None

    def _causal_inputs(self, rows: TokenRows, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        before = torch.zeros_like(mask)
        before[:, :-1] = mask[:, 1:]
        inputs = {"input_ids": rows.tokens}
        # With padding on the right causality alone keeps it out of sight, and attention without a mask is faster.
        if not bool((rows.attention[:, :1] == 1).all()) or not bool((rows.attention.diff(dim=1) <= 0).all()):
            inputs["attention_mask"] = rows.attention
            inputs["position_ids"] = (rows.attention.cumsum(-1) - 1).clamp(min=0)
        return inputs, before

    def _encode_once(self, inputs: dict[str, Any], groups: PromptGroups) -> dict[str, Any]:
        """The encoder reads each different source once; what it found is handed to all of its rows."""
        encoder = self.base.get_encoder()
        encoded = encoder(
            input_ids=inputs["input_ids"][groups.first], attention_mask=inputs["attention_mask"][groups.first]
        ).last_hidden_state
        others = {n: v for n, v in inputs.items() if n != "input_ids"}
        return others | {"encoder_outputs": (encoded[groups.group],)}

    @cached_property
    def prompts_can_be_shared(self) -> bool:
        """Whether going on from shared keys and values equals a pass over whole rows. Some models cache otherwise."""
        backbone = self._inner()
        if backbone is None:
            return False
        end = self.end_token
        prompts, responses = [[end] * 4, [end] * 4, [end] * 2, [end] * 2], [[end] * 2, [end], [end] * 2, [end]]
        rows = make_rows(prompts, responses, self.pad_token, self.base.device)
        mask = rows.action_mask.bool()
        groups = prompt_groups(rows.tokens, rows.attention, mask)
        assert groups is not None
        with torch.no_grad():
            inputs, before = self._causal_inputs(rows, mask)
            whole = backbone(**inputs, use_cache=False).last_hidden_state[before]
            config = self.base.config.get_text_config()
            ways = [
                causal_states(backbone, config, rows.tokens, mask, siblings, prefix)
                for siblings, prefix in ((groups, 0), (groups, 1), (None, 1))
            ]
        return all(torch.allclose(whole.float(), shared.float(), rtol=1e-2, atol=1e-3) for shared in ways)

    def _seq2seq_inputs(self, rows: TokenRows, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        is_source = rows.attention.bool() & ~mask
        source, source_attention = pack_left(rows.tokens, is_source, self.pad_token)
        response, response_attention = pack_left(rows.tokens, mask, self.pad_token)
        prefix = torch.tensor(self.decoder_prefix, device=self.base.device).expand(len(response), -1)
        decoder_input = torch.cat([prefix, response[:, :-1]], dim=1)
        before = torch.zeros_like(decoder_input, dtype=torch.bool)
        before[:, len(self.decoder_prefix) - 1 :] = response_attention.bool()
        return (
            {"input_ids": source, "attention_mask": source_attention, "decoder_input_ids": decoder_input},
            before,
        )
