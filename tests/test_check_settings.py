"""The parts of the check of learners, each by itself: small settings, the critic that counts letters, and what is said
about runs that are made up here."""

import contextlib
import random
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch

from humor_env.agents.session.limits import RunControl
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import POLICY
from humor_env.errors import BudgetExceeded, InvalidOption, JudgingFailed
from humor_env.experiments.checking import trials
from humor_env.experiments.checking.learner import NO_CONTROL, Comparison, _listed
from humor_env.experiments.checking.settings import _places, _put, refusals, small_settings, with_everywhere
from humor_env.experiments.checking.trials import Asked, Cut, Feedback, Notebook, Trial, Trials
from humor_env.findings import Broken
from humor_env.types import Joke, Prompt


@dataclass(frozen=True)
class Pairs:
    candidates: int = 6
    length_filter: Literal["off", "on"] = "on"
    share: float | None = None  # neither a number nor known


@dataclass(frozen=True)
class Settings:
    steps: int = 100
    batch_size: int = 64
    micro_batch: int | None = None
    epochs: int = 1
    length_filter: Literal["off", "on"] = "on"
    rate: float = 0.1
    kind: str = "mean"
    pairs: Pairs = field(default_factory=Pairs)
    checkpoint_every: int = 10
    evaluate_every: int = 5
    seed: int = 0
    computed: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.kind not in ("mean", "sum"):
            raise InvalidOption("kind is mean or sum")
        if self.batch_size < 16 and self.batch_size != 12:
            raise ValueError("too small a batch")


def test_a_runs_length_is_made_small_as_far_as_the_learner_lets_it():
    """batch_size stays: this learner refuses 8. epochs is less than 2 already; micro_batch was None, and is set."""
    small = {
        "steps": 3,
        "micro_batch": 8,
        "epochs": 1,
        "length_filter": "off",
        "pairs": {"candidates": 3, "length_filter": "off"},
        "checkpoint_every": 1,
        "evaluate_every": 0,
    }
    assert small_settings(Settings, {}) == small
    given = {"batch_size": 12, "epochs": 5, "steps": 2, "pairs": {"candidates": 4}}
    assert small_settings(Settings, given) == small | {
        "batch_size": 12,
        "epochs": 5,
        "steps": 2,
        "pairs": {"candidates": 4, "length_filter": "off"},
    }
    assert given["pairs"] == {"candidates": 4}, "the caller's own table stays as it is"


def test_the_places_of_all_settings():
    assert [".".join(path) for path, _ in _places(Settings)] == [
        *("steps", "batch_size", "micro_batch", "epochs", "length_filter", "rate", "kind"),
        *("pairs.candidates", "pairs.length_filter", "checkpoint_every", "evaluate_every"),
    ]
    assert dict(_places(Settings))[("pairs", "candidates")] is int and dict(_places(Settings))[("kind",)] is str
    assert _put({"a": {"b": 1}, "c": 2}, ["a", "d"], 3) == {"a": {"b": 1, "d": 3}, "c": 2}
    assert _put({}, ["a", "d"], 3) == {"a": {"d": 3}} and _put({"a": 1}, ["a"], 2) == {"a": 2}
    changed = with_everywhere(Settings(), {"candidates": 2, "steps": 7, "more": 1})
    assert (changed.pairs.candidates, changed.steps, changed.epochs) == (2, 7, 1)


def test_a_value_out_of_range_is_refused_in_a_sentence_or_taken():
    with pytest.raises(Broken, match=r"batch_size = -1 ends in a traceback \(ValueError: too small a batch\)"):
        refusals(Settings, {})

    @dataclass(frozen=True)
    class Zero:
        rate: float = 0.1
        kind: str = "mean"

        def __post_init__(self) -> None:
            1 / self.rate

    with pytest.raises(Broken, match=r"rate = 0 ends in a traceback \(ZeroDivisionError"):
        refusals(Zero, {})
    assert refusals(Pairs, {}) == "a value out of range is accepted or refused in a sentence."


# The critic and the judge


def joke(text, prompt="p"):
    return Joke(Prompt(prompt, f"The {prompt}."), text)


