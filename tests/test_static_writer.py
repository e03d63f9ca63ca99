"""Captured steps, uncaptured: on a CPU they must give the eager writer's lines, token for token."""

import contextlib
import copy
import dataclasses
import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from test_device_reads import Asked
from tiny import letters_critic, prompts, stir, student, tokenizer, vector_env
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from humor_env import pocket
from humor_env.agents import ppo
from humor_env.agents.session.checkpoint import CheckpointStore
from humor_env.agents.student import POLICY, Lora, Student, transfers, writer
from humor_env.agents.student import static_writer as written_statically
from humor_env.agents.student.sampling import Sampling, draw_uniforms, sample
from humor_env.agents.student.static_writer import StaticWriter
from humor_env.errors import StudentError
from humor_env.shared import frozen_weights

TEXTS = ["The meeting was slow.", "My soup", "A much longer sentence about the meeting.", "My soup"]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = ["pocket-causal", "pocket-seq2seq", "llama", "qwen2", "gpt2", "bart"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def qwen2(words):
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=words, num_key_value_heads=2, use_sliding_window=False, **SHAPE, **IDS)
    )


def gpt2(words):
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=32, n_layer=2, n_head=4, n_positions=128, **IDS))


def make(name):
    if name.startswith("pocket-"):
        one = Student.load(pocket.path(name.removeprefix("pocket-")), dtype=torch.float32)
    elif name in ("llama", "bart"):
        one = student({"llama": "causal", "bart": "seq2seq"}[name])
    else:
        torch.manual_seed(0)
        words = tokenizer()
        one = Student({"qwen2": qwen2, "gpt2": gpt2}[name](len(words)), words, lora=Lora(rank=4, alpha=8))
    if not name.startswith("pocket-"):
        one.end_tokens = tuple(range(2, 30))  # so that lines end now and then
    stir(one, POLICY, size=0.05)
    torch.nn.init.normal_(one.value_head.out.weight, generator=torch.Generator().manual_seed(0))
    return one


def both(one, texts, sampling, writer=None, seed=0):
    uniforms = draw_uniforms(len(texts), sampling.max_new_tokens, torch.Generator().manual_seed(seed))
    eager = sample(one, texts, sampling, uniforms=uniforms, values=True)
    return eager, (writer or StaticWriter(one)).generate(texts, sampling, uniforms, values=True)


