"""Line charts as inline SVG: numbers in, markup out, colours by CSS class so that a page can change its theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 214
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 24, 34
_TICKS = 5

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        points: (x, y) in rising order of x; y None or not finite breaks the line.
        style: CSS class that gives the colour: ``ssl``, ``fino`` or ``reference`` (a level to compare with).
        dashed: for a second line of the same colour.
    """

    name: str
    points: Points
    style: str
    dashed: bool = False

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that have a place on the chart."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Axis:
    """A range in data units and its place in pixels."""

    low: float
    high: float
    start: float
    stop: float

    def place(self, value: float) -> float:
        """Pixel of ``value``."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def level(name: str, value: float, lines: Sequence[Line]) -> Line:
    """A horizontal line at ``value`` as wide as ``lines``."""
    xs = [x for line in lines for x, _ in line.finite] or [0.0]
    return Line(name, [(min(xs), value), (max(xs), value)], "reference", dashed=True)


def figure(
    title: str,
    lines: Sequence[Line],
    *,
    y_label: str,
    x_label: str = "step",
    note: str = "",
    from_zero: bool = False,
) -> str:
    """A chart with its title, note and legend as an HTML ``figure``; empty text when no line has a point.

    Args:
        title: of the figure; text, not markup, as are all other arguments.
        lines: at least one should have points.
        y_label: unit of the values.
        x_label: unit of the abscissa.
        note: one sentence on how to read the figure.
        from_zero: whether the y axis starts at 0 rather than near the smallest value.
    """
    drawn = [line for line in lines if line.finite]
    if not [line for line in drawn if line.style != "reference"]:
        return ""
    described = f"<p class='note'>{escape(note)}</p>" if note else ""
    legend = "".join(_legend_entry(line) for line in drawn)
    return (
        f"<figure class='chart'><figcaption><b>{escape(title)}</b>{described}</figcaption>"
        f"<ul class='legend'>{legend}</ul>{_chart(title, drawn, x_label, y_label, from_zero)}</figure>\n"
    )


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) from at most ``low`` to at least ``high``."""
    if high <= low:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """A tick's value with as many decimals as ``step`` needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}"


def number_text(value: float) -> str:
    """Three decimals, one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _chart(title: str, lines: Sequence[Line], x_label: str, y_label: str, from_zero: bool) -> str:
    xs = [x for line in lines for x, _ in line.finite]
    ys = [y for line in lines for _, y in line.finite]
    y_ticks = nice_ticks(min([0.0, *ys]) if from_zero else min(ys), max(ys))
    y_axis = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_axis = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1.0, LEFT, WIDTH - RIGHT)
    x_ticks = [tick for tick in nice_ticks(x_axis.low, x_axis.high) if x_axis.low <= tick <= x_axis.high]
    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(title)}'>"]
    for tick in y_ticks:
        y = y_axis.place(tick)
        text = tick_text(tick, y_ticks[1] - y_ticks[0])
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text class='tick' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>")
    bottom = HEIGHT - BOTTOM
    parts.append(f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>")
    for tick in x_ticks:
        x = x_axis.place(tick)
        text = tick_text(tick, x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0)
        parts.append(f"<line class='axis' x1='{x:.1f}' x2='{x:.1f}' y1='{bottom}' y2='{bottom + 4}'/>")
        parts.append(f"<text class='tick' x='{x:.1f}' y='{bottom + 16}' text-anchor='middle'>{text}</text>")
    parts.append(f"<text class='label' x='2' y='12'>{escape(y_label)}</text>")
    parts.append(
        f"<text class='label' x='{WIDTH - RIGHT}' y='{HEIGHT - 4}' text-anchor='end'>{escape(x_label)}</text>"
    )
    parts += [_drawn(line, x_axis, y_axis, x_label) for line in lines]
    return "".join(parts) + "</svg>"


def _drawn(line: Line, x_axis: Axis, y_axis: Axis, x_label: str) -> str:
    """The line's segments, and its points with their values on hovering."""
    kind = f"{line.style}{' dashed' if line.dashed else ''}"
    commands, pen_down = [], False
    for x, y in line.points:
        if y is None or not math.isfinite(y):
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{x_axis.place(x):.1f} {y_axis.place(y):.1f}")
        pen_down = True
    path = f"<path class='line {kind}' d='{' '.join(commands)}'/>"
    if line.style == "reference":
        return path
    return path + "".join(
        f"<circle class='point {kind}' cx='{x_axis.place(x):.1f}' cy='{y_axis.place(y):.1f}' r='2.4'>"
        f"<title>{escape(line.name)}, {escape(x_label)} {x:g}: {number_text(y)}</title></circle>"
        for x, y in line.finite
    )


def _legend_entry(line: Line) -> str:
    kind = f"{line.style}{' dashed' if line.dashed else ''}"
    sample = f"<svg viewBox='0 0 22 8' aria-hidden='true'><path class='line {kind}' d='M1 4 L21 4'/></svg>"
    return f"<li>{sample}{escape(line.name)} <b>{number_text(line.finite[-1][1])}</b></li>"
