"""The parts of every chart in `charts.py`: escaped tags, round ticks, estimated text widths, and the frame with axes.

    ticks(0, 0.93)                       # [0.0, 0.2, 0.4, 0.6, 0.8]
    number(12_400), number(0.25)         # "12.4k", "0.25"
    wrap_svg("Reward", "one line", ["<g/>"], 480, 280)

Nothing here depends on runs or reports. Text enters only through `text` and `tag`, which escape it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

TITLE, SMALL = 16, 14  # font sizes in the units of the viewBox: a chart 480 wide is still readable on a phone 360 wide
COLOURS = 8
MOST_POINTS = 400  # more than a screen can show

# Name -> (light, dark). A test checks their contrast with the surface and their difference to colour-blind readers.
PALETTE: dict[str, tuple[str, str]] = {
    "surface": ("#ffffff", "#16191f"),
    "ink": ("#1b2027", "#eceff3"),
    "muted": ("#59636f", "#a9b2bd"),
    "grid": ("#e3e7ec", "#2c323b"),
    "mark": ("#b3261e", "#ff9c8f"),
    "0": ("#1b66c9", "#6fb1ff"),
    "1": ("#c4560a", "#ffa15c"),
    "2": ("#0a7d68", "#3fd0b0"),
    "3": ("#6a1f86", "#d95cc0"),
    "4": ("#6b5a00", "#d9c24a"),
    "5": ("#b8327a", "#ff93c4"),
    "6": ("#4a5563", "#b4bfcc"),
    "7": ("#38761d", "#9bd770"),
}
DASHES = ("", "7 4", "2 3", "10 3 2 3", "12 4", "1 4", "6 2 1 2 1 2", "4 4")


def style() -> str:
    """The CSS that charts need, once per page: light or dark by the reader's setting or by `data-theme` on the root."""
    light, dark = (";".join(f"--chart-{n}:{pair[i]}" for n, pair in PALETTE.items()) for i in (0, 1))
    series = "".join(
        f".chart .s{i}{{--c:var(--chart-{i})}}"
        f".chart .s{i} .dash,.chart .s{i}.dash{{stroke-dasharray:{DASHES[i] or 'none'}}}"
        for i in range(COLOURS)
    )
    return (
        f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f':root[data-theme="light"]{{{light}}}:root[data-theme="dark"]{{{dark}}}'
        f".chart{{font:{SMALL}px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;"
        "width:100%;height:auto;display:block}"
        ".chart text{fill:var(--chart-ink);font-variant-numeric:tabular-nums}.chart .muted{fill:var(--chart-muted)}"
        f".chart .title{{font-size:{TITLE}px;font-weight:650}}.chart .surface{{fill:var(--chart-surface)}}"
        ".chart .grid{stroke:var(--chart-grid);stroke-width:1}.chart .axis{stroke:var(--chart-muted);stroke-width:1}"
        ".chart .line{stroke:var(--c);fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}"
        ".chart .faint{stroke-width:1;opacity:.38}.chart .band{fill:var(--c);opacity:.16;stroke:none}"
        ".chart .dot{fill:var(--c);stroke:var(--chart-surface);stroke-width:1.4}"
        ".chart .point{fill:var(--c);opacity:.55}.chart .whisker{stroke:var(--c);stroke-width:2.2;stroke-linecap:round}"
        ".chart .bar{fill:var(--c);stroke:var(--chart-surface);stroke-width:1.5}"
        ".chart .mark{stroke:var(--chart-mark);stroke-width:1.5;stroke-dasharray:3 3}"
        ".chart text.marked{fill:var(--chart-mark);font-weight:600;paint-order:stroke;stroke:var(--chart-surface);"
        "stroke-width:4px;stroke-linejoin:round}"
        f".chart .even{{stroke:var(--chart-muted);stroke-width:1.2;stroke-dasharray:4 4}}{series}"
    )


def tag(name: str, content: str = "", /, **attributes: str | float | None) -> str:
    """One element. Attribute values are escaped; `content` must already be markup. `class_` is class, `a_b` is a-b."""
    attribute_text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{attribute_text}>{content}</{name}>" if content else f"<{name}{attribute_text}/>"


