"""Measured results for README and docs, from the files under docs/results; empty if there are none.

results_table(root)                                            # the benchmark's headline table
text, files = curve(root, "ppo", root / "docs/algorithms/ppo.md")     # an image's link, and the image
text, files = trials(root, root / "docs/monitor.md")                  # the monitor's, table and images
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from humor_env import registry

if TYPE_CHECKING:
    from humor_env.experiments.compare.benchmark import Benchmark

BENCHMARK, TRIALS = "pocket-learners", "monitor-trials"
HEADLINES = ("teacher", "best-of-8", "rloo", "ppo", "grpo", "dpo", "brio", "imitation", "base")


def _published(root: Path) -> Benchmark | None:
    from humor_env.experiments.compare.benchmark import load_benchmark

    folder = root / "docs" / "results" / BENCHMARK
    return load_benchmark(folder) if folder.is_dir() else None


def results_table(root: Path) -> str:
    """Held-out scores with intervals, best first: the rows of HEADLINES. The whole table is on the benchmark's page."""
    from humor_env.experiments.compare.benchmark_tables import score, systems_of

    bench = _published(root)
    if bench is None:
        return ""
    prompts, seeds = len(bench.record["prompts"]), ", ".join(map(str, bench.spec.seeds))
    rows = ["| | held-out score | 95 % interval |", "|---|---:|---|"]
    for system in systems_of(bench):
        if system.name in HEADLINES:
            mean = score(system)
            bounds = "–" if math.isnan(mean.low) else f"{mean.low:.3f} to {mean.high:.3f}"
            rows.append(f"| {system.label} | {mean.value:.3f} | {bounds} |")
    return (
        "\n".join(rows) + f"\n\nScored by the exact judge on {prompts} held-out prompts, seeds {seeds}. "
        f"Every learner had the same feedback and {bench.spec.budget.samples or 0:,} lines to learn from "
        f"(`humor-env benchmark {bench.spec.name}`). docs/benchmark.md has all learners and columns."
    )


def curve(root: Path, learner: str, page: Path) -> tuple[str, dict[Path, str]]:
    """A link to the learner's measured curve, over the lines written to learn from, and the picture itself."""
    bench = _published(root)
    svg = None if bench is None else _curve(bench, learner)
    if bench is None or svg is None:
        return "", {}
    path = root / "docs" / "images" / f"curve-{learner.replace('+', 'p')}.svg"
    link = Path(os.path.relpath(path, page.parent)).as_posix()
    text = (
        f"![Held-out score of {learner} against the lines it wrote to learn from, mean over seeds]({link})\n\n"
        f"Mean over seeds {', '.join(map(str, bench.spec.seeds))} with 95 % intervals on dev prompts, each seed faint; "
        f"from `humor-env benchmark {bench.spec.name}`."
    )
    return text, {path: svg}


def trials(root: Path, page: Path) -> tuple[str, dict[Path, str]]:
    """The monitor's results in runs with gamed and honest critics; a picture for each gamed one."""
    folder = root / "docs" / "results" / TRIALS
    if not folder.is_dir():
        return "", {}
    from humor_env.experiments.pocket import monitor_trials

    rows, pictures, links = monitor_trials.read_results(folder), {}, []
    for critic in (c for c in monitor_trials.PAYS if any(row["critic"] == c for row in rows)):
        path = root / "docs" / "images" / f"monitor-{critic.replace(' ', '-')}.svg"
        pictures[path] = monitor_trials.chart(rows, critic)
        link = Path(os.path.relpath(path, page.parent)).as_posix()
        links.append(
            f"![Exact score over steps under a critic that pays for {critic}, until the alarm and after it]({link})"
        )
    return "\n\n".join([monitor_trials.table(rows), *links]), pictures


def _curve(bench: Benchmark, learner: str) -> str | None:
    import numpy as np

    from humor_env.experiments.compare import stats
    from humor_env.experiments.compare.benchmark_tables import curve_of, systems_of
    from humor_env.experiments.drawing.charts import Line, line_chart, standalone

    target = registry.learners.entries()[learner].target
    names = {entry.name for entry in bench.spec.learners if _target(entry.registered) == target}
    lines = []
    for system in (s for s in systems_of(bench) if s.name in names):
        curves = curve_of(bench, system, "score", "samples")
        if not curves:
            continue
        lines += [Line(system.label, x, y, faint=True) for x, y in curves]
        at = np.linspace(max(x[0] for x, _ in curves), max(max(x) for x, _ in curves), 12)
        intervals = stats.mean_curve(curves, at)
        value, low, high = ([getattr(f, n) for f in intervals] for n in ("value", "low", "high"))
        lines.append(Line(system.label, at.tolist(), value, low, high))
    if not lines:
        return None
    title = f"Held-out score of {learner} on dev prompts"
    return standalone(line_chart(lines, title=title, x_label="lines written", y_label="score"))


def _target(name: str) -> object:
    entry = registry.learners.entries().get(name)
    return name if entry is None else entry.target
