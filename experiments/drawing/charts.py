"""Charts as inline SVG: pure functions from data to a string, for reports, docs and the README.

    svg = line_chart([Line("held-out judge", steps, scores, low, high)], title="Score", x_label="step", y_label="score")
    page = f"<style>{style()}</style>{svg}"              # the page's style, once for all its charts
    write_svg(Path("score.svg"), svg)                    # a standalone file, with light and dark styles

Matplotlib is not used: our SVG takes its colours from CSS, so one picture follows the reader's light or dark theme; it
scales to a phone, its text stays text for search and screen readers, and a report needs no heavy dependency. Series
differ by colour, dash and marker. All text is escaped: a name may be anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path

from humor_env.experiments.drawing.chart_data import Bar, Dot, Line, Mark, Points, Sample, Values
from humor_env.experiments.drawing.chart_parts import (
    COLOURS,
    SMALL,
    TITLE,
    Frame,
    Legend,
    Scale,
    axis_labels,
    curve,
    frame,
    marker,
    number,
    shortened,
    span,
    style,
    tag,
    text,
    text_width,
    thinned,
    tight_span,
    wrap_svg,
)

__all__ = [
    *("Bar", "Dot", "Line", "Mark", "Points", "Sample", "arranged", "bar_chart", "dot_chart", "line_chart", "samples"),
    *("Values", "histogram", "scatter_chart", "standalone", "style", "write_svg"),
]
WIDTH, HEIGHT = 480.0, 300.0
_WHOLE = re.compile(
    r'<svg [^>]*viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)"[^>]*><title[^>]*>(?P<title>.*?)</title>'
    r"<desc[^>]*>(?P<description>.*?)</desc>(?P<body>.*)</svg>",
    re.DOTALL,
)
NOTHING = "nothing was measured"  # the text of a chart without data


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    description: str = "",
    marks: Sequence[Mark] = (),
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> str:
    """Learning curves and the like. The default description gives the start, end and maximum of each curve."""
    names = list(dict.fromkeys(line.name for line in lines))
    legend = Legend(names, width - 28)
    height += max(0.0, legend.height - 20)
    xs = [v for line in lines for v in line.x] + [m.x for m in marks]
    ys = [v for line in lines for values in (line.y, line.low or (), line.high or ()) for v in values]
    x_span = span(xs, log=True) if x_log else tight_span(xs)
    box = frame(title, x_label, y_label, x_span, span(ys, y_range), legend, width, height, x_log)
    parts = [box.furniture]
    # Bands first, then faint lines, then the main lines, so that these are never hidden.
    for line in lines:
        if line.low is not None and line.high is not None:
            above, below = thinned(line.x, line.high), thinned(line.x, line.low)[::-1]
            band = curve(box, above) + curve(box, below).replace("M", "L", 1)
            if band:
                parts.append(tag("path", d=band + "Z", class_=f"s{_colour(names, line)} band"))
    for line in sorted(lines, key=lambda each: not each.faint):
        i = _colour(names, line)
        points = thinned(line.x, line.y)
        parts.append(tag("path", d=curve(box, points), class_=f"s{i} line{' faint' if line.faint else ' dash'}"))
        if not line.faint:
            finite = [p for p in points if math.isfinite(p[1])]
            every = max(1, math.ceil(len(finite) / 8))  # a marker for some of the points, including the last
            dots = [marker(names.index(line.name), box.x(x), box.y(y), 3.8) for x, y in finite[::-1][::every]]
            parts.append(tag("g", "".join(dots) or " ", class_=f"s{i}"))
    parts += _draw_marks(box, marks)
    if not any(math.isfinite(v) for v in ys):
        parts.append(_nothing(box))
    return wrap_svg(title, description or _in_words(lines, marks, x_label), parts, width, height)


def scatter_chart(
    points: Sequence[Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    description: str = "",
    diagonal: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    width: float = WIDTH,
    height: float = 340.0,
) -> str:
    """One quantity against another; `diagonal` draws the line where both are equal."""
    names = list(dict.fromkeys(each.name for each in points))
    legend = Legend(names, width - 28)
    height += max(0.0, legend.height - 20)
    xs, ys = [v for each in points for v in each.x], [v for each in points for v in each.y]
    x_span, y_span = span(xs, x_range, x_log), span(ys, y_range)
    box = frame(title, x_label, y_label, x_span, y_span, legend, width, height, x_log)
    parts = [box.furniture]
    if diagonal:
        low, high = max(x_span[0], y_span[0]), min(x_span[1], y_span[1])
        ends = {"x1": box.x(low), "y1": box.y(low), "x2": box.x(high), "y2": box.y(high)}
        parts.append(tag("line", class_="even", **ends))
    for each in points:
        i = names.index(each.name)
        pairs = [p for p in zip(each.x, each.y, strict=True) if all(map(math.isfinite, p)) and (p[0] > 0 or not x_log)]
        inner = []
        if each.joined:
            inner.append(tag("path", d=curve(box, pairs), class_="line dash"))
        labels = each.labels or [""] * len(pairs)
        for (x, y), label in zip(pairs, labels, strict=False):
            hint = f"{label or each.name}: {number(x)}, {number(y)}"
            size, class_ = (4.6, "dot") if each.joined else (3.4, "point")
            inner.append(marker(i, box.x(x), box.y(y), size, hint, class_))
        parts.append(tag("g", "".join(inner) or " ", class_=f"s{i % COLOURS}"))
    if not xs:
        parts.append(_nothing(box))
    in_words = description or f"{y_label} against {x_label}: " + ", ".join(
        f"{p.name} ({len(p.x)} points)" for p in points
    )
    return wrap_svg(title, in_words, parts, width, height)


def dot_chart(
    dots: Sequence[Dot],
    *,
    title: str,
    x_label: str = "",
    description: str = "",
    x_range: tuple[float, float] | None = None,
    reference: float | None = None,
    digits: int = 2,
    width: float = WIDTH,
) -> str:
    """Rows with a value and its interval, and the numbers next to them; `reference` is a line to compare with."""
    labels = list(dict.fromkeys(dot.label for dot in dots))
    series = list(dict.fromkeys(dot.series for dot in dots))
    legend = Legend(series, width - 28)
    pad, per_dot = 14.0, 21.0
    top = pad + 26 + (legend.height if len(series) > 1 else 0) + 4
    by_label = {label: [d for d in dots if d.label == label] for label in labels}
    heights = [max(30.0, per_dot * len(by_label[label]) + 9) for label in labels]
    bottom = top + sum(heights)
    height = bottom + (52 if x_label else 34)
    shown_as = {id(dot): _interval(dot, digits) for dot in dots}
    right_column = max((text_width(s) for s in shown_as.values()), default=0) + 8
    left_column = min(max((text_width(label) for label in labels), default=0), width * 0.34) + 10
    values = [v for d in dots for v in (d.value, d.low, d.high) if v is not None]
    values += [] if reference is None else [reference]
    low, high = span(values, x_range)
    x = Scale(low, high, pad + left_column, width - pad - right_column - 6)
    parts = [_heading(title, legend, width, pad), _grid(x, 52, top, bottom, x_label)]
    if reference is not None:
        parts.append(tag("line", x1=x(reference), x2=x(reference), y1=top, y2=bottom, class_="even"))
    y = top
    for label, tall in zip(labels, heights, strict=True):
        short_label = shortened(label, left_column - 8)
        full = tag("title", escape(label)) if short_label != label else ""
        parts.append(tag("text", escape(short_label) + full, x=pad, y=y + tall / 2 + 5))
        for row, dot in enumerate(by_label[label]):
            at = y + tall / 2 + per_dot * (row - (len(by_label[label]) - 1) / 2)
            i = series.index(dot.series)
            inner = ""
            if dot.low is not None and dot.high is not None and math.isfinite(dot.low + dot.high):
                ends = [x(min(max(v, low), high)) for v in (dot.low, dot.high)]
                inner += tag("line", x1=ends[0], x2=ends[1], y1=at, y2=at, class_="whisker")
                inner += "".join(tag("line", x1=e, x2=e, y1=at - 5, y2=at + 5, class_="whisker") for e in ends)
            if dot.value is not None and math.isfinite(dot.value):
                inner += marker(i, x(min(max(dot.value, low), high)), at, 4.6, f"{label}: {shown_as[id(dot)]}")
            parts.append(tag("g", inner or " ", class_=f"s{i % COLOURS}"))
            parts.append(text(width - pad, at + 5, shown_as[id(dot)], "", "end"))
        y += tall
    in_words = description or "; ".join(
        f"{d.label}{f' ({d.series})' if d.series else ''}: {shown_as[id(d)]}" for d in dots
    )
    return wrap_svg(title, in_words, parts, width, height)


def bar_chart(
    bars: Sequence[Bar],
    *,
    title: str,
    x_label: str = "",
    description: str = "",
    unit: str = "",
    width: float = WIDTH,
) -> str:
    """Horizontal bars of stacked parts, with the total next to each; bars with one part are plain."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts))
    legend = Legend(names, width - 28, line=False)
    pad, tall = 14.0, 32.0
    top = pad + 26 + (legend.height if len(names) > 1 else 0) + 4
    bottom = top + tall * len(bars)
    height = bottom + (52 if x_label else 34)
    sums = [sum(v for v in bar.parts.values() if math.isfinite(v)) for bar in bars]
    totals = [f"{number(s)}{unit and ' ' + unit}" for s in sums]
    left_column = min(max((text_width(bar.label) for bar in bars), default=0), width * 0.34) + 10
    right_column = max((text_width(t) for t in totals), default=0) + 8
    x = Scale(0.0, max([*sums, 0.0]) or 1.0, pad + left_column, width - pad - right_column)
    parts = [_heading(title, legend, width, pad), _grid(x, 60, top, bottom, x_label)]
    for row, (bar, total, whole) in enumerate(zip(bars, totals, sums, strict=True)):
        y = top + tall * row
        short_label = shortened(bar.label, left_column - 8)
        parts.append(text(pad, y + tall / 2 + 5, short_label))
        reached = 0.0
        for name, value in bar.parts.items():
            if not math.isfinite(value) or value <= 0:
                continue
            i = names.index(name)
            share = f", {value / whole:.0%}" if len(names) > 1 and whole else ""
            hint = tag("title", escape(f"{bar.label}, {name}: {number(value)}{unit and ' ' + unit}{share}"))
            wide = x(reached + value) - x(reached)
            parts.append(
                tag(
                    *("rect", hint),
                    **{"x": x(reached), "y": y + 5, "width": wide, "height": tall - 10, "rx": 2},
                    class_=f"s{i % COLOURS} bar",
                )
            )
            reached += value
        parts.append(text(x(reached) + 7, y + tall / 2 + 5, total))
    in_words = description or "; ".join(
        f"{bar.label}: "
        + ", ".join(f"{name} {number(value)}{unit and ' ' + unit}" for name, value in bar.parts.items())
        for bar in bars
    )
    return wrap_svg(title, in_words, parts, width, height)