def text(x: float, y: float, words: str, class_: str = "", anchor: str | None = None) -> str:
    return tag("text", escape(words) or " ", x=x, y=y, class_=class_ or None, text_anchor=anchor)


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def text_width(words: str, size: float = SMALL) -> float:
    """A slightly generous estimate: text cannot be measured without a font."""
    narrow, wide = "iljtfr.,:;!|'()[] I", "mwMWGOQ%@—"
    return size * sum(0.34 if c in narrow else 0.88 if c in wide else 0.66 if c.isupper() else 0.57 for c in words)


def shortened(words: str, width: float, size: float = SMALL) -> str:
    if text_width(words, size) <= width:
        return words
    start = words
    while start and text_width(start + "…", size) > width:
        start = start[:-1]
    return start.rstrip() + "…"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2, 2.5 or 5 times a power of ten, at most `most` of them."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 2.5, 5, 10, 20, 25, 50):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low, high]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside the range; with 2 and 5 between them if there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**p for p in powers if low * 0.999 <= 10.0**p <= high * 1.001]
    if len(whole) >= 3:
        return whole
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low * 0.999 <= m * 10.0**p <= high * 1.001]


def number(value: float, digits: int = 3) -> str:
    """A number for readers: 0.25, 1,200 as 1.2k, 0 as 0; "–" if there is none."""
    if not math.isfinite(value):
        return "–"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.{digits}g}{suffix}"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def axis_labels(values: Sequence[float]) -> list[str]:
    """The labels of ticks, with as many decimals as their step needs."""
    if len(values) < 2 or max(abs(v) for v in values) >= 1e4:
        return [number(v) for v in values]
    step = min(b - a for a, b in pairwise(values))
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < step * 1e-6), 6)
    # The first tick need not be a whole step away from 0 on a logarithmic axis.
    decimals = max(decimals, *(0 if v == round(v) else min(6, -math.floor(math.log10(abs(v)))) for v in values))
    return [f"{v:.{decimals}f}" for v in values]


