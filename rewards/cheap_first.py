"""A judge that asks a cheap judge first, and a paid one only if the cheap one is unsure.

    judge = judges.make("cheap-first", cheap="reward-model", cheap_options={"folder": "runs/cheap"},
                        paid="multiple-choice", paid_options={"client": "anthropic", "ledger": "v.sqlite"}, sure=0.8)
    judge(pairs)
    print(judge.report)       # 1000 pairs: 640 kept (64.0 % saved) … agrees with the paid judge on about 93 %

The cheap judge's confidence is checked, not assumed: a small share of the sure pairs, picked by a hash of the texts,
also goes to the paid judge, and the report says how often both prefer the same line. As a critic, use it as the judge
of `win-tie` or `tournament`: all its answers are probabilities, whichever judge gave them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from humor_env.episodes.closing import close_all
from humor_env.episodes.verdicts import checked_verdicts
from humor_env.errors import BudgetExceeded, InvalidOption
from humor_env.llm.ledgered_client import leaving_unscored
from humor_env.registry import judges
from humor_env.rewards.shared.both_orders import Pair
from humor_env.shared.streams import stream_seed
from humor_env.types import Judge, Verdict, critic_name

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.01)


@dataclass(frozen=True, slots=True)
class GateReport:
    """Counts of pairs. `unsure` pairs needed the paid judge, and `short` of them did not get it (a limit was reached,
    or it failed); `checked` sure pairs were also sent to it, and on `agreed` of those both preferred the same line.
    `paid` pairs went to the paid judge, whether or not it answered validly, and even if a limit allowed only one of
    their two orders.
    """

    pairs: int = 0
    unsure: int = 0
    short: int = 0
    checked: int = 0
    agreed: float = 0.0
    paid: int = 0

    @property
    def saved(self) -> float | None:
        """The share of pairs without a paid call."""
        return 1 - self.paid / self.pairs if self.pairs else None

    @property
    def agreement(self) -> tuple[float, float, float] | None:
        """How often the gate prefers the paid judge's line, with a 95 % interval (Wilson's, of the checked share); None
        before any sure pair was checked. Pairs that did not get the paid judge are left out."""
        if not self.checked:
            return None
        middle, low, high = _wilson(self.agreed, self.checked)
        sure = self.pairs - self.unsure - self.checked
        own = self.unsure - self.short + self.checked
        return cast(
            tuple[float, float, float], tuple((own + sure * each) / (own + sure) for each in (middle, low, high))
        )

    def __str__(self) -> str:
        if not self.pairs:
            return "no pairs yet"
        text = f"{self.pairs} pairs: {self.paid} asked of the paid judge, {self.saved or 0.0:.1%} saved"
        if self.short:
            text += f"; {self.short} unsure ones were left to the cheap judge"
        if (interval := self.agreement) is None:
            return f"{text}; agreement not known (no sure pair was checked)"
        middle, low, high = interval
        return f"{text}; agrees with the paid judge on about {middle:.1%} [{low:.1%}, {high:.1%}]"


class CheapFirstJudge:
    """`cheap` and `paid` by name or live, with their options. A pair is sure if the cheap judge gives one line at least
    the probability `sure`. At most `max_paid` pairs ever go to the paid judge: the least sure of a batch first, and the
    rest keep the cheap verdict, as do those that the paid judge's own budget refuses. `check` is the share of sure
    pairs that are sent to it as well.
    """

    name = "cheap-first"

    def __init__(
        self,
        cheap: str | Judge = "reward-model",
        paid: str | Judge = "multiple-choice",
        cheap_options: Mapping[str, Any] | None = None,
        paid_options: Mapping[str, Any] | None = None,
        sure: float = 0.8,
        max_paid: int | None = None,
        check: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not 0.5 <= sure <= 1.01:
            raise InvalidOption(f"sure must be from 0.5 (never ask the paid judge) to 1 (nearly always); found {sure}.")
        if not 0 <= check <= 1:
            raise InvalidOption(f"check must be a share from 0 to 1; found {check}.")
        if max_paid is not None and max_paid < 0:
            raise InvalidOption(f"max_paid must be a number of pairs of at least 0; found {max_paid}.")
        self.cheap = cast(Judge, judges.make(cheap, **(cheap_options or {})))
        self.paid = cast(Judge, judges.make(paid, **(paid_options or {})))
        self.sure, self.max_paid, self.check, self.seed = sure, max_paid, check, seed
        self.report = GateReport()
        self.over_budget = False

    def __call__(self, pairs: Sequence[Pair], /) -> list[Verdict]:
        cheap = checked_verdicts(self.cheap, pairs)
        unsure = sorted(
            (i for i, verdict in enumerate(cheap) if sureness(verdict.probability) < self.sure),
            key=lambda i: (sureness(cheap[i].probability), self._place(pairs[i])),
        )
        sure = set(range(len(pairs))) - set(unsure)
        checks = [i for i in sorted(sure) if self._place(pairs[i]) < self.check]
        to_ask = [*unsure, *checks]
        if self.max_paid is not None:
            to_ask = to_ask[: max(0, self.max_paid - self.report.paid)]
        answers = self._ask_paid({i: pairs[i] for i in to_ask})
        good = {i: verdict for i, verdict in answers.items() if not verdict.failed}
        checked = [i for i in checks if i in good]
        old = self.report
        self.report = GateReport(
            old.pairs + len(pairs),
            old.unsure + len(unsure),
            old.short + sum(i not in good for i in unsure),
            old.checked + len(checked),
            old.agreed + sum(_agree(cheap[i].probability, good[i].probability) for i in checked),
            old.paid + len(answers),
        )
        return [self._verdict(cheap[i], good.get(i), answers.get(i)) for i in range(len(pairs))]

    def _ask_paid(self, pairs: Mapping[int, Pair]) -> dict[int, Verdict]:
        """The paid judge's verdicts, failed ones included, by the numbers of the pairs; none for a pair of which a
        limit allowed no call. Once a limit is reached, only the cheap judge answers."""
        if not pairs or self.over_budget:
            return {}
        try:
            with leaving_unscored() as refusals:
                verdicts = dict(zip(pairs, checked_verdicts(self.paid, list(pairs.values())), strict=True))
        except BudgetExceeded:  # of a judge with a limit of its own, which does not say what it has paid
            self.over_budget = True
            return {}
        if refusals:
            self.over_budget = True
            verdicts = {i: verdict for i, verdict in verdicts.items() if not verdict.failed or verdict.usage.calls}
        return verdicts

    def _verdict(self, cheap: Verdict, paid: Verdict | None, answer: Verdict | None) -> Verdict:
        chosen = paid or cheap
        usage = cheap.usage if answer is None else cheap.usage + answer.usage
        if chosen.failed:
            return Verdict(self.name, None, error=chosen.error, usage=usage)
        who = critic_name(self.paid if paid is not None else self.cheap)
        reason = f"{who}: {chosen.reason}" if chosen.reason else who
        return Verdict(self.name, chosen.probability, chosen.tie, reason, chosen.flipped, usage=usage)

    def _place(self, pair: Pair) -> float:
        """A hash of the pair in [0, 1), independent of the lines' order."""
        low, high = sorted((pair[0].text, pair[1].text))
        key = f"{pair[0].prompt.text}\x1f{low}\x1f{high}".encode("utf-8", "surrogatepass").hex()
        return stream_seed(self.seed, "cheap first", key) / 2**63

    @property
    def inner_judges(self) -> list[Judge]:
        return [self.cheap, self.paid]

    def close(self) -> None:
        close_all(self.inner_judges)


