"""What a benchmark would cost: cells, calls, tokens, dollars and rough time, before a cent is spent.

    forecast_benchmark(load_benchmark_spec("pocket-learners"), workers=2, threads=1)  # benchmark --dry-run

Every run is set up as far as possible without any calls, so that a mistake in the last cell is found before the first
one runs. Counts are upper bounds, as in `runs/costs.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from humor_env.agents.feedback.pairs import CriticAsJudge
from humor_env.errors import CredentialError
from humor_env.experiments.compare.benchmark_spec import (
    IMITATION,
    BenchmarkSpec,
    FeedbackTable,
    critic_table,
    gives_win_rate,
    judge_table,
)
from humor_env.experiments.compare.bias_judges import OneOrder
from humor_env.experiments.runs import costs, line_counts
from humor_env.experiments.runs.ingredients import Ingredients
from humor_env.experiments.specs.spec import CriticSpec, JudgeSpec, Spec


def forecast_benchmark(bench: BenchmarkSpec, *, workers: int, threads: int) -> tuple[str, list[str]]:
    """The forecast in words, and what the benchmark needs but this machine lacks, such as a key."""
    bench = bench.filled()
    if bench.trained:
        return _before_training(bench), []
    start = bench.parsed(bench.imitation_run(bench.seeds[0]), IMITATION)
    runs = [(bench.run_spec(learner, source, bench.seeds[0]), [source]) for learner, source in bench.pairs()]
    lacking = [s for spec in (start, *(spec for spec, _ in runs)) for s in costs.check_without_paying(spec)]
    each = costs.seconds_to_write(start, threads)
    seconds, lines_written, others = 0.0, 0, bench.held_out.others
    items: dict[tuple[str, str], costs.Item] = {}
    unknown = False
    for spec, sources in ((start, list(bench.feedback)), *runs):
        # The warm start's cell also has the base, the teacher and, if it writes twice, the imitation again.
        twice = bench.noise_floor and spec is start
        systems = 3 + twice if spec is start else 1
        with tempfile.TemporaryDirectory() as scratch:
            parts = Ingredients(costs.without_keys(spec), Path(scratch))
            try:
                on_the_way = _dev_lines(spec, parts, bench.budget.evaluations)
                for item in _items(spec, parts, sources, on_the_way, others, systems=systems, twice=twice):
                    before = items.get((item.what, item.who))
                    items[item.what, item.who] = item if before is None else before + item
            except CredentialError:
                unknown = True
            lines, measured = _lines(spec, parts), line_counts.tested_lines(spec, parts)
            lessons = line_counts.lessons(spec, parts) if spec is start else 0
            parts.close()
        lines_written += lines
        stages = systems if spec is start else 2  # one of which nobody writes
        seconds += costs.rough_seconds(each or 0.0, lines, measured=measured, stages=stages, lessons=lessons)
        seconds += (each or 0.0) * on_the_way
    count = len(bench.seeds)
    cells = count * (1 + len(runs))
    money = "the cost is not known without the key." if unknown else ""
    if not unknown:
        shares = any(learner.budget < 1 for learner, _ in bench.pairs())
        money = costs.show_items(
            bench.name,
            [item.times(count) for item in items.values()],
            count,
            bench.budget.cost,
            f"each of {cells} runs" + (" (that of a learner with a share of the budget earlier)" if shares else ""),
        )
    time = "The time depends on the student and the machine: the student's weights are large or not installed."
    if each is not None:
        time = (
            f"On this machine, with {workers} worker{'s' if workers > 1 else ''}, that takes roughly "
            f"{costs.in_words(seconds * count / workers)}, from how fast the student wrote just now, plus the time "
            "spent waiting for language models."
        )
    text = f"{money}\n{cells} cells; the learners write about {lines_written * count:,} lines to learn from. {time}"
    return text, list(dict.fromkeys(lacking))


def _before_training(bench: BenchmarkSpec) -> str:
    """The forecast while the critics that the benchmark trains do not exist yet."""
    names = ", ".join(table.name for table in bench.trained)
    return (
        f"This benchmark first trains its critics ({names}); its {len(bench.seeds)} × {1 + len(bench.pairs())} runs "
        "cannot be estimated without them. They run on this machine and cost nothing."
    )


def _lines(spec: Spec, parts: Any) -> int:
    """The number of lines that a cell's student writes to learn from."""
    return line_counts.lines_to_learn_from(spec, parts) or spec.budget.max_samples or spec.budget.max_judgements or 0


def _dev_lines(spec: Spec, parts: Any, evaluations: int) -> int:
    """The number of lines measured during training. The steps of a learner from pairs depend on the judge: it is
    measured about as often as [budget] says."""
    if not getattr(spec.learner_config(spec.seeds[0]), "rounds", 0):
        return line_counts.dev_lines(spec, parts)
    return evaluations * min(sum(p.split == "dev" for p in parts.prompts), spec.eval.dev_limit) * spec.eval.dev_lines


def _items(
    spec: Spec, parts: Any, sources: list[FeedbackTable], dev: int, others: int, *, systems: int, twice: bool
) -> Iterator[costs.Item]:
    """For one seed: the calls of the feedback for learning, and of the feedback and the held-out critic for measuring,
    where each line is also compared with the teacher's and, if the imitation is written `twice`, with its first line.
    The held-out critic also scores each line with `others` other prompts."""
    measured = line_counts.tested_lines(spec, parts)
    sample, lines = costs.sample_pairs(parts), systems * measured
    scored = line_counts.lines_to_learn_from(spec, parts)
    tasks: list[tuple[str, str, Any, int]] = []
    held_out = parts.spec.eval.critic[0]
    tasks.append(("held out", costs.name_of(held_out), parts.make_critic(held_out), 3 * (lines + dev) + others * lines))
    for source in sources:
        critic, judge = _made(parts, source)
        learning = 0 if systems > 1 else scored
        pairs = 0 if systems > 1 or scored else line_counts.pairs_to_judge(spec, parts)
        tasks += [("learning", source.name, critic, learning), ("learning", source.name, judge, pairs)]
        compared = lines + measured * twice
        if systems == 1 and not gives_win_rate(*critic_table(source).values()):
            compared += dev  # the critic's score does not say how often it prefers a line to the teacher's
        tasks += [("measuring", source.name, critic, lines + dev), ("measuring", source.name, judge, compared)]
    for what, who, whom, count in tasks:
        if isinstance(whom, CriticAsJudge):
            whom, count = whom.critic, 2 * count
        elif isinstance(whom, OneOrder):  # counted as if it asked in both
            whom = whom.judge
        item = costs.item_of(what, who, whom, sample, count) if count else None
        if item is not None:
            yield replace(item, lines=count)


def _made(parts: Any, source: FeedbackTable) -> tuple[Any, Any]:
    """The feedback as a critic and as a judge, neither of which needs a key or leaves a file."""
    critic, judge = critic_table(source), judge_table(source)
    spec = parts.spec.model_copy(
        update={
            "critic": [CriticSpec(critic=critic["critic"], options=critic["options"])],
            "judge": JudgeSpec(judge=judge["judge"], options=judge["options"]),
        }
    )
    inner = Ingredients(costs.without_keys(spec), parts.folder)
    return inner.make_critic(inner.spec.critic[0]), inner.judge
