"""Terrain: ridged and smooth multi-octave heights, lit from a side, coloured by height and slope, with water."""

import numpy as np

from openfino.procedural.fields import (
    Array,
    band_noise,
    power_noise,
    ridged,
    slopes,
    smoothstep,
    spread,
    warp,
)
from openfino.procedural.palettes import colourise, draw_palette, draw_ramp


def terrain(rng: np.random.Generator, size: int) -> Array:
    """Land seen from above [3, S, S]."""
    height = _heights(rng, size)
    across, down = slopes(height)
    steep = np.float32(size * rng.uniform(0.08, 0.35))
    around = rng.uniform(0.0, 2.0 * np.pi)
    slope = across * np.float32(np.cos(around)) + down * np.float32(np.sin(around))
    shade = np.float32(0.75) + np.float32(0.6) * np.tanh(slope * steep)
    image = colourise(draw_ramp(rng), height)
    if rng.random() < 0.6:  # rock where it is steep, or fields and woods
        other = draw_palette(rng, 2)[0][:, None, None]
        bare = np.hypot(across, down) * np.float32(size * 0.25) if rng.random() < 0.5 else _patches(rng, size)
        image = image + (other - image) * np.minimum(bare, np.float32(0.8))
    image = image * shade
    if rng.random() < 0.45:
        image = _flood(rng, image, height)
    extra = rng.random()
    if extra < 0.15:  # contour lines
        level = np.abs((height * np.float32(rng.uniform(6.0, 16.0))) % 1.0 - np.float32(0.5))
        image = image * (np.float32(0.4) + np.float32(0.6) * smoothstep(level - np.float32(0.1), 0.15))
    elif extra < 0.35:  # clouds
        cloud = smoothstep(power_noise(rng, size, 1.6)[0] - np.float32(rng.uniform(0.4, 1.4)), 1.8)
        image = image + (np.float32(rng.uniform(0.8, 1.0)) - image) * (
            cloud * np.float32(rng.uniform(0.5, 1.0))
        )
    return image


def _heights(rng: np.random.Generator, size: int) -> Array:
    """Ridges, smooth hills, dunes, craters or terraces in [0, 1]."""
    kind = rng.random()
    if kind < 0.45:
        height = ridged(rng, size, rng.uniform(0.7, 2.5), int(rng.integers(4, 7)), rng.uniform(0.45, 0.7))
        base = spread(power_noise(rng, size, 2.2)[0])
        height = spread(height * (np.float32(0.15) + np.float32(0.85) * base) + np.float32(0.5) * base)
    elif kind < 0.7:
        height = spread(power_noise(rng, size, rng.uniform(1.5, 2.3))[0])
    elif kind < 0.85:  # dunes: sharp on one side
        wave = band_noise(
            rng, size, rng.uniform(2.0, 8.0), 0.4, rng.uniform(1.5, 5.0), rng.uniform(0.0, np.pi)
        )[0]
        height = spread(np.abs(wave) ** np.float32(0.8) + np.float32(0.15) * power_noise(rng, size, 1.5)[0])
    else:
        height = _craters(rng, size)
    if rng.random() < 0.35:
        height = warp(rng, height, rng.uniform(0.02, 0.08), rng.uniform(1.0, 3.0))
    if rng.random() < 0.12:  # terraces
        steps = np.float32(rng.integers(4, 9))
        height = spread(np.floor(height * steps) / steps + np.float32(0.25) * height)
    return height


def _craters(rng: np.random.Generator, size: int) -> Array:
    """Bowls with raised rims, small ones more frequent, on rolling ground."""
    place = np.arange(size, dtype=np.float32)
    height = np.float32(0.4) * power_noise(rng, size, 1.8)[0]
    count = int(rng.integers(4, 16))
    radii = size * 0.04 * (1.0 - rng.random(count)) ** -0.6
    for radius in np.sort(np.minimum(radii, 0.3 * size))[::-1]:
        x, y = rng.uniform(0.0, size, 2)
        top, bottom = max(int(y - 2 * radius), 0), int(y + 2 * radius) + 2
        left, right = max(int(x - 2 * radius), 0), int(x + 2 * radius) + 2
        du, dv = place[None, left:right] - np.float32(x), place[top:bottom, None] - np.float32(y)
        share = np.hypot(du, dv) / np.float32(radius)
        bowl = np.minimum(share * share - np.float32(1.0), np.float32(0.0))
        rim = np.float32(0.4) * np.exp(-((share - np.float32(1.05)) ** 2) * np.float32(12.0))
        height[top:bottom, left:right] += (bowl + rim) * np.float32(4.0 * radius / size + 0.3)
    return spread(height)


def _patches(rng: np.random.Generator, size: int) -> Array:
    noise = power_noise(rng, size, rng.uniform(1.2, 2.0))[0]
    return smoothstep(noise - np.float32(rng.uniform(-0.3, 0.6)), rng.uniform(0.1, 0.8))


def _flood(rng: np.random.Generator, image: Array, height: Array) -> Array:
    """Water up to a level, darker where it is deep, with a shore."""
    level = np.float32(rng.uniform(0.2, 0.5))
    water = draw_palette(rng, 2)[0][:, None, None]
    depth = np.maximum(level - height, 0.0)
    wet = smoothstep(level - height, 0.02)
    cover = water * (np.float32(1.0) - np.minimum(depth * np.float32(1.5), np.float32(0.6)))
    if rng.random() < 0.5:
        cover = cover + np.exp(-depth / np.float32(0.02)) * np.float32(0.4)
    flooded: Array = image + (cover - image) * wet
    return flooded