def sureness(probability: float | None) -> float:
    """A verdict's confidence, from 0.5 to 1. A failed verdict is not sure at all."""
    return 0.0 if probability is None else max(probability, 1 - probability)


def _agree(first: float | None, second: float | None) -> float:
    """1 if both agree, one half if only one of them ties, else 0."""
    if first is None or second is None:
        return 0.0
    if first == 0.5 or second == 0.5:
        return 1.0 if first == second else 0.5
    return float((first > 0.5) == (second > 0.5))


def _wilson(successes: float, count: int) -> tuple[float, float, float]:
    """A share and its 95 % interval."""
    z = 1.959963984540054
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return share, max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class GateRow:
    """Results of one threshold on pairs that both judges have judged; `truth` is the share right by a third judge."""

    sure: float
    saved: float
    agreement: float
    kept_agreement: float | None
    truth: float | None


def gate_table(
    cheap: Sequence[float],
    paid: Sequence[float],
    truth: Sequence[float] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[GateRow]:
    """For each threshold: share saved, agreement of the gate with the paid judge, and of the kept pairs alone."""
    if not cheap or len(cheap) != len(paid):
        raise InvalidOption(f"Both judges must have judged the same pairs; found {len(cheap)} and {len(paid)}.")
    rows = []
    for sure in thresholds:
        is_sure = [sureness(p) >= sure for p in cheap]
        used = [c if keep else p for c, p, keep in zip(cheap, paid, is_sure, strict=True)]
        agreements = [_agree(c, p) for c, p, keep in zip(cheap, paid, is_sure, strict=True) if keep]
        right = None
        if truth is not None:
            decided = [(u, t) for u, t in zip(used, truth, strict=True) if t != 0.5]
            right = sum(_agree(u, t) for u, t in decided) / len(decided) if decided else None
        rows.append(
            GateRow(
                sure,
                len(agreements) / len(cheap),
                sum(_agree(u, p) for u, p in zip(used, paid, strict=True)) / len(paid),
                sum(agreements) / len(agreements) if agreements else None,
                right,
            )
        )
    return rows


def render(rows: Sequence[GateRow], paid: str = "the paid judge", truth: str = "the truth") -> str:
    """The table as Markdown."""
    with_truth = any(row.truth is not None for row in rows)
    head = ["sure from", "saved", f"same line as {paid}", "of those kept"] + (
        [f"right by {truth}"] if with_truth else []
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for row in rows:
        cells = ["never" if row.sure > 1 else f"{row.sure:.2f}", f"{row.saved:.1%}", f"{row.agreement:.1%}"]
        cells.append("–" if row.kept_agreement is None else f"{row.kept_agreement:.1%}")
        if with_truth:
            cells.append("–" if row.truth is None else f"{row.truth:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
