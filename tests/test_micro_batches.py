"""`micro_batch = "auto"`: whose it is, the rows of an update, the longest row, and where the number goes."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from tiny import student

from humor_env.agents.sft import SFTConfig
from humor_env.agents.student.sampling import Sampling
from humor_env.experiments.runs import micro_batches
from humor_env.experiments.runs.micro_batches import (
    _expected,
    _learners,
    _longest,
    _parts_of,
    _row_length,
    choose,
    memory_sentences,
    with_numbers,
)
from humor_env.experiments.specs.spec import EnvSpec, parse_spec
from humor_env.prompts import PromptSet
from humor_env.types import Demonstration, Preference, Prompt

PROMPTS = PromptSet("some", [Prompt("a", "ab"), Prompt("b", "abcdefg"), Prompt("t", "x" * 50, split="test")])
DEMONSTRATIONS = (Demonstration(Prompt("a", "ab"), "xyz", "t"),)
PREFERENCES = (Preference(Prompt("a", "ab"), "x", "xyzuv", 1.0, "t"),)


def parts(*, demonstrations=(), preferences=(), attempts=None, groups=1, spec=None):
    env = EnvSpec(groups=groups)
    return SimpleNamespace(
        prompts=PROMPTS,
        demonstrations=demonstrations,
        preferences=preferences,
        env_options={"attempts": attempts} if attempts else {},
        spec=spec or SimpleNamespace(env=env),
    )


class Letters:
    """A student that reads a token a letter, and one more of a prompt and two of a line."""

    device = torch.device("cpu")

    def encode_prompt(self, text):
        return [0] * (len(text) + 1)

    def encode_response(self, text):
        return [0] * (len(text) + 2)


@pytest.mark.parametrize(
    ("made", "sampling", "length"),
    [
        (parts(demonstrations=DEMONSTRATIONS), None, (8, 5)),
        (parts(preferences=PREFERENCES), None, (8, 7)),
        (parts(demonstrations=DEMONSTRATIONS, preferences=PREFERENCES), None, (8, 7)),
        (parts(), None, (8, 1)),
        (parts(demonstrations=DEMONSTRATIONS), Sampling(max_new_tokens=4), (8, 5)),
        (parts(demonstrations=DEMONSTRATIONS), Sampling(max_new_tokens=9), (8, 9)),
        # A third attempt is shown two lines of nine tokens.
        (parts(attempts=3), Sampling(max_new_tokens=9), (8 + 18, 9)),
        (parts(attempts=3, demonstrations=DEMONSTRATIONS), None, (8, 5)),
    ],
)
def test_the_longest_row(made, sampling, length):
    found = _row_length(sampling, made, Letters())
    assert (found.prompt, found.response) == length


def test_only_the_longest_texts_are_read():
    texts = ["x" * n for n in range(1, 21)]
    assert _longest([*texts, *texts]) == texts[4:]
    assert _longest(["bb", "a"]) == ["a", "bb"]


@dataclass
class OnLines:
    batch_size: int = 12
    micro_batch: int | str = 3
    minibatches: int = 2
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=6))


@dataclass
class Pairs:
    micro_batch: int = 5
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=6))


@dataclass
class OnPairs:
    batch_size: int = 12
    micro_batch: int | str = "auto"
    pairs: Pairs = field(default_factory=Pairs)


@dataclass
class Both:
    steps: int = 1
    brio: OnLines = field(default_factory=OnLines)
    dpo: OnPairs = field(default_factory=OnPairs)
    kind: str = "x"


@pytest.mark.parametrize(
    ("config", "groups", "processes", "most", "written", "full"),
    [
        (OnLines(), 1, 1, 6, 12, False),
        (OnLines(), 3, 1, 6, 4, False),
        (OnLines(), 1, 2, 3, 6, False),
        (OnLines(batch_size=1), 1, 2, 1, 1, False),
        (OnPairs(), 3, 1, 24, 5, False),  # two rows a pair; pairs are written by their own micro-batch
        (SFTConfig(batch_size=7, micro_batch=2), 1, 1, 7, 0, False),
        (SFTConfig(batch_size=7, micro_batch=2, full=True), 1, 1, 7, 0, True),
    ],
)
def test_the_rows_of_an_update_and_those_that_are_written(config, groups, processes, most, written, full, monkeypatch):
    monkeypatch.setattr(micro_batches, "process_count", lambda: processes)
    asked = []
    monkeypatch.setattr(micro_batches, "step_memory", lambda *a, **o: asked.append((a[1], o)))
    found = _expected(config, parts(groups=groups, demonstrations=DEMONSTRATIONS), Letters())
    assert (found.most, found.micro_batch) == (most, config.micro_batch)
    [(length, options)] = asked
    assert options == {"rows": written, "full": full}
    assert (length.prompt, length.response) == (8, 5 if isinstance(config, SFTConfig) else 6)


def test_settings_with_a_micro_batch_have_their_tables_name():
    both = Both()
    assert list(_parts_of("learner", both)) == [("learner.brio", both.brio), ("learner.dpo", both.dpo)]
    one = OnLines()
    assert list(_parts_of("learner", one)) == [("learner", one)]


def a_spec(learner="ppo", *overrides, teacher=True):
    text = f'seeds = [4]\n[[critic]]\ncritic = "rules"\n[learner]\nname = "{learner}"\n'
    return parse_spec(text + ("[teacher]\n" if teacher else ""), overrides)


def test_the_warm_start_comes_first_and_trl_is_left_out():
    found = list(_learners(a_spec()))
    assert [place for place, _ in found] == ["teacher.imitation", "learner"]
    assert [config.seed for _, config in found] == [4, 4]
    assert isinstance(found[0][1], SFTConfig)
    assert [place for place, _ in _learners(a_spec(teacher=False))] == ["learner"]
    trl = SimpleNamespace(imitates=False, learner_name="trl-grpo")
    assert list(_learners(trl)) == []


def test_numbers_go_where_they_were_auto():
    spec = a_spec("ppo", "learner.micro_batch=auto", "teacher.imitation.micro_batch=auto")
    new = with_numbers(spec, {"learner.micro_batch": 8, "teacher.imitation.micro_batch": 2})
    assert (new.learner["micro_batch"], new.teacher.imitation["micro_batch"]) == (8, 2)
    assert (spec.learner["micro_batch"], spec.teacher.imitation["micro_batch"]) == ("auto", "auto")
    assert new.model_copy(update={"learner": spec.learner, "teacher": spec.teacher}) == spec
    assert with_numbers(spec, {}) == spec
    alone = a_spec("ppo", "learner.micro_batch=auto", teacher=False)
    assert with_numbers(alone, {"learner.micro_batch": 8}).teacher is None
    both = a_spec("brio-dpo", "learner.dpo.micro_batch=auto", teacher=False)
    assert with_numbers(both, {"learner.dpo.micro_batch": 4}).learner["dpo"]["micro_batch"] == 4


class Memory:
    """A row is a byte; weights are 100."""

    weights = 100

    def micro_batch_that_fits(self, free, most):
        return 99 if free is None else min(most, free)


def test_each_auto_gets_what_fits_and_the_least_of_all_processes(monkeypatch):
    expected = SimpleNamespace(memory=Memory(), most=64)
    monkeypatch.setattr(micro_batches, "_expected", lambda *_: expected)
    monkeypatch.setattr(micro_batches, "free_memory_of", lambda device: 32)
    monkeypatch.setattr(micro_batches, "gather_object", lambda mine: [*mine, {k: v // 2 for k, v in mine[0].items()}])
    spec = a_spec("ppo", "learner.micro_batch=auto", "teacher.imitation.micro_batch=2")
    assert choose(parts(spec=spec), Letters()) == {"learner.micro_batch": 16}
    spec = a_spec("ppo", "learner.micro_batch=1", "teacher.imitation.micro_batch=auto")
    assert choose(parts(spec=spec), Letters()) == {"teacher.imitation.micro_batch": 16}
    monkeypatch.setattr(micro_batches, "free_memory_of", lambda device: pytest.fail("nothing is auto"))
    assert (
        choose(parts(spec=a_spec("ppo", "learner.micro_batch=1", "teacher.imitation.micro_batch=2")), Letters()) == {}
    )


@pytest.mark.parametrize(
    ("micro_batch", "device", "free", "at_once", "advised"),
    [
        (8, "cpu", 150, 8, 0),
        (8, "cuda", 150, 8, 64),
        (99, "cuda", 150, 64, 64),
        ("auto", "cpu", 130, 30, 0),  # 100 bytes of it are the weights'
        ("auto", "cpu", None, 64, 0),
    ],
)
def test_a_sentence_for_each_learner(micro_batch, device, free, at_once, advised, monkeypatch):
    memory, asked = Memory(), []
    expected = SimpleNamespace(memory=memory, most=64, micro_batch=micro_batch)
    monkeypatch.setattr(micro_batches, "_expected", lambda *_: expected)
    monkeypatch.setattr(micro_batches, "in_a_sentence", lambda *a: asked.append(a) or "said")
    one = Letters()
    one.device = torch.device(device)
    assert memory_sentences(parts(spec=a_spec()), one, free) == ["teacher.imitation: said", "learner: said"]
    assert asked == [(memory, at_once, free, advised)] * 2


def test_a_real_student_is_measured():
    found = _expected(OnLines(), parts(demonstrations=DEMONSTRATIONS), student())
    assert found.memory.row > 0 and found.memory.writing > 0
