"""The paper's tables compared with ours, each with its claims and a verdict, made from the results alone.

made = make_tables(Results.read(folder))
made["2"]["verdict"]                 # "agrees", "disagrees", "undecided" or "not measured"
print(as_text(made))                 # TABLES.md, and what the command prints
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from humor_env.experiments.reproduction.claims import Found, findings, of_table
from humor_env.experiments.reproduction.numbers import Estimate, Ref, Results, estimate
from humor_env.experiments.reproduction.paper import PUBLISHED, SOURCE, TITLES

ROW_NAMES = {
    "cloze/humor": "cloze, asked about humor",
    "cloze/consistency": "cloze, asked about consistency",
    "cloze/overall": "cloze, asked about overall quality",
    "mcp/humor": "MCP, asked about humor",
    "mcp/consistency": "MCP, asked about consistency",
    "mcp/overall": "MCP, asked about overall quality (used)",
    "mcp in one order/overall": "MCP, overall quality, one order only",
    "ft": "FT",
    "ft-2": "FT, 2/3 of the data",
    "ft-1": "FT, 1/3 of the data",
    "sd": "SD",
    "brio": "BRIO",
    "brio-2": "BRIO, 2/3 of the data",
    "brio-1": "BRIO, 1/3 of the data",
    "brio-1-rounds-2": "BRIO, 1/3, 2 rounds",
    "brio-1-rounds-10": "BRIO, 1/3, 10 rounds",
    "brio-unfiltered": "BRIO, no length filter",
    "dpo": "DPO",
    "dpo-unfiltered": "DPO, no length filter",
    "brio-dpo": "BRIO-DPO",
}
COLUMNS: Mapping[str, Sequence[str]] = {
    "1": ("agree humor", "agree consistency", "position bias", "length bias"),
    "2": ("training", "outside"),
    "3": ("training",),
    "4": ("training",),
    "6": ("humor", "consistency", "overall"),
    "length": ("length ratio",),
}
COLUMN_NAMES = {
    "training": "training judge",
    "outside": "outside judge",
    "humor": "WTR-H",
    "consistency": "WTR-C",
    "overall": "WTR",
}
# Rows that the paper does not have: a careless experiment.
EXTRA_ROWS = {"1": ("mcp in one order/overall",)}
NOTES = {
    "1": "Shares of pairs, x 100. Each pair is a line of FT, BRIO or DPO and the teacher's line for the same prompt.",
    "2": "Share of test prompts on which the line wins or ties against the teacher's, x 100, both orders averaged.",
    "3": "As Table 2, on inputs of another kind.",
    "4": "As Table 2. BRIO gets feedback once, twice or in each of ten epochs.",
    "6": "As Table 2, with people (or a judge in their place) asked about humor, consistency and overall quality.",
    "length": "Characters written per character of the input, the mean over test prompts.",
}
PEOPLE_MISSING = (
    "Not measured: the lines have no ratings. Rate the pairs in people.jsonl and name the file in people.who."
)


def make_tables(results: Results) -> dict[str, Any]:
    """All tables as plain data."""
    return {table: _table(results, table) for table in PUBLISHED}


def _table(results: Results, table: str) -> dict[str, Any]:
    rows = []
    for row in (*PUBLISHED[table], *EXTRA_ROWS.get(table, ())):
        cells: dict[str, Any] = {}
        for column in COLUMNS[table]:
            ref = Ref(table, row, column)
            compared = table != "1" or not (row.startswith("cloze") or row.startswith("mcp")) or _asks(row, column)
            ours = estimate(results, [(_scale(table), ref)]) if compared else None
            cells[column] = {"paper": ref.published, "ours": _plain(ours)}
            if table == "2":
                sampled = Ref(table, row, column, "sampled")
                cells[column]["sampled"] = _plain(estimate(results, [(_scale(table), sampled)]))
        rows.append({"row": row, "cells": cells})
    found_ones = findings(results, table)
    return {
        "title": TITLES[table],
        "rows": rows,
        "claims": [_claim(f, table) for f in found_ones],
        "verdict": of_table(found_ones),
    }


def _asks(row: str, column: str) -> bool:
    """A critic asked about one quality says nothing about the other."""
    part = row.partition("/")[2]
    return part == "overall" or column in (f"agree {part}", "position bias", "length bias")


def _scale(table: str) -> float:
    return 1.0 if table == "length" else 100.0


def _plain(measured: Estimate | None) -> dict[str, float | None] | None:
    if measured is None:
        return None
    numbers = {"mean": measured.mean, "low": measured.low, "high": measured.high}
    rounded = {k: round(v, 3) if math.isfinite(v) else None for k, v in numbers.items()}
    return rounded | {"seeds": measured.seeds, "items": measured.items}


def _claim(decided: Found, table: str) -> dict[str, Any]:
    ours = None
    if decided.found is not None:
        scale = _scale(table)
        e = decided.found
        ours = _plain(Estimate(scale * e.mean, scale * e.low, scale * e.high, e.seeds, e.items))
    claim = decided.claim
    paper = claim.published
    return {
        "text": claim.text,
        "paper": round(paper, 1) if paper is not None else claim.quote or None,
        "ours": ours,
        "finding": decided.finding,
    }


# As text


def as_text(tables: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> str:
    """The tables in Markdown that is readable on a terminal too."""
    blocks = [_heading(about)] if about else []
    summary = "\n".join(
        f"- {_name(table)}: {tables[table]['verdict']}{_counts(tables[table]['claims'])}" for table in tables
    )
    return "\n\n".join([*blocks, *(_block(table, tables[table]) for table in tables), "### In short", summary]) + "\n"


def _name(table: str) -> str:
    return "Length (RQ5)" if table == "length" else f"Table {table}"


def _heading(about: Mapping[str, Any]) -> str:
    seeds = about["seeds"]
    return (
        f"Scale `{about['scale']['name']}`, seeds {', '.join(map(str, seeds))}, commit "
        f"{(about.get('commit') or 'unknown')[:10]}. Paper: {SOURCE}. Ours have 95 % bootstrap intervals over "
        "seeds and items. A positive difference is in the paper's direction; a claim agrees or disagrees if the whole "
        f"interval is on one side of 0.{_calibrated(about)}"
    )


def _calibrated(about: Mapping[str, Any]) -> str:
    """A note that some levels are inputs, not results."""
    if about["scale"].get("critic", {}).get("judge") != "pocket-crowd":
        return ""
    return (
        "\n\nThe training judge of this scale was set to err against the exact judge as often as the paper's critic "
        "did against people (76 % agreement, 15 % flips, 20 % length errors). So its levels in Table 1 are inputs; "
        "only the differences between questions and critics are results."
    )


def _block(table: str, result: Mapping[str, Any]) -> str:
    name = _name(table)
    title = f"### {name}. {result['title']}"
    if result["verdict"] == "not measured" and table in ("1", "6"):
        return f"{title}\n\n{PEOPLE_MISSING}"
    parts = [title, NOTES[table], _grid(table, result["rows"])]
    parts.append(_lines(["claim", "paper", "ours", "finding"], [_claim_row(c, table) for c in result["claims"]]))
    parts.append(f"**{name}: {result['verdict']}**{_counts(result['claims'])}.")
    return "\n\n".join(parts)


def _counts(claims: Sequence[Mapping[str, Any]]) -> str:
    words = {"agrees": "agree", "disagrees": "disagree", "undecided": "undecided", "not measured": "not measured"}
    counts = [f"{n} {word}" for kind, word in words.items() if (n := sum(c["finding"] == kind for c in claims))]
    return f" (of {len(claims)} claims {', '.join(counts)})" if counts else ""


def _grid(table: str, rows: Sequence[Mapping[str, Any]]) -> str:
    columns = COLUMNS[table]
    sampled = any(cell.get("sampled") for row in rows for cell in row["cells"].values())
    head = ["system" if table != "1" else "critic"]
    for column in columns:
        heading = COLUMN_NAMES.get(column, column)
        head += [f"{heading}: paper", "ours"] + (["ours, sampled"] if sampled else [])
    lines = []
    for row in rows:
        line = [ROW_NAMES.get(row["row"], row["row"])]
        for column in columns:
            cell = row["cells"][column]
            line += [_number(cell["paper"], ""), _interval(cell["ours"], table)]
            line += [_interval(cell["sampled"], table)] if sampled else []
        lines.append(line)
    return _lines(head, lines)


def _claim_row(claim: Mapping[str, Any], table: str) -> list[str]:
    paper = claim["paper"]
    paper_text = paper if isinstance(paper, str) else "–" if paper is None else f"{paper:+.0f}"
    return [claim["text"], paper_text, _interval(claim["ours"], table, "+"), claim["finding"]]


def _interval(numbers: Mapping[str, float | None] | None, table: str, sign: str = "") -> str:
    if numbers is None:
        return "–"
    digits = 2 if table == "length" else 1
    values = [v for k in ("mean", "low", "high") if (v := numbers[k]) is not None]
    # Plus 0 turns a rounded -0.0 into 0.0, which has no sign.
    mean, *bounds = (f"{round(v, digits) + 0.0:{sign}.{digits}f}" for v in values)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def _number(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{value:{sign}g}"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up in a monospaced font."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    marks = [":" + "-" * (w - 1) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]

    def joined(line: Sequence[str]) -> str:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(cells) + " |"

    return "\n".join([joined(head), joined(marks), *map(joined, rows)])
