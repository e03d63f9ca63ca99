"""What an experiment file would cost in language-model calls, tokens and dollars, before a cent is spent.

    python -m humor_env.experiments.runs.costs one-gpu-anthropic
    python -m humor_env.experiments.runs.costs mine.toml --set learner.steps=50

Nothing is sent and no key is needed. Each critic is given the teacher's lines for some of the run's own prompts, and
what it would send is measured and multiplied by the lines of the run. Each item is an upper bound: lines that an
earlier gate stops, repeated lines and what a ledger already holds are not subtracted, and replies are counted at the
longest that is allowed. Only the checks that a monitor adds when one line spreads are not foreseen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from humor_env import registry
from humor_env.agents.student.sampling import draw_uniforms
from humor_env.errors import CredentialError, HumorEnvError, InvalidOption
from humor_env.experiments.options import with_members
from humor_env.experiments.runs.line_counts import (
    candidate_lines,
    dev_lines,
    lessons,
    lines_to_learn_from,
    pairs_to_judge,
    tested_lines,
    watched_lines,
)
from humor_env.experiments.specs.spec import CriticSpec, JudgeSpec, Spec, load_spec
from humor_env.llm.ledgered_client import Estimate
from humor_env.registry import Registry
from humor_env.rewards.lift import LiftCritic
from humor_env.rewards.tournament import TournamentCritic
from humor_env.shared.user_path import user_path
from humor_env.sources import students
from humor_env.types import Joke

SAMPLE = 20  # prompts that the questions are measured on
_SENDS = ("scorer", "multiple-choice")  # built in, and called through a client


@dataclass(frozen=True)
class Item:
    """One critic or judge in one part of the run. `lines` is the number of lines, or pairs of lines, that it judges."""

    what: str
    who: str
    lines: int
    calls: float
    input_tokens: float
    output_tokens: float
    cost: float | None

    def times(self, count: int) -> Item:
        """The item multiplied by `count`."""
        numbers = (self.calls * count, self.input_tokens * count, self.output_tokens * count)
        return Item(self.what, self.who, self.lines * count, *numbers, None if self.cost is None else self.cost * count)

    def __add__(self, other: Item) -> Item:
        both_priced = self.cost is not None and other.cost is not None
        return Item(
            self.what,
            self.who,
            self.lines + other.lines,
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            (self.cost or 0.0) + (other.cost or 0.0) if both_priced else None,
        )


def estimate_spec(spec: Spec) -> list[Item]:
    """An item for each language model in learning, in evaluation and in the monitor, over all seeds."""
    from humor_env.experiments.runs.ingredients import Ingredients

    with tempfile.TemporaryDirectory() as scratch:
        parts = Ingredients(without_keys(spec), Path(scratch))
        try:
            learning = lines_to_learn_from(spec, parts)
            evaluated = tested_lines(spec, parts) * (2 + spec.imitates + bool(parts.teacher)) + dev_lines(spec, parts)
            sample = sample_pairs(parts)
            siblings = getattr(spec.learner_config(spec.seeds[0]), "siblings", 1)
            items = [
                item_of("learning", name_of(c), parts.make_critic(c), sample, learning, siblings)
                for c in parts.spec.critic
            ]
            if parts.judge is not None and parts.spec.judge is not None:
                items.append(
                    item_of("learning", parts.spec.judge.judge, parts.judge, sample, pairs_to_judge(spec, parts))
                )
            measured = parts.spec.eval.critic or parts.spec.critic
            items += [
                item_of("evaluation", name_of(c), parts.make_critic(c), sample, evaluated, spec.eval.lines)
                for c in measured
            ]
            if (watched := watched_lines(spec, parts)) and parts.spec.monitor is not None:
                held_out = parts.spec.monitor.critic or parts.spec.eval.critic
                watching = [*parts.spec.critic, *(c for c in held_out if c not in parts.spec.critic)]
                items += [item_of("monitor", name_of(c), parts.make_critic(c), sample, watched) for c in watching]
        finally:
            parts.close()
    return [item.times(len(spec.seeds)) for item in items if item is not None]


def check_without_paying(spec: Spec) -> list[str]:
    """Make what a run makes before its first step, as far as that needs no calls: prompts, the teacher's lines for
    them, critics with their clients and options. Also check that the student's folder and device exist. The sentences
    returned say what the run needs but this machine lacks now: a key may be given later."""
    from humor_env.experiments.runs.ingredients import Ingredients, check_student

    check_student(spec.student)
    for client in _clients(spec):
        folder = client.removeprefix("local:")
        is_path = client.startswith("local:") and folder.startswith(("/", ".", "~"))
        if is_path and not user_path(folder).is_dir():
            raise InvalidOption(f"There is no folder '{folder}', which the client '{client}' names.")
    lacking: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        # Filtering lines would call a critic, so the filter is only made.
        teacher_filter = spec.teacher.filter if spec.teacher is not None else None
        parts = Ingredients(without_keys(spec), Path(scratch))
        try:
            parts.check()
            if teacher_filter is not None:
                harmless = _harmless(registry.critics, teacher_filter.critic, teacher_filter.options)
                parts.make_critic(CriticSpec(critic=teacher_filter.critic, options=harmless))
        except CredentialError as problem:
            lacking.append(str(problem))
        finally:
            parts.close()
    return lacking


def _clients(spec: Spec) -> list[str]:
    """The language models that critics and judges would call, however deeply nested."""

    def inside(table: Any) -> list[str]:
        if isinstance(table, Mapping):
            clients = [v for k, v in table.items() if k == "client" and isinstance(v, str)]
            return clients + [name for v in table.values() for name in inside(v)]
        return [name for v in table for name in inside(v)] if isinstance(table, list) else []

    return inside(spec.model_dump())


def sample_pairs(parts: Any) -> list[tuple[Joke, Joke]]:
    """Two lines for each of some prompts: the teacher's, or the prompt itself if there is none."""
    pairs = []
    for prompt in parts.prompts.split(parts.spec.env.split)[:SAMPLE]:
        lines = list(parts.teacher.lines_for(prompt.id)) if parts.teacher else []
        lines = (lines or [f"{prompt.text} Twice."]) * 2
        # Never the same text: critics decide that without a call.
        pairs.append((Joke(prompt, f"{lines[0]} "), Joke(prompt, lines[1])))
    return pairs


