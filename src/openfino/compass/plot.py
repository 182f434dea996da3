"""The compass plot: change as informative across, change as spurious upwards, one point for each factor."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from openfino.compass.drawing import (
    FONT_SIZE,
    Box,
    Dot,
    Label,
    Paint,
    Segment,
    Shape,
    as_pixels,
    as_svg,
    text_width,
)
from openfino.compass.plan import ROLES
from openfino.compass.result import Compass, FactorResult
from openfino.compass.validation import WORDS, Part
from openfino.report.svg import Axis, nice_ticks, tick_text

WIDTH, HEIGHT = 560, 616
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 46, 90
_COVERED = 12  # places along a line that names keep clear of
_COLOURS = ("a", "b", "c", "d", "e", "f")
PAINTS = {
    "good": Paint("#e3f4e6"),
    "keep": Paint("#e3eef8"),
    "drop": Paint("#f3e6f4"),
    "bad": Paint("#fbe6e6"),
    "noise": Paint("#eef0f2"),
    "zero": Paint("#9aa2ab"),
    "grid": Paint("#ffffff"),
    "tick": Paint("#57606a"),
    "corner": Paint("#57606a"),
    "axis": Paint("#1b1f24"),
    "link": Paint("#8a929b", 1.0),
    "name": Paint("#1b1f24"),
    "point a": Paint("#0072b2", 1.4),
    "point b": Paint("#c24e00", 1.4),
    "point c": Paint("#1a7f37", 1.4),
    "point d": Paint("#8a3ffc", 1.4),
    "point e": Paint("#a8005c", 1.4),
    "point f": Paint("#6b5b00", 1.4),
}
Rectangle = tuple[float, float, float, float]


def plot_svg(compass: Compass) -> str:
    """The plot as inline SVG."""
    return as_svg(_shapes(compass), WIDTH, HEIGHT, "compass plot")


def plot_pixels(compass: Compass) -> NDArray[np.uint8]:
    """The plot as RGB."""
    return as_pixels(_shapes(compass), WIDTH, HEIGHT, PAINTS)


def colour_of(number: int) -> str:
    """Style of the points of a factor."""
    return f"point {_COLOURS[number % len(_COLOURS)]}"


def _shapes(compass: Compass) -> list[Shape]:
    noise = compass.spreads[compass.deciding].noise(compass.comparisons)
    across, upwards, ticks = _axes(compass, noise)
    shapes: list[Shape] = [
        *_regions(across, upwards, noise),
        *_scales(across, upwards, ticks),
        *_corners(across, upwards, noise),
        *_titles(compass),
    ]
    taken: list[Rectangle] = []
    points = [(number, name, factor) for number, (name, factor) in enumerate(compass.factors.items())]
    for _, _, factor in points:
        taken += _covered(compass, factor, across, upwards)
    for number, _, factor in points:
        shapes += _point(compass, factor, colour_of(number), across, upwards)
    for _, name, factor in points:
        shapes.append(_named(name, _place(factor, compass.deciding, across, upwards), taken))
    return shapes


def _axes(compass: Compass, noise: float) -> tuple[Axis, Axis, list[float]]:
    """Both axes with one scale and 0 in their middle."""
    reach = 1.6 * noise
    for factor in compass.factors.values():
        for role in ROLES:
            for part, change in factor.changes[role].items():
                spread = change.deviation if part == compass.deciding else 0.0
                reach = max(reach, 1.15 * (abs(change.mean) + spread))
    ticks = nice_ticks(-reach, reach, 7) if reach > 0 else nice_ticks(-0.01, 0.01, 7)
    end = max(abs(ticks[0]), abs(ticks[-1]))
    ticks = [tick if abs(tick) > 1e-9 * end else 0.0 for tick in ticks]
    return Axis(-end, end, LEFT, WIDTH - RIGHT), Axis(-end, end, HEIGHT - BOTTOM, TOP), ticks


def _regions(across: Axis, upwards: Axis, noise: float) -> Iterator[Shape]:
    """The quadrants as the rule has them, and the box of noise."""
    left, right, top, bottom = across.start, across.stop, upwards.stop, upwards.start
    x, y = across.place(noise), upwards.place(noise)
    low_x, low_y = across.place(-noise), upwards.place(-noise)
    yield Box(x, top, right, y, "good")
    yield Box(x, y, right, bottom, "keep")
    yield Box(left, top, x, y, "drop")
    yield Box(left, y, x, bottom, "bad")
    yield Box(low_x, y, x, low_y, "noise")


def _corners(across: Axis, upwards: Axis, noise: float) -> Iterator[Shape]:
    """The name of every region."""
    left, right, top, bottom = across.start, across.stop, upwards.stop, upwards.start
    x, low_x = across.place(noise), across.place(-noise)
    y, low_y = upwards.place(noise), upwards.place(-noise)
    yield Label(right - 8, top + 18, "always beneficial", "corner", "end")
    yield Label(right - 8, bottom - 9, "informative only", "corner", "end")
    yield Label(left + 8, top + 18, "spurious only", "corner")
    yield Label(left + 8, bottom - 9, "always harmful", "corner")
    if x - low_x > text_width("within noise") + 8 and low_y - y > 2 * FONT_SIZE:
        yield Label(low_x + 5, low_y - 6, "within noise", "corner")


def _scales(across: Axis, upwards: Axis, ticks: list[float]) -> Iterator[Shape]:
    left, right, top, bottom = across.start, across.stop, upwards.stop, upwards.start
    for tick in ticks:
        x, y, style = across.place(tick), upwards.place(tick), "grid" if tick else "zero"
        text = tick_text(tick, ticks[1] - ticks[0])
        yield Segment(x, top, x, bottom, style)
        yield Segment(left, y, right, y, style)
        yield Label(x, bottom + 16, text, "tick", "middle")
        yield Label(left - 6, y + 4, text, "tick", "end")


def _titles(compass: Compass) -> Iterator[Shape]:
    metric, method = compass.measure
    yield Label(4, 14, f"change of {metric} ({method}) of {compass.label} against no guidance", "axis")
    yield Label(4, 33, "as spurious", "axis")
    yield Label(WIDTH - RIGHT, HEIGHT - BOTTOM + 34, "as informative", "axis", "end")
    here = f"{WORDS[compass.deciding]} (decides), bars: deviation over seeds"
    others = [part for part in compass.validation.parts if part != compass.deciding]
    for line, (text, hollow) in enumerate([(here, False), *((WORDS[part], True) for part in others)]):
        y = HEIGHT - 28 + 18 * line
        yield Dot(LEFT + 6, y - 4, 4 if hollow else 5, "point a", hollow=hollow)
        yield Label(LEFT + 18, y, text, "tick")


def _place(factor: FactorResult, part: Part, across: Axis, upwards: Axis) -> tuple[float, float]:
    changes = factor.on(part)
    return across.place(changes["informative"].mean), upwards.place(changes["spurious"].mean)


def _point(
    compass: Compass, factor: FactorResult, style: str, across: Axis, upwards: Axis
) -> Iterator[Shape]:
    """The point that decides with its bars, and a ring for the other part."""
    part = compass.deciding
    x, y = _place(factor, part, across, upwards)
    for other in compass.validation.parts:
        if other != part:
            ring = _place(factor, other, across, upwards)
            yield Segment(x, y, *ring, "link")
            yield Dot(*ring, 4, style, _said(factor, other), hollow=True)
    changes = factor.on(part)
    width = across.place(changes["informative"].deviation) - across.place(0)
    height = upwards.place(0) - upwards.place(changes["spurious"].deviation)
    yield Segment(x - width, y, x + width, y, style)
    yield Segment(x, y - height, x, y + height, style)
    yield Dot(x, y, 5, style, _said(factor, part))


def _covered(compass: Compass, factor: FactorResult, across: Axis, upwards: Axis) -> Iterator[Rectangle]:
    """Where a name would hide the factor's point, its ring or the line between them."""
    x, y = _place(factor, compass.deciding, across, upwards)
    yield (x - 7, y - 7, x + 7, y + 7)
    for part in compass.validation.parts:
        end_x, end_y = _place(factor, part, across, upwards)
        for share in np.linspace(0, 1, _COVERED):
            near_x, near_y = x + share * (end_x - x), y + share * (end_y - y)
            yield (near_x - 3, near_y - 3, near_x + 3, near_y + 3)