def test_the_more_of_the_letter_e_the_better():
    """Of eight letters one e is 1/8: four times that for the critic, and for the judge a half and twice the gap."""
    feedback = Feedback(lambda: 7)
    assert [j.score for j in feedback.critic([joke("abcdefgh"), joke("eeh"), joke("")])] == [0.5, 1.0, 0.0]
    pairs = [(joke("abcdefgh"), joke("abcdabcd")), (joke("x"), joke("ee")), (joke("ee"), joke(""))]
    assert [v.probability for v in feedback.judge(pairs)] == [0.75, 0.0, 1.0]
    assert [(call.after, call.count, len(call.jokes)) for call in feedback.asked] == [(7, 3, 3), (7, 3, 6)]
    assert feedback.failed == set()


@pytest.mark.parametrize(
    ("failing", "failed"),
    [
        # New lines are e, f, g, h and, of another prompt, e: the first and the fourth fail, wherever they come again.
        ("lines", [True, False, True, False, True, False]),
        # Of prompts p, q, r and s, the first and the fourth.
        ("groups", [True, True, True, True, True, False]),
    ],
)
def test_every_third_new_line_or_prompt_cannot_be_judged(failing, failed):
    feedback = Feedback(lambda: 0, failing=failing)
    jokes = [joke("e"), joke("f"), joke("e"), joke("g"), joke("h"), joke("e", "q")]
    judgements = feedback.critic(jokes)
    assert [j.failed for j in judgements] == failed
    assert feedback.failed == {("The p.", j.text) for j, bad in zip(jokes, failed, strict=True) if bad}
    more = feedback.judge([(joke("a", name), joke("b", name)) for name in "qrstp"])
    wanted = [False, True, False, False, True] if failing == "lines" else [False, False, True, False, True]
    assert [v.failed for v in more] == wanted


def test_a_spending_limit_is_reached_after_so_many_calls():
    feedback = Feedback(lambda: 0, calls=2)
    feedback.critic([joke("e")])
    feedback.judge([])
    with pytest.raises(BudgetExceeded, match="limit of the check"):
        feedback.critic([joke("e")])
    assert len(feedback.asked) == 2