def histogram(
    groups: Sequence[Values],
    *,
    title: str,
    x_label: str = "score",
    description: str = "",
    x_range: tuple[float, float] = (0.0, 1.0),
    bins: int = 10,
    width: float = WIDTH,
    height: float = HEIGHT,
) -> str:
    """The percentage of each group's values in each part of the range, groups side by side. A value at an inner edge
    belongs to the part above it; values outside widen the range."""
    finite = [[v for v in group.values if math.isfinite(v)] for group in groups]
    names = [group.name for group in groups]
    every = [*x_range, *(v for values in finite for v in values)]
    low, high = min(every), max(every)
    shares = []
    for values in finite:
        # Rounded, so that 0.3 in a range that ends at 1 is at its edge and not slightly below it.
        places = [min(bins - 1, int(round((v - low) / (high - low) * bins, 9))) for v in values]
        shares.append([100 * places.count(i) / len(values) if values else 0.0 for i in range(bins)])
    top = max((share for group in shares for share in group), default=0.0) or 1.0
    legend = Legend(names, width - 28, line=False)
    height += max(0.0, legend.height - 20)
    box = frame(title, x_label, "% of lines", (low, high), (0.0, top * 1.06), legend, width, height)
    parts = [box.furniture]
    part_width = (high - low) / bins
    for i, (name, group) in enumerate(zip(names, shares, strict=True)):
        bars = []
        for place, share in enumerate(group):
            if share <= 0:
                continue
            left = low + part_width * (place + 0.06 + 0.88 * i / len(groups))
            hint = f"{name}: {number(share)}% from {number(low + part_width * place)} to "
            hint += number(low + part_width * (place + 1))
            bars.append(
                tag(
                    *("rect", tag("title", escape(hint))),
                    **{"x": box.x(left), "y": box.y(share), "rx": 1},
                    width=box.x(left + 0.88 * part_width / len(groups)) - box.x(left),
                    height=box.y(0.0) - box.y(share),
                    class_="bar",
                )
            )
        parts.append(tag("g", "".join(bars) or " ", class_=f"s{i % COLOURS}"))
    if not any(finite):
        parts.append(_nothing(box))
    in_words = description or "; ".join(
        f"{name}: {len(values)} lines, {number(group[0])}% in the lowest part and {number(group[-1])}% in the highest"
        for name, values, group in zip(names, finite, shares, strict=True)
    )
    return wrap_svg(title, in_words, parts, width, height)