def _said(factor: FactorResult, part: Part) -> str:
    changes = factor.on(part)
    said = ", ".join(f"as {role} {changes[role].mean:+.3f}" for role in ROLES)
    return f"{WORDS[part]}: {said}; {factor.quadrant(part)}"


def _named(name: str, place: tuple[float, float], taken: list[Rectangle]) -> Label:
    """The name beside its point, where it hides neither a point nor another name if there is such a place."""
    (x, y), width = place, text_width(name)
    places: list[tuple[float, float]] = [
        (x + 9, y - 7),
        (x + 9, y + 16),
        (x - 9 - width, y - 7),
        (x - 9 - width, y + 16),
        (x - width / 2, y - 22),
        (x - width / 2, y + 30),
    ]

    def cost(at: tuple[float, float]) -> tuple[int, int]:
        own = (at[0], at[1] - FONT_SIZE, at[0] + width, at[1] + 3)
        inside = own[0] >= LEFT and own[2] <= WIDTH - RIGHT and own[1] >= TOP and own[3] <= HEIGHT - BOTTOM
        return (not inside) + sum(_overlap(own, other) for other in taken), places.index(at)

    best = min(places, key=cost)
    taken.append((best[0], best[1] - FONT_SIZE, best[0] + width, best[1] + 3))
    return Label(*best, name, "name")


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
