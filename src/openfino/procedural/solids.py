"""Shaded bodies: balls, rings, boxes, cylinders and cones under one light, with their shadows on the ground."""

from collections.abc import Callable

import numpy as np

from openfino.procedural.fields import Array
from openfino.procedural.outlines import draw_outline, turned
from openfino.procedural.painting import (
    DISHED,
    DOMED,
    RIMMED,
    SLOPED,
    Surface,
    draw_light,
    draw_textures,
    stamp,
)
from openfino.procedural.palettes import draw_palette
from openfino.procedural.textures import draw_backdrop

Box = tuple[slice, slice, Array, Array]


def solids(rng: np.random.Generator, size: int) -> Array:
    """One large body or several, far ones first [3, S, S]."""
    image = draw_backdrop(rng, size)
    light = draw_light(rng)
    palette = draw_palette(rng, int(rng.integers(3, 8)))
    textures = draw_textures(rng, size, 2)
    count = int(rng.choice([1, 2, 3, 5, 8, 13], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1]))
    largest = size * 0.42 / count**0.4
    kinds = rng.choice(len(_BODIES), int(rng.integers(1, 4)))
    shadow = float(rng.uniform(0.0, 0.7)) if rng.random() < 0.8 else 0.0
    for _ in range(count):
        radius = float(largest * np.exp(rng.normal(0.0, 0.25)))
        low, high = (0.35, 0.65) if count == 1 else (0.08, 0.92)
        x, y = (int(place) for place in rng.uniform(low, high, 2) * size)
        first, second = rng.integers(len(palette), size=2)
        dark = palette[first][:, None, None]
        span = (palette[second][:, None, None] - dark) * np.float32(rng.random() ** 1.5)
        surface = Surface(
            dark, span, textures[int(rng.integers(2))], DOMED, rng.uniform(0.6, 1.0), rng.uniform(0.0, 0.8)
        )
        if shadow > 0.0:
            cast_shadow(
                image,
                x - int(0.35 * radius * light[0]),
                y - int(0.35 * radius * light[1]),
                radius * 1.1,
                shadow,
            )
        _BODIES[int(rng.choice(kinds))](rng, image, surface, x, y, radius, light)
    return image


def cast_shadow(image: Array, x: int, y: int, radius: float, strength: float) -> None:
    """A soft round shadow around (x, y)."""
    box = _box(image.shape[-1], x, y, radius * 1.3)
    if box is not None:
        rows, columns, u, v = box
        near = np.maximum(np.float32(1.0) - (u * u + v * v) * np.float32(0.8), 0.0)
        image[:, rows, columns] *= np.float32(1.0) - np.float32(strength) * near


def _box(size: int, x: int, y: int, radius: float) -> Box | None:
    """The square around (x, y) -> rows, columns, and coordinates u [1, W], v [H, 1] in radii; None outside."""
    reach = int(radius) + 1
    top, bottom, left, right = (
        max(y - reach, 0),
        min(y + reach + 1, size),
        max(x - reach, 0),
        min(x + reach + 1, size),
    )
    if top >= bottom or left >= right:
        return None
    u = (np.arange(left, right, dtype=np.float32) - np.float32(x)) / np.float32(radius)
    v = (np.arange(top, bottom, dtype=np.float32) - np.float32(y)) / np.float32(radius)
    return slice(top, bottom), slice(left, right), u[None, :], v[:, None]


def _lay(image: Array, box: Box, cover: Array, alpha: Array) -> None:
    under = image[:, box[0], box[1]]
    under += (cover - under) * alpha


def _cloth(surface: Surface, box: Box) -> Array:
    """The surface's colours where the body is, unshaded [3, H, W]."""
    return surface.dark + surface.span * surface.texture[box[0], box[1]]


def _lit(cover: Array, facing: Array, surface: Surface) -> Array:
    """Lambert's law with some light from everywhere, and a highlight."""
    bright = np.clip(facing, 0.0, 1.0)
    depth, shine = np.float32(surface.depth), bright**2
    return (
        cover * (np.float32(1.15) - depth + depth * bright)
        + np.float32(surface.gloss) * ((shine**2) ** 2) ** 2
    )


def _turned(rng: np.random.Generator, u: Array, v: Array) -> tuple[Array, Array, float, float]:
    """Coordinates turned by a random angle, and its cosine and sine."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return u * np.float32(cos) + v * np.float32(sin), v * np.float32(cos) - u * np.float32(sin), cos, sin


def _ball(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A dome over any outline: balls, stones, cushions."""
    name = str(rng.choice(["disc", "disc", "ellipse", "blob", "drop", "leaf", "polygon", "flower", "jagged"]))
    table = turned(draw_outline(rng, name), rng.uniform(0.0, 2.0 * np.pi))
    stamp(image, surface, table, x, y, radius, light)


