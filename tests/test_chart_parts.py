"""The parts of charts by hand: where things are drawn, what is drawn of them, and what is said in words."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from humor_env.experiments.drawing import charts
from humor_env.experiments.drawing.chart_parts import (
    MOST_POINTS,
    Frame,
    Legend,
    Scale,
    axis_labels,
    curve,
    frame,
    log_ticks,
    marker,
    number,
    shortened,
    span,
    tag,
    text,
    text_width,
    thinned,
    ticks,
    tight_span,
    wrap_svg,
)
from humor_env.experiments.drawing.charts import (
    Bar,
    Dot,
    Line,
    Mark,
    Points,
    Values,
    bar_chart,
    dot_chart,
    histogram,
    line_chart,
    scatter_chart,
)

SVG = "{http://www.w3.org/2000/svg}"
NAN = math.nan
LONG = [f"a long system {n}" for n in range(5)]  # two of them fit into a row


def found(svg, name, class_=None):
    wanted = ET.fromstring(svg).iter(SVG + name)
    return [e for e in wanted if class_ is None or class_ in (e.get("class") or "").split()]


def at(element, *names):
    return [float(element.get(name)) for name in names]


def said(svg, words):
    [element] = [e for e in found(svg, "text") if "".join(e.itertext()) == words]
    return element


def description(svg):
    return "".join(found(svg, "desc")[0].itertext())


def size(svg):
    return [float(v) for v in ET.fromstring(svg).get("viewBox").split()[2:]]


# Where things are drawn


@pytest.mark.parametrize(
    "svg",
    [
        line_chart([Line("a", [0, 4], [0, 1])], title="t", x_label="across", y_label="up"),
        scatter_chart([Points("a", [0, 4], [0, 1])], title="t", x_label="across", y_label="up"),
        histogram([Values("a", [0.5])], title="t", x_label="across"),
    ],
)
def test_the_label_of_an_axis_is_below_its_middle(svg):
    axis = found(svg, "line", "axis")[-1]
    left, right, y = at(axis, "x1", "x2", "y1")
    label = said(svg, "across")
    assert at(label, "x", "y") == pytest.approx([(left + right) / 2, y + 38], abs=0.011)
    assert label.get("text-anchor") == "middle" and size(svg)[1] - at(label, "y")[0] == pytest.approx(14)
    width = size(svg)[0]
    assert right == pytest.approx(width - 22) and said(svg, "t").get("class") == "title"
    assert at(said(svg, "t"), "x", "y") == [14, 26]
    up = "% of lines" if "% of lines" in svg else "up"
    assert at(said(svg, up), "x", "y") == [14, 52]


@pytest.mark.parametrize(
    "svg",
    [
        dot_chart([Dot("a", 0.0), Dot("b", 1.0)], title="t", x_label="across", x_range=(0, 1)),
        bar_chart([Bar("a", {"x": 1.0}), Bar("b", {"x": 0.5})], title="t", x_label="across"),
    ],
)
def test_the_label_of_rows_is_below_the_middle_of_the_axis(svg):
    grid = found(svg, "line", "grid")
    (left, top, bottom), (right,) = at(grid[0], "x1", "y1", "y2"), at(grid[-1], "x1")
    assert at(said(svg, "across"), "x", "y") == pytest.approx([(left + right) / 2, bottom + 37], abs=0.011)
    assert size(svg)[1] == bottom + 52 and top == 44
    ticks_at = [at(e, "x", "y") for e in found(svg, "text", "muted")][:-1]
    assert [y for _, y in ticks_at] == [bottom + 18] * len(grid)
    assert [x for x, _ in ticks_at] == [at(e, "x1")[0] for e in grid]


def test_without_a_label_there_is_less_room_below():
    with_label, without = (dot_chart([Dot("a", 0.5)], title="t", x_label=label) for label in ("x", ""))
    assert size(with_label)[1] - size(without)[1] == 18
    with_label, without = (line_chart([Line("a", [0, 1], [0, 1])], title="t", x_label=x) for x in ("x", ""))
    below = [size(svg)[1] - at(found(svg, "line", "axis")[-1], "y1")[0] for svg in (with_label, without)]
    assert below == [52, 34]


@pytest.mark.parametrize(
    ("draw", "height", "more"),
    [
        (lambda names: line_chart([Line(n, [0, 1], [0, 1]) for n in names], title="t"), 300, 40),
        (
            lambda names: scatter_chart([Points(n, [0], [1]) for n in names], title="t", x_label="x", y_label="y"),
            340,
            40,
        ),
        (lambda names: histogram([Values(n, [0.5]) for n in names], title="t"), 300, 20),
    ],
)
def test_a_picture_grows_with_its_legend(draw, height, more):
    """One row of a legend is in its height; two of the long names fit into a row, so five of them need three; of
    a histogram, whose entries have no line, three fit."""
    pictures = [draw(names) for names in (LONG[:1], ["a", "b"], LONG[:2], LONG)]
    assert [size(svg)[1] - height for svg in pictures] == [0, 0, 0, more]
    below = [size(svg)[1] - at(found(svg, "line", "axis")[-1], "y1")[0] for svg in pictures]
    assert len(set(below)) == 1, "what is below the frame is the same"


def test_the_entries_of_a_legend():
    """An "a" is 0.57 x 14 wide, so an entry with a line takes 34 + 7.98 + 16."""
    assert Legend(["a", "a"], 1000).rows == [[(0, "a", 0), (1, "a", pytest.approx(57.98))]]
    assert Legend(["a", "a"], 99.95).rows == [[(0, "a", 0)], [(1, "a", 0)]]  # 57.98 + 41.98 = 99.96
    assert Legend(["a", "a"], 99.97).rows == [[(0, "a", 0), (1, "a", pytest.approx(57.98))]]
    assert Legend(["a", "a"], 1000, line=False).rows[0][1][2] == pytest.approx(43.98)
    assert (Legend([], 100).height, Legend(["a"], 100).height, Legend(["a"] * 3, 60).height) == (0, 20, 60)
    assert Legend(["a" * 99], 100).rows[0][0][1].endswith("…")
    drawn = f"<g>{Legend(['a', 'b', 'a'], 100).draw(14, 38)}</g>"
    lines = [[float(e.get(n)) for n in ("x1", "x2", "y1", "y2")] for e in ET.fromstring(drawn).iter("line")]
    assert lines == [[14, 40, 48, 48], [71.98, 97.98, 48, 48], [14, 40, 68, 68]]
    assert [(float(e.get("x")), float(e.get("y"))) for e in ET.fromstring(drawn).iter("text")] == [
        *((47, 53), (104.98, 53), (47, 73)),
    ]
    box = f"<g>{Legend(['a'], 100, line=False).draw(14, 38)}</g>"
    [rect] = ET.fromstring(box).iter("rect")
    assert [float(rect.get(n)) for n in ("x", "y", "width", "height")] == [14, 42, 13, 12]
    [words] = ET.fromstring(box).iter("text")
    assert (words.get("x"), words.get("y")) == ("33", "53")


def test_a_scale_is_linear_or_logarithmic():
    assert [Scale(0, 10, 100, 300)(v) for v in (0, 2.5, 10, 15)] == [100, 150, 300, 400]
    assert [Scale(-1, 1, 300, 100)(v) for v in (-1, 0, 1)] == [300, 200, 100]
    assert [Scale(1, 100, 0, 200, log=True)(v) for v in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert Scale(0, 1, 0, 1).ticks(3) == [0, 0.5, 1.0] and Scale(1, 1000, 0, 1, log=True).ticks(3) == [1, 10, 100, 1000]
    box = Frame(Scale(0, 1, 3, 7), Scale(0, 1, 9, 5), "")
    assert (box.left, box.right) == (3, 7)
    assert (
        curve(box, [(0, 0), (0.5, 1), (NAN, 1), (1, 0.25), (1, math.inf), (0, 1)]) == "M3.0 9.0L5.0 5.0M7.0 8.0M3.0 5.0"
    )


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (0, {"tag": "circle", "cx": "10", "cy": "20", "r": "2"}),
        (1, {"tag": "rect", "x": "8.2", "y": "18.2", "width": "3.6", "height": "3.6"}),
        (2, {"tag": "polygon", "points": "10,17.5 12.3,21.7 7.7,21.7"}),
        (3, {"tag": "polygon", "points": "10,17.4 12.6,20 10,22.6 7.4,20"}),
        (4, {"tag": "polygon", "points": "10,22.5 12.3,18.3 7.7,18.3"}),
        (5, {"tag": "circle"}),
    ],
)
def test_the_shapes_of_markers(index, shape):
    element = ET.fromstring(marker(index, 10, 20, 2, "a & b", "odd"))
    assert {"tag": element.tag, **element.attrib}.items() >= (shape | {"class": "odd"}).items()
    assert element.findtext("title") == "a & b"
    assert ET.fromstring(marker(index, 10, 20)).get("class") == "dot" and len(ET.fromstring(marker(index, 1, 2))) == 0


def test_elements_and_their_text():
    assert tag("a", b=1.0, c_d=0.125, class_="x", none=None) == '<a b="1" c-d="0.12" class="x"/>'
    assert tag("a", "<b/>", c='"&<') == '<a c="&quot;&amp;&lt;"><b/></a>'
    assert (
        text(1, 2.5, "a < b", "muted", "end") == '<text x="1" y="2.5" class="muted" text-anchor="end">a &lt; b</text>'
    )
    assert text(100, 20, "") == '<text x="100" y="20"> </text>'
    whole = ET.fromstring(wrap_svg("", "", ["<g/>"], 480, 300.5))
    assert (whole.get("viewBox"), whole.get("class")) == ("0 0 480 300.5", "chart")
    assert [e.tag.removeprefix(SVG) for e in whole] == ["title", "desc", "rect", "g"]
    assert [whole[2].get(name) for name in ("width", "height", "rx", "class")] == ["480", "300.5", "8", "surface"]
    assert whole.get("aria-labelledby") == f"{whole[0].get('id')} {whole[1].get('id')}"


# Numbers


def test_the_width_of_words_is_estimated_by_their_letters():
    """i and space are narrow, W and m wide, A is a capital, a is none of these."""
    assert text_width("i W", 100) == pytest.approx(34 + 34 + 88) and text_width("Aam", 10) == pytest.approx(21.1)
    assert text_width("a") == pytest.approx(0.57 * 14) and text_width("") == 0
    # Of five a's and the dots 6 x 5.7 = 34.2, of four 28.5.
    assert [shortened("aaaaaa", width, 10) for width in (34.3, 34.1, 28.6, 28.4)] == [
        "aaaaaa",
        "aaaa…",
        "aaaa…",
        "aaa…",
    ]
    assert shortened("aa aaa", 24, 10) == "aa…" and shortened("aaa", 1, 10) == "…"


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 6, 7, [0, 1, 2, 3, 4, 5, 6]),
        (0, 6, 6, [0, 2, 4, 6]),
        (0, 10, 5, [0, 2.5, 5, 7.5, 10]),
        (0, 10, 4, [0, 5, 10]),
        (0, 10, 2, [0, 10]),
        (1, 9, 2, [5]),
        (0.1, 0.3, 3, [0.1, 0.2, 0.3]),
        (-2, 2, 5, [-2, -1, 0, 1, 2]),
        (5, 3, 6, [5]),
        (NAN, 3, 6, []),
        (3, math.inf, 6, [3]),
    ],
)
def test_round_ticks(low, high, most, expected):
    assert ticks(low, high, most) == expected


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(1, 100) == [1, 10, 100] and log_ticks(1, 99) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(0.3, 3) == [0.5, 1, 2] and log_ticks(20, 60) == [20, 50]
    assert log_ticks(2, 5) == [2, 5] and log_ticks(0.01, 10) == [0.01, 0.1, 1, 10]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((999.4, "999"), (999.6, "1e+03"), (1000, "1000"), (9999, "9999"), (10_000, "10k"), (-12_345, "-12.3k")),
        *((999_999, "1e+03k"), (1e6, "1M"), (1.5e9, "1.5G"), (1e-3, "0.001"), (9.9e-4, "9.9e-4"), (-1e-5, "-1.0e-5")),
        *((0.12345, "0.123"), (-0.5, "-0.5"), (math.inf, "–"), (1e-12, "1.0e-12")),
    ],
)
def test_numbers_for_readers(value, shown):
    assert number(value) == shown


def test_labels_have_as_many_decimals_as_their_step_needs():
    assert axis_labels([0, 2.5, 5]) == ["0.0", "2.5", "5.0"] and axis_labels([0.001, 0.002]) == ["0.001", "0.002"]
    assert axis_labels([0.5, 1.5]) == ["0.5", "1.5"] and axis_labels([0.01, 1.01, 2.01])[0] == "0.01"
    assert axis_labels([0, 5000, 10_000]) == ["0", "5000", "10k"] and axis_labels([9998, 9999]) == ["9998", "9999"]
    assert axis_labels([]) == [] and axis_labels([0.12345]) == ["0.123"]
    assert axis_labels([0, 1, 1.25]) == ["0.00", "1.00", "1.25"]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        # A margin of 6 %; zero if it is near; nothing below or above a zero where the values end.
        ([10, 20], {}, (9.4, 20.6)),
        ([7, 20], {}, (0, 20.78)),
        ([7.1, 20], {}, (7.1 - 0.774, 20.774)),
        ([0, 1], {}, (0, 1.06)),
        ([-1, 0], {}, (-1.06, 0)),
        ([-1, 1], {}, (-1.12, 1.12)),
        ([4, 4], {}, (2, 6)),
        ([-4, -4], {}, (-6, -2)),
        ([0, 0], {}, (-0.5, 0.5)),
        ([NAN, math.inf], {}, (0, 1)),
        ([NAN], {"log": True}, (1, 10)),
        ([-5, 0, 2, 8], {"log": True}, (2 / 1.15, 9.2)),
        ([1, 2], {"bounds": (3, 4)}, (3, 4)),
    ],
)
def test_the_range_of_an_axis(values, options, expected):
    assert span(values, **options) == pytest.approx(expected)


def test_the_range_of_a_curves_x_axis_has_no_margin():
    assert tight_span([3, 9, 5]) == (3, 9) and tight_span([NAN, 2, 4]) == (2, 4) and tight_span([]) == (0, 1)
    assert tight_span([6, 100]) == (0, 100) and tight_span([7, 100]) == (7, 100)
    assert tight_span([-1, 100]) == (-1, 100) and tight_span([5, 5]) == (4, 6) and tight_span([0, 100]) == (0, 100)


def test_long_curves_are_thinned_to_the_ends_of_each_stretch():
    x = list(range(2 * MOST_POINTS))
    assert thinned(x[:MOST_POINTS], x[:MOST_POINTS]) == list(zip(x[:MOST_POINTS], x[:MOST_POINTS], strict=True))
    # Stretches of four: of a curve that rises, the first and the last of each.
    rising = thinned(x, x)
    assert rising[:4] == [(0, 0), (3, 3), (4, 4), (7, 7)] and len(rising) == MOST_POINTS
    one_more = thinned(range(MOST_POINTS + 1), [0.0] * (MOST_POINTS + 1))
    assert len(one_more) == 134 and one_more[:2] == [(0, 0.0), (3, 0.0)]  # all alike: one of each three
    gaps = thinned(x, [NAN, 5, -5, 1] * (len(x) // 4))
    assert gaps[:2] == [(1, 5), (2, -5)]


# What is said in words


def test_curves_in_words():
    lines = [Line("a", [0, 1, 2, 3], [NAN, 0.5, 0.75, 0.25]), Line("a", [0], [9], faint=True), Line("b", [0], [NAN])]
    svg = line_chart(lines, title="t", x_label="step", marks=[Mark(2, "they part")])
    assert description(svg) == "a goes from 0.5 to 0.25, highest 0.75 at step 2; they part at step 2"
    assert description(line_chart([], title="t")) == "No data."
    assert description(line_chart(lines, title="t", description="mine")) == "mine"


def test_rows_in_words():
    dots = [Dot("a", 0.5, 0.25, 0.75, "one"), Dot("b", None), Dot("c", 2.346, 1.0), Dot("d", 1.0, NAN, 2.0)]
    assert description(dot_chart(dots, title="t")) == "a (one): 0.50 [0.25, 0.75]; b: –; c: 2.35; d: 1.00"
    assert charts._interval(Dot("a", -3.6, -5.0, 4.4), 0) == "-4 [-5, 4]" and charts._interval(Dot("a", NAN), 2) == "–"
    bars = [Bar("a", {"x": 1.0, "y": 12_000.0}), Bar("b", {"x": 0.5})]
    assert description(bar_chart(bars, title="t", unit="s")) == "a: x 1 s, y 12k s; b: x 0.5 s"
    svg = bar_chart([Bar("a", {"x": 1.0, "y": 3.0})], title="t")
    assert [e.findtext(SVG + "title") for e in found(svg, "rect", "bar") if len(e)] == ["a, x: 1, 25%", "a, y: 3, 75%"]
    clouds = [Points("a", [0, 1], [0, 1]), Points("b", [0], [0], ["here"])]
    svg = scatter_chart(clouds, title="t", x_label="x", y_label="y")
    assert description(svg) == "y against x: a (2 points), b (1 points)"
    hints = [e.findtext(SVG + "title") for e in ET.fromstring(svg).iter() if e.get("class") == "point"]
    assert hints == ["a: 0, 0", "a: 1, 1", "here: 0, 0"]


def test_a_histogram_by_hand():
    """Of five lines 20 % each: 0.3 and 0.35 are in the fourth of ten parts, 1.0 in the last, and NaN is none."""
    svg = histogram([Values("a", [0.0, 0.3, 0.35, 1.0, 0.95, NAN]), Values("b", [0.5])], title="t")
    groups = [g for g in found(svg, "g") if re.fullmatch("s[01]", g.get("class"))][-2:]
    hints = [[e.findtext(SVG + "title") for e in group] for group in groups]
    assert hints == [
        ["a: 20% from 0 to 0.1", "a: 40% from 0.3 to 0.4", "a: 40% from 0.9 to 1"],
        ["b: 100% from 0.5 to 0.6"],
    ]
    tall = [[at(e, "height")[0] for e in group] for group in groups]
    assert tall[0][1] == pytest.approx(2 * tall[0][0], abs=0.02) == tall[0][2]
    assert tall[1][0] == pytest.approx(5 * tall[0][0], abs=0.05)
    wide = {round(at(e, "width")[0], 1) for group in groups for e in group}
    axis = found(svg, "line", "axis")[-1]
    part = (at(axis, "x2")[0] - at(axis, "x1")[0]) / 10
    assert wide == {round(0.44 * part, 1)}
    assert at(groups[0][0], "x")[0] - at(axis, "x1")[0] == pytest.approx(0.06 * part, abs=0.02)
    assert at(groups[1][0], "x")[0] - at(axis, "x1")[0] == pytest.approx(5.5 * part, abs=0.02)
    assert description(svg) == (
        "a: 5 lines, 20% in the lowest part and 40% in the highest; "
        "b: 1 lines, 0% in the lowest part and 0% in the highest"
    )
    assert "nothing was measured" in histogram([Values("a", [NAN])], title="t") and "nothing" not in svg
    wider = histogram([Values("a", [-1.0, 2.0])], title="t", bins=3)
    hints = [e.findtext(SVG + "title") for e in found(wider, "rect", "bar") if len(e)]
    assert hints == ["a: 50% from -1 to 0", "a: 50% from 1 to 2"]


def test_dots_of_one_row_are_one_below_the_other_and_stay_in_the_picture():
    """Rows of one dot are 30 high, of two 2 x 21 + 9 = 51; a value beyond the range is drawn at its end."""
    dots = [Dot("a", 0.5, series="x"), Dot("b", 0.0, -9, 0.5, "x"), Dot("b", 9.0, 0.5, 99.0, "y")]
    svg = dot_chart(dots, title="t", x_range=(0, 1), reference=0.5)
    top = 14 + 26 + 20 + 4
    circles = [at(e, "cx", "cy") for e in found(svg, "circle", "dot")][1:]  # the first is the legend's
    [square] = [at(e, "x", "y", "width") for e in found(svg, "rect", "dot")][1:]
    assert [y for _, y in circles] == pytest.approx([top + 15, top + 30 + 25.5 - 10.5], abs=0.01)
    assert square[1] + square[2] / 2 == pytest.approx(top + 30 + 25.5 + 10.5, abs=0.02)
    grid = [at(e, "x1")[0] for e in found(svg, "line", "grid")]
    assert circles[1][0] == grid[0] and square[0] + square[2] / 2 == pytest.approx(grid[-1], abs=0.02)
    ends = [at(e, "x1", "x2", "y1", "y2") for e in found(svg, "line", "whisker")]
    assert ends[0][:2] == [grid[0], pytest.approx((grid[0] + grid[-1]) / 2, abs=0.01)]
    assert [e[3] - e[2] for e in ends] == pytest.approx([0, 10, 10] * 2, abs=0.02)
    [even] = found(svg, "line", "even")
    assert at(even, "x1", "y1", "y2") == pytest.approx([(grid[0] + grid[-1]) / 2, top, top + 81], abs=0.01)
    assert size(svg)[1] == top + 81 + 34


def test_bars_begin_where_the_part_before_them_ends():
    svg = bar_chart([Bar("a", {"x": 1.0, "none": 0.0, "y": 3.0})], title="t", unit="s")
    x, y = (at(e, "x", "y", "width", "height") for e in found(svg, "rect", "bar") if len(e))
    grid = [at(e, "x1")[0] for e in found(svg, "line", "grid")]
    assert x[0] == grid[0] and y[0] == pytest.approx(x[0] + x[2], abs=0.02)
    assert y[0] + y[2] == pytest.approx(grid[-1], abs=0.02) and x[1] == y[1] == 14 + 26 + 20 + 4 + 5 and x[3] == 22
    assert at(said(svg, "4 s"), "x", "y") == pytest.approx([y[0] + y[2] + 7, x[1] - 5 + 21], abs=0.02)


def test_a_curve_has_at_most_eight_markers_and_one_at_its_end():
    for count, shown in ((1, 1), (8, 8), (9, 5), (16, 8), (17, 6)):
        svg = line_chart([Line("a", range(count), range(count))], title="t")
        circles = [at(e, "cx")[0] for e in found(svg, "circle", "dot")]
        [path] = found(svg, "path", "line")
        assert len(circles) == shown
        assert circles[0] == pytest.approx(float(re.findall(r"[ML]([-\d.]+) ", path.get("d"))[-1]), abs=0.06)


def test_the_frame_says_where_data_are_drawn():
    box = frame("t", "", "", (0, 1), (0, 2), None, 480, 300)
    assert box.y.start == 300 - 14 - 20 and box.y.end == 14 + 24 + 28 and box.right == 480 - 22
    assert box.left == pytest.approx(14 + text_width("0.00") + 8, abs=8)
    assert frame("t", "x", "", (0, 1), (0, 2), None, 480, 300).y.start == 300 - 14 - 38
    one, two = (frame("t", "", "", (0, 1), (0, 2), Legend(names, 400), 480, 300) for names in (["a"], ["a", "b"]))
    assert (one.y.end, two.y.end) == (66, 86)


def test_sample_lines_and_several_charts_in_one_picture():
    group = charts.Sample("best:", [(0.5, "a line"), (0.25, "another")])
    svg = charts.samples([group, charts.Sample("worst:", [(0.0, "none")])], title="t")
    assert description(svg) == "best: 0.50: a line 0.25: another worst: 0.00: none"
    places = {"".join(e.itertext()): at(e, "x", "y") for e in found(svg, "text")}
    assert places == {
        "t": [14, 26],
        "best:": [14, 52],
        "0.50": [52, 72],
        "a line": [62, 72],
        "0.25": [52, 92],
        "another": [62, 92],
        "worst:": [14, 122],
        "0.00": [52, 142],
        "none": [62, 142],
    }
    assert size(svg) == [480, 172] and description(charts.samples([], title="t")) == "nothing was measured"
    small, tall = (
        wrap_svg(name, f"of {name} & more", [], width, height)
        for name, width, height in (("a", 100, 50), ("b", 200, 80))
    )
    both = charts.arranged([[small, tall], [tall]], title="all")
    moved = [e.get("transform") for e in found(both, "g")]
    assert moved == ["translate(0 0)", "translate(100 0)", "translate(0 80)"] and size(both) == [300, 160]
    assert description(both) == "a: of a & more. b: of b & more. b: of b & more"
