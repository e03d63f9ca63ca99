"""The paper's claims, as differences that should be above zero, and the rule by which our results agree with them.

They were written before the first result was seen. A claim says that one quantity is larger than another; our
difference has a 95 % interval over seeds and prompts:

    agrees        the whole interval is above 0
    disagrees     the whole interval is below 0
    undecided     it contains 0, or there are too few items for an interval

A table disagrees if any of its claims does, agrees if all do, and is undecided otherwise. Sizes are shown but not
judged: a pocket student is not BART. Intervals are not corrected for the number of claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from humor_env.experiments.reproduction.numbers import Estimate, Ref, Results, Terms, estimate

Finding = Literal["agrees", "disagrees", "undecided", "not measured"]


@dataclass(frozen=True)
class Claim:
    """`terms` are arranged so that the paper's difference is above 0. `quote` holds its words if it gives no number."""

    table: str
    text: str
    terms: Terms
    quote: str = ""

    @property
    def published(self) -> float | None:
        values = [(c, ref.published) for c, ref in self.terms]
        return None if any(v is None for _, v in values) else sum(c * v for c, v in values if v is not None)


def _above(table: str, upper: str, lower: str, column: str, text: str, way: str = "beams") -> Claim:
    return Claim(table, text, [(1, Ref(table, upper, column, way)), (-1, Ref(table, lower, column, way))])


_NAMES = {"ft": "FT", "sd": "SD", "brio": "BRIO", "dpo": "DPO", "brio-dpo": "BRIO-DPO"}
_JUDGES = {"training": "the training judge", "outside": "the outside judge"}


def _ladder(table: str, order: Sequence[str], column: str, by: str) -> list[Claim]:
    """Claims that each system is above the one before it."""
    return [
        _above(table, upper, lower, column, f"{_NAMES[upper]} is above {_NAMES[lower]} by {by}")
        for lower, upper in pairwise(order)
    ]


def _gap(upper: str, lower: str) -> Claim:
    """The claim that the training judge scores a student higher than the outside judge does, by more than for FT."""
    terms = [
        (1, Ref("2", upper, "training")),
        (-1, Ref("2", upper, "outside")),
        (-1, Ref("2", lower, "training")),
        (1, Ref("2", lower, "outside")),
    ]
    return Claim("2", f"the training judge is more ahead of the outside judge for {_NAMES[upper]} than for FT", terms)


CLAIMS: Sequence[Claim] = (
    Claim(
        "1",
        "MCP agrees with people on humor more often than cloze",
        [(1, Ref("1", "mcp/overall", "agree humor")), (-1, Ref("1", "cloze/overall", "agree humor"))],
    ),
    Claim(
        "1",
        "MCP agrees on humor more often than on consistency",
        [(1, Ref("1", "mcp/overall", "agree humor")), (-1, Ref("1", "mcp/overall", "agree consistency"))],
    ),
    Claim(
        "1",
        "MCP asked about consistency agrees on it more often than MCP asked about overall quality",
        [(1, Ref("1", "mcp/consistency", "agree consistency")), (-1, Ref("1", "mcp/overall", "agree consistency"))],
    ),
    Claim(
        "1",
        "MCP has less length bias than cloze",
        [(1, Ref("1", "cloze/overall", "length bias")), (-1, Ref("1", "mcp/overall", "length bias"))],
    ),
    *(claim for c, by in _JUDGES.items() for claim in _ladder("2", ("ft", "sd", "brio", "dpo", "brio-dpo"), c, by)),
    _gap("brio-dpo", "ft"),
    *_ladder("3", ("ft", "brio", "dpo", "brio-dpo"), "training", "the training judge"),
    *(
        Claim(
            "3",
            f"{_NAMES[name]} is weaker out of distribution than in it",
            [(1, Ref("2", name, "training")), (-1, Ref("3", name, "training"))],
        )
        for name in ("brio", "dpo", "brio-dpo")
    ),
    Claim(
        "3",
        "FT is stronger out of distribution than in it",
        [(1, Ref("3", "ft", "training")), (-1, Ref("2", "ft", "training"))],
    ),
    _above("4", "ft", "ft-2", "training", "FT: all data above two thirds"),
    _above("4", "ft-2", "ft-1", "training", "FT: two thirds above one"),
    _above("4", "brio", "brio-2", "training", "BRIO: all data above two thirds"),
    _above("4", "brio-2", "brio-1", "training", "BRIO: two thirds above one"),
    _above("4", "brio-1-rounds-2", "brio-1", "training", "BRIO on a third: two rounds above one"),
    _above("4", "brio-1-rounds-10", "brio-1-rounds-2", "training", "BRIO on a third: ten rounds above two"),
    _above("4", "brio-1-rounds-10", "brio-1", "training", "BRIO on a third: ten rounds above one"),
    _above("4", "brio-1", "ft", "training", "one round of feedback on a third is above imitation of all data"),
    _above("6", "brio", "ft", "humor", "humor: BRIO above FT"),
    _above("6", "dpo", "brio", "humor", "humor: DPO above BRIO"),
    _above("6", "ft", "brio", "consistency", "consistency: BRIO below FT"),
    _above("6", "ft", "dpo", "consistency", "consistency: DPO below FT"),
    _above("6", "brio", "ft", "overall", "overall: BRIO above FT"),
    _above("6", "dpo", "brio", "overall", "overall: DPO above BRIO"),
    Claim(
        "length",
        "BRIO writes longer lines when the length filter is left out",
        [(1, Ref("length", "brio-unfiltered", "length ratio")), (-1, Ref("length", "brio", "length ratio"))],
        quote="outputs nearly double",
    ),
    Claim(
        "length",
        "without the filter BRIO grows longer lines than DPO",
        [
            (1, Ref("length", "brio-unfiltered", "length ratio")),
            (-1, Ref("length", "dpo-unfiltered", "length ratio")),
        ],
        quote="most with BRIO",
    ),
)


@dataclass(frozen=True)
class Found:
    claim: Claim
    found: Estimate | None
    finding: Finding


def decide(measured: Estimate | None) -> Finding:
    if measured is None:
        return "not measured"
    return "agrees" if measured.low > 0 else "disagrees" if measured.high < 0 else "undecided"


def findings(results: Results, table: str) -> list[Found]:
    estimates = [(c, estimate(results, c.terms)) for c in CLAIMS if c.table == table]
    return [Found(claim, measured, decide(measured)) for claim, measured in estimates]


def of_table(decided: Sequence[Found]) -> Finding:
    """The verdict on a table."""
    kinds = {f.finding for f in decided} - {"not measured"}
    if not kinds:
        return "not measured"
    if "disagrees" in kinds:
        return "disagrees"
    return "agrees" if kinds == {"agrees"} else "undecided"
