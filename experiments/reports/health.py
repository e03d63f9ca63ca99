"""The health of a run's trainer and judges, in two tables: what a researcher checks before trusting a score.

    trainer_table(run, "Trainer")     # KL, clip share, explained variance, gradient norm, speed: by thirds of the run
    judge_table(run, "Judges")        # failures, refusals, flips, ties, and what a thousand judgements cost

They contain only what a run logged: a learner without a value head has no explained variance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from humor_env.experiments.reports.report_data import Judged, RunData
from humor_env.experiments.reports.report_numbers import Curve, mean_curve, series, spent
from humor_env.experiments.reports.tables import Table, TableRow, percent, share_of
from humor_env.experiments.runs.screen import MOST_FLIPS, flips, in_both_orders

# A failed reply's kind comes before its detail, possibly after the name of the part that failed.
_REFUSAL = re.compile(r"(?:^|[;:] ?)refusal(?=[:;]|$)")


@dataclass(frozen=True)
class Vital:
    """A logged number of the trainer. Outside `least` to `most` it deserves a look; `hint` says why.
    `most_in_float32` is the limit of a run without the rounding of 16 bits."""

    metric: str
    name: str
    unit: str
    hint: str = ""
    least: float = -math.inf
    most: float = math.inf
    most_in_float32: float | None = None

    def odd(self, value: float, precision: str | None) -> bool:
        exact = self.most_in_float32 if precision == "float32" else None
        return not self.least <= value <= (self.most if exact is None else exact)


# One line here is one row of the table. The bounds are those of docs/troubleshooting.md.
TRAINER = (
    Vital("kl/per_token", "KL to the imitation", "nats a token", "past learner.kl_limit the run stops"),
    Vital("kl/per_line", "KL to the imitation", "nats a line"),
    Vital("kl/weight", "weight of the KL", "per nat"),
    Vital("update/approx_kl", "KL of one update", "nats a token"),
    Vital("update/clip_share", "clip share", "share of tokens", "above 0.3: the steps are too large", most=0.3),
    Vital("update/ratio_deviation", "distance of the ratio from 1", "mean"),
    Vital("update/grad_norm", "gradient norm", "before clipping"),
    Vital("value/explained_variance", "explained variance", "share", "below 0: the values do harm", least=0.0),
    Vital("update/policy_loss", "policy loss", "mean"),
    Vital("update/value_loss", "value loss", "mean"),
    Vital("update/entropy", "entropy", "nats a token", "near 0 nothing new is tried"),
    Vital(
        "update/first_mismatch",
        "writing against learning",
        "nats a token",
        "above 0.06, or 0.01 in float32: writing and learning compute different numbers",
        most=0.06,
        most_in_float32=0.01,
    ),
    Vital("update/margin", "lead of the chosen line", "log-ratio"),
    Vital("update/ranked_right", "pairs ranked right", "share of pairs"),
    Vital(
        "update/chosen_gain", "gain of the chosen line", "nats a line", "below 0 both lines are pushed down", least=0.0
    ),
    Vital("update/rejected_gain", "gain of the rejected line", "nats a line"),
    Vital("reward/deviation", "deviation of the rewards", "score", "near 0 there is nothing to learn"),
    Vital("groups/no_spread_share", "groups with one score", "share", "near 1 there is nothing to learn", most=0.9),
    Vital("length/ended_share", "lines that the student ended", "share of lines"),
    Vital("learning_rate", "learning rate", ""),
    Vital("tokens_per_second", "speed", "tokens a second"),
    Vital("seconds/step", "time of a step", "seconds"),
    Vital("memory/peak_gib", "most memory so far", "GiB"),
)


def trainer_table(run: RunData, title: str) -> Table:
    """Each logged number in the first, middle and last third of the steps, and its extremes in any seed."""
    rows = []
    for vital in TRAINER:
        curves = [c for seed in run.seeds if (c := series([*seed.metrics, *seed.timings], vital.metric)).steps]
        mean = mean_curve(curves)
        if not mean.steps or not any(any(curve.values) for curve in curves):
            continue
        thirds = in_thirds(mean)
        ends = [pick(zip(c.values, c.steps, strict=True)) for c in curves for pick in (min, max)]
        extremes = [f"{_short(value)} at {step:g}" for value, step in (min(ends), max(ends))]
        odd = vital.odd(thirds[-1], run.record.get("precision"))
        name = f"{vital.name}, {vital.unit}" if vital.unit else vital.name
        rows.append(TableRow([name, *map(_short, thirds), *extremes], odd, vital.hint))
    several = " Means over seeds; the extremes are those of any seed." if len(run.seeds) > 1 else ""
    return Table(
        title,
        ("number, unit", "first third", "middle", "last third", "lowest, at step", "highest, at step"),
        rows,
        f"Means over each third of the steps. A marked row ended beyond its limit.{several}",
    )


def in_thirds(curve: Curve) -> list[float]:
    """The means over the first, middle and last third of the points; with one or two points, the points themselves."""
    count = len(curve.values)
    size = max(1, math.ceil(count / 3))
    middle = (count - size) // 2
    parts = (curve.values[:size], curve.values[middle : middle + size], curve.values[count - size :])
    return [math.fsum(part) / len(part) for part in parts]


def _short(value: float) -> str:
    """Three significant digits, for numbers from a learning rate to tokens a second."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class JudgeHealth:
    """One judge's questions in a run and their outcome; None for what the run did not keep."""

    role: str
    name: str
    asked: int  # lines, or pairs of lines
    pairs: bool
    failed: int
    refusals: int | None
    flips: float | None = None
    ties: float | None = None
    calls: int | None = None
    cost: float | None = None

    @property
    def cost_per_thousand(self) -> float | None:
        return 1000 * self.cost / self.asked if self.cost is not None and self.asked else None


