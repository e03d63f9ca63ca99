"""Short runs of one learner in the pocket world, with the arguments that a run gives it; `check_learner` compares them.

    trials = Trials(train, "mine", config_of, folder)    # config_of(seed, evaluate_every) makes the settings
    trial = trials.run("whole")
    trial.steps, trial.error, trial.policy               # what it logged, what it raised, what it learned

The student is the bundled causal one with small adapters. The critic and the judge count letters: every line gets
another score, so that there is something to learn from the first step on. They record what they are asked.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import json
import logging
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from torch import Tensor

from humor_env import registry
from humor_env.agents.session.checkpoint import CheckpointStore, random_states, restore_random_states
from humor_env.agents.session.limits import Limits, RunControl
from humor_env.agents.session.log import RunLog
from humor_env.agents.student import IMITATION, POLICY, Lora, Student
from humor_env.agents.student.sampling import Sampling
from humor_env.agents.student.token_rows import Scored, TokenRows
from humor_env.errors import BudgetExceeded
from humor_env.experiments.runs.run import OFFERS, chosen_arguments
from humor_env.prompts import PromptSet, load_prompts
from humor_env.shared.json_lines import read_lines
from humor_env.teacher import pocket_lines
from humor_env.types import Joke, Judgement, Verdict

STUDENT = "pocket:causal"
LORA = Lora(rank=4, alpha=8)
SIZES = {"train": 24, "dev": 4, "test": 4}
LINES = 2  # of the teacher's, for each prompt
SCORE = "score"
SHORT = Sampling(max_new_tokens=12)


class Cut(BaseException):
    """The plug is pulled in the middle of a run. Not an Exception, which a learner may catch."""


@dataclass(frozen=True)
class Asked:
    """One call of the critic or judge: `count` lines or pairs, after so many logged steps."""

    after: int
    count: int
    jokes: tuple[Joke, ...]


class Feedback:
    """The training critic and the judge: the more of the letter e, the better.

    With `failing="lines"` every third new line or pair cannot be judged, with "groups" all of every third prompt.
    """

    def __init__(self, logged: Callable[[], int], *, failing: str = "", calls: int | None = None) -> None:
        self.asked: list[Asked] = []
        self.failed: set[tuple[str, str]] = set()  # lines without a score, as (prompt's text, line)
        self._logged, self._failing, self._calls = logged, failing, calls
        self._seen: dict[object, bool] = {}

    def critic(self, jokes: Sequence[Joke]) -> list[Judgement]:
        self._note(len(jokes), jokes)
        return [self._judge(joke) for joke in jokes]

    def judge(self, pairs: Sequence[tuple[Joke, Joke]]) -> list[Verdict]:
        self._note(len(pairs), [joke for pair in pairs for joke in pair])
        return [self._compare(a, b) for a, b in pairs]

    def _note(self, count: int, jokes: Sequence[Joke]) -> None:
        if self._calls is not None and len(self.asked) >= self._calls:
            raise BudgetExceeded("The limit of the check is reached.")
        self.asked.append(Asked(self._logged(), count, tuple(jokes)))

    def _judge(self, joke: Joke) -> Judgement:
        if self._fails(joke.prompt.id, joke.text):
            self.failed.add((joke.prompt.text, joke.text))
            return Judgement("letters", None, error="it failed on purpose")
        return Judgement("letters", min(1.0, 4 * _share(joke.text)))

    def _compare(self, a: Joke, b: Joke) -> Verdict:
        if self._fails(a.prompt.id, (a.text, b.text)):
            return Verdict("letters", None, error="it failed on purpose")
        return Verdict("letters", max(0.0, min(1.0, 0.5 + 2 * (_share(a.text) - _share(b.text)))))

    def _fails(self, prompt: str, text: object) -> bool:
        """The same for equal lines."""
        if not self._failing:
            return False
        key = prompt if self._failing == "groups" else (prompt, text)
        return self._seen.setdefault(key, len(self._seen) % 3 == 0)


def _share(text: str) -> float:
    return text.count("e") / max(1, len(text))


class Notebook(RunLog):
    """A run's log that also notes what it is given, and at some step pulls the plug or presses Ctrl-C."""

    def __init__(self, folder: Path, cut_at: int | None, interrupt_at: int | None) -> None:
        super().__init__(folder)
        self.cut_at, self.interrupt_at = cut_at, interrupt_at
        self.given: list[int] = []  # the steps, in order
        self.odd: list[str] = []  # a sentence for each number that is none

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        plain = {}
        for name, value in numbers.items():
            wrong = not isinstance(value, (int, float))
            if wrong or not np.isfinite(value):
                value_text = f"a {type(value).__name__}" if wrong else f"{value:g}"
                self.odd.append(f"'{name}' is {value_text} at step {step}")
            else:
                plain[name] = value
        super().metrics(step, plain)
        self.given.append(step)
        if step == self.cut_at:
            raise Cut
        if step == self.interrupt_at:
            self.interrupt_at = None
            signal.raise_signal(signal.SIGINT)


