import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    figure,
    level,
    nice_ticks,
    tick_text,
)


def drawn(*lines, **options):
    """The figure as XML: what a browser would draw, and proof that the markup closes."""
    return ElementTree.fromstring(figure("A title", lines, y_label="loss", **options))


def coordinates(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d"))]


def paths(tree, style="ssl"):
    chart = tree.find("svg")
    return [path for path in chart.findall("path") if style in path.get("class").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.0, 8.0, [0, 2, 4, 6, 8]),
        (0.0, 0.57, [0.0, 0.2, 0.4, 0.6]),
        (5.41, 5.89, [5.4, 5.6, 5.8, 6.0]),
        (-3.0, 4.0, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_the_range_and_are_few(low, width):
    ticks = nice_ticks(low, low + width)
    slack = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + width - slack
    assert 2 <= len(ticks) <= 7


def test_equal_values_still_get_a_range():
    for value in (0.0, 5.5, -2.0):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1]


@pytest.mark.parametrize(("value", "step", "text"), [(20, 10, "20"), (0.5, 0.5, "0.5"), (5.4, 0.05, "5.40")])
def test_ticks_have_the_decimals_of_their_step(value, step, text):
    assert tick_text(value, step) == text


def test_points_stand_where_their_values_are():
    tree = drawn(Line("SSL", [(0, 1.0), (50, 2.0), (100, 3.0)], "ssl"))
    (path,) = paths(tree)
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    assert coordinates(path) == [(left, bottom), ((left + right) / 2, (TOP + bottom) / 2), (right, TOP)]
    assert [circle.find("title").text for circle in tree.find("svg").findall("circle")] == [
        "SSL, step 0: 1.000",
        "SSL, step 50: 2.000",
        "SSL, step 100: 3.000",
    ]


def test_an_axis_from_zero_starts_there():
    line = Line("SSL", [(0, 0.3), (1, 0.4)], "ssl")
    lowest = [drawn(line, from_zero=zero).find("svg").find("text").text for zero in (False, True)]
    assert lowest == ["0.30", "0.0"]


@pytest.mark.parametrize("gap", [None, float("nan"), float("inf")])
def test_a_gap_breaks_the_line(gap):
    tree = drawn(Line("SSL", [(0, 1.0), (1, 2.0), (2, gap), (3, 1.0), (4, 2.0)], "ssl"))
    commands = re.findall("[ML]", paths(tree)[0].get("d"))
    assert commands == ["M", "L", "M", "L"]
    assert len(tree.find("svg").findall("circle")) == 4


def test_one_point_is_drawn():
    assert len(drawn(Line("SSL", [(0, 1.0)], "ssl")).find("svg").findall("circle")) == 1


def test_the_legend_names_every_line_and_its_last_value():
    tree = drawn(
        Line("SSL", [(0, 1.0), (1, 0.25)], "ssl"),
        Line("FINO", [(0, 1.0), (1, 31.26)], "fino", dashed=True),
        Line("absent", [(0, None)], "fino"),
    )
    entries = ["".join(entry.itertext()) for entry in tree.find("ul").findall("li")]
    assert entries == ["SSL 0.250", "FINO 31.3"]
    assert len(paths(tree, "dashed")) == 1


def test_a_level_spans_the_lines_it_belongs_to():
    lines = [Line("SSL", [(10, 1.0), (30, None)], "ssl"), Line("FINO", [(0, 1.0), (20, 2.0)], "fino")]
    assert level("chance", 0.5, lines).points == [(0, 0.5), (20, 0.5)]


def test_without_points_there_is_no_figure():
    nothing = [Line("SSL", [(0, None)], "ssl")]
    assert figure("A title", [*nothing, level("chance", 0.5, nothing)], y_label="loss") == ""


def test_names_are_text_not_markup():
    evil = "<b>'&\""
    tree = ElementTree.fromstring(
        figure(evil, [Line(evil, [(0, 1.0)], "ssl")], y_label=evil, x_label=evil, note=evil)
    )
    assert tree.find("figcaption/b").text == evil
    assert tree.find("svg").get("aria-label") == evil
    assert tree.find("svg/circle/title").text == f"{evil}, {evil} 0: 1.000"
    assert tree.find("figcaption/p").text == evil
