"""Fractals of iterated function systems, as in FractalDB (Kataoka et al., "Pre-training without Natural Images",
ACCV 2020).

An affine map of the plane is z -> a z + b conj(z) + c; its singular values are |a| + |b| and ||a| - |b||. They are
drawn as Anderson and Farrell do ("Improving Fractal Pre-training", WACV 2022): their sum over the system decides
whether the attractor is dust, a figure or a smear, and is kept where figures are.
"""

import numpy as np
import numpy.typing as npt

from openfino.procedural.fields import Array, spread
from openfino.procedural.palettes import colourise, draw_palette, draw_ramp
from openfino.procedural.textures import draw_backdrop

Points = npt.NDArray[np.complex64]

_ROUNDS = 9
_START = 64


def draw_maps(rng: np.random.Generator) -> tuple[Points, npt.NDArray[np.float64]]:
    """A contractive system of two to eight maps: coefficients a, b, c [3, n] and how often each is used [n]."""
    count = int(rng.integers(2, 9))
    # Anderson and Farrell, section 3.1, take sums of s1 + 2 s2 from (5 + n) / 2 to (6 + n) / 2; a little more of
    # it, and rounder maps, fill more of a small image.
    total = 0.5 * (5.0 + count) + rng.uniform(0.0, 0.9)
    share = np.minimum(rng.dirichlet(np.full(count, 6.0)) * total, 2.3)
    ratio = rng.uniform(rng.choice([0.15, 0.5]), 1.0, count)
    first = np.minimum(share / (1.0 + 2.0 * ratio), 0.88)
    second = first * ratio
    turn, lean = np.exp(1j * rng.uniform(0.0, 2.0 * np.pi, (2, count)))
    mirror = rng.random(count) < 0.5
    large, small = (first + second) / 2.0, (first - second) / 2.0
    a, b = np.where(mirror, small, large) * turn, np.where(mirror, large, small) * lean
    c = rng.uniform(-1.0, 1.0, count) + 1j * rng.uniform(-1.0, 1.0, count)
    weight = np.maximum(first * second, 0.03)
    return np.stack([a, b, c]).astype(np.complex64), weight / weight.sum()