def _heading(title: str, legend: Legend, width: float, pad: float) -> str:
    """The title of a chart of rows, and below it the legend if there is more than one name."""
    heading = text(pad, pad + 12, shortened(title, width - 2 * pad, TITLE), "title")
    return heading + (legend.draw(pad, pad + 24) if len(legend.names) > 1 else "")


def _grid(x: Scale, apart: float, top: float, bottom: float, x_label: str) -> str:
    """The axis of a chart of rows: upright lines at least `apart` from each other, numbers and label below."""
    parts = []
    x_ticks = x.ticks(max(3, int((x.end - x.start) / apart)))
    for value, label in zip(x_ticks, axis_labels(x_ticks), strict=True):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="grid"))
        parts.append(text(x(value), bottom + 18, label, "muted", "middle"))
    if x_label:
        parts.append(text((x.start + x.end) / 2, bottom + 37, x_label, "muted", "middle"))
    return "".join(parts)


def samples(groups: Sequence[Sample], *, title: str, width: float = WIDTH) -> str:
    """Sample texts: for each group its heading, and below it the lines, each after its number."""
    pad, line, label = 14.0, 20.0, 48.0
    parts = [text(pad, pad + 12, shortened(title, width - 2 * pad, TITLE), "title")]
    y = pad + 38
    in_words = []
    for group in groups:
        parts.append(text(pad, y, shortened(group.heading, width - 2 * pad), "muted"))
        for value, line_text in group.lines:
            y += line
            parts.append(text(pad + label - 10, y, f"{value:.2f}", "", "end"))
            parts.append(text(pad + label, y, shortened(line_text, width - 2 * pad - label)))
        in_words.append(f"{group.heading} " + " ".join(f"{value:.2f}: {line_text}" for value, line_text in group.lines))
        y += line + 10
    return wrap_svg(title, " ".join(in_words) or NOTHING, parts, width, y)


