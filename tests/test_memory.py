"""How much memory a step takes: estimated, and held against what a real step allocates."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny import bart, letters_critic, llama, prompts, student, tokenizer, vector_env
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from humor_env import pocket
from humor_env.agents import dpo, ppo, sft
from humor_env.agents.session.memory import RowLength, StepMemory, in_a_sentence, step_memory
from humor_env.agents.student import IMITATION, Lora, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.errors import InvalidOption
from humor_env.experiments.runs import micro_batches
from humor_env.types import Demonstration, Preference


class Allocated(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there were."""

    def __init__(self, student):
        super().__init__()
        self.live, self._known = 0, set()
        for tensor in (*student.model.parameters(), *student.value_head.parameters()):
            self._add(tensor)
        self.weights = self.most = self.live

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.most = max(getattr(self, "most", 0), self.live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key, size):
        self._known.discard(key)
        self.live -= size


def wide(family):
    """A vocabulary of its own size, larger than what follows it: where logits decide."""
    words = tokenizer()
    model = llama(8000) if family == "causal" else bart(8000)
    return Student(model, words, lora=Lora(rank=4, alpha=8))


STUDENTS = {
    "tiny-causal": student,
    "tiny-seq2seq": lambda: student("seq2seq"),
    "tiny-wide": lambda: wide("causal"),
    "tiny-bfloat16": lambda: Student(llama(320).bfloat16(), tokenizer(), lora=Lora(rank=4, alpha=8)),
    "pocket-causal": lambda: Student.load(pocket.path("causal"), dtype=torch.float32),
    "pocket-seq2seq": lambda: Student.load(pocket.path("seq2seq"), dtype=torch.float32),
}
TOKENS = 24


def no_end(one):
    """Lines that go on to their limit, as long as the estimate expects them."""
    one.end_tokens = (-1,)
    return one


@pytest.mark.parametrize("micro_batch", [4, 32])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_step_takes_what_was_said(name, micro_batch):
    one = no_end(STUDENTS[name]())
    asked = prompts(32)
    length = RowLength(max(len(one.encode_prompt(p.text)) for p in asked), TOKENS)
    said = step_memory(one, length, rows=32)
    config = ppo.PPOConfig(
        steps=2, batch_size=32, micro_batch=micro_batch, sampling=Sampling(max_new_tokens=TOKENS), epochs=1
    )
    with Allocated(one) as allocated:
        ppo.train(config, vector_env(32, letters_critic(), count=32), one, prompts=asked)
    assert said.weights == allocated.weights
    found, expected = allocated.most, said.needed(micro_batch)
    assert found / 2 < expected < 2 * found


def test_the_student_is_left_as_it_was():
    one = student()
    one.activate(IMITATION)
    before = {n: p.requires_grad for n, p in one.model.named_parameters()}
    state = {n: t.clone() for n, t in one.state().items()}
    step_memory(one, RowLength(5, 6), rows=2)
    assert one.active == IMITATION
    assert {n: p.requires_grad for n, p in one.model.named_parameters()} == before
    assert all(p.grad is None for p in one.model.parameters())
    assert all(torch.equal(state[n], t) for n, t in one.state().items())


def test_rows_longer_than_the_context_are_cut_to_it():
    one = student()
    assert step_memory(one, RowLength(100, 500), rows=1) == step_memory(one, RowLength(100, 28), rows=1)
    assert step_memory(one, RowLength(900, 500), rows=1) == step_memory(one, RowLength(127, 1), rows=1)


def test_one_more_line_to_write_by_hand():
    """Its keys and values, its logits while a token is chosen, and the prompt's widest layer."""
    one = Student(llama(300), tokenizer())
    lengths = RowLength(10, 6)
    two, three = (step_memory(one, lengths, rows=rows).writing for rows in (2, 3))
    cache = 2 * 2 * 4 * 8 * 4 * 16  # keys and values, layers, heads, their size, bytes, tokens
    logits = 300 * (3 * 4 + 2 * 8)  # three tables in single precision, two in double
    prompt = 10 * 64 * 4  # its tokens in the widest layer
    assert three - two == cache + logits + prompt


MEMORY = StepMemory(weights=1000, training=200, writing=300, row=50, logits_row=10, logits_most=100)


