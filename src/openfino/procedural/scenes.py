"""Scenes: things of several parts on textured grounds, hiding each other, casting shadows, in several copies."""

import numpy as np

from openfino.procedural.fields import Array
from openfino.procedural.fractals import fractal
from openfino.procedural.leaves import dead_leaves
from openfino.procedural.painting import draw_light, draw_textures
from openfino.procedural.palettes import draw_palette
from openfino.procedural.solids import cast_shadow
from openfino.procedural.spectra import pattern, spectrum
from openfino.procedural.terrain import terrain
from openfino.procedural.textures import draw_backdrop
from openfino.procedural.things import draw_thing, paint_thing

_GROUNDS = (spectrum, pattern, terrain, dead_leaves, fractal)


def scene(rng: np.random.Generator, size: int) -> Array:
    """One thing in the middle, a few, or many copies [3, S, S]."""
    image = _ground(rng, size)
    palette = _palette_for(rng, image)
    textures = draw_textures(rng, size, 2)
    light = draw_light(rng)
    count = int(rng.choice([1, 2, 3, 5, 8], p=[0.4, 0.2, 0.15, 0.15, 0.1]))
    plans = [draw_thing(rng, palette, textures) for _ in range(1 if rng.random() < 0.4 else min(count, 3))]
    upright = rng.random() < 0.5
    shadow = rng.uniform(0.15, 0.5) if rng.random() < 0.5 else 0.0
    for number in range(count):
        if count == 1:
            reach, (x, y) = rng.uniform(0.32, 0.58) * size, rng.uniform(0.4, 0.6, 2) * size
        else:
            reach = size * 0.5 / count**0.45 * np.exp(rng.normal(0.0, 0.3))
            x, y = rng.uniform(0.08, 0.92, 2) * size
        turn = float(rng.normal(0.0, 0.15)) if upright else float(rng.uniform(0.0, 2.0 * np.pi))
        if shadow:
            cast_shadow(
                image, int(x - 0.25 * reach * light[0]), int(y - 0.25 * reach * light[1]), reach, shadow
            )
        paint_thing(image, plans[number % len(plans)], float(x), float(y), float(reach), turn, light)
    return image


def _palette_for(rng: np.random.Generator, ground: Array) -> Array:
    """A palette that stands out: the one of three whose mean is furthest from the ground's."""
    mean = ground.mean(axis=(1, 2))
    palettes = [draw_palette(rng, int(rng.integers(3, 8))) for _ in range(3)]
    return max(palettes, key=lambda palette: float(np.abs(palette.mean(axis=0) - mean).sum()))


def _ground(rng: np.random.Generator, size: int) -> Array:
    """A plain or textured ground, or an image of another family, often paler so that it stays behind."""
    kind = rng.random()
    if kind < 0.15:
        colour = draw_palette(rng, 2)[int(rng.integers(2))]
        return np.tile(colour[:, None, None], (1, size, size))
    if kind < 0.2:
        return np.full((3, size, size), rng.choice([0.0, 1.0]), np.float32)
    if kind < 0.6:
        image = draw_backdrop(rng, size)
    else:
        image = _GROUNDS[int(rng.choice(len(_GROUNDS), p=(0.3, 0.3, 0.2, 0.1, 0.1)))](rng, size)
    if rng.random() < 0.6:
        mean = image.mean(axis=(1, 2), keepdims=True)
        image = mean + (image - mean) * np.float32(rng.uniform(0.25, 0.8))
    return image
