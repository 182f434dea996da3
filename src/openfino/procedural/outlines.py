"""Outlines: closed curves around a centre, tabulated as radius over angle, so that filling one is a look-up.

A table is float32 [ANGLES]; entry k is the radius at the angle 2 pi k / ANGLES (x to the right, y down), and the
largest is 1.
"""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from openfino.procedural.fields import Array, Index

ANGLES = 256
_THETA = np.arange(ANGLES) * (2.0 * np.pi / ANGLES)
_COS, _SIN = np.cos(_THETA), np.sin(_THETA)


def _ellipse(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    flat = rng.uniform(0.25, 1.0)
    return 1.0 / np.hypot(_COS, _SIN / flat)


def _disc(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    return np.ones(ANGLES)


def _rectangle(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Superellipses from rounded to sharp corners."""
    flat, power = rng.uniform(0.25, 1.0), rng.uniform(4.0, 30.0)
    return (np.abs(_COS) ** power + np.abs(_SIN / flat) ** power) ** (-1.0 / power)


def _polygon(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Regular polygons of three to eight corners, stretched."""
    corners = int(rng.integers(3, 9))
    flat = rng.uniform(0.6, 1.0)
    theta = np.arctan2(_SIN / flat, _COS)
    sector = 2.0 * np.pi / corners
    return np.cos(sector / 2) / np.cos(theta % sector - sector / 2) / np.hypot(_COS, _SIN / flat)


def _shard(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Irregular convex polygons: half planes at random distances."""
    count = int(rng.integers(4, 8))
    normal = (np.arange(count) + rng.uniform(-0.35, 0.35, count)) * (2.0 * np.pi / count)
    reach = rng.uniform(0.4, 1.0, count)
    facing = np.cos(_THETA[None] - normal[:, None]) / reach[:, None]
    return 1.0 / np.maximum(facing.max(axis=0), 0.4)


def _star(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Stars with straight sides."""
    points, inner = int(rng.integers(3, 10)), rng.uniform(0.25, 0.75)
    place = np.abs((_THETA * points / (2.0 * np.pi)) % 1.0 - 0.5) * 2.0
    half = np.pi / points
    # The straight line between the tip (place 1) and the notch (place 0).
    angle = (1.0 - place) * half
    return inner * np.sin(half) / (np.sin(angle) + inner * np.sin(half - angle))


def _flower(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Round petals or the teeth of a gear."""
    petals, depth = int(rng.integers(3, 13)), rng.uniform(0.1, 0.55)
    wave = np.cos(petals * _THETA)
    if rng.random() < 0.5:
        wave = np.clip(wave * rng.uniform(2.0, 6.0), -1.0, 1.0)
    return 1.0 - depth * (0.5 - 0.5 * wave)


def _blob(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Smooth random outlines: amoebae, stones, puddles."""
    order = np.arange(1, 8)[:, None]
    amplitude = rng.normal(0.0, rng.uniform(0.1, 0.4), (7, 1)) / order**1.1
    phase = rng.uniform(0.0, 2.0 * np.pi, (7, 1))
    return np.exp((amplitude * np.cos(order * _THETA + phase)).sum(axis=0))


def _leaf(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Lens shapes with two tips: two circular arcs."""
    flat = rng.uniform(0.2, 0.6)
    offset = (1.0 / flat - flat) / 2.0
    side = offset * np.abs(_SIN)
    return np.sqrt(side * side + 1.0) - side


def _drop(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Drops, pears and hearts: round at one end."""
    lean, sharp = rng.uniform(0.2, 0.75), rng.uniform(1.0, 4.0)
    if rng.random() < 0.35:
        return 0.62 + 0.38 * np.abs(_COS) ** 0.6 * (1.0 - lean * _SIN)
    return 1.0 - lean * ((1.0 - _COS) / 2.0) ** (1.0 / sharp)


def _jagged(rng: np.random.Generator) -> npt.NDArray[np.floating]:
    """Rough outlines with detail at every scale: rocks, foliage, torn paper."""
    order = np.arange(2, 40)[:, None]
    amplitude = rng.normal(0.0, rng.uniform(0.15, 0.4), order.shape) / order ** rng.uniform(0.9, 1.3)
    phase = rng.uniform(0.0, 2.0 * np.pi, order.shape)
    return np.exp((amplitude * np.cos(order * _THETA + phase)).sum(axis=0))


OUTLINES: dict[str, Callable[[np.random.Generator], npt.NDArray[np.floating]]] = {
    "disc": _disc,
    "ellipse": _ellipse,
    "rectangle": _rectangle,
    "polygon": _polygon,
    "shard": _shard,
    "star": _star,
    "flower": _flower,
    "blob": _blob,
    "leaf": _leaf,
    "drop": _drop,
    "jagged": _jagged,
}
_ALL = tuple(OUTLINES.values())


def draw_outline(rng: np.random.Generator, name: str | None = None) -> Array:
    """The table [ANGLES] of an outline of the kind ``name``, or of any."""
    table = (_ALL[int(rng.integers(len(_ALL)))] if name is None else OUTLINES[name])(rng)
    return (table / table.max()).astype(np.float32)


def turned(table: Array, angle: float) -> Array:
    """The outline turned clockwise by ``angle`` radians, to the nearest entry."""
    shift = round(angle * ANGLES / (2.0 * np.pi)) % ANGLES
    return np.concatenate([table[ANGLES - shift :], table[: ANGLES - shift]])


def mirrored(table: Array) -> Array:
    """The outline mirrored left to right."""
    return np.roll(table[::-1], ANGLES // 2 + 1)


@functools.lru_cache(maxsize=2)
def _polar(reach: int) -> tuple[Array, Index]:
    """Radius and angle entry of every offset up to ``reach`` pixels, [2 reach + 1, 2 reach + 1]."""
    line = np.arange(-reach, reach + 1, dtype=np.float32)
    radius = np.hypot(line[None, :], line[:, None]).astype(np.float32)
    turn = np.arctan2(line[:, None], line[None, :]) * np.float32(ANGLES / (2.0 * np.pi))
    return radius, np.rint(turn).astype(np.intp) % ANGLES


def polar(size: int, x: int, y: int, reach: int) -> tuple[slice, slice, Array, Index] | None:
    """The window of an image that is within ``reach`` pixels of (x, y) -> rows, columns, radii, angle entries.

    None when nothing of it is in the image. ``reach`` is at most twice the image's side.
    """
    top, bottom = max(y - reach, 0), min(y + reach + 1, size)
    left, right = max(x - reach, 0), min(x + reach + 1, size)
    if top >= bottom or left >= right:
        return None
    radius, angle = _polar(2 * size)
    middle = 2 * size
    there = slice(middle + top - y, middle + bottom - y), slice(middle + left - x, middle + right - x)
    return slice(top, bottom), slice(left, right), radius[there], angle[there]
