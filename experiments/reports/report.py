"""A run, or several side by side, as one self-contained HTML page to send to a colleague.

    write_report([Path("runs/pocket-quickstart")], Path("report.html"))
    humor-env report runs/a runs/b --out compare.html
    humor-env report runs/new --against runs/old         # the same two, and new minus old with its interval

The page loads nothing from a network, and its content-security policy allows only its own style and script, both by
hash. A model's text is never markup: the template and the charts escape it, and the list of jokes gets its lines as
data and puts them on the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from humor_env.errors import InvalidOption
from humor_env.experiments.drawing.charts import style, write_svg
from humor_env.experiments.reports import report_numbers as numbers
from humor_env.experiments.reports.benchmark_page import benchmark_view, is_benchmark
from humor_env.experiments.reports.differences import compare
from humor_env.experiments.reports.health import judge_table, trainer_table
from humor_env.experiments.reports.lines_by_stage import (
    floor_table,
    frame_table,
    last_stage,
    part_table,
    sections_of_same_prompts,
)
from humor_env.experiments.reports.pictures import Picture, pictures, result_picture
from humor_env.experiments.reports.report_data import (
    REFERENCES,
    Judged,
    RunData,
    begun_from,
    lines_by_prompt,
    load_run,
)
from humor_env.experiments.reports.tables import Table, percent
from humor_env.experiments.runs.paired_line import paired_line
from humor_env.experiments.runs.screen import MOST_FLIPS, flips

TEMPLATES = resources.files("humor_env.experiments") / "templates"
MOST_TRAINING_LINES = 500  # of the latest steps, in the list of jokes; flagged ones are added
SHOWN_FIRST = 8


@dataclass(frozen=True)
class Flagging:
    """The share of each stage's lines that a gate stops: a hack shows as a growing share."""

    gate: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


