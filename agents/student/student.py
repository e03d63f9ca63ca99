"""The student: one frozen language model with an `imitation` and a `policy` adapter and a value head on top.

    student = Student.load(pocket.path("causal"))
    lines = student.generate(["The meeting was slow."], Sampling(max_new_tokens=40)).texts
    scored = student.score(student.rows_from_text(prompts, lines), values=True)

One base in memory serves the policy, the reference and the value function. The reference is the *imitation* adapter,
not "adapter off": that is the raw base, which never learned to joke. Any Hugging Face causal model or encoder-decoder
works; a row of tokens is the prompt followed by the response for both, so that learners need not distinguish them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from humor_env.agents.student.forward import ForwardPasses
from humor_env.agents.student.fused_layers import merged_weights, use_fused_lora, use_fused_norms, use_own_norms
from humor_env.agents.student.logprobs import token_logprobs
from humor_env.agents.student.saving import copy_tensors, read_source, write_folder
from humor_env.agents.student.settings import Lora
from humor_env.agents.student.short_attention import use_short_attention
from humor_env.agents.student.token_rows import (
    Scored,
    TokenRows,
    length_sorted,
    make_rows,
    response_places,
    scatter,
    take_rows,
    widths_of,
)
from humor_env.agents.student.transfers import ready, send
from humor_env.errors import StudentError
from humor_env.shared.control_tokens import as_text
from humor_env.shared.framing import prompt_tokens
from humor_env.shared.frozen_weights import own_weights
from humor_env.shared.streams import stream_seed

if TYPE_CHECKING:
    from humor_env.agents.student.sampling import Generation, Sampling
    from humor_env.agents.student.static_writer import StaticWriter

IMITATION: str = "imitation"
POLICY: str = "policy"


class ValueHead(nn.Module):
    """A linear readout of the policy's hidden state, initialised to zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.norm(hidden.float())).squeeze(-1)