class WatchedStudent(Student):
    """Notes the lines whose log-probabilities get a gradient."""

    taught: set[tuple[tuple[int, ...], str]]

    def score(self, rows: TokenRows, **options: Any) -> Scored:
        scored = super().score(rows, **options)
        if scored.logprobs.requires_grad:
            scored.logprobs.register_hook(functools.partial(self._note, rows))
        return scored

    def _note(self, rows: TokenRows, gradient: Tensor) -> None:
        sizes = (gradient * rows.action_mask).abs().sum(-1)
        for row in (sizes > 0).nonzero().flatten().tolist():  # not NaN, which is another mistake
            real, response = rows.attention[row].bool(), rows.action_mask[row].bool()
            prompt = rows.tokens[row][real & ~response].tolist()
            self.taught.add((tuple(prompt), self.decode(rows.tokens[row][response].tolist())))


@dataclass
class Trial:
    """One run: what the learner returned or raised, what it logged, asked, learned and changed."""

    result: Any
    error: BaseException | None
    steps: list[int]  # in the run's metrics file
    logged_now: list[int]  # by this run, where an earlier one was cut
    numbers: list[dict[str, float]]
    odd: list[str]
    asked: list[Asked]
    policy: dict[str, Tensor]
    imitation: dict[str, Tensor]
    written: list[str]  # by the writer, if it returned one
    changed: list[str]  # frozen weights that differ
    evaluated: int
    control: RunControl
    saved: bool
    made: list[str]  # critics and judges that it made itself
    learned_unscored: list[str]  # lines without a score that got a gradient

    @property
    def judged(self) -> int:
        return sum(call.count for call in self.asked)


