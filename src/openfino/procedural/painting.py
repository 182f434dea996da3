"""Painting: stamps of one surface each, laid over an image one after the other, with smooth edges."""

from dataclasses import dataclass

import numpy as np

from openfino.procedural.fields import Array
from openfino.procedural.outlines import polar
from openfino.procedural.textures import draw_texture

# How a stamp's brightness varies over it.
FLAT, SLOPED, DOMED, RIMMED, DISHED = range(5)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@dataclass(frozen=True)
class Surface:
    """What a stamp is covered with: a texture between two colours, and how it takes the light.

    Attributes:
        dark: RGB [3, 1, 1].
        span: RGB of the bright end less ``dark`` [3, 1, 1].
        texture: [S, S] in [0, 1].
        relief: one of FLAT ... DISHED.
        depth: strength of the light and shade, 0 to 1.
        gloss: strength of the highlight of a DOMED stamp.
        border: width of a drawn border as a share of the radius; 0 for none.
    """

    dark: Array
    span: Array
    texture: Array
    relief: int = FLAT
    depth: float = 0.0
    gloss: float = 0.0
    border: float = 0.0


def draw_surface(
    rng: np.random.Generator, texture: Array, palette: Array, *, shaded: float = 0.6, bordered: float = 0.15
) -> Surface:
    """A surface of two colours of ``palette`` [n, 3]; ``shaded`` and ``bordered`` are how likely either is."""
    first, second = rng.integers(len(palette), size=2)
    dark = palette[first][:, None, None]
    # Textures on things are mostly weak: the outline has to be seen.
    span = (palette[second][:, None, None] - dark) * np.float32(rng.uniform(0.2, 1.0))
    relief = int(rng.integers(1, 5)) if rng.random() < shaded else FLAT
    return Surface(
        dark,
        span,
        texture,
        relief,
        float(rng.uniform(0.3, 1.0)),
        float(rng.uniform(0.2, 0.8)) if rng.random() < 0.4 else 0.0,
        float(rng.uniform(0.06, 0.2)) if rng.random() < bordered else 0.0,
    )


def draw_textures(rng: np.random.Generator, size: int, count: int) -> list[Array]:
    """``count`` textures that the stamps of one image share."""
    return [draw_texture(rng, size) for _ in range(count)]


def draw_light(rng: np.random.Generator) -> Array:
    """A direction to the light, from above the image: unit vector (x, y, z)."""
    around, height = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.25, 0.75)
    flat = np.sqrt(1.0 - height * height)
    return np.array([flat * np.cos(around), flat * np.sin(around), height], np.float32)


def stamp(
    image: Array,
    surface: Surface,
    table: Array,
    x: int,
    y: int,
    radius: float,
    light: Array,
    shift: tuple[float, float] = (0.0, 0.0),
    opacity: float = 1.0,
) -> None:
    """Lay a stamp over ``image`` [3, S, S].

    Args:
        image: is painted on.
        surface: of the stamp.
        table: its outline.
        x: of its centre, in pixels; may lie outside of the image.
        y: likewise.
        radius: its largest, in pixels.
        light: direction to the light.
        shift: where in the texture it is cut from, both in [0, 1).
        opacity: 1 covers what lies beneath.
    """
    size = image.shape[-1]
    window = polar(size, x, y, int(radius) + 1)
    if window is None:
        return
    rows, columns, distance, entry = window
    edge = (table * np.float32(radius)).take(entry)
    # In place throughout: an image has some fifty stamps.
    alpha = edge - distance
    alpha += np.float32(0.5)
    np.minimum(alpha, _ONE, out=alpha)
    np.maximum(alpha, _ZERO, out=alpha)
    if opacity < 1.0:
        alpha *= np.float32(opacity)
    height, width = alpha.shape
    top, left = int(shift[0] * (size - height + 1)), int(shift[1] * (size - width + 1))
    cover = surface.dark + surface.span * surface.texture[top : top + height, left : left + width]
    if surface.relief != FLAT:
        _shade(cover, surface, distance, edge, (rows, columns), (x, y, radius), light)
    if surface.border > 0.0:
        rim = distance > edge - np.float32(max(surface.border * radius, 1.0))
        cover *= np.where(rim, np.float32(0.25), np.float32(1.0))
    under = image[:, rows, columns]
    cover -= under
    cover *= alpha
    under += cover


def _shade(
    cover: Array,
    surface: Surface,
    distance: Array,
    edge: Array,
    window: tuple[slice, slice],
    place: tuple[int, int, float],
    light: Array,
) -> None:
    """Light and shade on ``cover`` [3, H, W], in place."""
    rows, columns = window
    x, y, radius = place
    depth = np.float32(surface.depth)
    if surface.relief == SLOPED:
        dx = np.arange(columns.start - x, columns.stop - x, dtype=np.float32)[None, :]
        dy = np.arange(rows.start - y, rows.stop - y, dtype=np.float32)[:, None]
        cover *= np.float32(1.0) + (dx * light[0] + dy * light[1]) * (depth / np.float32(radius + 1.0))
        return
    share = distance / np.maximum(edge, np.float32(0.5))
    np.minimum(share, _ONE, out=share)
    if surface.relief == RIMMED:
        share *= share
        cover *= _ONE - depth * (share * share)
        return
    # The outline is taken for the rim of a dome: its normal leans outwards as far as the point is from the centre.
    dx = np.arange(columns.start - x, columns.stop - x, dtype=np.float32)[None, :]
    dy = np.arange(rows.start - y, rows.stop - y, dtype=np.float32)[:, None]
    out = share / np.maximum(distance, np.float32(0.5))
    sign = np.float32(1.0 if surface.relief == DOMED else -1.0)
    facing = (dx * light[0] + dy * light[1]) * out * sign
    facing += np.sqrt(_ONE - share * share) * light[2]
    np.maximum(facing, _ZERO, out=facing)
    cover *= (np.float32(1.15) - depth) + depth * facing
    if surface.gloss > 0.0:
        facing *= facing * facing
        facing *= facing
        cover += facing * facing * np.float32(surface.gloss)
