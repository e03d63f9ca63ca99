"""The tables of a benchmark, made from its result files.

results_page(load_benchmark(folder))              # RESULTS.md
make_table(load_benchmark(folder), "scores")      # one of them, for a page of the docs: see benchmark_pages.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from humor_env.errors import InvalidOption
from humor_env.experiments.compare import stats
from humor_env.experiments.compare.benchmark_spec import IMITATION, WRITTEN_AGAIN
from humor_env.experiments.compare.stats import Array, Interval

if TYPE_CHECKING:
    from humor_env.experiments.compare.benchmark import Benchmark, Row

FIXED = ("base", "teacher", IMITATION, WRITTEN_AGAIN)
AGAIN_LABEL = "imitation, written again"


@dataclass(frozen=True)
class System:
    """A row of the tables: a learner and its feedback, with the results of each seed."""

    label: str
    name: str
    feedback: str
    rows: Sequence[Row]
    prompts: int

    def lines(self, key: str) -> Array:
        """`[seeds, prompts]`, or `[seeds, prompts, lines]` if there are several; NaN for missing numbers."""
        flat = np.array([[np.nan if v is None else v for v in row[key]] for row in self.rows], dtype=np.float64)
        several = flat.shape[1] > self.prompts
        return flat.reshape(len(flat), self.prompts, -1) if several else flat

    def numbers(self, key: str) -> Array:
        return np.array([np.nan if row.get(key) is None else row[key] for row in self.rows], dtype=np.float64)

    def mean(self, key: str) -> float:
        values = self.numbers(key)
        return float(stats.mean(values)) if np.isfinite(values).any() else float("nan")

    def win_tie(self, whose: str, other: str = "") -> Array:
        """P(win) + P(tie) line by line, by the held-out judge or the feedback's; against the teacher's line, or (other
        "_itself") the policy's own first line."""
        judge = "_held_out" if whose == "held out" else ""
        wins, ties = (f"{kind}{other}{judge}" for kind in ("wins", "ties"))
        return np.minimum(1.0, self.lines(wins) + self.lines(ties) / 2)


def systems_of(bench: Benchmark) -> list[System]:
    """Best held-out score first. A system that did not learn has one row, whatever feedback measured it."""
    by_system: dict[tuple[str, str], list[Row]] = {}
    sources = [f.name for f in bench.spec.feedback]
    for row in bench.rows:
        if row["system"] not in FIXED or row["feedback"] == sources[0]:
            by_system.setdefault((row["system"], row["feedback"]), []).append(row)
    systems = [
        System(
            _label(name, feedback, several=len(sources) > 1),
            name,
            feedback,
            sorted(rows, key=lambda row: row["seed"]),
            len(bench.record["prompts"]),
        )
        for (name, feedback), rows in by_system.items()
    ]
    return sorted(systems, key=lambda s: -s.mean("score"))


def _label(name: str, feedback: str, *, several: bool) -> str:
    if name == WRITTEN_AGAIN:
        return AGAIN_LABEL
    return f"{name}, {feedback}" if several and name not in FIXED else name


Columns = Mapping[str, Callable[[System], str]]


def _table(systems: Sequence[System], columns: Columns) -> str:
    head = ["", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join([s.label, *(column(s) for column in columns.values())]) + " |" for s in systems]
    return "\n".join(lines)


