"""Generation in steps that a CUDA graph can replay: tensors at fixed addresses, no synchronisation in between.

    writer = StaticWriter(student)                       # a backend; StudentError if the model does not allow it
    out = writer.generate(["The meeting was slow."] * 64, Sampling(max_new_tokens=40), uniforms)

On a GPU a small model's step is hundreds of launches of a few microseconds each. The step is captured once as a CUDA
graph and replayed, which needs fixed addresses: keys and values in a cache of fixed size, the adapter merged into its
own buffers, finished rows kept as padding and counted on the device. Rows and lengths are rounded up, so that few
graphs are kept. `InProcess` uses this on CUDA; elsewhere nothing is captured, and the steps give the same lines as
`sampling.sample`, which is how they are tested.

Whether a model allows it is tested once, on a few tokens, against the eager writer.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import StaticLayer

from humor_env.agents.student.forward import nearly_equal
from humor_env.agents.student.sampling import (
    Decoding,
    Generation,
    Sampling,
    as_generation,
    choose,
    encode_all,
    most_new_tokens,
    no_lines,
)
from humor_env.agents.student.shared_prompts import unique_prompts
from humor_env.agents.student.student import POLICY, Student
from humor_env.agents.student.transfers import capture_stream, current, read, send
from humor_env.errors import StudentError
from humor_env.shared.precision import memory_is_full

ASK_EVERY = 8  # steps between checks whether all rows have finished
KEPT = 4  # number of tables kept, each with its graph
COLUMNS = 32  # lengths are rounded up to a multiple of this


def rounded_rows(rows: int) -> int:
    """Round up to a power of two, from 64 on to a multiple of 64."""
    return -(-rows // 64) * 64 if rows > 64 else 1 << (rows - 1).bit_length()


def rounded_columns(columns: int) -> int:
    return -(-columns // COLUMNS) * COLUMNS


class StaticWriter:
    """A `writer.Backend`. Tables are made on first use, and the least recently used ones are dropped."""

    exact = True

    def __init__(self, student: Student) -> None:
        why_not = unsuitable(student)
        if why_not:
            raise StudentError(
                f"The student's model ({type(student.base).__name__}) cannot generate in captured steps: {why_not}. "
                "Use InProcess(student) instead, which works for any model."
            )
        self.student = student
        self._buffers: list[Tensor] = []  # for the merged weights, at the addresses that the graphs read
        self._tables: OrderedDict[tuple[Any, ...], _Table] = OrderedDict()
        self._owners: list[dict[str, Any]] = []  # of all weights: walking through the modules takes longer than steps
        self._replaceable: tuple[Any, ...] = (None, None)
        self._places: list[int] = []  # where the weights were that the tables' graphs read

    @torch.no_grad()
    def generate(
        self,
        observations: Sequence[str],
        sampling: Sampling,
        uniforms: Tensor,
        *,
        adapter: str | None = POLICY,
        values: bool = False,
    ) -> Generation:
        if not observations:
            return no_lines(values)
        prompts = encode_all(self.student, observations)
        if not self._buffers:
            self._buffers = [torch.empty_like(layer.get_base_layer().weight) for layer in self.student.lora_layers]
        with current(self.student.device), self.student.merged(adapter, self._buffers):
            outputs = self._write(prompts, sampling, uniforms, values)
        if self.student.static_writing:  # a capture failed, and none will be tried again
            self.close()
        return as_generation(self.student, prompts, *outputs)

    def refresh(self) -> None:
        """Nothing to do: weights are merged on every call."""

    def close(self) -> None:
        """Free the memory; a later call allocates it again."""
        self._tables.clear()
        self._buffers = []

    def _write(
        self, prompts: list[list[int]], sampling: Sampling, uniforms: Tensor, values: bool
    ) -> tuple[list[list[int]], list[str], Tensor, Tensor | None]:
        student = self.student
        limit = most_new_tokens(student, prompts, sampling, uniforms)
        unique, group = unique_prompts(prompts)
        decoding = Decoding(student, unique)
        hidden, logits = decoding.advance(decoding.first_input)
        table = self._table(len(prompts), decoding, sampling, values)
        table.begin(decoding, group, uniforms)
        graphs = (kept.graph for kept in self._tables.values() if kept.graph is not None)
        table.write(hidden, logits, limit, next((graph.pool() for graph in graphs), None))
        return table.read(len(prompts), limit)

    def _table(self, rows: int, decoding: Decoding, sampling: Sampling, values: bool) -> _Table:
        past, source = _past(decoding)
        shape = (rounded_rows(rows), rounded_columns(past + sampling.max_new_tokens), rounded_columns(source))
        key = (*shape, sampling, values)
        replaceable = (self.student.value_head, self.student.base.get_output_embeddings())
        if any(now is not before for now, before in zip(replaceable, self._replaceable, strict=True)):
            modules = (m for whole in (self.student.base, self.student.value_head) for m in whole.modules())
            self._owners = [own for module in modules for own in (module._parameters, module._buffers) if own]
            self._replaceable = replaceable
        places = [tensor.data_ptr() for own in self._owners for tensor in own.values() if tensor is not None]
        if places != self._places:  # weights that are trained move to memory of their own
            self._tables.clear()
            self._places = places
        if key not in self._tables:
            while len(self._tables) >= KEPT:
                self._tables.popitem(last=False)
            self._tables[key] = _Table(self.student, *shape, sampling, values, decoding)
        self._tables.move_to_end(key)
        return self._tables[key]


class _Layer(StaticLayer):
    """Keys and values of one layer. Where the next ones go is counted by the step, once for all layers."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.cumulative_length[None], key_states)
        self.values.index_copy_(2, self.cumulative_length[None], value_states)
        return self.keys, self.values