@dataclass
class Trials:
    """All runs of one learner; each has a folder of its own under `folder`."""

    train: Callable[..., Any]
    name: str
    config_of: Callable[[int, int], Any]
    folder: Path
    _runs: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.takes = set(inspect.signature(self.train).parameters)
        world, lines = load_prompts("pocket"), pocket_lines(LINES)
        chosen = {split: world.split(split)[:count] for split, count in SIZES.items()}
        self.prompts = PromptSet("pocket", [p for prompts in chosen.values() for p in prompts])
        self.demonstrations, self.dev = (
            tuple(d for p in chosen[split] for d in lines.demonstrations_for(p.id)) for split in ("train", "dev")
        )
        self.teacher = lines
        with _quiet():
            loaded = Student.load(STUDENT, lora=LORA)
            self._base, self._tokenizer = loaded.plain_base(), loaded.tokenizer
        self.before = loaded.state()

    def run(
        self,
        folder: str,
        *,
        seed: int = 0,
        limits: Limits | None = None,
        cut_at: int | None = None,
        interrupt_at: int | None = None,
        evaluate_every: int = 0,
        failing: str = "",
        calls: int | None = None,
    ) -> Trial:
        """Train once. A second run in the same folder resumes. `calls` is how often critic and judge answer before a
        spending limit is reached. `interrupt_at`, the step of a Ctrl-C, needs the main thread."""
        place = self.folder / folder
        config = self.config_of(seed, evaluate_every)
        log = Notebook(place, cut_at, interrupt_at)
        feedback = Feedback(lambda: len(set(log.given)), failing=failing, calls=calls)
        with _quiet():
            student = WatchedStudent(copy.deepcopy(self._base), copy.deepcopy(self._tokenizer), lora=LORA)
        student.taught = set()
        frozen = {n: p.detach().clone() for n, p in student.model.named_parameters() if "lora_" not in n}
        control = RunControl(limits)
        evaluations: list[int] = []

        def evaluate(evaluated: Student) -> dict[str, float]:
            evaluations.append(len(log.given))
            evaluated.generate([p.text for p in self.prompts.split("dev")], SHORT)
            return {SCORE: 0.25}

        def make_env() -> list[Any]:
            count = getattr(config, "batch_size", 1)
            envs = gymnasium.make_vec(
                "humor_env/Paraphrase-v0", num_envs=count, prompts=self.prompts, critic=feedback.critic
            )
            return [envs.unwrapped]

        offers: dict[str, Callable[[], Any]] = {
            "config": lambda: config,
            "env": make_env,
            "student": lambda: student,
            "log": lambda: log,
            "prompts": lambda: self.prompts.split("train"),
            "demonstrations": lambda: self.demonstrations,
            "dev": lambda: self.dev,
            "checkpoints": lambda: CheckpointStore(place / "checkpoints"),
            "evaluate": lambda: evaluate if evaluate_every else None,
            "critic": lambda: feedback.critic,
            "judge": lambda: feedback.judge,
            "teacher": lambda: self.teacher,
            "control": lambda: control,
            "backend": lambda: None,
            "preferences": lambda: (),
        }
        assert tuple(offers) == OFFERS
        made: list[str] = []
        result: Any = None
        error: BaseException | None = None
        written: list[str] = []
        self._runs += 1
        with _other_chance(self._runs), _quiet(), _ctrl_c() if interrupt_at else contextlib.nullcontext():
            try:
                arguments = chosen_arguments(self.train, self.name, offers)
                with _noting_makers(made):
                    result = self.train(config, **arguments)
            except (Exception, Cut) as problem:
                error = problem
            except KeyboardInterrupt as problem:
                if interrupt_at is None:
                    raise
                error = problem
            finally:
                control.__exit__()  # again, if the learner has: its handler of Ctrl-C must not stay
            if control.by_user and interrupt_at is None:
                raise KeyboardInterrupt
            asked = list(feedback.asked)
            writer = getattr(result, "writer", None)
            if writer is not None:
                written = [joke.text for joke in writer.write(self.prompts.split("dev"))]
        numbers = [json.loads(line) for line in read_lines(place / "metrics.jsonl")] if log.given else []
        return Trial(
            result=result,
            error=error,
            steps=[row["step"] for row in numbers],
            logged_now=log.given,
            numbers=numbers,
            odd=log.odd,
            asked=asked,
            policy=_weights(student, POLICY),
            imitation=_weights(student, IMITATION),
            written=written,
            changed=_differing(frozen, dict(student.model.named_parameters())),
            evaluated=len(evaluations),
            control=control,
            saved=any(path.is_file() for path in (place / "checkpoints").rglob("*")),
            made=made,
            learned_unscored=self._unscored(student, feedback),
        )

    def _unscored(self, student: WatchedStudent, feedback: Feedback) -> list[str]:
        """The lines without a score that got a gradient; not those that a teacher also wrote, which it may imitate."""
        taught_by_teacher = {(d.prompt.text, d.text) for d in self.demonstrations}
        encode = functools.cache(lambda text: tuple(student.encode_prompt(text)))
        return [
            line
            for prompt, line in sorted(feedback.failed - taught_by_teacher)
            if (encode(prompt), line) in student.taught
        ]


def _weights(student: Student, adapter: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in student.adapter_parameters(adapter).items()}


def _differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]


@contextlib.contextmanager
def _other_chance(run: int) -> Iterator[None]:
    """Give the global generators another state for each run, and restore them: who draws from them unseeded differs
    from run to run."""
    tensors, state = random_states()
    torch.manual_seed(10_000 + run)
    np.random.seed(10_000 + run)
    random.seed(10_000 + run)
    try:
        yield
    finally:
        restore_random_states(tensors, state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Findings are all that is printed."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[None]:
    """Let Ctrl-C interrupt as it does in a terminal: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _noting_makers(made: list[str]) -> Iterator[None]:
    """Note the critics and judges that are made by name meanwhile."""
    with contextlib.ExitStack() as stack:
        for kind in (registry.critics, registry.judges):
            stack.enter_context(mock.patch.object(kind, "make", _noting(kind.make, kind.kind, made)))
        yield


def _noting(make: Callable[..., Any], kind: str, made: list[str]) -> Callable[..., Any]:
    def noted(what: Any, **options: Any) -> Any:
        if isinstance(what, str):
            made.append(f"the {kind} '{what}'")
        return make(what, **options)

    return noted