def _plain(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _bounds(interval: Interval, digits: int = 3, scale: float = 1.0) -> str:
    if not np.isfinite(interval.value):
        return "–"
    if not np.isfinite(interval.low + interval.high):
        return f"{scale * interval.value:.{digits}f}"
    value, low, high = (f"{scale * v:.{digits}f}" for v in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _of(key: str, digits: int = 3) -> Callable[[System], str]:
    return lambda system: _plain(system.mean(key), digits)


def score(system: System) -> Interval:
    return stats.interval([system.lines("scores")])


def _scores(bench: Benchmark) -> str:
    systems = systems_of(bench)
    parts = list(dict.fromkeys(key for row in bench.rows for key in row if key.startswith("part/")))
    columns: dict[str, Callable[[System], str]] = {
        "held-out score": lambda s: _bounds(score(s)),
        "interquartile mean": lambda s: _bounds(stats.interval([s.lines("scores")], stats.interquartile_mean)),
        **{part.removeprefix("part/"): _of(part) for part in parts},
        "seeds": lambda s: str(len(s.rows)),
    }
    return _table(systems, columns)


def _win_or_tie(whose: str) -> Callable[[System], str]:
    return lambda s: "–" if s.name == "teacher" else _bounds(stats.interval([s.win_tie(whose)]), 0, 100)


def _win_tie(bench: Benchmark) -> str:
    """Against the teacher's line for the same prompt, in percent."""

    def controlled(key: str) -> Callable[[System], str]:
        def column(s: System) -> str:
            if s.name == "teacher":
                return "–"
            return _bounds(stats.length_controlled_interval(s.lines(key), s.lines("longer")), 0, 100)

        return column

    return _table(
        systems_of(bench),
        {
            "win or tie, held-out judge": _win_or_tie("held out"),
            "win or tie, training judge": _win_or_tie("feedback"),
            "win at equal length, held-out judge": controlled("wins_held_out"),
            "win at equal length, training judge": controlled("wins"),
            "length ÷ prompt's length": _of("length_ratio", 2),
        },
    )


def _texts(bench: Benchmark) -> str:
    return _table(
        systems_of(bench),
        {
            "distinct-2": _of("distinct_2"),
            **({"different lines": _of("different_lines")} if any("different_lines" in r for r in bench.rows) else {}),
            **({"commonest line": _of("commonest_line")} if any("commonest_line" in row for row in bench.rows) else {}),
            "self-overlap": _of("self_overlap"),
            "copies of the teacher": lambda s: "–" if s.name == "teacher" else _plain(s.mean("teacher_copies")),
            "length ÷ prompt's length": _of("length_ratio", 2),
            **({"lift": _of("lift")} if any("lift" in row for row in bench.rows) else {}),
            "KL to imitation": _of("kl", 1),
            "failed judgements": _of("failures", 0),
        },
    )


def _noise(bench: Benchmark) -> str:
    """The difference between two passes of the same policy: a smaller one between two systems means nothing."""
    by_name = {s.name: s for s in systems_of(bench)}
    again, first = by_name.get(WRITTEN_AGAIN), by_name.get(IMITATION)
    columns: dict[str, Callable[[System], str]] = {
        "held-out score": lambda s: _bounds(score(s)),
        "score over imitation": lambda s: _difference(s, first) if first else "–",
        "win or tie with imitation, held-out judge": lambda s: _itself(s, "held out"),
    }
    for feedback in [f.name for f in bench.spec.feedback]:
        rows = [row for row in bench.rows if (row["system"], row["feedback"]) == (WRITTEN_AGAIN, feedback)]
        whose = "training judge" if len(bench.spec.feedback) == 1 else feedback
        columns[f"win or tie with imitation, {whose}"] = lambda s, rows=rows: _itself(  # type: ignore[misc]
            replace(s, rows=rows), "feedback"
        )
    return _table([again] if again else [], columns)


def _itself(system: System, whose: str) -> str:
    return _bounds(stats.interval([system.win_tie(whose, "_itself")]), 0, 100)


def _spent(bench: Benchmark) -> str:
    learned = [s for s in systems_of(bench) if s.name not in ("base", "teacher", WRITTEN_AGAIN)]
    columns: dict[str, Callable[[System], str]] = {
        "lines written": _of("spent/samples", 0),
        "judgements": _of("spent/judgements", 0),
        "steps": _of("spent/steps", 0),
        "seconds": _of("spent/seconds", 0),
    }
    if any("spent/cost" in row for row in bench.rows):
        columns["dollars"] = _of("spent/cost", 2)
    columns["ended early"] = lambda s: "; ".join(dict.fromkeys(r["ended"] for r in s.rows if r.get("ended"))) or "–"
    return _table(learned, columns)


def ratings_of(bench: Benchmark) -> list[tuple[System, stats.Rating]]:
    """Bradley-Terry ratings of all systems; a system plays no games in seeds it was not run with, and no policy plays
    twice."""
    systems = [s for s in systems_of(bench) if s.name != WRITTEN_AGAIN]
    array = np.full((len(systems), len(bench.spec.seeds), *systems[0].lines("scores").shape[1:]), np.nan)
    for i, system in enumerate(systems):
        by_seed = dict(zip((row["seed"] for row in system.rows), system.lines("scores"), strict=True))
        for j, seed in enumerate(bench.spec.seeds):
            if seed in by_seed or system.name == "teacher":
                array[i, j] = by_seed.get(seed, system.lines("scores")[0])
    return [(systems[rating.system], rating) for rating in stats.bradley_terry(array)]


def _ratings(bench: Benchmark) -> str:
    rated = {system.label: rating for system, rating in ratings_of(bench)}
    return _table(
        [system for system, _ in ratings_of(bench)],
        {"tier": lambda s: str(rated[s.label].tier), "points": lambda s: _bounds(rated[s.label].points, 0)},
    )


def _improvement(bench: Benchmark) -> str:
    """Each system compared with the imitation it started from and the control that does not learn."""
    systems = systems_of(bench)
    controls = [s for s in systems if s.name == "imitation" or s.name.startswith("best-of")]
    learned = [s for s in systems if s.name not in FIXED]
    columns: dict[str, Callable[[System], str]] = {}
    for control in controls:
        columns[f"score over {control.label}"] = lambda s, c=control: _difference(s, c)  # type: ignore[misc]
        columns[f"P(better than {control.label})"] = lambda s, c=control: _improved(s, c)  # type: ignore[misc]
    return _table(learned, columns)


def _difference(system: System, control: System) -> str:
    if system is control:
        return "–"
    shared = sorted({r["seed"] for r in system.rows} & {r["seed"] for r in control.rows})
    if not shared:
        return "–"
    pair = [
        np.stack([x for r, x in zip(s.rows, s.lines("scores"), strict=True) if r["seed"] in shared])
        for s in (system, control)
    ]
    difference = stats.paired_difference(*pair)
    return _bounds(difference) + (" *" if difference.low > 0 or difference.high < 0 else "")


def _improved(system: System, control: System) -> str:
    if system is control:
        return "–"
    return _bounds(stats.probability_of_improvement(system.lines("scores"), control.lines("scores")), 2)


def curve_of(
    bench: Benchmark, system: System, key: str, over: str = "samples"
) -> list[tuple[list[float], list[float]]]:
    """For each seed, what was spent and what was measured at each point. All start with the imitation."""
    curves = []
    for row in system.rows:
        points = [
            p
            for p in bench.curves
            if (p["system"], p["feedback"], int(p["seed"])) == (system.name, system.feedback, row["seed"])
            and key in p
            and over in p
        ]
        if points:
            curves.append(([p[over] for p in points], [p[key] for p in points]))
    return curves


def _efficiency(bench: Benchmark) -> str:
    """On dev prompts: the score when a share of the budget was spent, and the mean over the budget. The intervals are
    over seeds: a point has one number for all its prompts."""
    budget = bench.spec.budget.samples or bench.spec.budget.judgements or 0
    over = "samples" if bench.spec.budget.samples else "judgements"
    systems = [s for s in systems_of(bench) if curve_of(bench, s, "score", over)]
    shares = (0.25, 0.5, 0.75, 1.0)

    def at(share: float) -> Callable[[System], str]:
        def column(s: System) -> str:
            return _bounds(stats.mean_curve(curve_of(bench, s, "score", over), [share * budget])[0])

        return column

    def area(s: System) -> str:
        return _bounds(
            stats.interval([np.array([stats.area_under(x, y, budget) for x, y in curve_of(bench, s, "score", over)])])
        )

    columns = {f"after {share * budget:,.0f} {over}": at(share) for share in shares}
    return _table(systems, {**columns, "mean over the budget": area})


def _overoptimisation(bench: Benchmark) -> str:
    """At the end: how far each moved, and whether the training judge still agrees with the held-out one."""

    def gap(s: System) -> str:
        return _bounds(stats.paired_difference(s.lines("wins"), s.lines("wins_held_out")), 0, 100)

    return _table(
        [s for s in systems_of(bench) if s.name not in ("teacher", WRITTEN_AGAIN)],
        {
            "√KL": lambda s: _plain(float(np.sqrt(max(0.0, s.mean("kl")))) if np.isfinite(s.mean("kl")) else np.nan, 2),
            "wins, training judge": lambda s: _bounds(stats.interval([s.lines("wins")]), 0, 100),
            "wins, held-out judge": lambda s: _bounds(stats.interval([s.lines("wins_held_out")]), 0, 100),
            "gap": gap,
        },
    )


def _effects(bench: Benchmark, systems: Sequence[System] | None = None) -> str:
    """The main results in one table: score, meaning, length, and both judges."""
    if systems is None:
        systems = sorted(systems_of(bench), key=lambda s: (s.name not in FIXED, _place(bench, s)))
    columns: dict[str, Callable[[System], str]] = {"held-out score": lambda s: _bounds(score(s))}
    if any("part/meaning" in row for row in bench.rows):
        columns["meaning"] = _of("part/meaning", 2)
    columns |= {
        "length ÷ prompt's length": _of("length_ratio", 2),
        "win or tie, held-out judge": _win_or_tie("held out"),
        "win or tie, training judge": _win_or_tie("feedback"),
        "lines written": _of("spent/samples", 0),
        "judgements": _of("spent/judgements", 0),
    }
    return _table(systems, columns)


def _place(bench: Benchmark, system: System) -> tuple[int, int]:
    learners, sources = [x.name for x in bench.spec.learners], [f.name for f in bench.spec.feedback]
    return (learners.index(system.name) if system.name in learners else -1, sources.index(system.feedback))


def _critics(bench: Benchmark) -> str:
    """The critics trained for the benchmark, on their held-out prompts."""
    lines = ["| | trained on | pairs right, % | pairs |", "|---|---|---|---|"]
    for name, dev in bench.record["trained"].items():
        right = f"{100 * dev['pair_accuracy']:.1f}"
        lines.append(f"| {name} | {', '.join(dev['sets'])} | {right} | {dev['pairs']:.0f} |")
    return "\n".join(lines)


TABLES: Mapping[str, tuple[str, Callable[[Benchmark], str]]] = {
    "scores": ("Held-out score and its parts", _scores),
    "teacher": ("Against the teacher's line for the same prompt, in percent", _win_tie),
    "ratings": (
        "Bradley-Terry ratings; the intervals of a tier overlap that of its first, and two may still differ",
        _ratings,
    ),
    "improvement": ("Improvement (* where the interval excludes 0)", _improvement),
    "efficiency": ("During training: held-out score on dev prompts, intervals over seeds only", _efficiency),
    "overoptimisation": (
        "Overoptimisation: wins over the teacher by the training and the held-out judge, in percent",
        _overoptimisation,
    ),
    "effects": ("All in one table", _effects),
    "noise": ("Noise: the same policy, written twice with other random numbers", _noise),
    "texts": ("Variety and copying", _texts),
    "spent": ("What training cost, mean over seeds", _spent),
    "critics": ("Critics trained for this benchmark, on prompts that they did not learn from", _critics),
}


def make_table(bench: Benchmark, name: str) -> str:
    """One table by its name, or by that of one of the spec's [[compare]]."""
    for compare in bench.spec.compare:
        if compare.name == name:
            by_name = {s.name: s for s in systems_of(bench)}
            return _effects(bench, [by_name[n] for n in compare.systems if n in by_name])
    if name not in TABLES:
        names = [*TABLES, *(c.name for c in bench.spec.compare)]
        raise InvalidOption(f"No table is called '{name}'. Known: {', '.join(names)}.")
    return TABLES[name][1](bench)


def tables_of(bench: Benchmark) -> list[str]:
    """The names of the tables that a page of this benchmark shows."""
    is_filled = {
        "effects": len(bench.spec.feedback) > 1,
        "noise": bench.spec.noise_floor,
        "critics": bool(bench.record.get("trained")),
    }
    return [name for name in TABLES if bench.rows and is_filled.get(name, True)]


def lines_of(bench: Benchmark) -> int:
    """How many lines each held-out prompt has."""
    prompts = len(bench.record["prompts"])
    return len(bench.rows[0]["scores"]) // prompts if bench.rows and prompts else 1


def results_page(bench: Benchmark) -> str:
    """RESULTS.md: every table, and how it was made."""
    record: Mapping[str, Any] = bench.record
    budget = {k: v for k, v in bench.spec.budget.model_dump().items() if v is not None and k != "evaluations"}
    seeds = ", ".join(map(str, bench.spec.seeds))
    prompts, several = len(record["prompts"]), lines_of(bench)
    sections = [
        f"# {bench.spec.title or bench.spec.name}",
        f"Seeds {seeds}; {prompts} held-out prompts, {'one line' if several == 1 else f'{several} lines'} for each; "
        "measured by "
        f"`{bench.spec.held_out.critic}`, which no learner was trained on. Budget per learner after the warm start: "
        + ", ".join(f"{v:,g} {k}" for k, v in budget.items())
        + ". Intervals are 95 %, by bootstrap over seeds and prompts"
        + (", a prompt with all its lines" if several > 1 else "")
        + "; those during training over seeds only.",
    ]
    if record["failures"]:
        failed = [f"- {name}: {why}" for name, why in record["failures"].items()]
        sections.append(f"**{len(failed)} of {record['cells']} cells have no result:**\n\n" + "\n".join(failed))
    if bench.rows:
        sections += [f"## {c.title}\n\n{make_table(bench, c.name)}" for c in bench.spec.compare]
        sections += [f"## {TABLES[name][0]}\n\n{TABLES[name][1](bench)}" for name in tables_of(bench)]
    sections.append(
        f"Made by `humor-env benchmark {bench.spec.name}`, commit {record['commit']}, "
        + ", ".join(
            f"{name} {version}" for name, version in record["versions"].items() if name in ("humor-env", "torch")
        )
        + f"; {record['cpu_seconds'] / 60:.0f} minutes of processor time in all."
    )
    return "\n\n".join(sections) + "\n"
