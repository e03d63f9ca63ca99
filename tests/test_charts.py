"""Charts: well-formed and named SVG, escaped text, honest geometry, and a palette that colour-blind readers can use."""

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from humor_env.experiments.drawing.chart_parts import (
    COLOURS,
    DASHES,
    MOST_POINTS,
    PALETTE,
    axis_labels,
    log_ticks,
    number,
    shortened,
    span,
    style,
    text_width,
    ticks,
)
from humor_env.experiments.drawing.charts import (
    Bar,
    Dot,
    Line,
    Mark,
    Points,
    bar_chart,
    dot_chart,
    line_chart,
    scatter_chart,
    standalone,
    write_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert(1)</script> & "it\'s"'


def parsed(svg):
    return ET.fromstring(svg)


def found(svg, tag, class_):
    return [e for e in parsed(svg).iter(SVG + tag) if class_ in (e.get("class") or "").split()]


def texts(svg):
    return ["".join(e.itertext()) for e in parsed(svg).iter(SVG + "text")]


def points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def every_chart(name):
    return [
        line_chart([Line(name, [0, 1], [0, 1])], title=name, x_label=name, y_label=name, marks=[Mark(0.5, name)]),
        dot_chart([Dot(name, 0.5, 0.4, 0.6, name), Dot(name, 0.2, series="other")], title=name, x_label=name),
        bar_chart([Bar(name, {name: 1.0, "b": 2.0})], title=name, x_label=name, unit=name),
        scatter_chart([Points(name, [1], [1], [name])], title=name, x_label=name, y_label=name),
    ]


def test_every_chart_is_well_formed_named_and_escapes_its_text():
    for svg in every_chart(EVIL):
        root = parsed(svg)
        assert root.get("role") == "img"
        title, description = (next(e for e in root if e.tag == SVG + tag) for tag in ("title", "desc"))
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text == EVIL
        assert EVIL in "".join(description.itertext())
        assert "<script" not in svg
        assert not list(root.iter(SVG + "script"))


def test_charts_are_pure_and_ids_differ_between_charts():
    first, again = every_chart("a"), every_chart("a")
    assert first == again
    ids = [i for svg in first for i in re.findall(r' id="(\w+)"', svg)]
    assert len(ids) == 8 == len(set(ids))


def test_a_line_lies_where_its_numbers_say():
    svg = line_chart([Line("a", [0, 5, 10], [0.0, 1.0, 0.5])], title="t", y_range=(0, 1))
    [line] = found(svg, "path", "line")
    (x0, y0), (x1, y1), (x2, y2) = points(line.get("d"))
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert y1 < y2 < y0  # up is less in SVG
    axis = found(svg, "line", "axis")[-1]
    assert y0 == pytest.approx(float(axis.get("y1")), abs=0.1)
    assert x0 == pytest.approx(float(axis.get("x1")), abs=0.1)


def test_a_gap_breaks_the_line_and_a_band_goes_there_and_back():
    svg = line_chart([Line("a", [0, 1, 2, 3], [0, 1, math.nan, 1], [0, 0, 0, 0], [1, 1, 1, 1])], title="t")
    [line], [band] = found(svg, "path", "line"), found(svg, "path", "band")
    assert line.get("d").count("M") == 2
    assert "nan" not in svg
    there = points(band.get("d"))
    assert len(there) == 8 and band.get("d").endswith("Z") and band.get("d").count("M") == 1
    assert there[0][0] == there[-1][0]


def test_long_curves_keep_their_spikes():
    y = [0.0] * 10_000
    y[7_531] = 1.0
    svg = line_chart([Line("a", range(10_000), y)], title="t", y_range=(0, 1))
    [line] = found(svg, "path", "line")
    path = points(line.get("d"))
    assert len(path) <= MOST_POINTS
    assert min(p[1] for p in path) < max(p[1] for p in path) - 50
    assert [p[0] for p in path] == sorted(p[0] for p in path)


def test_series_differ_by_dash_and_marker_and_share_colour_by_name():
    lines = [Line(n, [0, 1], [i, i]) for i, n in enumerate("abc")] + [Line("a", [0, 1], [5, 5], faint=True)]
    svg = line_chart(lines, title="t")
    classes = [e.get("class") for e in found(svg, "path", "line")]
    assert classes == ["s0 line faint", "s0 line dash", "s1 line dash", "s2 line dash"]
    assert len(set(DASHES)) == COLOURS
    assert [t for t in texts(svg) if t in "abc"] == ["a", "b", "c"]  # the legend, each name once
    shapes = {e.tag for e in parsed(svg).iter() if e.get("class") == "dot"}
    assert shapes == {SVG + "circle", SVG + "rect", SVG + "polygon"}


def test_marks_stand_at_their_step_and_their_labels_never_overlap():
    marks = [Mark(50, "they part"), Mark(52, "KL is high"), Mark(100, "at the very end")]
    svg = line_chart([Line("a", [0, 100], [0, 1])], title="t", marks=marks)
    box = points(found(svg, "path", "line")[0].get("d"))
    at = sorted(float(e.get("x1")) for e in found(svg, "line", "mark"))
    assert at[0] == pytest.approx((box[0][0] + box[1][0]) / 2, abs=0.1)
    labels = [(float(e.get("x")), float(e.get("y")), e.text) for e in found(svg, "text", "marked")]
    for (xa, ya, a), (xb, yb, b) in itertools.combinations(labels, 2):
        apart = xa + text_width(a) < xb or xb + text_width(b) < xa
        assert apart or ya != yb
    assert all(x + text_width(t) <= 480 for x, _, t in labels)


def test_a_dot_chart_prints_its_numbers_and_draws_to_scale():
    dots = [Dot("a", 0.5, 0.25, 0.75), Dot("b", None), Dot("c", 0.25)]
    svg = dot_chart(dots, title="t", x_range=(0, 1))
    assert {"0.50 [0.25, 0.75]", "–", "0.25"} <= set(texts(svg))
    whiskers = found(svg, "line", "whisker")
    left, right = float(whiskers[0].get("x1")), float(whiskers[0].get("x2"))
    circles = [float(e.get("cx")) for e in found(svg, "circle", "dot")]
    assert circles == pytest.approx([(left + right) / 2, left], abs=0.1)


def test_bars_add_up():
    svg = bar_chart([Bar("a", {"x": 1.0, "y": 3.0, "bad": math.nan}), Bar("b", {"x": 2.0})], title="t", unit="s")
    assert {"4 s", "2 s"} <= set(texts(svg))
    rects = [e for e in found(svg, "rect", "bar") if e.get("height") == "22"]
    wide = [float(e.get("width")) for e in rects]
    assert wide[1] == pytest.approx(3 * wide[0], abs=0.1)
    assert wide[2] == pytest.approx(2 * wide[0], abs=0.1)
    assert float(rects[1].get("x")) == pytest.approx(float(rects[0].get("x")) + wide[0], abs=0.02)


def test_a_scatter_has_every_point_and_its_diagonal():
    svg = scatter_chart(
        [Points("a", [0, 1, math.nan], [0, 1, 0])],
        title="t",
        x_label="x",
        y_label="y",
        diagonal=True,
        x_range=(0, 1),
        y_range=(0, 1),
    )
    dots = found(svg, "circle", "point")
    assert len(dots) == 2
    [even] = found(svg, "line", "even")
    assert [even.get("x1"), even.get("y1")] == [dots[0].get("cx"), dots[0].get("cy")]
    assert [even.get("x2"), even.get("y2")] == [dots[1].get("cx"), dots[1].get("cy")]


def test_a_logarithmic_axis_gives_equal_steps_to_equal_factors():
    svg = scatter_chart(
        [Points("a", [1, 10, 100], [0, 1, 2], joined=True)], title="t", x_label="x", y_label="y", x_log=True
    )
    [line] = found(svg, "path", "line")
    (a, _), (b, _), (c, _) = points(line.get("d"))
    assert b - a == pytest.approx(c - b, abs=0.15)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5], [0, 0], [-1, -1], [1e-9, 2e-9], [1e9, 5e9]])