def item_of(
    what: str, who: str, critic: Any, sample: Sequence[tuple[Joke, Joke]], lines: int, together: int = 1
) -> Item | None:
    """None if the critic makes no calls. `together` is how many lines for one prompt it judges at once."""
    if isinstance(critic, LiftCritic):  # each line is judged with its own prompt and with others
        return item_of(what, who, critic.critic, sample, lines * (1 + critic.others), together)
    judge: Any = getattr(critic, "judge", None)
    members = [*getattr(critic, "inner_critics", ()), *getattr(critic, "inner_judges", ())]
    if members and judge is None:  # a mix or a jury asks each member about each line
        items = [
            item for member in members if (item := item_of(what, who, member, sample, lines, together)) is not None
        ]
        return replace(sum(items[1:], items[0]), lines=lines) if items else None
    of_pairs = _of_pairs(judge)
    share = lines / len(sample)
    if of_pairs is not None and isinstance(critic, TournamentCritic):
        estimated = of_pairs([(a, Joke(a.prompt, f"{a.text}!")) for a, _ in sample])
        share *= critic.most_games(together) / together
    elif of_pairs is not None:  # win-tie: each line is compared with some of the teacher's
        teacher_lines = [critic.teacher.lines_for(joke.prompt.id)[: critic.max_lines] for joke, _ in sample]
        pairs = [
            (Joke(a.prompt, f"{a.text}!"), Joke(a.prompt, b))
            for (a, _), bs in zip(sample, teacher_lines, strict=True)
            for b in bs
        ]
        estimated = of_pairs(pairs)
    elif not hasattr(critic, "estimate"):
        return None
    elif callable(getattr(critic, "requests", None)) and hasattr(critic, "votes"):
        estimated = critic.estimate([(Joke(a.prompt, f"{a.text}!"), b) for a, b in sample])
    else:
        estimated = critic.estimate([joke for joke, _ in sample])
    cost = None if estimated.cost is None else estimated.cost * share
    return Item(
        what, who, lines, estimated.calls * share, estimated.input_tokens * share, estimated.output_tokens * share, cost
    )


