"""Textures: what surfaces and backgrounds are made of, as scalar fields [S, S] in [0, 1]."""

from collections.abc import Callable

import numpy as np

from openfino.procedural.fields import (
    Array,
    axes,
    band_noise,
    cellular,
    power_noise,
    ridged,
    smoothstep,
    spread,
    squash,
    warp,
)
from openfino.procedural.palettes import colourise, draw_palette, draw_ramp


def _turned(rng: np.random.Generator, size: int, waver: float = 0.0) -> tuple[Array, Array]:
    """Coordinates in turns of the image's side, turned by a random angle and wavering."""
    x, y = axes(size)
    angle = rng.uniform(0.0, 2.0 * np.pi) if rng.random() < 0.6 else 0.0
    cos, sin = np.float32(0.5 * np.cos(angle)), np.float32(0.5 * np.sin(angle))
    u, v = x * cos + y * sin, y * cos - x * sin
    if waver > 0.0:
        shift = band_noise(rng, size, (rng.uniform(1.0, 4.0),) * 2, 0.5) * np.float32(waver)
        u, v = u + shift[0], v + shift[1]
    return u, v


def _wave(phase: Array, sharpness: float, duty: float = 0.0) -> Array:
    """sin(2 pi phase) pressed towards a square wave: ``sharpness`` 0 leaves it a sine."""
    wave = np.sin(phase * np.float32(2.0 * np.pi)) - np.float32(duty)
    return smoothstep(wave, 2.0 - 1.8 * sharpness)


def _period(rng: np.random.Generator, size: int, low: float = 2.0) -> float:
    """Repeats per image, log-uniform from ``low`` to one in five pixels."""
    return float(np.exp(rng.uniform(np.log(low), np.log(max(size / 5.0, low + 1.0)))))


def _waver(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.005, 0.05)) if rng.random() < 0.5 else 0.0


def flat(rng: np.random.Generator, size: int) -> Array:
    """Almost even: paint, plastic."""
    level = rng.random(dtype=np.float32)
    return np.clip(level + np.float32(0.04) * power_noise(rng, size, rng.uniform(0.0, 1.2))[0], 0.0, 1.0)


def fade(rng: np.random.Generator, size: int) -> Array:
    """A smooth gradient along a line or away from a point."""
    x, y = axes(size)
    if rng.random() < 0.5:
        u, _ = _turned(rng, size)
        return np.clip(u * np.float32(rng.uniform(0.7, 1.4)) + np.float32(0.5), 0.0, 1.0)
    cx, cy = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
    return np.minimum(np.hypot(x - cx, y - cy) * np.float32(rng.uniform(0.4, 0.9)), 1.0)


def cloud(rng: np.random.Generator, size: int) -> Array:
    """1 / f noise of any steepness, sometimes combed."""
    stretch = rng.uniform(2.0, 12.0) if rng.random() < 0.35 else 1.0
    noise = power_noise(rng, size, rng.uniform(0.7, 2.2), 1, stretch, rng.uniform(0.0, np.pi))
    return squash(noise[0], rng.uniform(0.2, 0.4))


def grain(rng: np.random.Generator, size: int) -> Array:
    """Grains or fibres of one size."""
    stretch = rng.uniform(2.0, 16.0) if rng.random() < 0.5 else 1.0
    frequency = rng.uniform(0.1, 0.35) * size
    noise = band_noise(rng, size, frequency, rng.uniform(0.2, 0.6), stretch, rng.uniform(0.0, np.pi))
    return squash(noise[0], rng.uniform(0.2, 0.45))


def blots(rng: np.random.Generator, size: int) -> Array:
    """Spots or labyrinths with edges: animal fur, camouflage, lichen."""
    stretch = rng.uniform(1.5, 5.0) if rng.random() < 0.4 else 1.0
    noise = band_noise(
        rng, size, _period(rng, size), rng.uniform(0.15, 0.6), stretch, rng.uniform(0.0, np.pi)
    )
    return smoothstep(noise[0] - np.float32(rng.uniform(-0.8, 0.8)), rng.uniform(0.15, 1.0))


def stripes(rng: np.random.Generator, size: int) -> Array:
    """Parallel stripes, straight or wavering."""
    u, _ = _turned(rng, size, _waver(rng))
    return _wave(u * np.float32(_period(rng, size)), rng.random() ** 1.5, rng.uniform(-0.6, 0.6))


def checks(rng: np.random.Generator, size: int) -> Array:
    """Chequers, dots, gingham or grid lines on a lattice."""
    u, v = _turned(rng, size, _waver(rng))
    period = np.float32(_period(rng, size))
    one, two = np.sin(u * period * np.float32(2 * np.pi)), np.sin(v * period * np.float32(2 * np.pi))
    kind, edge = int(rng.integers(4)), rng.uniform(0.15, 0.8)
    if kind == 0:
        return smoothstep(one * two, edge * 0.5)
    if kind == 1:
        return smoothstep(one + two - np.float32(rng.uniform(0.0, 1.0)), edge)
    if kind == 2:
        return (smoothstep(one, edge) + smoothstep(two, edge)) * np.float32(0.5)
    return smoothstep(np.maximum(one, two) - np.float32(rng.uniform(0.5, 0.9)), edge * 0.4)