def write_report(folders: Sequence[Path], out: Path, against: Path | None = None) -> Path:
    """Read the runs, write the page, return its path. `against` is another run, which each is compared with."""
    if not folders:
        raise InvalidOption("Give at least one run's folder.")
    if out.is_dir():
        out = out / "report.html"
    command = command_for(folders, out, against)
    all_folders = [*folders, *([] if against is None else [against])]
    if len({folder.resolve() for folder in all_folders}) < len(all_folders):
        raise InvalidOption("The same folder was given twice, but a run does not differ from itself. Give it once.")
    benchmarks = [folder for folder in all_folders if is_benchmark(folder)]
    if benchmarks and len(all_folders) > 1:
        raise InvalidOption(f"'{benchmarks[0]}' is a benchmark, which has its own page: give it alone.")
    page = (
        render_benchmark(benchmarks[0], command=command)
        if benchmarks
        else render([load_run(folder) for folder in all_folders], command=command, against=against is not None)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def write_picture(folders: Sequence[Path], out: Path) -> Path:
    """Draw one run's result as an SVG file that is light or dark by its reader's setting."""
    if len(folders) != 1 or is_benchmark(folders[0]):
        raise InvalidOption(
            "A picture shows one run: give one run's folder. (A benchmark draws its own: --tables PAGE.)"
        )
    run = load_run(folders[0])
    if not numbers.headline(run):
        raise InvalidOption(f"No stage of the run in '{folders[0]}' was measured yet, so there is no result to draw.")
    write_svg(out, result_picture(run))
    return out


def default_path(folders: Sequence[Path], against: Path | None = None) -> Path:
    """In the run's folder; for several runs, in the current one."""
    return Path(folders[0], "report.html") if len(folders) == 1 and against is None else Path("report.html")


def command_for(folders: Sequence[Path], out: Path, against: Path | None = None) -> str:
    compared = [] if against is None else ["--against", _quoted(str(against))]
    return " ".join(["humor-env report", *(_quoted(str(f)) for f in folders), *compared, "--out", _quoted(str(out))])


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def render(runs: Sequence[RunData], *, command: str = "", against: bool = False) -> str:
    """The page. The same runs give the same page, byte for byte. With `against`, each run is compared with the last
    one; two runs always are."""
    runs = _named_apart(runs)
    heads = [row for run in runs for row in numbers.headline(run)]
    view = {
        "title": " · ".join(run.name for run in runs),
        "runs": [_about(run) for run in runs],
        "headline": [_head_row(row) for row in heads],
        "columns": [column.heading for column in numbers.COLUMNS],
        "tables": [],
        "pictures": pictures(runs, heads),
        "notes": [note for run in runs for note in [*run.notes, *_order_bias(run)]],
        "comparisons": [compare(run, runs[-1]) for run in runs[:-1]] if against or len(runs) == 2 else [],
        "same": [section for run in runs for section in sections_of_same_prompts(run, len(runs) > 1)],
        "score_tables": _tables(runs, {"Floor and ceiling": floor_table, "Parts by stage": part_table}),
        "frames": _tables(runs, {"Frames": frame_table}),
        "trainer": _tables(runs, {"Numbers of the trainer": trainer_table}),
        "judge": _tables(runs, {"Judges": judge_table}),
    }
    return _whole(view, runs, command)


def _tables(runs: Sequence[RunData], makers: Mapping[str, Callable[[RunData, str], Table]]) -> list[Table]:
    """The tables that have rows; if there are several runs, each title names its run and only the first table has a
    caption."""
    several = len(runs) > 1
    tables: list[Table] = []
    for title, make in makers.items():
        of_runs = [make(run, f"{title}: {run.name}" if several else title) for run in runs]
        of_runs = [table for table in of_runs if table.rows]
        tables += [replace(table, caption="") if place else table for place, table in enumerate(of_runs)]
    return tables


def _order_bias(run: RunData) -> list[str]:
    """Warnings of judges whose verdicts depend on the order in which two lines are shown."""
    last = [seed.metrics[-1] for seed in run.seeds if seed.metrics]
    teaching = max((share for row in last if (share := flips(row)) is not None), default=0.0)
    stages = [stage for seed in run.seeds for stage in seed.numbers.values()]
    measuring = max((share for stage in stages if (share := flips(stage)) is not None), default=0.0)
    return [
        f"{run.name}: {share:.0%} of the verdicts of the judge that {what} change when the two lines are shown in the "
        "other order: they depend more on a line's position than on its words."
        for what, share in (("gave the reward", teaching), ("measured", measuring))
        if share > MOST_FLIPS
    ]


def render_benchmark(folder: Path, *, command: str = "") -> str:
    view, systems = benchmark_view(folder)
    return _whole(view | {"headline": []}, systems, command)


def _whole(view: Mapping[str, Any], runs: Sequence[RunData], command: str) -> str:
    """The page with what to look at first, and the list of jokes."""
    from humor_env.rewards.rules import RulesCritic

    scan = _LineScan(runs, RulesCritic().faults)
    view = {name: [] for name in _OF_RUNS} | dict(view)
    view |= {
        "several": len(runs) > 1,
        "suspects": scan.suspects[:SHOWN_FIRST],
        "suspect_count": len(scan.suspects),
        "scanned": scan.scanned,
        "worst": scan.worst[:SHOWN_FIRST],
        "best_lines": scan.best,
        "worst_lines": scan.lowest,
        "flags": scan.flaggings,
        "flag_stages": scan.flag_stages,
        "repeats": [(run.name, stage, repeats) for run, stage, repeats in scan.repeats if repeats],
        "critics": scan.critics,
        "second_opinion": any(line.others for line in scan.all_lines),
        "command": command,
        "rows": len(scan.rows),
    }
    return _page(view, {"runs": [run.name for run in runs], "rows": scan.rows})


_OF_RUNS = ("comparisons", "same", "score_tables", "frames", "trainer", "judge")  # a benchmark's page has none


def _named_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Two folders may have one name; their paths tell them apart."""
    names = [run.name for run in runs]
    return [run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs]


def _page(view: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["percent"] = percent
    css = style() + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    template = environment.from_string((TEMPLATES / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **view,
        css=Markup(css),
        script=Markup(script),
        css_hash=_hash(css),
        script_hash=_hash(script),
        data=Markup(json_for_html(data)),
    )


def json_for_html(data: Any) -> str:
    """JSON that an HTML parser cannot mistake for markup: it neither opens nor closes an element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _head_row(row: numbers.Headline) -> dict[str, Any]:
    """A row of the table of stages, with its cells as printed."""
    return {
        "run": row.run,
        "stage": row.stage,
        "learned": row.stage not in REFERENCES,
        "cells": [(column.heading, column.cell(row), column.small(row)) for column in numbers.COLUMNS],
    }


def _about(run: RunData) -> dict[str, Any]:
    """The main facts about a run; the whole spec is folded away below them."""
    spec, record = run.spec, run.record
    training = [str(c.get("name") or c.get("critic")) for c in spec.get("critic", [])]
    held_out = [str(c.get("name") or c.get("critic")) for c in spec.get("eval", {}).get("critic", [])]
    limits = ", ".join(f"{k} {v}" for k, v in spec.get("budget", {}).items())
    rows = [
        ("learner", run.learner),
        ("student", spec.get("student", {}).get("model")),
        ("environment", spec.get("env", {}).get("id")),
        ("prompts", spec.get("env", {}).get("prompts")),
        ("teacher", (spec.get("teacher") or {}).get("lines")),
        ("training critic", " + ".join(training)),
        ("held-out judge", " + ".join(held_out) or ("the training critic" if training else "")),
        ("seeds", ", ".join(s.name.removeprefix("seed-") for s in run.seeds if s.name.startswith("seed-"))),
        ("steps", _steps(run)),
        ("limits", limits),
        ("commit", record.get("commit")),
        ("precision", record.get("precision")),
        ("machine", ", ".join(str(record[k]) for k in ("device", "platform") if record.get(k))),
        ("begun", record.get("started")),
    ]
    versions = record.get("versions", {})
    versions_used = (
        ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    )
    facts = {name: value for name, value in rows if value} | dict(record.get("facts", {}))
    return {
        "name": run.name,
        "folder": str(run.folder),
        "facts": [Fact(name, str(value)) for name, value in facts.items()],
        "versions": versions_used,
        "repeat": record.get("repeat"),
        "spec": run.spec_text,
        "spent": _spent(run),
        "same_judge": bool(training) and (not held_out or held_out == training),
        "stopped": [(s.name, s.why) for s in run.seeds if s.stopped or s.why],
    }


def _spent(run: RunData) -> str:
    """What the training critic cost, in words; "" if it asked no language model."""
    spent = numbers.spent(run)
    if not spent.get("calls"):
        return ""
    cost = f"${spent['cost']:.2f}" if "cost" in spent else "an unknown cost"
    return f"the training critic made {spent['calls']:.0f} calls of a language model for {cost}."


def _steps(run: RunData) -> str:
    steps = run.spec.get("learner", {}).get("steps")
    last_steps = [int(seed.metrics[-1]["step"]) for seed in run.seeds if seed.metrics and "step" in seed.metrics[-1]]
    if not last_steps:
        return str(steps or "")
    reached = f"{min(last_steps)}" if min(last_steps) == max(last_steps) else f"{min(last_steps)} to {max(last_steps)}"
    return reached if steps in (None, min(last_steps)) else f"{reached} of {steps}"


class _LineScan:
    """One pass over all lines of the runs: the rows of the list of jokes, and the lines to look at first."""

    def __init__(self, runs: Sequence[RunData], gates: numbers.Gates) -> None:
        self.rows: list[dict[str, Any]] = []
        self.suspects: list[numbers.ScannedLine] = []
        self.worst: list[dict[str, Any]] = []
        self.judged: list[numbers.ScannedLine] = []
        self.all_lines: list[Judged] = []
        self.scanned = 0
        self.repeats = []
        counts: dict[tuple[str, str], list[int]] = {}
        for index, run in enumerate(runs):
            for seed in run.seeds:
                trained = last_stage(seed)
                flags = {}
                for stage, lines in seed.stages.items():
                    flags[stage] = numbers.flagged(lines, gates)
                    self.scanned += len(lines)
                    self._count(counts, run if len(runs) > 1 else None, stage, flags[stage])
                self._held_out(index, run, seed, trained, flags)
                self._training(index, run, seed, gates)
            names = [s.trained for s in run.seeds if s.trained]
            if names:
                self.repeats.append((run, names[0], numbers.repeats(run.seeds, names[0])))
        # Highest reward first: a learner will exploit a fault that costs nothing.
        self.suspects.sort(key=lambda s: (-(s.line.score or 0.0), s.run, s.seed, s.line.prompt_id))
        self.worst.sort(key=lambda row: row["change"])
        self.best, self.lowest = _ends(self.judged)
        self.flag_stages = list(dict.fromkeys(stage for stage, _ in counts))
        gates_seen = sorted({gate for _, gate in counts if gate})
        self.flaggings = [
            Flagging(
                gate,
                {stage: counts.get((stage, gate), [0])[0] / counts[stage, ""][0] for stage in self.flag_stages},
            )
            for gate in gates_seen
        ]
        self.critics = sorted({line.critic for line in self.all_lines if line.critic})

    @staticmethod
    def _count(counts: dict[tuple[str, str], list[int]], run: RunData | None, stage: str, flagged: Any) -> None:
        name = stage if run is None else f"{run.name}: {stage}"
        counts.setdefault((name, ""), [0])[0] += len(flagged)
        for flags, _ in flagged:
            for flag in flags:
                counts.setdefault((name, flag), [0])[0] += 1

    def _held_out(self, index: int, run: RunData, seed: Any, trained: str, flagged: Mapping[str, Any]) -> None:
        lines = {stage: lines_by_prompt(rows) for stage, rows in seed.stages.items()}
        seen: Counter[str] = Counter()
        for place, line in enumerate(seed.stages.get(trained, ())):
            flags, why = flagged[trained][place]
            at_each_stage = {
                stage: other
                for stage, table in lines.items()
                if (other := paired_line(table.get(line.prompt_id, ()), seen[line.prompt_id])) is not None
            }
            seen[line.prompt_id] += 1
            before = at_each_stage.get(begun_from(trained, lines))
            change = None
            if before is not None and before.score is not None and line.score is not None:
                change = line.score - before.score
            if flags and round(line.score or 0.0, 2) > 0:  # without a reward, no learner exploits it
                self.suspects.append(numbers.ScannedLine(run.name, seed.name, trained, line, flags, why))
            if before is not None and change is not None and change <= -0.1 + 1e-9:
                self.worst.append({"run": run.name, "before": before, "now": line, "change": change})
            self.judged.append(numbers.ScannedLine(run.name, seed.name, trained, line, flags, why))
            versions = [_version(stage, other) for stage, other in at_each_stage.items()]
            main = next(i for i, t in enumerate(versions) if t[0] == trained)
            self._row("held-out", index, seed.name, line, versions, main, flags, why, change)

    def _training(self, index: int, run: RunData, seed: Any, gates: numbers.Gates) -> None:
        lines = numbers.recent(seed.training)
        flagged = numbers.flagged(lines, gates)
        self.scanned += len(lines)
        hacks = []
        for place, (line, (flags, why)) in enumerate(zip(lines, flagged, strict=True)):
            if flags and line.score is not None and line.score >= 0.5:
                self.suspects.append(numbers.ScannedLine(run.name, seed.name, f"step {line.step}", line, flags, why))
                hacks.append(place)
        latest = range(max(0, len(lines) - MOST_TRAINING_LINES), len(lines))
        for place in sorted({*hacks[-MOST_TRAINING_LINES:], *latest}):
            line, (flags, why) = lines[place], flagged[place]
            self._row("training", index, seed.name, line, [_version(run.learner, line)], 0, flags, why, None)

    def _row(
        self,
        kind: str,
        index: int,
        seed: str,
        line: Judged,
        versions: list[list[Any]],
        main: int,
        flags: Sequence[str],
        why: str,
        change: float | None,
    ) -> None:
        self.all_lines.append(line)
        row: dict[str, Any] = {"k": kind, "r": index, "s": seed, "p": line.prompt, "l": versions, "m": main}
        apart = numbers.disagreement(line)
        optional: dict[str, Any] = {"t": line.step or None, "f": list(flags) or None, "w": why or None}
        optional |= {"c": _short(change), "d": _short(apart)}
        self.rows.append(row | {k: v for k, v in optional.items() if v is not None})


def _ends(lines: Sequence[numbers.ScannedLine]) -> tuple[list[numbers.ScannedLine], list[numbers.ScannedLine]]:
    """The best and the worst held-out lines of the students, each text once and none in both; empty if all have the
    same score."""
    scored = [scanned for scanned in lines if scanned.line.score is not None]
    if len({scanned.line.score for scanned in scored}) < 2:
        return [], []
    scored.sort(key=lambda scanned: (scanned.line.score, scanned.run, scanned.line.prompt_id, scanned.seed))
    # A dict keeps the last line of each text: of a text written for several prompts, the best or the worst one.
    best = {scanned.line.text: scanned for scanned in scored}
    worst = {scanned.line.text: scanned for scanned in reversed(scored)}
    count = min(SHOWN_FIRST, len(best) // 2)
    return sorted(best.values(), key=_score, reverse=True)[:count], sorted(worst.values(), key=_score)[:count]


def _score(scanned: numbers.ScannedLine) -> float:
    return scanned.line.score or 0.0


def _version(stage: str, line: Judged) -> list[Any]:
    parts = {name: _short(value) for name, value in line.parts.items()}
    return [stage, line.text, _short(line.score), line.reason, parts, {k: _short(v) for k, v in line.others.items()}]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


__all__ = ["Picture", "command_for", "json_for_html", "render", "render_benchmark", "write_picture", "write_report"]