class _Table:
    """All tensors that a step reads and writes, for a fixed number of rows, columns of keys and values, and (with an
    encoder) source columns. Unused rows are copies of the first, marked as finished."""

    def __init__(
        self,
        student: Student,
        rows: int,
        columns: int,
        source: int,
        sampling: Sampling,
        values: bool,
        like: Decoding,
    ) -> None:
        self.student, self.sampling, self.rows = student, sampling, rows
        device, new = student.device, sampling.max_new_tokens
        own, cross = _halves(like.cache)
        self.cache = StaticCache(config=student.base.config.get_text_config(decoder=True), max_cache_len=columns)
        self.cache.layers = [_Layer(columns) for _ in self.cache.layers]
        self.layers: list[Any] = list(self.cache.layers)
        self.column = torch.zeros(1, dtype=torch.long, device=device)  # of the token that is fed next
        for mine, theirs in zip(self.layers, own, strict=True):
            shape = (rows, theirs.keys.shape[1], 0)
            mine.lazy_initialization(
                theirs.keys.new_empty(*shape, theirs.keys.shape[-1]),
                theirs.values.new_empty(*shape, theirs.values.shape[-1]),
            )
            mine.cumulative_length = self.column[0]
        self.past: StaticCache | EncoderDecoderCache = self.cache
        self.encoded: Tensor | None = None
        if cross is not None:
            assert like.encoded is not None
            cross_cache = DynamicCache(config=student.base.config.get_text_config(decoder=True))
            for index, layer in enumerate(cross):
                shape = (rows, layer.keys.shape[1], source)
                cross_cache.update(
                    layer.keys.new_zeros(*shape, layer.keys.shape[-1]),
                    layer.values.new_zeros(*shape, layer.values.shape[-1]),
                    index,
                )
            self.past = EncoderDecoderCache(self.cache, cross_cache)
            self.cross_layers: list[Any] = list(cross_cache.layers)
            self.encoded = like.encoded.new_zeros(rows, source, like.encoded.shape[-1])  # only its shape is used

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        # Masks are added to scores: about plain ones transformers asks, and Booleans are converted in each layer.
        self.mask = zeros(rows, 1, 1, columns, dtype=own[0].keys.dtype)
        self.source_mask = zeros(rows, 1, 1, source, dtype=own[0].keys.dtype)
        self.unseen = torch.finfo(own[0].keys.dtype).min
        self.count = zeros(1)  # number of tokens of each row so far
        self.token = zeros(rows, 1)
        self.position = zeros(rows, 1)
        self.ended = zeros(rows, dtype=torch.bool)
        self.idle = zeros(rows)  # tokens of each row after its end
        self.uniforms = zeros(rows, new, dtype=torch.float32)
        self.written = zeros(rows, new)
        self.logprobs = zeros(rows, new, dtype=torch.float32)
        self.values = zeros(rows, new, dtype=torch.float32) if values else None
        [self.ends] = send(device, torch.tensor(student.end_tokens))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.states: Tensor | None = None  # where a replayed step leaves its states

    def begin(self, decoding: Decoding, group: Sequence[int], uniforms: Tensor) -> None:
        """Take over the state after the prompts; `group[i]` is the prompt of row i."""
        count = len(group)
        [self.group] = send(self.student.device, torch.tensor([*group, *[group[0]] * (self.rows - count)]))
        own, cross = _halves(decoding.cache)
        past, source = _past(decoding)
        for mine, theirs in zip(self.layers, own, strict=True):
            mine.keys[:, :, :past].copy_(theirs.keys[self.group])
            mine.values[:, :, :past].copy_(theirs.values[self.group])
        self.column.fill_(past)
        self.mask.fill_(self.unseen)
        if cross is None:
            attention = decoding.attention[self.group, :past]
            self.mask[:, 0, 0, :past].masked_fill_(attention.bool(), 0.0)
            self.position.copy_(attention.sum(-1, keepdim=True))
        else:
            for mine, theirs in zip(self.cross_layers, cross, strict=True):
                mine.keys[:, :, :source].copy_(theirs.keys[self.group])
                mine.values[:, :, :source].copy_(theirs.values[self.group])
            self.source_mask.fill_(self.unseen)
            self.source_mask[:, 0, 0, :source].masked_fill_(decoding.attention[self.group].bool(), 0.0)
            self.mask[..., :past] = 0.0
        self.count.zero_()
        self.uniforms.zero_()
        self.uniforms[:count] = send(
            self.student.device, uniforms[:, : self.uniforms.shape[1]].to(self.uniforms.dtype)
        )[0]
        self.ended.zero_()
        self.ended[count:] = True
        self.idle.zero_()

    def write(self, hidden: Tensor, logits: Tensor, limit: int, pool: Any = None) -> None:
        """`pool` is the memory of graphs that were captured before. Each replay begins anew, so they can share it."""
        self.choose(hidden[self.group], logits[self.group])
        if captures(self.student) and not self.student.static_writing and self.graph is None and limit > 1:
            try:
                self.capture(pool)
            except RuntimeError as problem:
                if memory_is_full(problem):
                    raise
                _decide(self.student, f"capturing its step failed ({str(problem)[:120]})")
        for done in range(1, limit):
            if done % ASK_EVERY == 0 and bool(self.ended.all()):
                break
            self.go_on()

    def go_on(self) -> Tensor:
        """Take a step, replayed if one was captured."""
        if self.graph is None:
            return self.step()
        self.graph.replay()
        assert self.states is not None
        return self.states

    def step(self) -> Tensor:
        """One more token for every row. No control flow here depends on tensor values."""
        # Unmask the token being fed, whose key and value come after all existing ones.
        self.mask.index_fill_(3, self.column, 0.0)
        inputs: dict[str, Any] = {"past_key_values": self.past, "use_cache": True}
        if self.encoded is None:
            inputs |= {"input_ids": self.token, "attention_mask": self.mask, "position_ids": self.position}
        else:
            inputs |= {
                "decoder_input_ids": self.token,
                "decoder_attention_mask": self.mask,
                "attention_mask": self.source_mask,
                "encoder_outputs": (self.encoded,),
            }
        passes = self.student.passes
        assert passes.backbone is not None
        hidden = passes.backbone(**inputs).last_hidden_state[:, -1]
        self.column += 1
        if self.encoded is None:
            self.position += 1
        self.choose(hidden, passes.logits(hidden).float())
        return hidden

    def choose(self, hidden: Tensor, logits: Tensor) -> None:
        chosen, logprobs = choose(logits, self.uniforms.index_select(1, self.count).squeeze(1), self.sampling)
        self.written.index_copy_(1, self.count, chosen[:, None])
        self.logprobs.index_copy_(1, self.count, logprobs[:, None])
        if self.values is not None:
            self.values.index_copy_(1, self.count, self.student.value_head(hidden)[:, None])
        self.idle += self.ended
        self.ended |= (chosen[:, None] == self.ends).any(-1)  # not isin, which sorts where there are many
        self.token.copy_(chosen[:, None])
        self.count += 1

    def read(self, count: int, limit: int) -> tuple[list[list[int]], list[str], Tensor, Tensor | None]:
        live = self.count - self.idle[:count]
        length, response_tokens, ended = read(live, self.written[:count], self.ended[:count])
        lengths = length.tolist()
        responses = [row[:n] for row, n in zip(response_tokens.tolist(), lengths, strict=True)]
        stops = ["end" if e else "length" for e in ended.tolist()]
        width = min(limit, max(lengths))
        shown = torch.arange(width, device=live.device) < live[:, None]
        values = None if self.values is None else self.values[:count, :width].where(shown, 0.0)
        return responses, stops, self.logprobs[:count, :width].where(shown, 0.0), values

    def capture(self, pool: Any = None) -> None:
        """Capture a step. Changes by the warm-up steps before it are undone; what they write is written again."""
        changed = [self.column, self.count, self.token, self.position, self.ended, self.idle]
        originals = [tensor.clone() for tensor in changed]

        def put_back() -> None:
            for tensor, value in zip(changed, originals, strict=True):
                tensor.copy_(value)

        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        side = capture_stream(self.student.device)
        side.wait_stream(before)
        try:
            try:
                with torch.cuda.stream(side):
                    for _ in range(2):
                        self.step()
                        put_back()
            finally:
                before.wait_stream(side)
            # A critic in another thread may use the GPU meanwhile: only this thread's calls can spoil the capture.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                self.states = self.step()
        finally:
            torch.cuda.set_stream(before)  # where a capture fails, torch leaves its own stream in place
            put_back()
        self.graph = graph