def bricks(rng: np.random.Generator, size: int) -> Array:
    """Masonry: rows of bricks, each of its own tone, with joints."""
    u, v = _turned(rng, size, _waver(rng) * 0.4)
    rows, joint = _period(rng, size, 3.0) * 0.7 + 2.0, np.float32(0.5 - rng.uniform(0.04, 0.15))
    down = v * np.float32(rows)
    row = np.floor(down)
    bond = np.float32(rng.integers(3) / 4.0)  # how far a row is shifted against the last
    along = u * np.float32(rows / rng.uniform(1.0, 3.0))
    along += row * bond
    column = np.floor(along)
    tone = rng.random(64, dtype=np.float32).take((column.astype(np.intp) * 7 + row.astype(np.intp) * 13) & 63)
    across = np.abs(along - column - np.float32(0.5))
    inside = (np.abs(down - row - np.float32(0.5)) < joint) & (across < joint)
    return np.where(inside, np.float32(0.3) + np.float32(0.7) * tone, np.float32(0.0))


def weave(rng: np.random.Generator, size: int) -> Array:
    """Cloth: threads over and under each other."""
    u, v = _turned(rng, size, _waver(rng) * 0.5)
    period = np.float32(min(_period(rng, size, 4.0), size / 8.0))
    u, v = u * period, v * period
    over = (np.floor(u).astype(np.intp) + np.floor(v).astype(np.intp)) & 1
    warp_thread = np.abs(np.sin(u * np.float32(np.pi)))
    weft = np.abs(np.sin(v * np.float32(np.pi))) * np.float32(rng.uniform(0.3, 1.0))
    return np.where(over == 1, warp_thread, weft)


def cobbles(rng: np.random.Generator, size: int) -> Array:
    """Pebbles, crackle, scales or mosaic from cellular noise."""
    across = _period(rng, size, 3.0) * 0.8 + 1.0
    stretch = rng.uniform(1.0, 3.0) if rng.random() < 0.4 else 1.0
    near, far, owner = cellular(rng, size, across, rng.uniform(0.5, 1.0), stretch, rng.uniform(0.0, np.pi))
    kind = int(rng.integers(4))
    if kind == 0:
        return np.clip(np.float32(1.0) - near, 0.0, 1.0)
    if kind == 1:
        return smoothstep(far - near - np.float32(0.12), rng.uniform(0.08, 0.4))
    tone = rng.random(1024, dtype=np.float32).take(owner)
    if kind == 2:
        return tone
    return tone * smoothstep(far - near - np.float32(0.1), 0.15)


def marble(rng: np.random.Generator, size: int) -> Array:
    """Veins: stripes bent by coarse noise, as in stone and wood."""
    u, _ = _turned(rng, size)
    bend = power_noise(rng, size, rng.uniform(1.5, 2.6), 1, rng.uniform(1.0, 4.0), rng.uniform(0.0, np.pi))[0]
    phase = u * np.float32(rng.uniform(0.5, 6.0)) + bend * np.float32(rng.uniform(0.15, 0.8))
    return _wave(phase, 0.5 * rng.random(), rng.uniform(-0.5, 0.5))


def rings(rng: np.random.Generator, size: int) -> Array:
    """Rings around a point, wood cut across or ripples."""
    x, y = axes(size)
    cx, cy = rng.uniform(-1.2, 1.2, 2).astype(np.float32)
    radius = np.hypot(x - cx, (y - cy) * np.float32(rng.uniform(0.6, 1.6))) * np.float32(0.5)
    radius = radius + np.float32(_waver(rng)) * power_noise(rng, size, 1.6)[0]
    return _wave(radius * np.float32(_period(rng, size, 3.0)), rng.random(), rng.uniform(-0.5, 0.5))


def veins(rng: np.random.Generator, size: int) -> Array:
    """Sharp crests: wrinkled skin, bark, leaf veins."""
    field = ridged(rng, size, rng.uniform(1.5, 6.0), 4, rng.uniform(0.4, 0.8))
    return field if rng.random() < 0.5 else np.float32(1.0) - field


def swirls(rng: np.random.Generator, size: int) -> Array:
    """A noise warped by other noise: smoke, flames, agate."""
    noise = power_noise(rng, size, rng.uniform(0.8, 1.6))[0]
    return spread(warp(rng, noise, rng.uniform(0.03, 0.15), rng.uniform(1.0, 4.0)))


TEXTURES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    function.__name__: function
    for function in (
        flat,
        fade,
        cloud,
        grain,
        blots,
        stripes,
        checks,
        bricks,
        weave,
        cobbles,
        marble,
        rings,
        veins,
        swirls,
    )
}
_ALL = tuple(TEXTURES.values())
# Smooth matter is more common on things than patterns are.
_ON_THINGS = np.array([3.0, 2.5, 3.0, 1.5, 1.5, 1.5, 1.2, 0.5, 0.7, 1.0, 1.0, 0.7, 1.0, 1.0])
_ON_THINGS /= _ON_THINGS.sum()


def draw_texture(rng: np.random.Generator, size: int) -> Array:
    """A texture of any kind [S, S] in [0, 1]; plain ones are more frequent."""
    return _ALL[int(rng.choice(len(_ALL), p=_ON_THINGS))](rng, size)


def draw_backdrop(rng: np.random.Generator, size: int) -> Array:
    """A coloured background [3, S, S]: plain, graded or textured, sometimes parted by a horizon."""
    kind = rng.random()
    if kind < 0.2:
        field = (flat if kind < 0.08 else fade)(rng, size)
        return colourise(draw_ramp(rng, draw_palette(rng, 2)), field)
    back = colourise(draw_ramp(rng), draw_texture(rng, size))
    if kind > 0.85:
        _, y = axes(size)
        front = colourise(draw_ramp(rng), draw_texture(rng, size))
        edge = y - np.float32(rng.uniform(-0.3, 0.4))
        edge = edge + np.float32(rng.uniform(0.0, 0.12)) * power_noise(rng, size, 1.7)[0]
        back = back + smoothstep(edge, rng.uniform(0.03, 0.1)) * (front - back)
    return back
