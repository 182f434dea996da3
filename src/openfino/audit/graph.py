"""Who determines whom, as inline SVG: columns on a circle, an arrow where one holds another."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from openfino.audit.advice import holds
from openfino.audit.dependence import Dependence

WIDTH, HEIGHT = 620, 460
_RADIUS_X, _RADIUS_Y = 225, 185
_NODE_HEIGHT = 28
_BEND = 0.14
_MOST_LABELLED = 16

Point = tuple[float, float]


def draw_graph(names: Sequence[str], pairs: Sequence[Dependence], styles: Mapping[str, str]) -> str:
    """The graph; a sentence where no column holds another.

    Args:
        names: of the columns.
        pairs: measured; those that hold are drawn.
        styles: CSS class of each column's node.
    """
    held = [pair for pair in pairs if holds(pair)]
    if not held:
        return "<p>No column tells a tenth of another beyond chance.</p>"
    joined = [name for name in names if any(name in (pair.given[0], pair.of) for pair in held)]
    places = {name: _place(number, len(joined)) for number, name in enumerate(joined)}
    labelled = sorted(held, key=lambda pair: -pair.u_adjusted)[:_MOST_LABELLED]
    edges = "".join(_edge(pair, places, pair in labelled) for pair in held)
    nodes = "".join(_node(name, places[name], styles.get(name, "useless")) for name in joined)
    alone = [name for name in names if name not in joined]
    note = f"<p class='small'>Tied to nothing: {escape(', '.join(alone))}.</p>" if alone else ""
    return (
        f"<svg class='graph' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='Who determines whom'>"
        f"{edges}{nodes}</svg>{note}"
    )


def _place(number: int, count: int) -> Point:
    turn = 2 * math.pi * number / count - math.pi / 2
    return WIDTH / 2 + _RADIUS_X * math.cos(turn), HEIGHT / 2 + _RADIUS_Y * math.sin(turn)


def _node_width(name: str) -> float:
    return 22 + 7.6 * min(len(name), 20)


def _node(name: str, place: Point, style: str) -> str:
    x, y = place
    width = _node_width(name)
    shown = name if len(name) <= 20 else f"{name[:19]}..."
    return (
        f"<rect class='node {style}' x='{x - width / 2:.1f}' y='{y - _NODE_HEIGHT / 2:.1f}' width='{width:.1f}' "
        f"height='{_NODE_HEIGHT}' rx='8'/><text x='{x:.1f}' y='{y + 4.5:.1f}' text-anchor='middle'>{escape(shown)}"
        f"<title>{escape(name)}</title></text>"
    )


def _edge(pair: Dependence, places: Mapping[str, Point], labelled: bool) -> str:
    """A bent arrow, so that both directions of a pair can be told apart."""
    (x0, y0), (x1, y1) = places[pair.given[0]], places[pair.of]
    across, down = x1 - x0, y1 - y0
    middle = ((x0 + x1) / 2 - _BEND * down, (y0 + y1) / 2 + _BEND * across)
    start = _border((x0, y0), middle, _node_width(pair.given[0]), 2)
    end = _border((x1, y1), middle, _node_width(pair.of), 9)
    toward = math.atan2(end[1] - middle[1], end[0] - middle[0])
    tip = " ".join(
        f"{end[0] + size * math.cos(toward + turn):.1f},{end[1] + size * math.sin(toward + turn):.1f}"
        for size, turn in ((7, 0.0), (6, 2.3), (6, -2.3))
    )
    u = pair.u_adjusted
    edge = (
        f"<path class='edge' stroke-width='{0.8 + 3.2 * u:.1f}' stroke-opacity='{0.25 + 0.65 * u:.2f}' "
        f"d='M{start[0]:.1f} {start[1]:.1f} Q{middle[0]:.1f} {middle[1]:.1f} {end[0]:.1f} {end[1]:.1f}'>"
        f"<title>{escape(str(pair))}</title></path><polygon class='tip' opacity='{0.35 + 0.6 * u:.2f}' points='{tip}'/>"
    )
    if not labelled:
        return edge
    # At a third of the way, nearer to X: where arrows of one node fan out.
    t = 0.4
    at = tuple(
        (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in zip(start, middle, end, strict=True)
    )
    return f"{edge}<text class='weight' x='{at[0]:.1f}' y='{at[1]:.1f}' text-anchor='middle'>{u:.2f}</text>"


def _border(centre: Point, toward: Point, width: float, margin: float) -> Point:
    """Where the line from a node's centre leaves its box, ``margin`` pixels further."""
    across, down = toward[0] - centre[0], toward[1] - centre[1]
    length = math.hypot(across, down) or 1.0
    scale = min(
        (width / 2) / abs(across) if across else math.inf,
        (_NODE_HEIGHT / 2) / abs(down) if down else math.inf,
    )
    return centre[0] + across * (scale + margin / length), centre[1] + down * (scale + margin / length)