class Student:
    """See the module's docstring. Build it with `Student.load`, or from your own model and tokenizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        lora: Lora | None = None,
        instruction: str = "",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.lora = lora or Lora()
        self.is_seq2seq = bool(model.config.is_encoder_decoder)
        self.device = ready(device)
        self.base = model.to(self.device).requires_grad_(False).eval()  # type: ignore[arg-type]
        use_short_attention(self.base)
        use_fused_norms(self.base)
        self._read_special_tokens()
        # Adapters are initialised from their own random stream, independent of earlier draws.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "lora"))
            self.model = get_peft_model(self.base, self._lora_config(), adapter_name=IMITATION)
            self.model.add_adapter(POLICY, self._lora_config())
        use_fused_lora(self.model)
        self.model.eval()  # no dropout anywhere: old, new and reference passes must agree
        self.value_head = ValueHead(self._hidden_width()).to(self.device)
        self._layers: list[Any] = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        self._active = ""
        self.static_writing: str | None = None  # why captured steps cannot generate its lines; "" if they can
        self.static_writer: StaticWriter | None = None
        self.activate(POLICY)
        self.train_only(())
        self.passes = ForwardPasses(
            self.base, pad_token=self.pad_token, end_token=self.end_token, decoder_prefix=self.decoder_prefix
        )

    def close(self) -> None:
        """Free what writing keeps on the GPU. It refers to the student, which would stay in memory with it."""
        if self.static_writer is not None:
            self.static_writer.close()
            self.static_writer = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        lora: Lora | None = None,
        instruction: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "auto",
        seed: int = 0,
    ) -> Student:
        """Load from a name listed by `humor-env students`, a Hugging Face name or folder, a GGUF file, or a folder
        written by `save_pretrained` (adapters included).

        `dtype="auto"` is the saved model's (bfloat16 for a quantised GGUF file), or float32 if 16 bits are slow here.
        """
        source = read_source(path, device=device, dtype=dtype)
        lora = source.lora() if lora is None and source.saved else lora
        instruction = source.saved.get("instruction", "") if instruction is None else instruction
        student = cls(source.model, source.tokenizer, lora=lora, instruction=instruction, device=device, seed=seed)
        if source.saved:
            student.load_state(source.tensors())
        return student

    # -- set-up ---------------------------------------------------------------------------------------------------

    def _lora_config(self) -> LoraConfig:
        targets = self.lora.targets
        return LoraConfig(
            r=self.lora.rank,
            lora_alpha=self.lora.alpha,
            lora_dropout=self.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="SEQ_2_SEQ_LM" if self.is_seq2seq else "CAUSAL_LM",
        )

    def _read_special_tokens(self) -> None:
        generation, tokenizer = self.base.generation_config, self.tokenizer
        ends: list[int] = []
        for eos in (tokenizer.eos_token_id, getattr(generation, "eos_token_id", None)):
            ends += list(eos) if isinstance(eos, (list, tuple)) else [] if eos is None else [eos]
        if not ends:
            raise StudentError(
                "The student has no end token: neither its tokenizer nor its generation config names one. "
                "Set tokenizer.eos_token before making the student."
            )
        self.end_tokens = tuple(dict.fromkeys(int(e) for e in ends))
        self.end_token = self.end_tokens[0]
        # Without a pad token the end token is used. That is safe: masks are stored, never derived from the ids.
        self.pad_token = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.end_token
        self.decoder_prefix: tuple[int, ...] = ()
        if self.is_seq2seq:
            start = getattr(generation, "decoder_start_token_id", None)
            start = self.base.config.decoder_start_token_id if start is None else start
            if start is None:
                raise StudentError("The encoder-decoder names no decoder_start_token_id in its config.")
            forced = getattr(generation, "forced_bos_token_id", None)
            # Forced tokens are not the model's choice: they go before the response, like a prompt.
            self.decoder_prefix = (int(start),) if forced is None else (int(start), int(forced))
        self.context = int(getattr(self.base.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)
        self.vocabulary = int(self.base.get_input_embeddings().weight.shape[0])
        self._check_known([*self.end_tokens[:1], self.pad_token, *self.decoder_prefix], "its special tokens")

    def _check_known(self, ids: Sequence[int], where: str) -> None:
        """A tokenizer may have more tokens than the model, as long as they are never used."""
        if ids and max(ids) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise StudentError(
                f"The student's tokenizer gives the token {token!r} the number {max(ids)} in {where}, but its model "
                f"only has numbers below {self.vocabulary}. Use the model's own tokenizer, or "
                "enlarge the model: model.resize_token_embeddings(len(tokenizer))."
            )

    def _hidden_width(self) -> int:
        return int(self.base.get_output_embeddings().weight.shape[1])

    # -- adapters -------------------------------------------------------------------------------------------------

    def activate(self, adapter: str | None) -> None:
        """Use this adapter from now on; None is the raw base. Does not change what is trainable."""
        if adapter == self._active:
            return
        # PEFT's own functions do the same, and set requires_grad too: a tenth of a second for 210 layers, each step.
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        assert self._layers[0].disable_adapters == (adapter is None)
        assert adapter is None or self._layers[0].active_adapters == [adapter]
        self._active = adapter or ""

    @property
    def active(self) -> str | None:
        return self._active or None

    @property
    def lora_layers(self) -> list[Any]:
        return self._layers

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        before = self._active
        self.activate(adapter)
        try:
            yield
        finally:
            self.activate(before or None)

    @contextlib.contextmanager
    def merged(self, adapter: str | None, buffers: Sequence[Tensor] = ()) -> Iterator[None]:
        """For passes without gradient: the adapter merged into the base weights (`fused_layers.merged_weights`)."""
        with merged_weights(self._layers, adapter, buffers), self.using(None):
            yield

    def adapter_parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, with the adapter's own name removed."""
        marker = f".{adapter}."
        return {n.replace(marker, "."): p for n, p in self.model.named_parameters() if marker in n and "lora_" in n}

    def check_trainable(self) -> None:
        """Refuse a precision in which learning would silently go wrong."""
        if self.base.dtype == torch.float16:
            raise StudentError(
                "The student's base is in float16, in which small gradients become 0: it can be used and evaluated, "
                'not trained. Set [student] dtype = "bfloat16" (the same size) or "float32".'
            )

    def train_only(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make exactly these parameters trainable."""
        if parameters:
            self.check_trainable()
        self.model.requires_grad_(False)
        self.value_head.requires_grad_(False)
        own_weights(parameters)
        for parameter in parameters:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def start_policy_from_imitation(self) -> None:
        """Copy the imitation into the policy; the imitation stays as the reference."""
        source = self.adapter_parameters(IMITATION)
        for name, parameter in self.adapter_parameters(POLICY).items():
            parameter.copy_(source[name])

    # -- text to tokens and back ----------------------------------------------------------------------------------

    def encode_prompt(self, observation: str) -> list[int]:
        """The tokens before the response: the chat template if there is one, else the text and a newline."""
        ids = prompt_tokens(self.tokenizer, observation, self.instruction, is_seq2seq=self.is_seq2seq)
        self._check_known(ids, f"{observation[:80]!r}")
        room = self.context if self.is_seq2seq else self.context - 1
        if len(ids) > room:
            raise StudentError(
                f"The prompt has {len(ids)} tokens, but the student's context holds {self.context}: "
                f"{observation[:80]!r}…"
            )
        return ids

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        """A line as the student would write it; without an end token if it was cut off. Control tokens are text."""
        ids = [int(i) for i in self.tokenizer(as_text(self.tokenizer, text), add_special_tokens=False)["input_ids"]]
        self._check_known(ids, f"{text[:80]!r}")
        return [*ids, self.end_token] if ended else ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def rows(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TokenRows:
        """Padded tensors from prompt and response ids."""
        return make_rows(prompts, responses, self.pad_token, self.device)

    def rows_from_text(self, prompts: Sequence[str], lines: Sequence[str], ended: Sequence[bool] = ()) -> TokenRows:
        """Rows of these lines. `ended` says which of them their authors ended (default: all)."""
        ended = ended or [True] * len(lines)
        ids, responses = [*map(self.encode_prompt, prompts)], [*map(self.encode_response, lines, ended)]
        for prompt, response, line, has_end in zip(ids, responses, lines, ended, strict=True):
            read, length = len(self.decoder_prefix) if self.is_seq2seq else len(prompt), len(response) - has_end
            if read + length > self.context:
                before = "" if self.is_seq2seq else f" after a prompt of {len(prompt)}"
                raise StudentError(
                    f"The line has {length} tokens{before}, but the student's context holds {self.context}: "
                    f"{line[:80]!r}… Leave such lines out, or use a student with a longer context."
                )
        return self.rows(ids, responses)

    # -- scoring --------------------------------------------------------------------------------------------------

    def score(
        self,
        rows: TokenRows,
        *,
        values: bool = False,
        detach_values: bool = False,
        entropy: bool = False,
        entropy_gradient: bool = False,
        temperature: float = 1.0,
    ) -> Scored:
        """One pass of the active adapter over the rows; gradients flow where they are enabled.

        The output layer sees only hidden states before response tokens. Nothing synchronises with the GPU, which works
        through one micro-batch while the next is prepared.
        """
        if bool(rows.host.action_mask[:, 0].any()):
            raise ValueError("column 0 cannot hold a response token: nothing precedes it")
        row, column = send(rows.tokens.device, *response_places(rows))
        targets = rows.tokens[row, column]
        states = self.passes.before_response(rows)
        if isinstance(states, tuple):
            states, logits = states
            chosen = logits.float() / temperature
            log_total = chosen.logsumexp(-1)
            flat = chosen.gather(-1, targets[:, None]).squeeze(-1) - log_total
            flat_entropy = log_total - (chosen.softmax(-1) * chosen).sum(-1) if entropy else None
            if flat_entropy is not None and not entropy_gradient:
                flat_entropy = flat_entropy.detach()
        else:
            flat, flat_entropy = token_logprobs(
                states,
                self.passes.output_layer or self.passes.logits,
                targets,
                temperature=temperature,
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )
        flat_values = self.value_head(states.detach() if detach_values else states) if values else None
        place = (row, column, rows.tokens.shape)
        tables = [None if numbers is None else scatter(numbers, *place) for numbers in (flat_values, flat_entropy)]
        return Scored(scatter(flat, *place), *tables)

    def score_in_batches(
        self,
        rows: TokenRows,
        *,
        adapter: str | None,
        micro_batch: int = 64,
        values: bool = False,
        entropy: bool = False,
        temperature: float = 1.0,
        merge: bool = True,
    ) -> Scored:
        """Without gradient, in micro-batches of similar lengths, each trimmed to its longest; keeps the given order."""
        shape = rows.tokens.shape
        micro_batches = length_sorted(rows, micro_batch) if len(rows.tokens) else []
        logprobs = torch.zeros(shape, device=self.device)
        all_values = torch.zeros(shape, device=self.device) if values else None
        all_entropy = torch.zeros(shape, device=self.device) if entropy else None
        context = self.merged(adapter) if merge else self.using(adapter)
        places = send(self.device, *micro_batches)
        with torch.no_grad(), context:
            for index, place, width in zip(micro_batches, places, widths_of(rows, micro_batches), strict=True):
                part = take_rows(rows, index, width)
                scored = self.score(part, values=values, entropy=entropy, temperature=temperature)
                pieces = (scored.logprobs, scored.values, scored.entropy)
                for whole, piece in zip((logprobs, all_values, all_entropy), pieces, strict=True):
                    if whole is not None and piece is not None:
                        whole[place, :width] = piece
        return Scored(logprobs, all_values, all_entropy)

    def generate(
        self,
        observations: Sequence[str],
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        adapter: str | None = POLICY,
    ) -> Generation:
        """Sample one response per observation, the same for the same seed. `sampling.sample` gives more control."""
        from humor_env.agents.student.sampling import Sampling, draw_uniforms
        from humor_env.agents.student.writer import InProcess

        sampling = sampling or Sampling()
        source = torch.Generator().manual_seed(stream_seed(seed, "generate"))
        uniforms = draw_uniforms(len(observations), sampling.max_new_tokens, source)
        return InProcess(self).generate(observations, sampling, uniforms, adapter=adapter)

    # -- saving ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Both adapters and the value head, by name."""
        tensors = {
            f"{adapter}/{n}": p.detach()
            for adapter in (IMITATION, POLICY)
            for n, p in self.adapter_parameters(adapter).items()
        }
        return tensors | {f"value_head/{n}": p.detach() for n, p in self.value_head.named_parameters()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(tensors, self.state())

    def save_pretrained(self, folder: str | Path, *, base: str | None = None) -> None:
        """Write a folder that `Student.load`, and plain PEFT and transformers, can read.

        `policy/` and `imitation/` are PEFT adapter folders. With `base=None` the base model is saved too;
        otherwise only its name (a hub name, a path, or one of `humor_env.sources.students`).
        """
        write_folder(
            Path(folder),
            self.model,
            self.tokenizer,
            adapters=(IMITATION, POLICY),
            tensors=self.state(),
            described={"base": base, "instruction": self.instruction, "lora": asdict(self.lora)},
            plain_base=self.plain_base() if base is None else None,
        )

    def plain_base(self) -> PreTrainedModel:
        """The base model alone, as it was before any adapter."""
        clone: Any = copy.deepcopy(self.model)
        return use_own_norms(clone.unload())

    def merge(self, adapter: str = POLICY) -> PreTrainedModel:
        """A plain Hugging Face model with the adapter merged in. The student is unchanged."""
        clone: Any = copy.deepcopy(self.model)
        clone.set_adapter(adapter)
        return use_own_norms(clone.merge_and_unload(adapter_names=[adapter]))