def judges(run: RunData) -> list[JudgeHealth]:
    """The judge that gave the reward and the held-out judge, over all seeds."""
    return [judge for judge in (_teaching(run), _held_out(run)) if judge is not None and judge.asked]


def _teaching(run: RunData) -> JudgeHealth | None:
    last = [seed.metrics[-1] for seed in run.seeds if seed.metrics]
    lines = [line for seed in run.seeds for line in seed.training]
    critic_names = [str(c.get("name") or c.get("critic")) for c in run.spec.get("critic", [])]
    judge_named = run.spec.get("judge") or {}
    name = " + ".join(critic_names) or (str(judge_named.get("judge", "")) if isinstance(judge_named, dict) else "")
    name = name or ", ".join(sorted({line.critic for line in lines if line.critic}))
    failed_lines = [line for line in lines if line.score is None]
    refusals = sum(is_refusal(line) for line in failed_lines) if lines else None
    if any("feedback/judged" in row for row in last):
        # Each pair that failed left two lines without a score.
        counts = {key: sum(row.get(f"feedback/{key}", 0.0) for row in last) for key in _COUNTED}
        asked = int(counts["judged"])
        both, verdicts = sum(map(in_both_orders, last)), counts["judged"] - counts["failed"]
        return JudgeHealth(
            "teaching",
            name,
            asked,
            True,
            int(counts["failed"]),
            None if refusals is None else refusals // 2,
            flips=counts["flipped"] / both if both else None,
            ties=counts["ties"] / verdicts if verdicts else None,
            calls=int(counts["calls"]) or None,
        )
    judged = int(sum(row.get("spent/judgements", 0.0) for row in last)) or len(lines)
    logged = [row["failures/share"] for seed in run.seeds for row in seed.metrics if "failures/share" in row]
    share = len(failed_lines) / len(lines) if lines else _mean(logged) or 0.0
    costs = spent(run)
    return JudgeHealth(
        "teaching",
        name,
        judged,
        False,
        round(share * judged),
        None if refusals is None else round(refusals / len(lines) * judged),
        flips=_mean([f for seed in run.seeds for row in seed.metrics if (f := flips(row)) is not None]),
        ties=_mean([v for seed in run.seeds for row in seed.metrics for n, v in row.items() if _is_tie(n)]),
        calls=int(costs.get("calls", 0)) or None,
        cost=costs.get("cost") if costs.get("calls") else None,
    )


def _held_out(run: RunData) -> JudgeHealth | None:
    lines = [line for seed in run.seeds for stage in seed.stages.values() for line in stage]
    if not lines:
        return None
    name = ", ".join(sorted({line.critic for line in lines if line.critic}))
    shares = {what: [v for line in lines for n, v in line.parts.items() if n == what or n.endswith(f".{what}")]
              for what in ("flips", "tie")}  # fmt: skip
    return JudgeHealth(
        "held out",
        name,
        len(lines),
        False,
        sum(line.score is None for line in lines),
        sum(is_refusal(line) for line in lines),
        flips=_mean(shares["flips"]),
        ties=_mean(shares["tie"]),
    )


_COUNTED = ("judged", "failed", "flipped", "ties", "calls")


def is_refusal(line: Judged) -> bool:
    """Whether the language model behind the judge declined to answer, from the kind of its error."""
    return line.score is None and _REFUSAL.search(line.error) is not None


def _is_tie(name: str) -> bool:
    return name.startswith("reward/part/") and name.endswith(("/tie", ".tie"))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def judge_table(run: RunData, title: str) -> Table:
    """One row for each judge; columns without values are left out."""
    healths = judges(run)
    columns: dict[str, list[str | None]] = {
        "judge": [f"{j.role}: {j.name}" if j.name else j.role for j in healths],
        "asked about": [f"{j.asked:,} {'pairs' if j.pairs else 'lines'}" for j in healths],
        "failed": [share_of(j.failed, j.asked) for j in healths],
        "refused": [None if j.refusals is None else share_of(j.refusals, j.asked) for j in healths],
        "flips": [None if j.flips is None else percent(j.flips) for j in healths],
        "ties": [None if j.ties is None else percent(j.ties) for j in healths],
        "calls": [None if j.calls is None else f"{j.calls:,}" for j in healths],
        "cost": [None if j.cost is None else f"${j.cost:,.2f}" for j in healths],
        "cost per 1,000": [None if (c := j.cost_per_thousand) is None else f"${c:,.2f}" for j in healths],
    }
    filled_columns = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    odd = [2 * j.failed > j.asked or (j.flips or 0.0) > MOST_FLIPS for j in healths]
    rows = [TableRow([cells[i] or "–" for cells in filled_columns.values()], odd[i]) for i in range(len(healths))]
    return Table(
        title, list(filled_columns), rows, " ".join(words for name, words in _MEANING.items() if name in filled_columns)
    )


_MEANING = {
    "failed": "Failed: no score came back.",
    "refused": "Refused: the model declined to answer.",
    "flips": "Flips: verdicts that change when the two lines are shown in the other order.",
    "cost per 1,000": "Cost per 1,000: dollars for 1,000 judgements.",
}