def _of_pairs(judge: Any) -> Callable[[Sequence[tuple[Joke, Joke]]], Estimate] | None:
    """The function that estimates a judge's calls for pairs, summed over the judges that it asks. None if all are
    free."""
    if hasattr(judge, "estimate"):
        estimator: Callable[[Sequence[tuple[Joke, Joke]]], Estimate] = judge.estimate
        return estimator
    inner = [
        estimate
        for inner_judge in getattr(judge, "inner_judges", ())
        if (estimate := _of_pairs(inner_judge)) is not None
    ]
    return (lambda pairs: sum((estimator(pairs) for estimator in inner[1:]), inner[0](pairs))) if inner else None


def name_of(critic: CriticSpec) -> str:
    inner = critic.options.get("judge", critic.options.get("critic"))
    return critic.critic if not isinstance(inner, str) else f"{critic.critic}, {inner}"


def without_keys(spec: Spec) -> Spec:
    """The spec with clients that need no key, ledgers without a file, and a teacher whose lines are not filtered."""
    critics, measuring = _harmless_critics(spec.critic), _harmless_critics(spec.eval.critic)
    monitor = spec.monitor
    if monitor is not None:
        monitor = monitor.model_copy(update={"critic": _harmless_critics(monitor.critic)})
    judge = spec.judge
    if judge is not None:
        judge = JudgeSpec(judge=judge.judge, options=_harmless(registry.judges, judge.judge, judge.options))
    teacher = None if spec.teacher is None else spec.teacher.model_copy(update={"filter": None})
    eval_ = spec.eval.model_copy(update={"critic": measuring})
    update = {"critic": critics, "eval": eval_, "judge": judge, "teacher": teacher, "monitor": monitor}
    changed: Spec = spec.model_copy(update=update)
    return changed


def _harmless_critics(entries: Sequence[CriticSpec]) -> list[CriticSpec]:
    return [c.model_copy(update={"options": _harmless(registry.critics, c.critic, c.options)}) for c in entries]