@dataclass(frozen=True)
class Scale:
    """Maps data to the viewBox."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        a, b, v = (math.log10(n) if self.log else n for n in (self.low, self.high, value))
        return self.start + (v - a) / (b - a) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, most)


def span(values: Iterable[float], bounds: tuple[float, float] | None = None, log: bool = False) -> tuple[float, float]:
    """The range of an axis: as given, or that of the values with some margin."""
    if bounds is not None:
        return bounds
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not finite:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        return (low / 1.15, high * 1.15)
    if low == high:
        return (low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5)
    air = 0.06 * (high - low)
    # A quantity that is never negative keeps its zero if it comes near it.
    below = 0.0 if 0 <= low <= 0.35 * high else low - air
    return (below, 0.0 if low < 0 and high == 0 else high + air)


def marker(index: int, x: float, y: float, size: float = 4.6, title: str = "", class_: str = "dot") -> str:
    """A shape for each series, so that colour is never the only difference."""
    s, hint = size, tag("title", escape(title)) if title else ""
    shapes: tuple[Callable[[], str], ...] = (
        lambda: tag("circle", hint, cx=x, cy=y, r=s, class_=class_),
        lambda: tag("rect", hint, x=x - s * 0.9, y=y - s * 0.9, width=1.8 * s, height=1.8 * s, class_=class_),
        lambda: _polygon([(x, y - 1.25 * s), (x + 1.15 * s, y + 0.85 * s), (x - 1.15 * s, y + 0.85 * s)], hint, class_),
        lambda: _polygon([(x, y - 1.3 * s), (x + 1.3 * s, y), (x, y + 1.3 * s), (x - 1.3 * s, y)], hint, class_),
        lambda: _polygon([(x, y + 1.25 * s), (x + 1.15 * s, y - 0.85 * s), (x - 1.15 * s, y - 0.85 * s)], hint, class_),
    )
    return shapes[index % len(shapes)]()


def _polygon(points: Sequence[tuple[float, float]], hint: str, class_: str) -> str:
    return tag("polygon", hint, points=" ".join(f"{_plain(a)},{_plain(b)}" for a, b in points), class_=class_)


@dataclass
class Legend:
    """Entries in rows that fit the width; `height` is the height of all rows."""

    names: Sequence[str]
    width: float
    line: bool = True
    rows: list[list[tuple[int, str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        x = self.width + 1
        for index, name in enumerate(self.names):
            name = shortened(name, self.width - 50)
            needed = (34 if self.line else 20) + text_width(name) + 16
            if x + needed - 16 > self.width:
                self.rows.append([])
                x = 0
            self.rows[-1].append((index, name, x))
            x += needed

    @property
    def height(self) -> float:
        return 20.0 * len(self.rows)

    def draw(self, left: float, top: float) -> str:
        out = []
        for row, entries in enumerate(self.rows):
            y = top + 20 * row + 10
            for index, name, x in entries:
                at = left + x
                if self.line:
                    sample = tag("line", x1=at, x2=at + 26, y1=y, y2=y, class_="line dash")
                    sample += marker(index, at + 13, y, 4)
                    at += 33
                else:
                    sample = tag("rect", x=at, y=y - 6, width=13, height=12, rx=2, class_="bar")
                    at += 19
                out.append(tag("g", sample, class_=f"s{index % COLOURS}") + text(at, y + 5, name))
        return "".join(out)


def wrap_svg(title: str, description: str, parts: Sequence[str], width: float, height: float) -> str:
    """The whole picture, with a title and description for screen readers. The ids are hashes of the content."""
    body = "".join(parts)
    key = hashlib.sha256(f"{title}\n{description}\n{body}".encode()).hexdigest()[:10]
    names = tag("title", escape(title) or " ", id=f"t{key}") + tag("desc", escape(description) or " ", id=f"d{key}")
    return tag(
        "svg",
        names + tag("rect", width=width, height=height, rx=8, class_="surface") + body,
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"t{key} d{key}",
    )


@dataclass(frozen=True)
class Frame:
    """The box in which data is drawn, and the picture around it."""

    x: Scale
    y: Scale
    furniture: str

    @property
    def left(self) -> float:
        return self.x.start

    @property
    def right(self) -> float:
        return self.x.end


def frame(
    title: str,
    x_label: str,
    y_label: str,
    x_span: tuple[float, float],
    y_span: tuple[float, float],
    legend: Legend | None,
    width: float,
    height: float,
    x_log: bool = False,
) -> Frame:
    """Title, legend, and both axes with ticks and labels. The y label is horizontal, above its axis: easier to read."""
    pad = 14.0
    out = [text(pad, pad + 12, shortened(title, width - 2 * pad, TITLE), "title")]
    top = pad + 24
    if legend is not None and len(legend.names) > 1:
        out.append(legend.draw(pad, top))
        top += legend.height
    out.append(text(pad, top + 14, y_label, "muted"))
    top += 28
    bottom = height - pad - (38 if x_label else 20)
    y = Scale(*y_span, bottom, top)
    y_ticks = y.ticks(max(3, int((bottom - top) / 27)))
    y_labels = axis_labels(y_ticks)
    left = pad + max((text_width(label) for label in y_labels), default=0) + 8
    x = Scale(*x_span, left, width - pad - 8, x_log)
    for value, label in zip(y_ticks, y_labels, strict=True):
        out.append(tag("line", x1=left, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        out.append(text(left - 7, y(value) + 5, label, "muted", "end"))
    x_ticks = x.ticks(max(3, int((x.end - left) / 62)))
    x_labels = [number(v) for v in x_ticks] if x_log else axis_labels(x_ticks)
    for value, label in zip(x_ticks, x_labels, strict=True):
        out.append(tag("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 5, class_="axis"))
        out.append(text(x(value), bottom + 20, label, "muted", "middle"))
    out.append(tag("line", x1=left, x2=x.end, y1=bottom, y2=bottom, class_="axis"))
    if x_label:
        out.append(text((left + x.end) / 2, bottom + 38, x_label, "muted", "middle"))
    return Frame(x, y, "".join(out))


def tight_span(values: Iterable[float]) -> tuple[float, float]:
    """The x axis of a curve: from its first point to its last, without margin."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return (0.0, 1.0)
    low, high = min(finite), max(finite)
    low = 0.0 if 0 < low <= 0.06 * high else low
    return (low, high) if high > low else (low - 1, high + 1)


def thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: the lowest and highest value of each stretch, so that no spike is lost."""
    points = list(zip(x, y, strict=True))
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    extremes = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=_height), max(stretch, key=_height)}
        extremes += sorted(ends)
    return extremes


def _height(point: tuple[float, float]) -> float:
    return point[1] if math.isfinite(point[1]) else 0.0


def curve(box: Frame, points: Sequence[tuple[float, float]]) -> str:
    """The `d` of a path through the points; a point that is not finite leaves a gap."""
    out, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        out.append(f"{pen}{box.x(x):.1f} {box.y(y):.1f}")
        pen = "L"
    return "".join(out)