def attractor(
    rng: np.random.Generator, maps: Points, weight: npt.NDArray[np.float64], count: int
) -> tuple[Points, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """About ``count`` points of the attractor, and for each the map that came last and the one before it.

    The cloud is moved as a whole: the n-th part of it, as large as the n-th map's weight, by the n-th map.
    """
    points: Points = np.zeros(_START, np.complex64)
    last = before = np.zeros(_START, np.intp)
    bounds = np.zeros(len(weight) + 1, np.intp)
    # It doubles while it settles: the first rounds cost next to nothing.
    for left in range(_ROUNDS + int(np.log2(count / _START)), -1, -1):
        bounds[1:] = np.rint(np.cumsum(weight) * max(count >> max(left - 1, 0), _START))
        source = (rng.random(int(bounds[-1]), dtype=np.float32) * np.float32(len(points))).astype(np.intp)
        np.minimum(source, len(points) - 1, out=source)
        points = points.take(source)
        if left == 0:
            before = last.take(source)
        if left <= 1:
            last = np.repeat(np.arange(len(weight)), np.diff(bounds))
        for index, (a, b, c) in enumerate(maps.T):
            part = points[bounds[index] : bounds[index + 1]]
            part[:] = part * a + part.conj() * b + c
    return _normalised(points), last, before


def _normalised(points: Points) -> Points:
    """Moved and scaled so that nearly all lie in the unit disc, as wide as possible."""
    some = points[:: max(len(points) // 1024, 1)]
    middle = np.complex64(_between(some.real) + 1j * _between(some.imag))
    reach = np.sort(np.abs(some - middle))[len(some) * 49 // 50]
    normalised: Points = (points - middle) / np.float32(max(float(reach), 1e-3))
    return normalised


def _between(values: Array) -> float:
    """The middle of the range of values, without the outermost two per cent."""
    ordered = np.sort(values)
    cut = len(ordered) // 50
    return float(ordered[cut] + ordered[-1 - cut]) / 2.0


def fractal(rng: np.random.Generator, size: int) -> Array:
    """One to eight copies of an attractor, coloured by map or by density, on any ground [3, S, S]."""
    maps, weight = draw_maps(rng)
    points, last, before = attractor(rng, maps, weight, max(2 * size * size, 2048))
    image = _ground(rng, size)
    colours = _apart(draw_palette(rng, len(weight)), image)
    # A branch of a branch has a shade of its own.
    shade = rng.uniform(0.6, 1.3, (len(weight), 1)).astype(np.float32)
    table = np.clip(colours[:, None] * shade, 0.0, 1.0).reshape(-1, 3)
    ramp = draw_ramp(rng, colours) if rng.random() < 0.35 else None
    hue = last * len(weight) + before
    copies = 1 if rng.random() < 0.6 else int(rng.integers(2, 9))
    thickness = float(np.exp(rng.uniform(np.log(0.25), np.log(4.0))))
    for _ in range(copies):
        reach = rng.uniform(0.35, 0.62) if copies == 1 else rng.uniform(0.12, 0.35)
        turn = np.complex64(reach * size * np.exp(2j * np.pi * rng.random()))
        corner = rng.uniform(0.35, 0.65, 2) if copies == 1 else rng.uniform(0.05, 0.95, 2)
        # Small copies need fewer points; every stride still meets every map.
        stride = max(int(0.2 / reach**2), 1)
        placed = points[::stride] * turn + np.complex64(size * (corner[0] + 1j * corner[1]))
        _splat(image, placed, hue[::stride], table, ramp, thickness)
    return image


def _apart(colours: Array, image: Array) -> Array:
    """``colours`` [n, 3], those too near to the ground's mean brightness moved away from it."""
    ground = image.mean()
    bright = colours.mean(axis=1, keepdims=True)
    target = 0.95 if ground < 0.45 else 0.05
    near = np.maximum(0.0, 1.0 - np.abs(bright - ground) / 0.35).astype(np.float32)
    moved: Array = colours + (np.float32(target) - colours) * near * np.float32(0.8)
    return moved


def _ground(rng: np.random.Generator, size: int) -> Array:
    """Black, plain or textured."""
    kind = rng.random()
    if kind < 0.6:
        colour = draw_palette(rng, 2)[int(rng.integers(2))] * np.float32(0.0 if kind < 0.15 else 1.0)
        return np.tile(colour[:, None, None], (1, size, size))
    return draw_backdrop(rng, size)


def _splat(
    image: Array,
    placed: Points,
    hue: npt.NDArray[np.intp],
    table: Array,
    ramp: Array | None,
    thickness: float,
) -> None:
    """Lay points over the image: covered the more, the denser they are; coloured by ``hue``, or by density."""
    size = image.shape[-1]
    column, row = placed.real.astype(np.intp), placed.imag.astype(np.intp)
    inside = (placed.real >= 0) & (column < size) & (placed.imag >= 0) & (row < size)
    pixel, hue = (row * size + column)[inside], hue[inside]
    if not len(pixel):
        return
    counted = np.bincount(pixel, minlength=size * size).reshape(size, size)
    found = _thickened(counted.astype(np.float32))
    dense = found * np.float32(thickness * np.count_nonzero(found) / found.sum())
    cover = np.float32(1.0) - np.exp(-dense)
    if ramp is not None:
        paint = colourise(ramp, spread(np.log1p(dense)))
    else:
        sums = [
            np.bincount(pixel, table[:, channel].take(hue), minlength=size * size) for channel in range(3)
        ]
        added = np.stack(sums).astype(np.float32).reshape(3, size, size)
        paint = (_thickened(added) / np.maximum(found, np.float32(1e-3))).astype(np.float32, copy=False)
    image += (paint - image) * cover


def _thickened(counted: Array) -> Array:
    """Points [..., S, S] made larger than a pixel: each gives a share to its eight neighbours."""
    wide = counted.copy()
    wide[..., 1:] += np.float32(0.4) * counted[..., :-1]
    wide[..., :-1] += np.float32(0.4) * counted[..., 1:]
    high = wide.copy()
    high[..., 1:, :] += np.float32(0.4) * wide[..., :-1, :]
    high[..., :-1, :] += np.float32(0.4) * wide[..., 1:, :]
    return high
