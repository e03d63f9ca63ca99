"""The contract check of a learner: what runs, benchmarks and resuming rely on, tried in the pocket world.

    for finding in check_learner("my_package.learners:train"):
        print(finding)                          # "ok    same seed: …" or "FAIL  resume: …"

It trains about a dozen times for three small steps and compares these runs. Settings whose defaults would take long
(steps, lines per step, tokens per line) are made small; those that the caller gives stay.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import tempfile
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch

from humor_env import registry
from humor_env.agents.session.limits import Limits
from humor_env.errors import BudgetExceeded, JudgingFailed, unknown_name
from humor_env.experiments.checking.settings import (
    EVERY,
    checked_settings,
    refusals,
    signature,
    small_settings,
    survive_a_spec,
    with_everywhere,
)
from humor_env.experiments.checking.trials import SCORE, Cut, Trial, Trials
from humor_env.experiments.specs.learner_settings import OURS, config_class, make_config
from humor_env.findings import Broken, Finding, report

NO_CONTROL = "it takes no `control`, so a run with a limit or a monitor refuses it."
Check = tuple[str, Callable[[], str]]


def check_learner(
    learner: str | Callable[..., Any], settings: Mapping[str, Any] | None = None, *, only: Collection[str] = ()
) -> list[Finding]:
    """Check a learner's contract: its `train` function, a registered name or a `package.module:name`.

    `settings` are those of its table `[learner]`. `only` names the findings wanted of those that need training, which
    is quicker. A learner that takes no `control`, `checkpoints` or `evaluate` is told what it goes without; that is no
    fault.
    """
    train: Any = registry.learners.resolve(learner) if isinstance(learner, str) else learner
    name = learner if isinstance(learner, str) else getattr(train, "__name__", repr(train))
    first = report([("signature", lambda: signature(train, name))])
    if not first[0].ok:
        return first
    config = config_class(train, name)
    full_settings = checked_settings(config, settings or {})
    of_settings = report(
        [
            ("settings", lambda: survive_a_spec(config, full_settings)),
            ("refusals", lambda: refusals(config, full_settings)),
        ],
    )
    if not of_settings[0].ok:
        return first + of_settings
    with tempfile.TemporaryDirectory() as folder:
        table = small_settings(config, full_settings)

        def config_of(seed: int, evaluate_every: int) -> Any:
            instance = make_config(config, table, seed)
            return with_everywhere(instance, {EVERY: evaluate_every}) if evaluate_every else instance

        comparison = Comparison(Trials(train, name, config_of, Path(folder)), config_of(0, 0))
        trained = report([("training", comparison.training)])
        checks = dict(comparison.checks())
        for what in only:
            if what not in checks:
                raise unknown_name("finding", what, checks)
        chosen = [(what, check) for what, check in checks.items() if not only or what in only]
        return first + of_settings + trained + (report(chosen) if trained[0].ok else [])


class Comparison:
    """The checks that train. `whole` is the run that all others are compared with."""

    def __init__(self, trials: Trials, config: Any) -> None:
        self.trials, self.config = trials, config
        self.takes = trials.takes

    def checks(self) -> list[Check]:
        return [
            ("steps", self.steps),
            ("numbers", self.numbers),
            ("trained weights", self.trained_weights),
            ("frozen weights", self.frozen_weights),
            ("same seed", self.same_seed),
            ("another seed", self.another_seed),
            ("feedback", self.feedback),
            ("prompts", self.prompts),
            ("budget", self.budget),
            ("limit of judgements", self.limit_of_judgements),
            ("limit of seconds", self.limit_of_seconds),
            ("Ctrl-C", self.ctrl_c),
            ("spending limit", self.spending_limit),
            ("evaluation", self.evaluation),
            ("resume", self.resume),
            ("failed judgements", self.failed_judgements),
            ("lines without a score", self.unscored_lines),
        ]

    @functools.cached_property
    def whole(self) -> Trial:
        return self.trials.run("whole")

    @functools.cached_property
    def with_failures(self) -> list[Trial]:
        return [self.trials.run(f"failing-{how}", failing=how) for how in ("lines", "groups")]

    def training(self) -> str:
        self._sound(self.whole)
        result = self.whole.result
        if self.whole.steps and result is None:
            return f"{len(self.whole.steps)} steps; it returns nothing, so results.json has no number of steps."
        return f"{self._taken(self.whole)} steps, {self.whole.judged} judgements."

    def steps(self) -> str:
        trial = self.whole
        steps, logged = self._taken(trial), sorted(set(trial.steps))
        if logged != list(range(1, len(logged) + 1)) or trial.steps != sorted(trial.steps):
            raise Broken(
                f"it logged the steps {_listed(trial.steps)}: they begin with 1 and none is left out, as in "
                "log.metrics(step + 1, …)."
            )
        if steps != len(logged):
            raise Broken(f"it returned {steps} steps and logged {len(logged)}: log numbers at every step.")
        setting = getattr(self.config, "steps", None)
        if isinstance(setting, int) and steps != setting:
            raise Broken(f"it was to take {setting} steps (the setting `steps`) and took {steps}.")
        if not logged:
            return "it takes none and logs none."
        return f"it took {steps} and logged each." if setting else f"it took {steps}, which follow from its settings."

    def numbers(self) -> str:
        if self.whole.odd:
            raise Broken(f"{self.whole.odd[0]}: log plain numbers (loss.item()) that are finite.")
        names = {name for row in self.whole.numbers for name in row}
        return f"{max(0, len(names) - 1)} are logged, all finite." if names else "none are logged."

    def trained_weights(self) -> str:
        policy = self.whole.policy
        for name, tensor in policy.items():
            if not bool(torch.isfinite(tensor).all()):
                raise Broken(f"{name} is no longer finite after {len(self.whole.steps)} steps.")
        moved = [n for n, t in policy.items() if not torch.equal(t, self.trials.before[f"policy/{n}"])]
        if not moved and getattr(self.whole.result, "writer", None) is not None:
            return "none: it returns a writer, which is measured instead of the student."
        if not moved:
            raise Broken(
                "those of the policy are as they were: train student.adapter_parameters(POLICY), which are what a run "
                "measures and saves."
            )
        return f"{len(moved)} of the policy's {len(policy)} tensors changed, all finite."

    def frozen_weights(self) -> str:
        whole, full = self.whole, bool(getattr(self.config, "full", False))
        if whole.changed and not full:
            raise Broken(
                f"the base changed ({_listed(whole.changed)}): a run saves adapters only. Give student.train_only the "
                "adapter's parameters, and only them to the optimizer."
            )
        moved = [n for n, t in whole.imitation.items() if not torch.equal(t, self.trials.before[f"imitation/{n}"])]
        if moved and any(not torch.equal(t, whole.policy[n]) for n, t in whole.imitation.items()):
            raise Broken(
                "the adapter 'imitation' changed: it is the reference from which a policy's distance is measured. "
                "A learner that imitates ends with student.start_policy_from_imitation()."
            )
        return "it is a warm start: the policy is a copy of the imitation." if moved else "base and imitation stayed."

    def same_seed(self) -> str:
        again = self._sound(self.trials.run("again"))
        if not _alike(again, self.whole):
            raise Broken(
                "two runs gave different weights: derive all random numbers from config.seed (chance, generator), and "
                "draw none from the global generators."
            )
        return "the same weights, to the bit."

    def another_seed(self) -> str:
        if not any(field in _names(self.config) for field in OURS):
            raise Broken("the settings have no field `seed: int`, so the seeds of a run would all be the same run.")
        if _alike(self._sound(self.trials.run("other-seed", seed=1)), self.whole):
            raise Broken("gives the same weights: use config.seed for the order of the prompts and for sampling.")
        return "other weights."

    def feedback(self) -> str:
        if self.whole.made:
            raise Broken(
                f"it made {_listed(sorted(set(self.whole.made)))}: learn from the critic or judge that it is given, "
                "because the limits, the ledger and the held-out scores of a run hold for that one only."
            )
        return "it made no critic or judge of its own."

    def prompts(self) -> str:
        splits = {joke.prompt.split for call in self.whole.asked for joke in call.jokes}
        if splits - {"train"}:
            raise Broken(
                f"it had lines for prompts of the split {_listed(sorted(splits - {'train'}))} judged: learn from "
                "`prompts`; the others are to measure it."
            )
        return "only those given to learn from." if splits else "none: it asks neither critic nor judge."

    def budget(self) -> str:
        judged = self.whole.judged
        if "control" in self.takes:
            counted = self.whole.control.judgements
            if counted != judged:
                raise Broken(
                    f"{judged} judgements were asked for and {counted} counted: call control.count(samples, "
                    "judgements) in each step. A judgement is a line for a critic, a pair for a judge."
                )
            return f"all {judged} judgements are counted."
        steps, lines = getattr(self.config, "steps", None), getattr(self.config, "batch_size", None)
        if not isinstance(steps, int) or not isinstance(lines, int):
            raise Broken(
                "a benchmark cannot hold it to a budget: take `control`, or have the settings `steps` and "
                "`batch_size` (lines per step)."
            )
        if judged > steps * lines:
            raise Broken(
                f"{judged} judgements in {steps} steps of {lines} lines: a benchmark's budget is steps x batch_size, "
                "unless the learner takes `control` and counts."
            )
        return (
            f"{judged} judgements in {steps} steps of {lines} lines, which is how a benchmark counts without `control`."
        )

    def limit_of_judgements(self) -> str:
        if "control" not in self.takes:
            return NO_CONTROL
        by_step = [
            sum(call.count for call in calls) for _, calls in groupby(self.whole.asked, key=lambda call: call.after)
        ]
        limits = list(accumulate(by_step))[:-1]
        for number, limit in enumerate(limits):
            trial = self._sound(self.trials.run(f"judgements-{number}", limits=Limits(judgements=limit)))
            if trial.judged > limit:
                raise Broken(
                    f"with a limit of {limit} it asked for {trial.judged}: call control.check() after each step, and "
                    "end if control.ending is set."
                )
            self._says_why(trial)
        return (
            f"with limits of {_listed(limits)} it asks for no more."
            if limits
            else "it asks once or never, so there is nothing to end."
        )

    def limit_of_seconds(self) -> str:
        if "control" not in self.takes:
            return NO_CONTROL
        if len(self.whole.steps) < 2:
            return "it takes no second step."
        trial = self._sound(self.trials.run("seconds", limits=Limits(seconds=1e-9)))
        if self._taken(trial) >= self._taken(self.whole):
            raise Broken(
                "it went on to its last step: train inside `with control:`, where its clock runs, call control.check() "
                "after each step, and end if control.ending is set."
            )
        self._says_why(trial)
        return f"it ends after {self._taken(trial)} of {self._taken(self.whole)} steps."

    def ctrl_c(self) -> str:
        if len(self.whole.steps) < 2:
            return "it takes no second step."
        if threading.current_thread() is not threading.main_thread():
            return "not tried: only the main thread of a program is told of it."
        trial = self.trials.run("interrupted", interrupt_at=1)
        if isinstance(trial.error, KeyboardInterrupt):
            return "it interrupts the step, and the run ends."
        self._sound(trial)
        if self._taken(trial) >= self._taken(self.whole):
            raise Broken("it went on to its last step: end if control.ending is set, and let KeyboardInterrupt pass.")
        if not getattr(trial.result, "stopped", False):
            raise Broken(
                "it ended without saying so, and the run would take it to be done: return TrainResult(…, "
                "stopped=control.by_user)."
            )
        return f"it finishes the step, after {self._taken(trial)} of {self._taken(self.whole)}, and says so."

    def spending_limit(self) -> str:
        if not self.whole.asked:
            return "it asks neither critic nor judge."
        trial = self.trials.run("spending", calls=len(self.whole.asked) - 1)
        if trial.error is None:
            raise Broken(
                "the critic raised BudgetExceeded and the learner went on: let this error pass, so that the run can "
                "say how to continue."
            )
        if not isinstance(trial.error, BudgetExceeded):
            self._sound(trial)
        return "BudgetExceeded ends it."

    def evaluation(self) -> str:
        if "evaluate" not in self.takes:
            return "it takes no `evaluate`: it is measured at its end only, and a benchmark draws no curve for it."
        if EVERY not in _names(self.config):
            raise Broken(f"it takes `evaluate`, but has no setting {EVERY}: a benchmark could not set how often.")
        trial = self._sound(self.trials.run("evaluated", evaluate_every=2))
        # One that is made of two counts the steps of each from 1.
        exact = hasattr(self.config, EVERY)
        expected = len(set(trial.steps)) // 2 if exact else max(1, trial.evaluated)
        logged = sum(1 for row in trial.numbers if f"eval/{SCORE}" in row)
        if trial.evaluated != expected:
            raise Broken(
                f"with {EVERY} = 2 it called evaluate {trial.evaluated} times in {len(trial.steps)} steps; {expected} "
                "expected: call it after a step if `evaluate` is given and the step is due."
            )
        if logged != expected:
            raise Broken(f"the results are not in the log: log evaluate's numbers as eval/{SCORE} at that step.")
        if not _alike(trial, self.whole):
            raise Broken(
                "with evaluations it learns something else: what it learns must not depend on how often it is measured."
            )
        return f"called every {EVERY} steps, logged, and without effect on learning."

    def resume(self) -> str:
        if not self.whole.steps:
            return "it takes no step, so there is nothing to continue."
        last = max(self.whole.steps)
        self.trials.run("cut", cut_at=last)
        trial = self._sound(self.trials.run("cut"))
        if sorted(set(trial.steps)) != sorted(set(self.whole.steps)) or len(trial.steps) != len(self.whole.steps):
            raise Broken(
                f"stopped at step {last} and resumed, the log has the steps {_listed(trial.steps)}: begin with "
                "log.rewind(step), the step it continues from; 0 if it begins again."
            )
        if "checkpoints" not in self.takes:
            if not _alike(trial, self.whole):
                raise Broken("started again after a stop, it learns something else.")
            return "it cannot continue, because it takes no `checkpoints`: a run that was stopped begins again."
        if not self.whole.saved:
            raise Broken("it takes `checkpoints`, but saved nothing: call checkpoints.save(step, tensors, state).")
        if not _alike(trial, self.whole):
            raise Broken(
                "the resumed run has other weights than the uninterrupted one: save and restore the adapter, the "
                "optimizer's state, the order of the prompts and control.get_state()."
            )
        if self._taken(trial) != self._taken(self.whole):
            raise Broken(f"the resumed run returned {self._taken(trial)} steps, the other {self._taken(self.whole)}.")
        if min(trial.logged_now, default=2) == 1 and last > 1:
            if "checkpoint_every" in _names(self.config):
                raise Broken(
                    f"stopped at step {last} of {last}, it began again with step 1: continue from checkpoints.resume()."
                )
            return f"the weights are the same, but it began again: it saved nothing in {last - 1} steps."
        return f"stopped at step {last} and resumed, the weights are the same to the bit."

    def failed_judgements(self) -> str:
        for trial, what in zip(self.with_failures, ("lines", "prompts"), strict=True):
            if isinstance(trial.error, JudgingFailed):
                continue  # told in a sentence, as with a critic that fails too often
            self._sound(trial, f"with every third of the {what} not judged, ")
            if trial.odd and not self.whole.odd:
                raise Broken(f"with every third of the {what} not judged, {trial.odd[0]}: count judged lines only.")
            if not all(bool(torch.isfinite(tensor).all()) for tensor in trial.policy.values()):
                raise Broken(f"with every third of the {what} not judged, a weight is no longer finite.")
            if len(trial.steps) < len(self.whole.steps) and "steps" in _names(self.config):
                raise Broken(f"with every third of the {what} not judged, it took {len(trial.steps)} steps.")
        return "with every third line or prompt not judged, it goes on with finite numbers."

    def unscored_lines(self) -> str:
        for trial in self.with_failures:
            if trial.learned_unscored:
                raise Broken(
                    f"{json.dumps(trial.learned_unscored[0])} was not judged, but got a gradient: multiply by "
                    "rollout.valid, or use rollout.mask. A failed judgement is not a score of 0."
                )
        return "they teach nothing."

    # --- helpers ---

    def _sound(self, trial: Trial, when: str = "") -> Trial:
        """The run, if it raised nothing."""
        problem = trial.error
        if problem is not None and not isinstance(problem, Cut):
            raise Broken(f"{when}it raised {type(problem).__name__}: {problem}{self._place_of(problem)}") from None
        return trial

    def _place_of(self, problem: BaseException) -> str:
        """The learner's own line that was reached last."""
        file = inspect.getsourcefile(inspect.unwrap(self.trials.train))
        lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
        return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""

    def _taken(self, trial: Trial) -> int:
        steps = getattr(trial.result, "steps", None)
        return steps if isinstance(steps, int) else len(set(trial.steps))

    def _says_why(self, trial: Trial) -> None:
        if not getattr(trial.result, "why", ""):
            raise Broken("it ended early without a reason: return TrainResult(…, why=control.ending).")


def _alike(trial: Trial, other: Trial) -> bool:
    same = all(torch.equal(tensor, other.policy[name]) for name, tensor in trial.policy.items())
    return same and trial.written == other.written


def _names(config: Any) -> set[str]:
    """The settings' names, those of nested tables too."""
    names: set[str] = set()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        names |= {field.name} | (_names(value) if dataclasses.is_dataclass(value) else set())
    return names


def _listed(values: Sequence[Any], most: int = 6) -> str:
    text = ", ".join(map(str, values[:most]))
    return (text + ", …" if len(values) > most else text) or "none"