def _plate(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A plate with a raised or sunken middle of the same outline."""
    table = turned(draw_outline(rng), rng.uniform(0.0, 2.0 * np.pi))
    inner = Surface(surface.dark + surface.span, -surface.span, surface.texture, DISHED, surface.depth)
    relief = int(rng.choice([SLOPED, RIMMED, DOMED]))
    outer = Surface(surface.dark, surface.span, surface.texture, relief, surface.depth, 0.0, 0.0)
    stamp(image, outer, table, x, y, radius, light)
    stamp(image, inner, table, x, y, radius * rng.uniform(0.4, 0.85), light)


def _ring(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A torus, seen from above or aslant."""
    box = _box(image.shape[-1], x, y, radius)
    if box is None:
        return
    u, v, cos, sin = _turned(rng, box[2], box[3])
    v = v / np.float32(rng.uniform(0.45, 1.0))
    distance = np.maximum(np.hypot(u, v), np.float32(1e-3))
    thick = np.float32(rng.uniform(0.15, 0.35))
    across = (distance - (np.float32(1.0) - thick)) / thick
    alpha = np.clip((np.float32(1.0) - np.abs(across)) * thick * np.float32(radius), 0.0, 1.0)
    lx, ly = light[0] * cos + light[1] * sin, light[1] * cos - light[0] * sin
    facing = across * (u * lx + v * ly) / distance
    facing = facing + np.sqrt(np.maximum(np.float32(1.0) - across * across, 0.0)) * light[2]
    _lay(image, box, _lit(_cloth(surface, box), facing, surface), alpha)


def _cuboid(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A box in parallel projection: its three faces in front, each with its own brightness and pattern."""
    box = _box(image.shape[-1], x, y, radius)
    if box is None:
        return
    _, _, u, v = box
    turn = rng.uniform(0.0, 2.0 * np.pi)
    # Three edges leave the corner in front, more than a third of a turn apart at most.
    angles = turn + np.array([0.0, 2.1, 4.2]) + rng.uniform(-0.35, 0.35, 3)
    edges = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.35, 0.62, (3, 1))
    cloth = _cloth(surface, box)
    bands = float(rng.integers(2, 7)) if rng.random() < 0.3 else 0.0
    for first in range(3):
        (ax, ay), (bx, by) = edges[first], edges[(first + 1) % 3]
        across = ax * by - ay * bx
        s = (u * np.float32(by) - v * np.float32(bx)) / np.float32(across)
        t = (v * np.float32(ax) - u * np.float32(ay)) / np.float32(across)
        inside = np.minimum(np.minimum(s, t), np.minimum(1.0 - s, 1.0 - t))
        alpha = np.clip(inside * np.float32(0.55 * radius) + np.float32(0.6), 0.0, 1.0)
        middle = np.arctan2(ay + by, ax + bx)
        bright = 0.55 + 0.45 * np.cos(middle - np.arctan2(light[1], light[0]))
        tone = np.float32(1.15 - surface.depth + surface.depth * bright)
        face = cloth * tone
        if bands:
            face = face * np.where(np.floor(s * np.float32(bands)) % 2 == 0, np.float32(1.0), np.float32(0.6))
        _lay(image, box, face, alpha)


def _cylinder(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A cylinder, cone, capsule or vase: a width that changes along an axis, round across it."""
    box = _box(image.shape[-1], x, y, radius)
    if box is None:
        return
    along, across, cos, sin = _turned(rng, box[2], box[3])
    place = along * np.float32(0.5) + np.float32(0.5)
    wide, kind = rng.uniform(0.2, 0.6), int(rng.integers(4))
    inside = np.clip(place, 0.0, 1.0)
    if kind == 0:
        width = np.full_like(inside, wide)
    elif kind == 1:
        width = np.float32(wide) * inside
    elif kind == 2:
        width = np.float32(wide) * np.sqrt(np.maximum(np.float32(1.0) - along * along, 0.0))
    else:
        swing = np.sin(inside * np.float32(rng.uniform(3.0, 12.0)) + np.float32(rng.uniform(0.0, 6.0)))
        width = np.float32(wide) * (np.float32(0.7) + np.float32(0.3) * swing)
    width = np.maximum(width, np.float32(1e-3))
    share = across / width
    edge = np.minimum(width - np.abs(across), np.minimum(place, np.float32(1.0) - place) * np.float32(2.0))
    alpha = np.clip(edge * np.float32(radius) + np.float32(0.5), 0.0, 1.0)
    facing = share * np.float32(light[1] * cos - light[0] * sin)
    facing = facing + np.sqrt(np.maximum(np.float32(1.0) - share * share, 0.0)) * light[2]
    _lay(image, box, _lit(_cloth(surface, box), facing, surface), alpha)


def _pyramid(
    rng: np.random.Generator, image: Array, surface: Surface, x: int, y: int, radius: float, light: Array
) -> None:
    """A pyramid or gem from above: flat faces between the centre and a regular outline."""
    box = _box(image.shape[-1], x, y, radius)
    if box is None:
        return
    u, v, cos, sin = _turned(rng, box[2], box[3])
    corners = int(rng.integers(3, 9))
    sector = 2.0 * np.pi / corners
    face = np.floor(np.arctan2(v, u) / np.float32(sector))
    middle = (face + np.float32(0.5)) * np.float32(sector)
    nx, ny = np.cos(middle), np.sin(middle)
    height = np.float32(np.cos(sector / 2)) - (u * nx + v * ny)
    alpha = np.clip(height * np.float32(radius) + np.float32(0.5), 0.0, 1.0)
    lx, ly = light[0] * cos + light[1] * sin, light[1] * cos - light[0] * sin
    top = rng.uniform(0.3, 0.6) if rng.random() < 0.5 else 2.0  # cut off, or pointed
    steep = np.where(height > np.float32(top), np.float32(0.0), np.float32(rng.uniform(0.5, 0.95)))
    facing = (nx * lx + ny * ly) * steep + np.sqrt(np.float32(1.0) - steep * steep) * light[2]
    _lay(image, box, _lit(_cloth(surface, box), facing, surface), alpha)


_BODIES: tuple[Callable[[np.random.Generator, Array, Surface, int, int, float, Array], None], ...] = (
    _ball,
    _ball,
    _plate,
    _ring,
    _cuboid,
    _cylinder,
    _cylinder,
    _pyramid,
)
