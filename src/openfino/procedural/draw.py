"""Drawing an image by its key: which family, and the tone and grain that every family gets alike."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from openfino.errors import OpenfinoError
from openfino.keyed import Purpose, keyed_generator
from openfino.procedural.cells import cell_field
from openfino.procedural.fields import Array, axes, power_noise
from openfino.procedural.fractals import fractal
from openfino.procedural.glyphs import glyphs
from openfino.procedural.leaves import dead_leaves
from openfino.procedural.scenes import scene
from openfino.procedural.solids import solids
from openfino.procedural.spectra import pattern, spectrum
from openfino.procedural.terrain import terrain

Family = Callable[[np.random.Generator, int], Array]

FAMILIES: dict[str, Family] = {
    "scenes": scene,
    "leaves": dead_leaves,
    "solids": solids,
    "fractals": fractal,
    "glyphs": glyphs,
    "cells": cell_field,
    "terrain": terrain,
    "patterns": pattern,
    "spectra": spectrum,
}
"""Name -> function of a generator and the side, to an image [3, S, S], float32, about 0 to 1."""

# Images with things in them teach more than stuff does.
_WEIGHTS = np.array([0.26, 0.14, 0.13, 0.1, 0.1, 0.09, 0.06, 0.07, 0.05])
_NAMES = tuple(FAMILIES)
_GREY = np.array([0.3, 0.59, 0.11], np.float32)
MIN_SIZE = 16
_LEAST_DEVIATION = 0.09


def draw_image(seed: int, index: int, size: int) -> npt.NDArray[np.uint8]:
    """The procedural image number ``index`` of ``seed``: uint8 RGB [3, size, size].

    It depends on (seed, index, size) alone. Images of another size are other images.

    Raises:
        OpenfinoError: if a number is negative, or ``size`` less than 16.
    """
    rng = _generator(seed, index, size)
    name = _NAMES[int(rng.choice(len(_NAMES), p=_WEIGHTS))]
    return _finish(rng, FAMILIES[name](rng, size))


def draw_of_family(name: str, seed: int, index: int, size: int) -> npt.NDArray[np.uint8]:
    """As :func:`draw_image`, but of the family ``name``.

    Raises:
        OpenfinoError: if there is no such family, a number is negative, or ``size`` less than 16.
    """
    if name not in FAMILIES:
        raise OpenfinoError(
            f"there is no family {name!r} of procedural images. Families: {', '.join(FAMILIES)}"
        )
    rng = _generator(seed, index, size, 1 + _NAMES.index(name))
    return _finish(rng, FAMILIES[name](rng, size))


def _generator(seed: int, index: int, size: int, family: int = 0) -> np.random.Generator:
    if seed < 0 or index < 0:
        raise OpenfinoError(f"seed and index of a procedural image cannot be negative: {seed}, {index}")
    if size < MIN_SIZE:
        raise OpenfinoError(f"a procedural image of {size} pixels is too small; draw at least {MIN_SIZE}")
    return keyed_generator(seed, Purpose.PROCEDURAL, index, size, family)


def _finish(rng: np.random.Generator, image: Array) -> npt.NDArray[np.uint8]:
    """Tone, colour and grain at random, within bounds: neither empty nor burnt out."""
    size = image.shape[-1]
    if rng.random() < 0.14:  # grey
        image = np.broadcast_to(np.tensordot(_GREY, image, axes=1), image.shape)
    elif rng.random() < 0.2:  # colours cross over, as under another light
        mix = np.eye(3) + rng.normal(0.0, 0.25, (3, 3))
        image = np.tensordot(np.clip(mix, -0.3, 1.3).astype(np.float32), image, axes=1)
    image = _toned(rng, image)
    if rng.random() < 0.08:
        x, y = axes(size)
        image = image * (np.float32(1.0) - np.float32(rng.uniform(0.15, 0.4)) * (x * x + y * y))
    if rng.random() < 0.25:  # grain of the film
        grain = rng.standard_normal((1 if rng.random() < 0.5 else 3, size, size), np.float32)
        image = image + grain * np.float32(rng.uniform(0.005, 0.06))
    elif rng.random() < 0.1:  # stains and uneven light
        image = image * (np.float32(1.0) + np.float32(0.12) * power_noise(rng, size, 1.8))
    return (np.clip(image, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)


def _toned(rng: np.random.Generator, image: Array) -> Array:
    """The range of values moved into a random part of [0, 1], then gamma and gains of the channels."""
    some = np.sort(image[:, ::3, ::3].ravel())
    cut = len(some) // 100
    low, high = float(some[cut]), float(some[-1 - cut])
    width = rng.uniform(0.55, 1.0)
    floor = rng.uniform(0.0, 1.0 - width)
    gain = min(width / max(high - low, 1e-3), 2.5)
    toned = np.clip((image - np.float32(low)) * np.float32(gain), 0.0, 1.0)
    if rng.random() < 0.5:
        toned = toned ** np.float32(np.exp(rng.normal(0.0, 0.25)))
    toned *= np.exp(rng.normal(0.0, 0.08, 3)).astype(np.float32)[:, None, None]
    toned += np.float32(floor)
    deviation = max(float(toned.std()), 1e-3)
    if deviation < _LEAST_DEVIATION:
        mean = toned.mean(dtype=np.float32)
        toned = np.clip(mean, 0.3, 0.7) + (toned - mean) * np.float32(_LEAST_DEVIATION / deviation)
    return toned
