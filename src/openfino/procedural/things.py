"""Things: invented objects of several parts, so that an image has wholes and parts as photographs do.

A plan fixes where the parts are, and their outlines and surfaces; it can be painted anywhere, turned and at any
size, and is then the same thing. Lengths are in units of the thing's reach.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openfino.procedural.fields import Array
from openfino.procedural.outlines import ANGLES, draw_outline, mirrored, turned
from openfino.procedural.painting import DOMED, Surface, draw_surface, stamp


@dataclass(frozen=True)
class Part:
    """One stamp of a thing."""

    x: float
    y: float
    radius: float
    table: Array
    surface: Surface
    shift: tuple[float, float]


Plan = list[Part]
_Source = Callable[[], Surface]


def _part(
    rng: np.random.Generator,
    surface: Surface,
    place: tuple[float, float],
    radius: float,
    table: Array,
) -> Part:
    return Part(place[0], place[1], radius, table, surface, (rng.random(), rng.random()))


def _pair(part: Part) -> Plan:
    """A part on the right and its mirror image on the left."""
    other = Part(-part.x, part.y, part.radius, mirrored(part.table), part.surface, part.shift)
    return [part, other]


def _animal(rng: np.random.Generator, source: _Source) -> Plan:
    """Symmetric left to right: limbs behind, one to three bodies in a row, marks and eyes on them."""
    skin, limb, mark = source(), source(), source()
    skin = Surface(skin.dark, skin.span, skin.texture, DOMED, 0.6)
    bodies = int(rng.integers(1, 4))
    plan: Plan = []
    radii = rng.uniform(0.25, 0.5, bodies) * (1.2 if bodies == 1 else 0.9)
    places = np.cumsum(radii * 0.9) + np.concatenate([[0.0], np.cumsum(radii[:-1] * 0.7)])
    places -= places.mean()
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(bodies))
        angle = rng.uniform(-1.2, 1.2)
        table = turned(
            draw_outline(rng, str(rng.choice(["leaf", "ellipse", "drop", "rectangle", "star"]))), angle
        )
        reach = rng.uniform(0.25, 0.55)
        x = radii[at] * 0.7 + 0.6 * reach * np.cos(angle)
        plan += _pair(_part(rng, limb, (x, places[at] + 0.6 * reach * np.sin(angle)), reach, table))
    for body in range(bodies):
        table = turned(
            draw_outline(rng, str(rng.choice(["disc", "ellipse", "blob", "drop", "flower"]))), np.pi / 2
        )
        table = (table + mirrored(table)) * np.float32(0.5)
        plan.append(_part(rng, skin, (0.0, float(places[body])), float(radii[body]), table))
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(bodies))
        small = radii[at] * rng.uniform(0.12, 0.35)
        x, y = rng.uniform(0.2, 0.55) * radii[at], places[at] + rng.uniform(-0.5, 0.5) * radii[at]
        table = draw_outline(rng, str(rng.choice(["disc", "disc", "ellipse", "polygon"])))
        plan += _pair(_part(rng, mark, (x, y), small, table))
    return plan


def _bloom(rng: np.random.Generator, source: _Source) -> Plan:
    """Parts around a centre: flowers, wheels, starfish."""
    plan: Plan = []
    for ring in range(int(rng.integers(1, 3))):
        petals, surface = int(rng.integers(3, 11)), source()
        reach = 0.6 - 0.25 * ring
        kind = str(rng.choice(["leaf", "ellipse", "drop", "disc", "rectangle", "shard"]))
        table = draw_outline(rng, kind)
        radius = min(rng.uniform(0.25, 0.45), 2.6 * reach / petals + 0.1)
        for petal in range(petals):
            angle = 2.0 * np.pi * (petal + 0.5 * ring) / petals
            place = reach * np.cos(angle), reach * np.sin(angle)
            plan.append(_part(rng, surface, place, radius, turned(table, angle)))
    heart = source()
    plan.append(_part(rng, heart, (0.0, 0.0), rng.uniform(0.15, 0.45), draw_outline(rng)))
    return plan


def _chain(rng: np.random.Generator, source: _Source) -> Plan:
    """Parts along a curve: caterpillars, beads, twigs with leaves, tentacles."""
    count, surface, other = int(rng.integers(4, 12)), source(), source()
    angle = rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(rng.normal(0.0, 0.3, count) + rng.normal(0.0, 0.25))
    step = 1.7 / count
    x, y = np.cumsum(np.cos(angle)) * step, np.cumsum(np.sin(angle)) * step
    x, y = x - x.mean(), y - y.mean()
    taper = np.linspace(1.0, rng.uniform(0.3, 1.0), count)
    table, leaf = draw_outline(rng), draw_outline(rng, "leaf")
    leafy = rng.random() < 0.4
    plan: Plan = []
    for link in range(count):
        radius = step * (0.45 if leafy else 0.85) * float(taper[link])
        plan.append(
            _part(
                rng,
                surface if link % 2 or leafy else other,
                (float(x[link]), float(y[link])),
                radius,
                turned(table, float(angle[link])),
            )
        )
        if leafy:
            for side in (-0.9, 0.9):
                away = float(angle[link]) + side
                place = float(x[link] + 1.3 * step * np.cos(away)), float(y[link] + 1.3 * step * np.sin(away))
                plan.append(_part(rng, other, place, 1.3 * step * float(taper[link]), turned(leaf, away)))
    return plan


def _nest(rng: np.random.Generator, source: _Source) -> Plan:
    """One outline inside the other: eyes, fruit cut open, targets, buttons."""
    table, other = draw_outline(rng), draw_outline(rng)
    plan: Plan = []
    radius, x, y = rng.uniform(0.7, 0.95), 0.0, 0.0
    for _ in range(int(rng.integers(2, 5))):
        plan.append(_part(rng, source(), (x, y), radius, table if rng.random() < 0.8 else other))
        x, y = x + rng.normal(0.0, 0.06) * radius, y + rng.normal(0.0, 0.06) * radius
        radius *= rng.uniform(0.5, 0.85)
    holes, spot = int(rng.integers(0, 7)), source()
    for hole in range(holes):
        angle = 2.0 * np.pi * hole / holes
        plan.append(
            _part(rng, spot, (0.45 * np.cos(angle), 0.45 * np.sin(angle)), 0.1, np.ones(ANGLES, np.float32))
        )
    return plan


def _garment(rng: np.random.Generator, source: _Source) -> Plan:
    """A large symmetric body of polygons with wings or sleeves and a trim: vessels, tools, clothes, vehicles."""
    cloth, trim = source(), source()
    plan: Plan = []
    main = draw_outline(rng, str(rng.choice(["rectangle", "polygon", "shard", "drop"])))
    main = turned(main, float(rng.choice([0.0, np.pi / 2])))
    main = (main + mirrored(main)) * np.float32(0.5)
    angle = rng.uniform(-0.9, 1.3)
    sleeve = turned(draw_outline(rng, str(rng.choice(["rectangle", "leaf", "ellipse"]))), angle)
    if rng.random() < 0.75:
        place = 0.45 + 0.25 * np.cos(angle), rng.uniform(-0.4, 0.4) + 0.25 * np.sin(angle)
        plan += _pair(_part(rng, cloth, place, rng.uniform(0.3, 0.55), sleeve))
    plan.append(_part(rng, cloth, (0.0, 0.0), rng.uniform(0.65, 0.9), main))
    for _ in range(int(rng.integers(1, 4))):
        y, width = rng.uniform(-0.6, 0.6), rng.uniform(0.1, 0.4)
        band = draw_outline(rng, str(rng.choice(["rectangle", "ellipse", "disc", "leaf"])))
        if rng.random() < 0.5:
            plan.append(_part(rng, trim, (0.0, y), width, (band + mirrored(band)) * np.float32(0.5)))
        else:
            plan += _pair(_part(rng, trim, (rng.uniform(0.15, 0.5), y), width * 0.6, band))
    return plan


def _clump(rng: np.random.Generator, source: _Source) -> Plan:
    """Many alike: grapes, bushes, coral, crystals."""
    count, table = int(rng.integers(6, 16)), draw_outline(rng)
    covers = [source(), source()]
    angle, reach = rng.uniform(0.0, 2.0 * np.pi, count), 0.65 * np.sqrt(rng.random(count))
    x, y = reach * np.cos(angle), reach * np.sin(angle) * rng.uniform(0.5, 1.0)
    radii = rng.uniform(0.7, 1.0, count) * rng.uniform(0.2, 0.4)
    lean = rng.uniform(0.0, 2.0 * np.pi, count) * rng.integers(2)
    return [
        _part(
            rng,
            covers[int(rng.random() < 0.25)],
            (float(x[one]), float(y[one])),
            float(radii[one]),
            turned(table, float(lean[one])),
        )
        for one in np.argsort(y)
    ]


_PLANS: tuple[Callable[[np.random.Generator, _Source], Plan], ...] = (
    _animal,
    _animal,
    _bloom,
    _chain,
    _nest,
    _garment,
    _clump,
)


def draw_thing(rng: np.random.Generator, palette: Array, textures: list[Array]) -> Plan:
    """The plan of a thing in colours of ``palette`` [n, 3] and some of ``textures``."""
    shaded = float(rng.choice([0.1, 0.8]))
    bordered = float(rng.choice([0.0, 0.0, 0.9]))

    def source() -> Surface:
        texture = textures[int(rng.integers(len(textures)))]
        return draw_surface(rng, texture, palette, shaded=shaded, bordered=bordered)

    return _PLANS[int(rng.integers(len(_PLANS)))](rng, source)


def paint_thing(
    image: Array, plan: Plan, x: float, y: float, reach: float, turn: float, light: Array
) -> None:
    """Paint a thing on ``image`` [3, S, S] with its middle at (x, y); ``reach`` in pixels, ``turn`` in radians."""
    cos, sin = np.cos(turn) * reach, np.sin(turn) * reach
    for part in plan:
        px, py = round(x + part.x * cos - part.y * sin), round(y + part.x * sin + part.y * cos)
        stamp(image, part.surface, turned(part.table, turn), px, py, part.radius * reach, light, part.shift)
