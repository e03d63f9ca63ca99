"""The check of learners must find each fault: every one is tried on a learner that has just that fault.

`learner("")` is sound: a small REINFORCE without a session, so that each of its lines can be left out.
"""

import math
from dataclasses import dataclass, field, make_dataclass

import pytest
import torch

from humor_env import registry
from humor_env.agents.feedback.rollout import collect
from humor_env.agents.session.session import TrainResult
from humor_env.agents.student import IMITATION, POLICY
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.update.on_policy import chance
from humor_env.errors import InvalidOption, UnknownName
from humor_env.experiments.checking.learner import check_learner
from humor_env.prompts import PromptStream
from humor_env.types import Joke


@dataclass(frozen=True)
class Settings:
    steps: int = 100
    batch_size: int = 64
    siblings: int = 8
    learning_rate: float = 0.1
    sampling: Sampling = field(default_factory=Sampling)
    checkpoint_every: int = 10
    evaluate_every: int = 0
    seed: int = 0


def learner(fault, settings=Settings):
    """A learner that is sound but for one fault."""
    is_ = fault.__eq__

    def train(config: settings, env, student, log, *, prompts, checkpoints, evaluate, control):
        if is_("crashes"):
            raise KeyError("a batch")
        parameters = list(student.adapter_parameters(IMITATION if is_("other adapter") else POLICY).values())
        if is_("base"):
            parameters += [p for n, p in student.model.named_parameters() if n.endswith("norm.weight")][:1]
        student.activate(IMITATION if is_("other adapter") else POLICY)
        student.train_only(parameters)
        optimizer = torch.optim.SGD(parameters, lr=config.learning_rate)
        if is_("held-out prompts"):
            prompts = env[0].task.prompts.split("test")
        own_seed = 0 if is_("ignores the seed") else config.seed
        stream = PromptStream(prompts, seed=own_seed)
        begin, saved = 0, checkpoints.resume()
        if saved is not None and not is_("begins again"):
            begin = saved.step
            student.load_state(saved.tensors)
            control.set_state(saved.state["control"], saved.seconds)
            if not is_("forgets the prompts"):
                stream.set_state(saved.state["stream"])
        if not is_("keeps the log"):
            log.rewind(begin)
        if not is_("no clock"):
            control.__enter__()
        other = registry.critics.make("pocket") if is_("other critic") else None
        step = begin
        while step < config.steps - is_("a step less") and not control.ending:
            asked = [p for p in stream.take(config.batch_size // config.siblings) for _ in range(config.siblings)]
            uniforms = chance(own_seed, step, len(asked), slice(None))
            if is_("draws at random"):
                uniforms = lambda _, columns: torch.rand(len(asked), columns)  # noqa: B023, E731
            try:
                rollout = collect(env, student, config.sampling, asked, uniforms, reference=False, old_logprobs=False)
            except Exception:
                if is_("swallows errors"):
                    break
                raise
            if other is not None:
                other(rollout.jokes)
            if not is_("does not count"):
                control.count(len(asked), len(asked))
            groups = (rollout.rewards.view(-1, config.siblings), rollout.valid.view(-1, config.siblings).float())
            judged = groups[1].sum(1, keepdim=True)
            means = (groups[0] * groups[1]).sum(1, keepdim=True) / (judged if is_("divides") else judged.clamp(min=1))
            advantages = (groups[0] - means).flatten()
            if not is_("learns from failures"):
                advantages = advantages * rollout.valid
            loss = -(advantages * student.score(rollout.rows).logprobs.sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            if not is_("does not learn"):
                optimizer.step()
            step += 1
            numbers = {"loss": loss if is_("logs tensors") else math.nan if is_("logs NaN") else loss.item()}
            due = config.evaluate_every and step % config.evaluate_every == 0
            if due and not is_("never evaluates"):
                if is_("evaluates in its own way"):
                    optimizer.param_groups[0]["lr"] /= 2
                found = evaluate(student)
                numbers |= {} if is_("hides evaluations") else {f"eval/{name}": v for name, v in found.items()}
            log.metrics(step - is_("counts from 0"), numbers)
            log.jokes(step, rollout.jokes, rollout.judgements)
            if not is_("no limits"):
                control.check()
            if step % config.checkpoint_every == 0 and not is_("saves nothing"):
                state = {"stream": stream.get_state(), "control": control.get_state()}
                checkpoints.save(step, student.state(), state, seconds=control.seconds)
        control.__exit__()
        stopped = control.by_user and step < config.steps and not is_("stops silently")
        return TrainResult(step, stopped, [], None, "" if stopped or is_("says no why") else control.ending)

    return train


def failed(findings):
    return {finding.name for finding in findings if not finding.ok}


def told(findings, name):
    [finding] = [finding for finding in findings if finding.name == name]
    return finding.sentence


@pytest.mark.slow
def test_a_sound_learner():
    findings = check_learner(learner(""))
    assert [str(finding) for finding in findings if not finding.ok] == []
    assert len(findings) == 21
    assert str(findings[0]) == "ok    signature: a run has every argument that it asks for."


FAULTS = [
    ("a step less", {"steps"}, "was to take 3"),
    ("counts from 0", {"steps", "resume"}, "log.metrics(step + 1"),
    ("logs NaN", {"numbers"}, "'loss' is nan at step 1"),
    ("logs tensors", {"numbers"}, "'loss' is a Tensor at step 1"),
    ("does not learn", {"trained weights", "another seed"}, "are as they were"),
    ("other adapter", {"trained weights", "frozen weights", "another seed"}, "adapter_parameters(POLICY)"),
    ("base", {"frozen weights", "resume"}, "norm.weight"),
    ("draws at random", {"same seed", "evaluation", "resume"}, "config.seed"),
    ("ignores the seed", {"another seed"}, "the same weights: use config.seed"),
    ("other critic", {"feedback"}, "critic 'pocket'"),
    ("held-out prompts", {"prompts"}, "test"),
    ("does not count", {"budget", "limit of judgements"}, "control.count"),
    ("no limits", {"limit of judgements", "limit of seconds", "Ctrl-C"}, "control.check()"),
    ("no clock", {"limit of seconds"}, "with control"),
    ("says no why", {"limit of judgements", "limit of seconds"}, "why=control.ending"),
    ("stops silently", {"Ctrl-C"}, "stopped=control.by_user"),
    ("swallows errors", {"spending limit"}, "BudgetExceeded"),
    ("never evaluates", {"evaluation"}, "evaluate_every"),
    ("hides evaluations", {"evaluation"}, "eval/score"),
    ("evaluates in its own way", {"evaluation"}, "learns something else"),
    ("begins again", {"resume"}, "checkpoints.resume()"),
    ("saves nothing", {"resume"}, "saved nothing"),
    ("forgets the prompts", {"resume"}, "other weights"),
    ("keeps the log", {"resume"}, "log.rewind"),
    ("divides", {"failed judgements"}, "nan"),
    ("learns from failures", {"lines without a score"}, "rollout.valid"),
]
# These come of one and the same training, so a fault must not be told under another of these names either.
OF_ONE_RUN = {"steps", "numbers", "trained weights", "frozen weights", "feedback", "prompts", "budget"}


@pytest.mark.parametrize(("fault", "expected", "sentence"), FAULTS, ids=[row[0] for row in FAULTS])
def test_each_fault_of_a_learner_is_found(fault, expected, sentence):
    findings = check_learner(learner(fault), only=expected | OF_ONE_RUN)
    assert failed(findings) == expected, [str(finding) for finding in findings if not finding.ok]
    assert any(sentence in finding.sentence for finding in findings if not finding.ok)


def test_a_crash_is_told_with_its_line():
    findings = check_learner(learner("crashes"))
    assert failed(findings) == {"training"}
    assert findings[-1].name == "training", "nothing can be compared then"
    line = learner.__code__.co_firstlineno + 6
    assert told(findings, "training") == f"it raised KeyError: 'a batch' (test_check_learner.py, line {line})"


# Before anything is trained


def without_settings(config, env, student, log):
    pass


def wants_more(config: Settings, student, optimizer):
    pass


def by_place(config: Settings, student, /, log):
    pass


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (without_settings, "annotate the first parameter"),
        (wants_more, "wants 'optimizer', which a run does not have"),
        (by_place, "'student' parameter is positional only"),
        (["no function"], "is a list; expected a function"),
    ],
)
def test_a_signature_that_a_run_cannot_call(train, sentence):
    name = "broken-signature"
    registry.learners.register(name, train)
    try:
        [finding] = check_learner(name)
    finally:
        del registry.learners._entries[name]
    assert (finding.name, finding.ok) == ("signature", False)
    assert sentence in finding.sentence


@dataclass(frozen=True)
class Halved(Settings):
    def __post_init__(self):
        object.__setattr__(self, "learning_rate", self.learning_rate / 2)


@dataclass(frozen=True)
class Bare(Settings):
    def __post_init__(self):
        math.sqrt(self.learning_rate)


@dataclass(frozen=True)
class Choosy(Settings):
    kind: str = "mean"

    def __post_init__(self):
        _ = {"mean": 0, "sum": 1}[self.kind]


@dataclass(frozen=True)
class Unseeded:
    steps: int = 3
    learning_rate: float = 0.1


NAMED = make_dataclass("Named", [("name", str, "x"), ("seed", int, 0)], frozen=True)
NEEDY = make_dataclass("Needy", [("rate", float), ("seed", int, 0)], frozen=True)


@pytest.mark.parametrize(
    ("settings", "name", "sentence"),
    [
        (NAMED, "settings", "the key 'name' of [learner]"),
        (NEEDY, "settings", "rate has no default"),
        (Halved, "settings", "learning_rate is 0.05, and 0.025 when read back"),
        (Bare, "refusals", "learning_rate = -1 ends in a traceback (ValueError"),
        (Choosy, "refusals", "kind = 'no such choice' ends in a traceback (KeyError"),
    ],
)
def test_settings_that_a_spec_could_not_hold(settings, name, sentence):
    def train(config: settings, student):
        raise RuntimeError("not what is tested here")

    findings = check_learner(train)
    assert failed(findings) - {"training"} == {name}
    assert sentence in told(findings, name)


def test_settings_without_a_seed():
    def train(config: Unseeded, student, log):
        with torch.no_grad():
            for parameter in student.adapter_parameters(POLICY).values():
                parameter.add_(config.learning_rate)
        for step in range(config.steps):
            log.metrics(step + 1, {"loss": 0.0})

    findings = check_learner(train, only={"another seed", "budget"})
    assert "no field `seed: int`" in told(findings, "another seed")
    assert "cannot hold it to a budget" in told(findings, "budget")


def test_a_mistake_of_the_caller_is_no_finding():
    with pytest.raises(InvalidOption, match=r"no key 'stesp'. Did you mean 'steps'\?"):
        check_learner(learner(""), {"stesp": 3})
    with pytest.raises(UnknownName, match="Did you mean 'ppo'"):
        check_learner("pppo")
    with pytest.raises(UnknownName, match="Did you mean 'resume'"):
        check_learner(learner(""), only=["resumes"])


def test_the_settings_of_the_caller_stay():
    findings = check_learner(learner(""), {"steps": 2, "sampling": {"max_new_tokens": 6}}, only={"steps"})
    assert told(findings, "steps") == "it took 2 and logged each."
    assert told(findings, "training") == "2 steps, 16 judgements."


# What a learner may go without


@pytest.mark.slow
def test_a_learner_that_takes_less_is_told_what_it_goes_without():
    plain = check_learner("humor_env.agents.plain:train")
    assert [str(finding) for finding in plain if not finding.ok] == []
    assert "takes no `control`" in told(plain, "limit of judgements")
    assert "without `control`" in told(plain, "budget")
    assert told(plain, "Ctrl-C") == "it interrupts the step, and the run ends."
    assert "takes no `checkpoints`" in told(plain, "resume")
    assert "measured at its end only" in told(plain, "evaluation")


def test_more_judgements_than_a_benchmark_counts():
    """Without `control` its budget is steps x batch_size."""

    def train(config: Settings, critic, student, log, *, prompts):
        critic([Joke(prompt, "a line") for prompt in prompts])

    findings = check_learner(train, {"steps": 1, "batch_size": 8}, only={"budget"})
    assert "24 judgements in 1 steps of 8 lines" in told(findings, "budget")


# Built-in learners

BUILT_IN = sorted(name for name, entry in registry.learners.entries().items() if entry.origin == "built in")


@pytest.mark.parametrize("name", [name for name in BUILT_IN if not name.startswith(("trl-", "brio-dpo"))])
def test_built_in_learners_train_as_a_run_needs(name):
    assert [str(finding) for finding in check_learner(name, only=OF_ONE_RUN) if not finding.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_learners_pass_every_check(name):
    findings = check_learner(name)
    assert [str(finding) for finding in findings if not finding.ok] == []
    assert len(findings) == 21
