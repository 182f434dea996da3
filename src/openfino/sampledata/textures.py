"""Random fields and curves: the grain of the drawing. Arrays are float32, lengths in micrometres."""

import functools

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]


@functools.lru_cache(maxsize=64)
def _gaussian_spectrum(side: int, sigma: float) -> Array:
    """Gaussian of ``sigma`` pixels for ``rfft2`` of a square image; makes unit variance of white noise."""
    rows = np.fft.fftfreq(side)[:, None]
    columns = np.fft.rfftfreq(side)[None, :]
    spectrum = np.exp(-2.0 * (np.pi * sigma) ** 2 * (rows**2 + columns**2))
    spectrum[0, 0] = 0.0
    doubled = np.full(columns.shape[1], 2.0)
    doubled[0] = 1.0
    if side % 2 == 0:
        doubled[-1] = 1.0
    return (spectrum / np.sqrt((spectrum**2 * doubled).sum() / side**2)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, side: int, sigma: float) -> Array:
    """Gaussian field [side, side], zero mean, unit variance, correlated over ``sigma`` pixels; periodic."""
    white = rng.standard_normal((side, side), dtype=np.float32)
    # Quarter-pixel steps: antibodies differ in texture scale, and the cache of filters stays small.
    sigma = max(round(4.0 * sigma) / 4.0, 0.25)
    field: Array = fft.irfft2(fft.rfft2(white) * _gaussian_spectrum(side, sigma), s=(side, side))
    return field


def network(rng: np.random.Generator, side: int, sigma: float, width: float) -> Array:
    """Curvy closed meshes in [0, 1]: the neighbourhood of the zero lines of a smooth field."""
    field = smooth_noise(rng, side, sigma)
    mesh: Array = np.exp(-((field / np.float32(width)) ** 2))
    return mesh


def walk(
    rng: np.random.Generator,
    start: Floats,
    heading: Floats,
    *,
    steps: int,
    step: float,
    bend: float,
    turn: float,
) -> tuple[Array, Array]:
    """Curves of ``steps`` points from ``start`` [n, 2] along ``heading`` [n] -> x, y, each [n, steps].

    ``bend`` is the standard deviation of a curve's constant curvature, ``turn`` that of its wiggle (radians
    per step).
    """
    count = len(heading)
    curvature = np.float32(bend) * rng.standard_normal((count, 1), dtype=np.float32)
    wiggle = np.float32(turn) * rng.standard_normal((count, steps), dtype=np.float32)
    angle = heading.astype(np.float32)[:, None] + np.cumsum(curvature + wiggle, axis=1)
    x = start[:, :1] + step * np.cumsum(np.cos(angle), axis=1)
    y = start[:, 1:] + step * np.cumsum(np.sin(angle), axis=1)
    return x.astype(np.float32), y.astype(np.float32)


def splat(x: Array, y: Array, weight: Array, side: int) -> Array:
    """Add points at pixels (x, y) with bilinear weights -> [side, side]; points outside are lost."""
    x, y, weight = x.ravel(), y.ravel(), weight.ravel()
    inside = (x >= 0) & (x < side - 1) & (y >= 0) & (y < side - 1) & (weight > 0)
    x, y, weight = x[inside], y[inside], weight[inside]
    column, row = x.astype(np.int64), y.astype(np.int64)
    fx, fy = x - column, y - row
    index = row * side + column
    total = np.zeros(side * side)
    for offset, share in (
        (0, (1 - fx) * (1 - fy)),
        (1, fx * (1 - fy)),
        (side, (1 - fx) * fy),
        (side + 1, fx * fy),
    ):
        total += np.bincount(index + offset, weights=share * weight, minlength=side * side)
    return total.reshape(side, side).astype(np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of ``sigma`` pixels; the border repeats."""
    blurred: Array = ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    return blurred


def smoothstep(value: Array, width: float) -> Array:
    """0 below ``-width / 2``, 1 above ``width / 2``, smooth between."""
    t = np.clip(value / np.float32(width) + np.float32(0.5), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)