def test_any_numbers_make_a_chart(values):
    svg = line_chart([Line("a", range(len(values)), values)], title="t")
    assert "nan" not in svg and "inf" not in svg
    parsed(svg)
    if not any(map(math.isfinite, values)):
        assert "nothing was measured" in texts(svg)
    parsed(dot_chart([], title="t"))
    parsed(bar_chart([], title="t"))
    parsed(scatter_chart([], title="t", x_label="x", y_label="y"))


def test_ticks_are_round_and_few():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 0.93) == [0, 0.2, 0.4, 0.6, 0.8]
    assert ticks(3, 3) == [3]
    assert ticks(-7, 13) == [-5, 0, 5, 10]
    for low, high in ((0, 150), (0.37, 0.71), (-3, 4), (1e-4, 9e-4), (12, 13_000)):
        found_ticks = ticks(low, high)
        assert 2 <= len(found_ticks) <= 6
        assert low <= found_ticks[0] and found_ticks[-1] <= high
        assert len(set(axis_labels(found_ticks))) == len(found_ticks)
    assert log_ticks(1, 1000) == [1, 10, 100, 1000]
    assert log_ticks(1, 10) == [1, 2, 5, 10]


@pytest.mark.parametrize("high", [0.93, 1.0, 7.0, 150.0, 12_345.0])
def test_the_labels_of_the_axes_never_overlap(high):
    svg = line_chart([Line("a", [0, high], [0, high])], title="t")
    across = sorted(float(e.get("x1")) for e in found(svg, "line", "axis"))
    up = sorted(float(e.get("y1")) for e in found(svg, "line", "grid"))
    assert 3 <= len(up) <= 12 and min(b - a for a, b in itertools.pairwise(up)) > 16  # a line of text
    assert min(b - a for a, b in itertools.pairwise(across[1:])) > text_width("0.00")