def _halves(cache: DynamicCache | EncoderDecoderCache) -> tuple[list[Any], list[Any] | None]:
    """The cache layers of a decoder's own keys and values, and those of the encoder's states, if any."""
    if isinstance(cache, EncoderDecoderCache):
        return list(cache.self_attention_cache.layers), list(cache.cross_attention_cache.layers)
    return list(cache.layers), None


def _past(decoding: Decoding) -> tuple[int, int]:
    """Number of columns before the first new token, and number of columns the encoder read."""
    own, cross = _halves(decoding.cache)
    return int(own[0].keys.shape[2]), 0 if cross is None else int(cross[0].keys.shape[2])


def unsuitable(student: Student) -> str:
    """Why a model cannot generate in captured steps; empty if it can. Tested once per student."""
    if student.static_writing is None:
        _decide(student, _why_not(student))
    return student.static_writing or ""


def _decide(student: Student, why_not: str) -> None:
    student.static_writing = why_not
    if why_not and captures(student):
        slow = "This model's lines are written several times slower than in captured steps"
        warnings.warn(f"{slow}: {why_not}.", stacklevel=3)


def captures(student: Student) -> bool:
    return student.device.type == "cuda"


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """Whatever waits for the GPU is an error here. In a capture it would be one that leaves CUDA half captured."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@torch.no_grad()
def _why_not(student: Student) -> str:
    if student.passes.backbone is None:
        return "it changes its logits after the output layer"
    config = student.base.config.get_text_config(decoder=True)
    if any(type(layer) is not StaticLayer for layer in StaticCache(config=config, max_cache_len=COLUMNS).layers):
        return "its cache is more than the keys and values of all its tokens"
    end = student.end_token
    prompts = [[end, 0, end, 1, end], [1, end], [0, 1, end]]
    uniforms = torch.tensor([[0.3, 0.6, 0.2, 0.9, 0.5]] * len(prompts))
    sampling = Sampling(max_new_tokens=5)
    with current(student.device), student.using(None):
        try:
            decoding = Decoding(student, prompts)
            hidden, logits = decoding.advance(decoding.first_input)
            past, source = _past(decoding)
            shape = (4, rounded_columns(past + 5), rounded_columns(source))
            table = _Table(student, *shape, sampling, values=False, like=decoding)
            table.begin(decoding, [0, 1, 2], uniforms)
            table.choose(hidden[table.group], logits[table.group])
            for step in range(4):
                if captures(student) and step == 2:
                    table.capture()
                expected, _ = decoding.advance(table.token[:3].clone())
                with _without_waiting() if captures(student) and step == 1 else contextlib.nullcontext():
                    states = table.go_on()[:3]
                if not nearly_equal(states, expected):
                    return "its step in a cache of fixed size gives different states"
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError) as problem:
            if memory_is_full(problem):
                raise
            return f"its step in a cache of fixed size fails ({type(problem).__name__}: {str(problem)[:120]})"
    return ""
