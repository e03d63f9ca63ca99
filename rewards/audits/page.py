"""An audit as a Markdown page with tables, from the report's numbers alone.

    print(audit_markdown(report))
    audit_tables(report)              # the same as plain tables, for other formats

Only the set's name and figures are shown, none of its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from humor_env.rewards.audits.audit_stats import Interval

if TYPE_CHECKING:
    from humor_env.rewards.audits.report import AuditReport, ContextScores, PairScores, TextScores

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of plain text. `align` has a letter per column: l for words, r for numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str


def percent(value: float | None, bounds: Interval | None = None) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.1f} %" + (f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else "")


def rho(value: float | None, bounds: Interval | None = None) -> str:
    if value is None:
        return NOTHING
    return f"{value:+.2f}" + (f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else "")


def audit_tables(report: AuditReport) -> list[Table]:
    """The critic and its references; the details of pairs; by gap; calibration; single texts."""
    pairs, texts = report.pairs, report.texts
    own = (
        report.critic,
        percent(pairs.accuracy, pairs.interval) if pairs else NOTHING,
        rho(texts.spearman, texts.interval) if texts else NOTHING,
        "this audit",
    )
    others = [(r.name, percent(r.accuracy, r.interval), rho(r.spearman), r.source) for r in report.references]
    head = ("who", "pair accuracy", "rank correlation", "source")
    tables = [Table(f"Agreement with {report.rated_by}", head, (own, *others), "lrrl")]
    if pairs is not None and pairs.accuracy is not None:
        tables.append(Table("On pairs", ("what", report.critic), tuple(_pair_rows(pairs, report.rated_by)), "lr"))
        if pairs.by_gap:
            by_gap = tuple(
                (_gap(row.low, row.high), str(row.count), percent(row.accuracy, row.interval)) for row in pairs.by_gap
            )
            gap_head = ("difference in grades", "pairs", "accuracy")
            tables.append(Table(f"By the difference between {report.rated_by}'s ratings", gap_head, by_gap, "lrr"))
        if pairs.calibration:
            tables.append(_calibration(pairs, report))
    if texts is not None and texts.spearman is not None:
        tables.append(
            Table("On single texts", ("what", report.critic), tuple(_text_rows(texts, report.rated_by)), "lr")
        )
    if report.context is not None and report.context.share is not None:
        tables.append(context_table([("all lines", report.context)]))
    return tables


def context_table(contexts: Sequence[tuple[str, ContextScores]]) -> Table:
    """Whether a critic reads the prompt, and by grade of the line where grades are known."""
    rows = []
    for name, scores in contexts:
        rows.append(
            (
                name,
                str(scores.count),
                percent(scores.share, scores.interval),
                rho(scores.lift, scores.lift_interval),
                {True: "yes", False: "NO", None: NOTHING}[scores.held],
            )
        )
        for row in scores.by_grade:
            graded = (f"graded {_gap(row.low, row.high)}", str(row.count), percent(row.share, row.interval))
            rows.append((*graded, rho(row.lift), ""))
    head = ("context", "lines", "scored higher with their own prompt", "lift", "passed")
    return Table("Does it read the prompt? (chance: 50 %)", head, tuple(rows), "lrrrl")


def _pair_rows(pairs: PairScores, raters: str) -> list[tuple[str, str]]:
    rows = [
        ("pairs judged (failed)", f"{pairs.count} ({pairs.failed})"),
        ("accuracy with length controlled", percent(pairs.controlled)),
        (f"length errors: chose the longer line where {raters} preferred the shorter", percent(pairs.length_errors)),
        ("accuracy in the order given", percent(pairs.forward)),
        ("accuracy in the other order", percent(pairs.back)),
        ("flips: the answer changes with the order", percent(pairs.flips)),
        ("chooses the line shown first", percent(pairs.first)),
        ("agrees with a single rater", percent(pairs.one_person)),
        ("calibration error", percent(pairs.calibration_error)),
    ]
    return [row for row in rows if row[1] != NOTHING]


def _text_rows(texts: TextScores, raters: str) -> list[tuple[str, str]]:
    rows = [
        ("texts judged (failed)", f"{texts.count} ({texts.failed})"),
        (f"rank correlation with {raters}", rho(texts.spearman, texts.interval)),
        ("the same, controlled for length", rho(texts.partial)),
        ("rank correlation with offence (should not be above 0)", rho(texts.offence)),
        (f"{raters}'s own rank correlation with offence", rho(texts.people_offence)),
    ]
    rows += [(f"within the kind '{kind}'", rho(value)) for kind, value in texts.by_kind.items()]
    return [row for row in rows if row[1] != NOTHING]


def _gap(low: float, high: float | None) -> str:
    return f"{low:.2g} or more" if high is None else f"{low:.2g} to {high:.2g}"


def _calibration(pairs: PairScores, report: AuditReport) -> Table:
    judge = report.kind == "judge"
    first_column = "stated probability" if judge else "difference in scores"
    rows = tuple(
        (
            percent(row.said) if judge else f"{row.said - 0.5:.3f}",
            str(row.count),
            percent(row.seen),
        )
        for row in pairs.calibration
    )
    return Table("Calibration", (first_column, "pairs", f"{report.rated_by} agreed"), rows, "rrr")


def audit_markdown(report: AuditReport) -> str:
    lines = [report.summary(), ""]
    for table in audit_tables(report):
        lines += [f"**{table.title}**", "", markdown_table(table), ""]
    if report.alpha is not None:
        lines += [f"Raters agree with each other by Krippendorff's alpha {report.alpha:.2f} (1 is full agreement).", ""]
    lines += [f"- {plain_words(note)}" for note in report.notes]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> str:
    rule = "|" + "".join("---|" if side == "l" else "---:|" for side in table.align)
    body = ["| " + " | ".join(map(plain_words, row)) + " |" for row in [table.head, *table.rows]]
    return "\n".join([body[0], rule, *body[1:]])


def plain_words(text: str) -> str:
    """Escape a name or an error, so that it cannot start a cell, a line or a tag."""
    return " ".join(text.replace("<", "&lt;").replace("|", "&#124;").split())