def arranged(rows: Sequence[Sequence[str]], *, title: str) -> str:
    """Several charts as one picture, in rows, for a README; its description joins theirs."""
    parts, in_words, widest, y = [], [], 0.0, 0.0
    for row in rows:
        x, tallest = 0.0, 0.0
        for svg in row:
            chart = _WHOLE.fullmatch(svg)
            assert chart is not None, "a chart of this module"
            parts.append(tag("g", chart["body"], transform=f"translate({x:g} {y:g})"))
            in_words.append(f"{unescape(chart['title'])}: {unescape(chart['description'])}")
            x += float(chart["width"])
            tallest = max(tallest, float(chart["height"]))
        widest, y = max(widest, x), y + tallest
    return wrap_svg(title, ". ".join(in_words), parts, widest, y)


def standalone(svg: str) -> str:
    """The same picture as a standalone file with its style, light or dark by the reader's setting."""
    head, body = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{style()}</style>{body}\n'


def write_svg(path: Path, svg: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(standalone(svg), encoding="utf-8")


def _colour(names: Sequence[str], line: Line) -> int:
    return names.index(line.name) % COLOURS


def _draw_marks(box: Frame, marks: Sequence[Mark]) -> list[str]:
    """Labels that would overlap are put in separate rows."""
    lines: list[str] = []
    labels: list[str] = []
    spans: list[tuple[int, float, float]] = []
    for mark in sorted(marks, key=lambda each: each.x):
        at, wide = box.x(mark.x), text_width(mark.label) * 1.06
        fits = at + 5 + wide <= box.right
        start = at + 5 if fits else max(box.left, at - 5 - wide)
        row = next(
            r for r in range(99) if not any(o == r and start < b + 8 and a < start + wide + 8 for o, a, b in spans)
        )
        spans.append((row, start, start + wide))
        lines.append(tag("line", x1=at, x2=at, y1=box.y.end, y2=box.y.start, class_="mark"))
        labels.append(text(start, box.y.end + 12 + row * (SMALL + 4), mark.label, "marked"))
    return lines + labels


def _nothing(box: Frame) -> str:
    middle = (box.left + box.right) / 2, (box.y.start + box.y.end) / 2
    return text(*middle, NOTHING, "muted", "middle")


def _interval(dot: Dot, digits: int) -> str:
    if dot.value is None or not math.isfinite(dot.value):
        return "–"
    value = f"{dot.value:.{digits}f}"
    if dot.low is None or dot.high is None or not math.isfinite(dot.low + dot.high):
        return value
    return f"{value} [{dot.low:.{digits}f}, {dot.high:.{digits}f}]"


def _in_words(lines: Sequence[Line], marks: Sequence[Mark], x_label: str) -> str:
    """The picture in words: the start, end and maximum of each curve."""
    sentences = []
    for line in lines:
        finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        if finite and not line.faint:
            top = max(finite, key=lambda p: p[1])
            sentences.append(
                f"{line.name} goes from {number(finite[0][1])} to {number(finite[-1][1])}, highest {number(top[1])} "
                f"at {x_label} {number(top[0])}"
            )
    sentences += [f"{mark.label} at {x_label} {number(mark.x)}" for mark in marks]
    return "; ".join(sentences) or "No data."