def test_numbers_as_readers_like_them():
    said = [number(v) for v in (0, 0.25, 1234, 12_400, 3_200_000, 1e-5, math.nan)]
    assert said == ["0", "0.25", "1234", "12.4k", "3.2M", "1.0e-5", "–"]
    assert axis_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert axis_labels([0, 50, 100]) == ["0", "50", "100"]
    assert span([0.1, 0.9])[0] == 0.0
    assert span([0.8, 0.9])[0] > 0.7
    assert shortened("a long name indeed", 60).endswith("…")
    assert text_width(shortened("a long name indeed", 60)) <= 60


def test_a_file_of_its_own_brings_both_themes(tmp_path):
    svg = line_chart([Line("a", [0, 1], [0, 1])], title="t")
    write_svg(tmp_path / "deep" / "one.svg", svg)
    text = (tmp_path / "deep" / "one.svg").read_text()
    root = ET.fromstring(text.encode())
    [css] = root.iter(SVG + "style")
    assert "prefers-color-scheme:dark" in css.text
    assert standalone(svg) == text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def _linear(hex_colour):
    channels = [int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(a, b):
    """WCAG 2's ratio."""
    first, second = (sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(x), strict=True)) for x in (a, b))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_series_stand_out_from_the_surface(theme):
    colours = {name: pair[theme] for name, pair in PALETTE.items()}
    for name in ("ink", "muted", "mark"):
        assert contrast(colours[name], colours["surface"]) >= 4.5, name
    for i in range(COLOURS):
        assert contrast(colours[str(i)], colours["surface"]) >= 3, i
    assert all(f"--chart-{name}:{colour}" in style() for name, colour in colours.items())


# Machado, Oliveira and Fernandes (2009), full severity: what is left of linear RGB.
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))


def _lab(linear):
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("sight", [DEUTERANOPIA, PROTANOPIA])
def test_the_first_four_colours_differ_under_colour_blind_sight(theme, sight):
    seen = []
    for i in range(4):
        colour = _linear(PALETTE[str(i)][theme])
        seen.append(_lab([min(1, max(0, sum(w * c for w, c in zip(row, colour, strict=True)))) for row in sight]))
    for a, b in itertools.combinations(seen, 2):
        assert math.dist(a, b) >= 12