def assert_same(eager, static):
    assert static.responses == eager.responses
    assert (static.prompts, static.texts, static.stop_reasons) == (eager.prompts, eager.texts, eager.stop_reasons)
    assert torch.allclose(static.logprobs, eager.logprobs, atol=1e-5)
    assert torch.allclose(static.values, eager.values, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_lines_are_those_of_the_eager_writer(name):
    one = make(name)
    texts = [*TEXTS, *TEXTS[:2]]  # siblings, and rows that the table rounds up
    eager, static = both(one, texts, Sampling(max_new_tokens=20))
    assert_same(eager, static)
    assert len({len(r) for r in eager.responses}) > 1 and "end" in eager.stop_reasons  # some ended before others


def test_one_writer_writes_any_batch_with_any_weights():
    """A table is used again: nothing of the lines before may be left in it, nor of the adapter before."""
    one = make("llama")
    writer, short = StaticWriter(one), Sampling(max_new_tokens=8)
    assert_same(*both(one, TEXTS, short, writer))
    stir(one, POLICY, seed=5)
    assert_same(*both(one, TEXTS[:3], short, writer, seed=1))
    assert_same(*both(one, TEXTS[1:2], short, writer, seed=2))
    assert_same(*both(one, ["x", "y", "z"], short, writer, seed=3))  # shorter prompts, the same table
    for other in (Sampling(max_new_tokens=8, temperature=0.0), Sampling(max_new_tokens=8, top_p=0.6, top_k=5)):
        assert_same(*both(one, TEXTS, other, writer))
    raw = writer.generate(TEXTS, short, torch.full((4, 8), 0.5), adapter=None)
    assert raw.responses == sample(one, TEXTS, short, uniforms=torch.full((4, 8), 0.5), adapter=None).responses
    assert len(writer._tables) <= written_statically.KEPT
    assert one.active == POLICY


def test_the_context_bounds_a_line():
    one = make("llama")
    long = ["slow " * 30, "x"]
    eager, static = both(one, long, Sampling(max_new_tokens=120))
    assert max(map(len, eager.responses)) < 120
    assert_same(eager, static)


def test_a_common_instruction_is_read_once_here_too():
    one = make("llama")
    one.instruction = "Rewrite the sentence so that it is funny. "
    assert_same(*both(one, [*TEXTS, "x"], Sampling(max_new_tokens=10)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_asks_the_device_nothing(name, monkeypatch):
    """A question at every token made a GPU wait, and a captured step cannot ask at all: no encoder-decoder was ever
    captured, since transformers asked whether the source's mask hides anything."""
    one = make(name)
    steps = []
    real_step = written_statically._Table.step

    def step(table):
        with Asked() as asked:
            hidden = real_step(table)
        steps.append(dict(asked.counts))
        return hidden

    monkeypatch.setattr(written_statically._Table, "step", step)
    for more in ({}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.6}):
        StaticWriter(one).generate(TEXTS, Sampling(max_new_tokens=4, **more), torch.zeros(4, 4))
    assert len(steps) > 8 and not any(steps)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_table_is_dropped_when_the_weights_have_moved(name):
    """Imitation of all weights gives those that models share on a GPU a memory of their own. A graph captured before
    went on reading from the old one, which was freed."""
    one = make(name)
    writer, short = StaticWriter(one), Sampling(max_new_tokens=4)
    tables = []
    for moves in (False, False, True):
        if moves:
            weights = [p for n, p in one.base.named_parameters() if "lora_" not in n]
            for weight in weights:
                setattr(weight, frozen_weights._HELD, weight.data)  # as share_weights does on a GPU
            one.train_only(weights)
            with torch.no_grad():
                one.base.get_input_embeddings().weight.mul_(1.5)
        assert_same(*both(one, TEXTS, short, writer))
        tables += writer._tables.values()
    assert tables[0] is tables[1] and tables[1] is not tables[2] and len(tables) == 3


def test_a_table_is_dropped_when_the_value_head_is_another():
    one = make("llama")
    writer, short = StaticWriter(one), Sampling(max_new_tokens=4)
    tables = []
    for replaced in (False, False, True):
        if replaced:
            one.value_head = copy.deepcopy(one.value_head)
            torch.nn.init.normal_(one.value_head.out.weight)
        assert_same(*both(one, TEXTS, short, writer))
        tables += writer._tables.values()
    assert tables[0] is tables[1] and tables[1] is not tables[2] and len(tables) == 3


def test_a_model_with_a_sliding_window_is_refused_in_a_sentence():
    words = tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=len(words), num_key_value_heads=2, sliding_window=8, **SHAPE, **IDS)
    one = Student(MistralForCausalLM(config), words, lora=Lora(rank=4, alpha=8))
    with pytest.raises(StudentError, match=r"MistralForCausalLM\) cannot generate in captured steps.*InProcess"):
        StaticWriter(one)


def test_a_model_whose_step_comes_out_otherwise_is_refused(monkeypatch):
    one = make("llama")
    for parameter in one.base.parameters():
        parameter.data.mul_(4)  # a random model hardly looks at positions
    real = written_statically._Table.step

    def off_by_one(table):
        table.position += 1
        return real(table)

    monkeypatch.setattr(written_statically._Table, "step", off_by_one)
    with pytest.raises(StudentError, match="different states"):
        StaticWriter(one)


def test_a_run_resumes_bit_for_bit(tmp_path):
    def learn(folder, steps_first):
        config = ppo.PPOConfig(steps=3, batch_size=8, sampling=Sampling(max_new_tokens=6), checkpoint_every=1)
        one = make("llama")
        one.start_policy_from_imitation()
        for steps in (steps_first, 3):
            one = make("llama")
            one.start_policy_from_imitation()
            ppo.train(
                dataclasses.replace(config, steps=steps),
                vector_env(8, letters_critic()),
                one,
                prompts=prompts(),
                checkpoints=CheckpointStore(folder),
                backend=StaticWriter(one),
            )
        return one.state()

    whole, resumed = learn(tmp_path / "whole", 3), learn(tmp_path / "resumed", 1)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_student_that_is_closed_is_freed_with_its_last_use():
    """Of two seeds the second would else find the first one's student still in memory."""
    one = make("llama")
    one.static_writer = StaticWriter(one)
    one.static_writer.generate(["The soup was cold."], Sampling(max_new_tokens=2), torch.rand(1, 2))
    gc.collect()
    gc.disable()
    try:
        one.close()
        there = weakref.ref(one)
        del one
        assert there() is None
    finally:
        gc.enable()


def test_a_model_that_writes_slowly_on_a_gpu_is_named_once(monkeypatch):
    monkeypatch.setattr(written_statically, "_why_not", lambda student: "it is odd")
    one = SimpleNamespace(device=torch.device("cuda"), static_writing=None)
    with pytest.warns(UserWarning, match="several times slower than in captured steps: it is odd"):
        assert written_statically.unsuitable(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert written_statically.unsuitable(one)


@pytest.mark.parametrize(
    ("device", "why_not", "by"), [("cuda", "", "captured"), ("cuda", "it is odd", "eager"), ("cpu", "", "eager")]
)
def test_only_on_cuda_and_only_a_suitable_model_is_captured_once(device, why_not, by, monkeypatch):
    made = []

    class Captured:
        def __init__(self, student):
            made.append(student)

        def generate(self, *arguments, **options):
            return "captured"

    monkeypatch.setattr(writer, "StaticWriter", Captured)
    monkeypatch.setattr(writer, "unsuitable", lambda student: why_not)
    monkeypatch.setattr(writer, "sample", lambda *arguments, **options: "eager")
    one = SimpleNamespace(device=torch.device(device), static_writer=None)
    for _ in range(2):  # a backend is made for many a call; the table is kept with the student
        assert writer.InProcess(one).generate(["x"], Sampling(), torch.zeros(1, 1)) == by
    assert len(made) == (by == "captured")


class PretendedCapture:
    """torch.cuda for a machine without a GPU: a captured step runs at once, and each replay runs it again."""

    def __init__(self, patch):
        self.fails: Exception | None = None
        self.devices, self.pools, self.replays, self.tables = [], [], 0, []
        self.now = None
        pretended = self
        whole = written_statically._Table.step

        class Graph:
            def replay(self):
                assert pretended.now == torch.device("cuda:1")
                pretended.replays += 1
                self.table.step()

            def pool(self):
                return self.tag

        @contextlib.contextmanager
        def capturing(graph, *, pool=None, stream, capture_error_mode):
            assert stream == ("stream", torch.device("cuda:1")) and capture_error_mode == "thread_local"
            pretended.devices.append(pretended.now)
            pretended.pools.append(pool)
            yield
            if pretended.fails:
                raise pretended.fails
            graph.table, graph.tag = pretended.tables[-1], pool or f"pool {len(pretended.pools)}"

        @contextlib.contextmanager
        def entered(device):
            before, pretended.now = pretended.now, torch.device("cuda:1")
            yield
            pretended.now = before

        def step(table):
            pretended.tables.append(table)
            return whole(table)

        patch.setattr(written_statically._Table, "step", step)
        patch.setattr(written_statically, "captures", lambda student: True)
        patch.setattr(written_statically, "current", entered)
        patch.setattr(written_statically, "capture_stream", lambda device: Stream(("stream", torch.device("cuda:1"))))
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capturing)
        patch.setattr(torch.cuda, "current_stream", lambda: Stream("current"))
        patch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        patch.setattr(torch.cuda, "set_stream", lambda stream: None)


class Stream:
    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return self.name == other

    def wait_stream(self, other):
        pass


@pytest.fixture
def pretended(monkeypatch):
    return PretendedCapture(monkeypatch)


def on_a_gpu(name):
    """A student of the CPU whose model was found suitable."""
    one = make(name)
    one.static_writing = ""
    return one


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_captured_step_is_replayed_on_the_students_device_from_one_pool(name, pretended):
    """With device = "cuda:1" the capture was on the current device, 0. And each table had a pool of its own."""
    one = on_a_gpu(name)
    writer = StaticWriter(one)
    for length in (6, 40, 6):
        assert_same(*both(one, TEXTS, Sampling(max_new_tokens=length), writer))
    assert pretended.devices == [torch.device("cuda:1")] * 2
    assert pretended.pools == [None, "pool 1"]
    assert pretended.replays > 15
    writer.close()
    assert_same(*both(one, TEXTS, Sampling(max_new_tokens=6), writer))
    assert pretended.pools == [None, "pool 1", None]  # a pool goes with its last graph


def test_a_line_that_ends_in_the_captured_step_keeps_its_last_token(pretended):
    """The steps that warm up before a capture write the same token: the row had then ended before it."""
    one = on_a_gpu("llama")
    first, second = sample(one, TEXTS, Sampling(max_new_tokens=2), uniforms=torch.full((4, 2), 0.4)).responses[0]
    one.end_tokens = (second,)
    assert first != second
    sampling, uniforms = Sampling(max_new_tokens=8), torch.full((4, 8), 0.4)
    eager = sample(one, TEXTS, sampling, uniforms=uniforms, values=True)
    assert eager.responses[0] == [first, second]
    assert_same(eager, StaticWriter(one).generate(TEXTS, sampling, uniforms, values=True))


def test_the_device_of_a_capture_is_the_students(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(device))
    with transfers.current(torch.device("cuda:1")) as device:
        assert device == torch.device("cuda:1")
    with transfers.current(torch.device("cpu")) as device:
        assert device is None


def test_a_capture_that_fails_is_named_once_and_the_lines_are_written_without(pretended):
    """Another program may hold the memory that a graph needs, or a driver be too old: the run ended there."""
    one = on_a_gpu("llama")
    writer, pretended.fails = StaticWriter(one), RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(UserWarning, match=r"written several times slower.*capturing its step failed.*not permitted"):
        assert_same(*both(one, TEXTS, Sampling(max_new_tokens=6), writer))
    assert not writer._tables and "not permitted" in written_statically.unsuitable(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(*both(one, TEXTS, Sampling(max_new_tokens=40), writer))
    assert len(pretended.pools) == 1 and not pretended.replays


def test_where_memory_runs_out_no_model_is_blamed(pretended, monkeypatch):
    one = on_a_gpu("llama")
    pretended.fails = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        both(one, TEXTS, Sampling(max_new_tokens=6), StaticWriter(one))
    assert one.static_writing == ""
    one.static_writing = None

    def full(table):
        raise pretended.fails

    monkeypatch.setattr(written_statically._Table, "step", full)
    for problem in (pretended.fails, RuntimeError("CUDA error: out of memory")):
        pretended.fails = problem
        with pytest.raises(RuntimeError, match="out of memory"):
            written_statically._why_not(one)