def test_a_notebook_keeps_what_is_given_and_says_what_is_no_number(tmp_path):
    book = Notebook(tmp_path, cut_at=3, interrupt_at=2)
    book.metrics(1, {"loss": 0.5, "n": 2, "gap": float("nan"), "t": torch.tensor(1.0)})
    before = trials.signal.signal(trials.signal.SIGINT, trials.signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            book.metrics(2, {"loss": float("inf")})
        book.metrics(2, {})  # once only
    finally:
        trials.signal.signal(trials.signal.SIGINT, before)
    with pytest.raises(Cut):
        book.metrics(3, {})
    assert book.given == [1, 2, 2, 3]
    assert book.odd == ["'gap' is nan at step 1", "'t' is a Tensor at step 1", "'loss' is inf at step 2"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_chance_differs_from_run_to_run_and_is_put_back():
    def drawn():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    outside = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    runs = []
    for number in (1, 2, 1):
        with trials._other_chance(number):
            runs.append(drawn())
    assert runs[0] == runs[2] and all(a != b for a, b in zip(runs[0], runs[1], strict=True))
    assert drawn() == outside


def test_who_draws_from_the_global_generators_differs_from_run_to_run(tmp_path):
    """And the runs of one check have their own folders, the same student, and the prompts to learn from."""

    def train(config, student, log, prompts, critic):
        assert len(prompts) == 24 and {p.split for p in prompts} == {"train"}
        with torch.no_grad():
            for parameter in student.adapter_parameters(POLICY).values():
                parameter.fill_(torch.rand(()).item())
        critic([Joke(prompts[0], "a line")])
        log.metrics(1, {"loss": 0.25})
        return TrainResult(1, False, [], None, "")

    tried = Trials(train, "mine", lambda seed, every: SimpleNamespace(seed=seed, every=every), tmp_path)
    first, second = tried.run("first"), tried.run("second", seed=3)
    assert all(not torch.equal(t, second.policy[n]) for n, t in first.policy.items())
    assert all(torch.equal(t, tried.before[f"imitation/{n}"]) for n, t in second.imitation.items())
    assert (first.steps, first.logged_now, first.judged, first.changed, first.made) == ([1], [1], 1, [], [])
    assert first.numbers == [{"step": 1, "loss": 0.25}] and not first.saved and first.evaluated == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


# What is said about runs


class Scripted:
    """Runs that are made up: those of `runs` by their folder, in order, else the one that all are compared with."""

    def __init__(self, whole, takes, runs):
        self.whole, self.takes, self.runs = whole, set(takes), {name: list(each) for name, each in runs.items()}
        self.train = lambda: None
        self.before = {"policy/w": torch.zeros(2), "imitation/w": torch.zeros(2)}
        self.asked = []

    def run(self, folder, **options):
        self.asked.append((folder, options))
        return self.runs[folder].pop(0) if self.runs.get(folder) else self.whole


def trial(**changes):
    """Three steps of eight judgements each."""
    numbers = [{"step": n, "loss": 0.1, "eval/score": 0.25} for n in (1, 2, 3)]
    plain = {
        "result": TrainResult(3, False, [], None, ""),
        "error": None,
        "steps": [1, 2, 3],
        "logged_now": [1, 2, 3],
        "numbers": numbers,
        "odd": [],
        "asked": [Asked(n, 8, (joke("a line"),)) for n in range(3)],
        "policy": {"w": torch.ones(2)},
        "imitation": {"w": torch.zeros(2)},
        "written": [],
        "changed": [],
        "evaluated": 0,
        "control": RunControl(),
        "saved": True,
        "made": [],
        "learned_unscored": [],
    }
    return Trial(**plain | changes)


@dataclass(frozen=True)
class Usual:
    steps: int = 3
    batch_size: int = 8
    checkpoint_every: int = 1
    evaluate_every: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Bare:
    rate: float = 0.1


ALL = ("control", "checkpoints", "evaluate")
OTHER = {"w": torch.full((2,), 2.0)}
ended = TrainResult(1, False, [], None, "a limit")


def told(check, whole=None, *, takes=ALL, config=None, **runs):
    """The sentence of a check, after FAIL if it fails."""
    script = Scripted(whole or trial(), takes, {name.replace("_", "-"): each for name, each in runs.items()})
    comparison = Comparison(script, Usual() if config is None else config)
    with contextlib.suppress(KeyError):
        try:
            return getattr(comparison, check)()
        except Broken as broken:
            return f"FAIL {broken}"
    raise AssertionError


@pytest.mark.parametrize(
    ("check", "options", "sentence"),
    [
        ("training", {}, "3 steps, 24 judgements."),
        ("training", {"whole": trial(result=None)}, "3 steps; it returns nothing, so results.json has no number"),
        ("training", {"whole": trial(error=KeyError("x"))}, "FAIL it raised KeyError: 'x'"),
        ("training", {"whole": trial(result=None, steps=[])}, "0 steps, 24 judgements."),
        ("steps", {}, "it took 3 and logged each."),
        ("steps", {"config": Bare()}, "it took 3, which follow from its settings."),
        ("steps", {"whole": trial(result=None, steps=[], asked=[]), "config": Bare()}, "it takes none and logs none."),
        ("steps", {"whole": trial(steps=[1, 3])}, "FAIL it logged the steps 1, 3: they begin with 1"),
        ("steps", {"whole": trial(steps=[1, 3, 2])}, "FAIL it logged the steps 1, 3, 2"),
        ("steps", {"whole": trial(steps=[0, 1, 2])}, "FAIL it logged the steps 0, 1, 2"),
        ("steps", {"whole": trial(steps=[1, 2])}, "FAIL it returned 3 steps and logged 2"),
        ("steps", {"config": Usual(steps=4)}, "FAIL it was to take 4 steps (the setting `steps`) and took 3"),
        ("numbers", {}, "2 are logged, all finite."),
        ("numbers", {"whole": trial(numbers=[])}, "none are logged."),
        ("numbers", {"whole": trial(odd=["'a' is nan at step 1", "b"])}, "FAIL 'a' is nan at step 1: log plain"),
        ("trained_weights", {}, "1 of the policy's 1 tensors changed, all finite."),
        ("trained_weights", {"whole": trial(policy={"w": torch.zeros(2)})}, "FAIL those of the policy are as they"),
        (
            "trained_weights",
            {"whole": trial(policy={"w": torch.zeros(2)}, result=SimpleNamespace(writer=1, steps=3))},
            "none: it returns a writer",
        ),
        (
            "trained_weights",
            {"whole": trial(policy={"w": torch.tensor([0.0, torch.inf])})},
            "FAIL w is no longer finite after 3 steps.",
        ),
        ("frozen_weights", {}, "base and imitation stayed."),
        ("frozen_weights", {"whole": trial(changed=["a", "b"])}, "FAIL the base changed (a, b)"),
        ("frozen_weights", {"whole": trial(imitation=OTHER)}, "FAIL the adapter 'imitation' changed"),
        ("frozen_weights", {"whole": trial(imitation=OTHER, policy=OTHER)}, "it is a warm start"),
        (
            "frozen_weights",
            {"whole": trial(changed=["a"]), "config": SimpleNamespace(full=True)},
            "base and imitation stayed.",
        ),
        ("same_seed", {}, "the same weights, to the bit."),
        ("same_seed", {"again": [trial(policy=OTHER)]}, "FAIL two runs gave different weights"),
        ("same_seed", {"again": [trial(written=["x"])]}, "FAIL two runs gave different weights"),
        ("another_seed", {"other_seed": [trial(policy=OTHER)]}, "other weights."),
        ("another_seed", {}, "FAIL gives the same weights"),
        ("another_seed", {"config": Bare()}, "FAIL the settings have no field `seed: int`"),
        ("feedback", {}, "it made no critic or judge of its own."),
        ("feedback", {"whole": trial(made=["b", "a", "b"])}, "FAIL it made a, b: learn from"),
        ("prompts", {}, "only those given to learn from."),
        ("prompts", {"whole": trial(asked=[])}, "none: it asks neither critic nor judge."),
        ("prompts", {"whole": trial(asked=[Asked(0, 1, (Joke(Prompt("p", "x", split="dev"), "y"),))])}, "FAIL it had"),
        ("budget", {"takes": ()}, "24 judgements in 3 steps of 8 lines, which is how"),
        ("budget", {"takes": (), "config": Usual(batch_size=7)}, "FAIL 24 judgements in 3 steps of 7 lines"),
        ("budget", {"takes": (), "config": Bare()}, "FAIL a benchmark cannot hold it to a budget"),
        ("budget", {}, "FAIL 24 judgements were asked for and 0 counted"),
        ("limit_of_judgements", {"takes": ()}, NO_CONTROL),
        ("limit_of_judgements", {"whole": trial(asked=[])}, "it asks once or never"),
        ("limit_of_judgements", {}, "FAIL with a limit of 8 it asked for 24"),
        (
            "limit_of_judgements",
            {
                "judgements_0": [trial(asked=[Asked(0, 8, ())], result=ended)],
                "judgements_1": [trial(asked=[Asked(0, 16, ())], result=ended)],
            },
            "with limits of 8, 16 it asks for no more.",
        ),
        ("limit_of_judgements", {"judgements_0": [trial(asked=[])]}, "FAIL it ended early without a reason"),
        ("limit_of_seconds", {"takes": ()}, NO_CONTROL),
        ("limit_of_seconds", {"whole": trial(steps=[1])}, "it takes no second step."),
        ("limit_of_seconds", {}, "FAIL it went on to its last step: train inside"),
        ("limit_of_seconds", {"seconds": [trial(result=ended)]}, "it ends after 1 of 3 steps."),
        ("ctrl_c", {"whole": trial(steps=[1])}, "it takes no second step."),
        ("ctrl_c", {"interrupted": [trial(error=KeyboardInterrupt())]}, "it interrupts the step, and the run ends."),
        ("ctrl_c", {}, "FAIL it went on to its last step: end if"),
        ("ctrl_c", {"interrupted": [trial(result=ended)]}, "FAIL it ended without saying so"),
        (
            "ctrl_c",
            {"interrupted": [trial(result=TrainResult(1, True, [], None, ""))]},
            "it finishes the step, after 1 of 3, and says so.",
        ),
        ("spending_limit", {"whole": trial(asked=[])}, "it asks neither critic nor judge."),
        ("spending_limit", {}, "FAIL the critic raised BudgetExceeded and the learner went on"),
        ("spending_limit", {"spending": [trial(error=BudgetExceeded("x"))]}, "BudgetExceeded ends it."),
        ("spending_limit", {"spending": [trial(error=KeyError("x"))]}, "FAIL it raised KeyError"),
        ("evaluation", {"takes": ()}, "it takes no `evaluate`: it is measured at its end only"),
        ("evaluation", {"config": Bare()}, "FAIL it takes `evaluate`, but has no setting evaluate_every"),
        ("evaluation", {}, "FAIL with evaluate_every = 2 it called evaluate 0 times in 3 steps; 1 expected"),
        ("evaluation", {"evaluated": [trial(evaluated=1)]}, "FAIL the results are not in the log"),
        (
            "evaluation",
            {"evaluated": [trial(evaluated=1, numbers=[{"eval/score": 1}, {}], policy=OTHER)]},
            "FAIL with evaluations it learns something else",
        ),
        (
            "evaluation",
            {"evaluated": [trial(evaluated=1, numbers=[{"eval/score": 1}, {}])]},
            "called every evaluate_every steps, logged, and without effect on learning.",
        ),
        ("resume", {"whole": trial(steps=[])}, "it takes no step, so there is nothing to continue."),
        (
            "resume",
            {"cut": [trial(), trial(logged_now=[3])]},
            "stopped at step 3 and resumed, the weights are the same",
        ),
        (
            "resume",
            {"takes": ()},
            "it cannot continue, because it takes no `checkpoints`: a run that was stopped begins",
        ),
        ("resume", {"takes": (), "cut": [trial(), trial(policy=OTHER)]}, "FAIL started again after a stop, it learns"),
        ("resume", {"cut": [trial(), trial(steps=[1, 2, 3, 3])]}, "FAIL stopped at step 3 and resumed, the log has"),
        ("resume", {"cut": [trial(), trial(steps=[1, 2])]}, "FAIL stopped at step 3 and resumed, the log has"),
        ("resume", {"whole": trial(saved=False)}, "FAIL it takes `checkpoints`, but saved nothing"),
        ("resume", {"cut": [trial(), trial(policy=OTHER)]}, "FAIL the resumed run has other weights"),
        ("resume", {"cut": [trial(), trial(result=ended)]}, "FAIL the resumed run returned 1 steps, the other 3."),
        ("resume", {}, "FAIL stopped at step 3 of 3, it began again with step 1"),
        ("resume", {"config": Bare()}, "the weights are the same, but it began again: it saved nothing in 2 steps."),
        ("failed_judgements", {}, "with every third line or prompt not judged, it goes on with finite numbers."),
        ("failed_judgements", {"failing_lines": [trial(error=JudgingFailed("x"))]}, "with every third line or prompt"),
        ("failed_judgements", {"failing_groups": [trial(error=KeyError("x"))]}, "FAIL with every third of the prompts"),
        (
            "failed_judgements",
            {"failing_lines": [trial(odd=["a"])]},
            "FAIL with every third of the lines not judged, a:",
        ),
        (
            "failed_judgements",
            {"failing_groups": [trial(policy={"w": torch.tensor([torch.nan, 1.0])})]},
            "FAIL with every third of the prompts not judged, a weight is no longer finite.",
        ),
        (
            "failed_judgements",
            {"failing_lines": [trial(steps=[1])]},
            "FAIL with every third of the lines not judged, it",
        ),
        ("unscored_lines", {}, "they teach nothing."),
        ("unscored_lines", {"failing_groups": [trial(learned_unscored=["é"])]}, 'FAIL "\\u00e9" was not judged, but'),
    ],
)
def test_what_is_said_about_a_run(check, options, sentence):
    assert told(check, **options).startswith(sentence)


def test_all_judgements_that_are_asked_for_must_be_counted():
    control = RunControl()
    control.count(24, 24)
    assert told("budget", trial(control=control)) == "all 24 judgements are counted."


def test_with_what_runs_are_asked_for():
    """Limits below what the steps ask for, a Ctrl-C at the first step, one call less than were made, the last step."""
    for check, wanted in {
        "limit_of_seconds": [("seconds", {"limits": 1e-9})],
        "ctrl_c": [("interrupted", {"interrupt_at": 1})],
        "spending_limit": [("spending", {"calls": 2})],
        "evaluation": [("evaluated", {"evaluate_every": 2})],
        "resume": [("cut", {"cut_at": 3}), ("cut", {})],
        "failed_judgements": [("failing-lines", {"failing": "lines"}), ("failing-groups", {"failing": "groups"})],
        "another_seed": [("other-seed", {"seed": 1})],
    }.items():
        script = Scripted(trial(), ALL, {})
        comparison = Comparison(script, Usual())
        with contextlib.suppress(Broken):
            dict(comparison.checks())[_name_of(comparison, check)]()
        asked = [(n, {k: getattr(v, "seconds", v) for k, v in o.items()}) for n, o in script.asked if n != "whole"]
        assert asked == wanted, check


def _name_of(comparison, check):
    return next(name for name, method in comparison.checks() if method.__name__ == check)


def test_ctrl_c_is_tried_in_the_main_thread_only():
    found = []
    thread = threading.Thread(target=lambda: found.append(told("ctrl_c")))
    thread.start()
    thread.join()
    assert found == ["not tried: only the main thread of a program is told of it."]


def test_long_lists_are_cut():
    assert _listed([]) == "none" and _listed(range(6)) == "0, 1, 2, 3, 4, 5"
    assert _listed(list(range(7))) == "0, 1, 2, 3, 4, 5, …"