def test_the_largest_power_of_two_that_fits():
    # 0.8 of what is free, less 200 for training: 16 rows take 16 * 50 + 100, 8 rows 8 * 50 + 80, 1 row 60
    assert MEMORY.needed(1) == 1000 + 200 + 300
    assert MEMORY.needed(8) == 1000 + 200 + 480
    assert MEMORY.micro_batch_that_fits(1375, most=64) == 16  # 900 of 900
    assert MEMORY.micro_batch_that_fits(1374, most=64) == 8
    assert MEMORY.micro_batch_that_fits(10**9, most=48) == 32
    assert MEMORY.micro_batch_that_fits(None, most=64) == 64
    assert MEMORY.micro_batch_that_fits(0, most=64) == 1


def test_what_is_said_of_it():
    assert in_a_sentence(MEMORY, 8, 10**9) == "about 0 MB with micro_batch 8; 1.0 GB are free"
    large = StepMemory(*(2_000_000 * n for n in (1000, 200, 300, 50, 10, 100)))
    assert (
        in_a_sentence(large, 8, None) == "about 3.4 GB with micro_batch 8; the free memory of this machine is unknown"
    )
    assert 'too little: micro_batch 2 fits ("auto" chooses it)' in in_a_sentence(large, 8, 3_050_000_000)
    assert "micro_batch 1 takes 3.0 GB: use a smaller student" in in_a_sentence(large, 8, 2_900_000_000)


def test_doctor_says_which_larger_micro_batch_fits_on_a_gpu(monkeypatch):
    """A small one was only said to fit, on a GPU that it left nearly idle."""
    large = StepMemory(*(2_000_000 * n for n in (1000, 200, 300, 50, 10, 100)))
    free = 10 * 10**9
    monkeypatch.setattr(micro_batches, "free_memory_of", lambda device: free - large.weights)

    def said(device, micro_batch, most=64):
        config = SimpleNamespace(micro_batch=micro_batch)
        monkeypatch.setattr(micro_batches, "_learners", lambda spec: [("learner", config)])
        monkeypatch.setattr(micro_batches, "_expected", lambda *_: micro_batches.Expected(large, most, micro_batch))
        parts, student = SimpleNamespace(spec=None), SimpleNamespace(device=torch.device(device))
        return micro_batches.memory_sentences(parts, student, free), micro_batches.choose(parts, student)

    # 0.8 of the 8 GB left by the weights, less 0.4 GB for training: 32 rows take 3.2 + 0.2 GB, 64 rows 6.6 GB.
    assert said("cuda", "auto")[1] == {"learner.micro_batch": 32}
    plain = "learner: about 3.4 GB with micro_batch 8; 10.0 GB are free"
    [sentence], _ = said("cuda", 8)
    assert sentence == f'{plain}: micro_batch 32 fits too ("auto" chooses it), which a GPU computes faster'
    for device, micro_batch, most in (("cpu", 8, 64), ("cuda", 8, 8), ("cuda", 8, 15), ("cuda", 64, 8)):
        assert said(device, micro_batch, most)[0] == [plain]
    assert "too" not in said("cuda", "auto")[0][0] and "too" not in said("cuda", 48)[0][0]


def test_auto_is_chosen_by_whoever_knows_student_and_prompts():
    with pytest.raises(
        InvalidOption, match=r"micro_batch must be a whole number of at least 1, or \"auto\"; found 'all'"
    ):
        ppo.PPOConfig(micro_batch="all")
    lines = [Demonstration(p, "So cold.", "t") for p in prompts()]
    pairs = [Preference(p, "So cold.", "Cold.", 1.0, "t") for p in prompts()]
    begun = {
        "ppo": lambda: ppo.train(
            ppo.PPOConfig(batch_size=8, micro_batch="auto"), vector_env(8), student(), prompts=prompts()
        ),
        "sft": lambda: sft.train(sft.SFTConfig(micro_batch="auto"), student(), lines),
        "dpo": lambda: dpo.train(dpo.DPOConfig(micro_batch="auto"), None, student(), preferences=pairs),
    }
    for begin in begun.values():
        with pytest.raises(InvalidOption, match=r"auto.*humor-env train"):
            begin()