def _harmless(kind: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    harmless = with_members(kind, name, options, _harmless)
    if name in _SENDS:
        harmless |= {"ledger": ":memory:", "options": {**harmless.get("options", {}), "must_have_key": False}}
    return harmless


def show(spec: Spec, items: Sequence[Item]) -> str:
    return show_items(spec.name, items, len(spec.seeds), spec.budget.max_cost)


def show_items(name: str, items: Sequence[Item], seeds: int, limit: float | None, limited: str = "it") -> str:
    """The table and its total; a `limit` in dollars stops what `limited` names."""
    if not items:
        return f"{name}: no language model is called; it costs only time."
    rows = [
        "| part | who | lines or pairs | calls | tokens read | tokens written, at most | dollars, at most |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for i in items:
        money = "unknown" if i.cost is None else f"{i.cost:,.2f}"
        rows.append(
            f"| {i.what} | {i.who} | {i.lines:,} | {i.calls:,.0f} | {i.input_tokens:,.0f} | {i.output_tokens:,.0f} "
            f"| {money} |"
        )
    costs = [i.cost for i in items]
    total = None if any(c is None for c in costs) else sum(c or 0.0 for c in costs)
    cost_text = "unknown: a model has no price in prices.toml" if total is None else f"at most about ${total:,.2f}"
    return "\n".join(rows) + (
        f"\n\n{name}, {seeds} seed{'s' if seeds > 1 else ''}: {cost_text}"
        + (f"; the budget stops {limited} at ${limit:,.2f}." if limit is not None else "; no limit is set in [budget].")
    )


def forecast(spec: Spec) -> str:
    """What the run would cost: calls, tokens and dollars, and how many lines are written and judged."""
    from humor_env.experiments.runs.ingredients import Ingredients

    try:
        money = show(spec, estimate_spec(spec))
    except CredentialError:
        money = f"{spec.name}: the cost is not known without the key."
    with tempfile.TemporaryDirectory() as scratch:
        parts = Ingredients(without_keys(spec), Path(scratch))
        lines, prompts = lines_to_learn_from(spec, parts) + candidate_lines(spec, parts), len(parts.eval_prompts)
        stages, imitated = 2 + spec.imitates + bool(parts.teacher), lessons(spec, parts)
    seeds = len(spec.seeds)
    each = seconds_to_write(spec)
    if each is None:
        time = (
            "The time depends on the student and the machine: run it with --set learner.steps=2 and look at "
            "timings.jsonl."
        )
    else:
        whole = rough_seconds(each, lines, measured=prompts * spec.eval.lines, stages=stages, lessons=imitated)
        time = (
            f"On this machine that takes roughly {in_words(whole * seeds)}, from how fast the student wrote "
            "just now, plus the time spent waiting for language models."
        )
    return (
        f"{money}\nThe learner writes about {lines * seeds:,} lines to learn from, and each stage is measured on "
        f"{prompts:,} prompts{f', {spec.eval.lines} lines for each' if spec.eval.lines > 1 else ''}. {time}"
    )


_TRIED = 32  # the most lines that are written at once to measure the student's speed
_LARGEST = 4 * 1024**3  # bytes of weights that a dry run loads for it
_UNPACKED = 4  # roughly how much larger a quantised GGUF file's weights are in memory


def _weights(model: str) -> int:
    """Bytes of a student's weights on this machine; 0 if they would have to be downloaded."""
    folder = user_path(students.find(model))
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.is_dir() else 0
    return stored or _UNPACKED * students.gguf_bytes(model)


def seconds_to_write(spec: Spec, threads: int | None = None) -> float | None:
    """Seconds on this machine for one line of the student, with as many `threads` as the run will have; None if its
    weights are large or not installed."""
    from humor_env.agents.student.writer import write_jokes
    from humor_env.experiments.runs.ingredients import Ingredients, evaluation_sampling, load_student, student_settings

    if not 0 < _weights(spec.student.model) < _LARGEST:
        return None
    config = spec.learner_config(spec.seeds[0])
    sampling, tried = evaluation_sampling(spec, config), min(_TRIED, getattr(config, "batch_size", _TRIED))
    with tempfile.TemporaryDirectory() as scratch:
        prompts = Ingredients(without_keys(spec), Path(scratch)).prompts.split(spec.env.split)
    trial_prompts = [prompts[i % len(prompts)] for i in range(tried)]
    student = load_student(student_settings(spec), spec.seeds[0])
    uniforms = draw_uniforms(tried, sampling.max_new_tokens, torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        write_jokes(student, trial_prompts[:1], sampling, uniforms[:1], author="trial")  # the first one also warms up
        began = perf_counter()
        write_jokes(student, trial_prompts, sampling, uniforms, author="trial")
        return (perf_counter() - began) / tried
    finally:
        torch.set_num_threads(before)


def rough_seconds(each: float, lines: int, *, measured: int, stages: int, lessons: int) -> float:
    """Seconds for one seed, where writing a line takes `each`. Learning from a line takes about as long as writing it,
    and imitating one three quarters of that; the teacher's stage is not written."""
    return each * (2 * lines + measured * (stages - 1) + 0.75 * lessons)


def in_words(seconds: float) -> str:
    for unit, size, most in (("seconds", 1, 120), ("minutes", 60, 120), ("hours", 3600, 48), ("days", 86400, None)):
        count = seconds / size
        if most is None or count < most:
            rounded = f"{count:.0f}" if unit in ("seconds", "minutes") or count >= 10 else f"{count:.2g}"
            return "a second" if unit == "seconds" and count < 1.5 else f"{rounded} {unit}"
    raise AssertionError("unreachable")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m humor_env.experiments.runs.costs", description=__doc__.split("\n")[0]
    )
    parser.add_argument("spec", help="a TOML file, a run's folder, or the name of a bundled spec")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key")
    options = parser.parse_args(arguments)
    try:
        spec = load_spec(options.spec, options.set)
        print(show(spec, estimate_spec(spec)))
    except HumorEnvError as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
