"""Passes through the base model that stop at its hidden states, so that the output layer sees only response positions.

    passes = ForwardPasses(model, pad_token=0, end_token=2, decoder_prefix=())
    states = passes.before_response(rows)      # [N, H], row by row

Whether a model allows this is tested once, on a few tokens: some scale or cap their logits, and some cache keys and
values differently. If it does not, the whole model is run.

Nothing synchronises with the GPU: everything that a shape or branch depends on is read from the rows on the CPU
(`TokenRows.host`). What transformers would read from the GPU (whether a mask hides anything, whether rows hold several
texts) is passed in, if a trial shows that the model accepts it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from humor_env.agents.student.logprobs import all_logits
from humor_env.agents.student.shared_prompts import LEAST_PREFIX_ROWS, causal_states, common_prefix
from humor_env.agents.student.token_rows import (
    PromptGroups,
    TokenRows,
    make_rows,
    pack_left,
    prompt_groups,
    response_places,
)
from humor_env.agents.student.transfers import send


class _KeepsNothing(DynamicCache):
    """A cache that stays empty. Without one, transformers synchronises to find out whether rows hold several texts."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class ForwardPasses:
    def __init__(
        self, base: PreTrainedModel, *, pad_token: int, end_token: int, decoder_prefix: tuple[int, ...]
    ) -> None:
        self.base = base
        self.is_seq2seq = bool(base.config.is_encoder_decoder)
        self.pad_token, self.end_token, self.decoder_prefix = pad_token, end_token, decoder_prefix
        self._asked_bias: Tensor | None = None
        self._has_bias = False
        self.step_masks: bool | None = None  # whether generation takes made masks: `sampling.steps_take_masks`
        self.states_give_logits = self._states_give_logits()

    @property
    def backbone(self) -> nn.Module | None:
        """The model without its output layer; None if more than that layer is between hidden states and logits."""
        return self._inner() if self.states_give_logits else None

    def logits(self, states: Tensor) -> Tensor:
        """The output layer's logits for hidden states."""
        logits = all_logits(self.base.get_output_embeddings(), states)
        bias = getattr(self.base, "final_logits_bias", None)
        return logits if bias is None else logits + bias

    @property
    def output_layer(self) -> nn.Module | None:
        """The output layer; None if a separate bias follows it."""
        bias = getattr(self.base, "final_logits_bias", None)
        if bias is not self._asked_bias:  # checked once per bias that is set
            self._asked_bias, self._has_bias = bias, bias is not None and bool(bias.any())
        return None if self._has_bias else self.base.get_output_embeddings()

    def before_response(self, rows: TokenRows) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states `[N, H]` just before each response token, row by row; with their logits if the model does not
        compute them by its output layer alone."""
        backbone, host = self.backbone, rows.host
        groups = prompt_groups(host.tokens, host.attention, host.action_mask) if backbone is not None else None
        if self.is_seq2seq:
            ready_made = rows.tokens.device.type != "cpu" and self.masks_can_be_made
            inputs, row, column = self._seq2seq_inputs(rows, groups, made=ready_made)
        else:
            apart = len(rows.tokens) if groups is None else len(groups.first)
            may_share = backbone is not None and apart >= LEAST_PREFIX_ROWS
            prefix = common_prefix(host.tokens, host.attention, host.action_mask) if may_share else 0
            shares = (groups is not None or prefix) and (self.reach is None or rows.tokens.shape[1] <= self.reach)
            if backbone is not None and shares and self.prompts_can_be_shared:
                return causal_states(backbone, self.base.config.get_text_config(), rows, groups, prefix)
            inputs, row, column = self._causal_inputs(rows)
            if rows.tokens.device.type != "cpu" and "attention_mask" not in inputs and self.prompts_can_be_shared:
                inputs["past_key_values"] = _KeepsNothing(config=self.base.config.get_text_config())
        row, column = send(rows.tokens.device, row, column)
        if backbone is not None:
            return backbone(**inputs, use_cache=False).last_hidden_state[row, column]
        whole = self.base(**inputs, use_cache=False, output_hidden_states=True)
        hidden = whole.decoder_hidden_states if self.is_seq2seq else whole.hidden_states
        return hidden[-1][row, column], whole.logits[row, column]

    def _states_give_logits(self) -> bool:
        """Whether output_layer(hidden states) equals the model's own logits. Some models scale or cap them."""
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

    def _causal_inputs(self, rows: TokenRows) -> tuple[dict[str, Any], Tensor, Tensor]:
        """The model's inputs, and the row and column of the state before each response token."""
        row, column = response_places(rows)
        inputs: dict[str, Any] = {"input_ids": rows.tokens}
        attention = rows.host.attention
        # Causality alone hides padding on the right, and attention without a mask is faster.
        if not bool((attention[:, :1] == 1).all()) or not bool((attention.diff(dim=1) <= 0).all()):
            inputs["attention_mask"] = rows.attention
            inputs["position_ids"] = (rows.attention.cumsum(-1) - 1).clamp(min=0)
        return inputs, row, column - 1

    @cached_property
    def reach(self) -> int | None:
        """How many positions a causal model's shortest sliding window sees; None without one. It counts the padding
        between a shared prompt and a response, so beyond it nothing is shared."""
        layers = DynamicCache(config=self.base.config.get_text_config()).layers
        windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
        return min(windows, default=None)

    @cached_property
    def prompts_can_be_shared(self) -> bool:
        """Whether continuing from shared keys and values equals a pass over whole rows. Some cache differently."""
        backbone = self._inner()
        if backbone is None:
            return False
        # Different tokens: among equal ones a wrong mask or position would change nothing.
        end, (a, b) = self.end_token, two_tokens(self.end_token)
        prompts, responses = [[end, a, b, end]] * 2 + [[end, b]] * 2, [[b, end], [a], [a, b], [end]]
        rows = make_rows(prompts, responses, self.pad_token, self.base.device)
        groups = prompt_groups(rows.host.tokens, rows.host.attention, rows.host.action_mask)
        assert groups is not None
        with torch.no_grad():
            inputs, row, column = self._causal_inputs(rows)
            row, column = send(self.base.device, row, column)
            whole = backbone(**inputs, use_cache=False).last_hidden_state[row, column]
            config = self.base.config.get_text_config()
            ways = [
                causal_states(backbone, config, rows, siblings, prefix)
                for siblings, prefix in ((groups, 0), (groups, 1), (None, 1))
            ]
            if self.base.device.type != "cpu":
                empty = backbone(**inputs, past_key_values=_KeepsNothing(config=config), use_cache=False)
                ways.append(empty.last_hidden_state[row, column])
        return all(nearly_equal(shared, whole) for shared in ways)

    def _seq2seq_inputs(
        self, rows: TokenRows, groups: PromptGroups | None, *, made: bool
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        """The same for an encoder-decoder. The encoder reads each distinct source once, and its states are shared by
        all rows with it. `made` are masks in the form that transformers would convert them to, None if nothing is
        masked.
        """
        device, host = rows.tokens.device, rows.host
        mask = host.action_mask.bool()
        source, attention = pack_left(host.tokens, host.attention.bool() & ~mask, self.pad_token)
        response, _ = pack_left(host.tokens, mask, self.pad_token)
        prefix = torch.tensor(self.decoder_prefix).expand(len(response), -1)
        row, column = response_places(rows)
        nth = (mask.cumsum(-1) - 1)[row, column]  # index of each response token within its row

        def in_sight(attention: Tensor) -> Tensor | None:
            if made and bool(attention.all()):
                return None
            [on_device] = send(device, attention)
            return on_device.bool()[:, None, None, :] if made else on_device

        inputs: dict[str, Any] = {"attention_mask": in_sight(attention)}
        sources = source if groups is None else source[groups.first]
        sources, inputs["decoder_input_ids"] = send(device, sources, torch.cat([prefix, response[:, :-1]], dim=1))
        if groups is None:
            inputs["input_ids"] = sources
        else:
            encoder, [group] = self.base.get_encoder(), send(device, groups.group)
            encoded = encoder(input_ids=sources, attention_mask=in_sight(attention[groups.first])).last_hidden_state
            inputs["encoder_outputs"] = (encoded[group],)
        return inputs, row, nth + len(self.decoder_prefix) - 1

    @cached_property
    def masks_can_be_made(self) -> bool:
        """Whether an encoder-decoder accepts converted masks; plain ones make transformers synchronise."""
        if not self.is_seq2seq or self.base.config._attn_implementation != "sdpa":
            return False
        end, (a, b) = self.end_token, two_tokens(self.end_token)
        for shorter in (2, 4):
            prompts = [[a, b, b, end], [b, end, a, end][-shorter:]]
            rows = make_rows(prompts, [[a], [b, end]], self.pad_token, self.base.device)
            try:
                with torch.no_grad():
                    ways = []
                    for made in (False, True):
                        inputs, row, column = self._seq2seq_inputs(rows, None, made=made)
                        on_device = send(self.base.device, row, column)
                        ways.append(self.base(**inputs, use_cache=False).logits[on_device[0], on_device[1]])
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
                return False
            if not nearly_equal(ways[1], ways[0]):
                return False
        return True


def two_tokens(end: int) -> tuple[int, int]:
    """Two tokens that differ from each other and from the end token."""
    return (0, 1) if end > 1 else (2, 3)


def nearly_equal(result: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by no more than the order of their sums explains, in the precision that they have."""
    allowed = 1e-3 if expected.dtype == torch.float32 else 0.05
    difference = float((result.float() - expected.float()).norm())
    return difference <= allowed * float(expected.float().norm())  # False for NaN
