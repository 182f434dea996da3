"""Random scalar fields, the matter of every procedural image: float32 [S, S], cheap to draw afresh for each image."""

import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]

_TINY = np.float32(1e-6)


@functools.lru_cache(maxsize=8)
def axes(size: int) -> tuple[Array, Array]:
    """Coordinates of the pixels' centres, x [1, S] and y [S, 1], from -1 to 1 over the image."""
    line = ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return line[None, :], line[:, None]


@functools.lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Array, Array]:
    """Cycles per image of the half spectrum that ``irfft2`` takes: [1, S // 2 + 1] and [S, 1]."""
    across = np.fft.rfftfreq(size, 1.0 / size).astype(np.float32)
    down = np.fft.fftfreq(size, 1.0 / size).astype(np.float32)
    return across[None, :], down[:, None]


def _radius(size: int, stretch: float, angle: float) -> Array:
    """Length of the frequency vector, at least a half; ``stretch`` > 1 draws structures out along ``angle``."""
    across, down = _frequencies(size)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, beside = across * cos + down * sin, down * cos - across * sin
    root = np.float32(np.sqrt(stretch))
    length: Array = np.maximum(np.hypot(along * root, beside / root), np.float32(0.5))
    return length


def _synthesise(rng: np.random.Generator, size: int, amplitude: Array) -> Array:
    """Random phases behind ``amplitude`` [n, S, S // 2 + 1]: zero mean, unit variance, periodic [n, S, S]."""
    phase = rng.random(amplitude.shape, dtype=np.float32) * np.float32(2.0 * np.pi)
    spectrum = np.empty(amplitude.shape, np.complex64)
    np.multiply(np.cos(phase), amplitude, out=spectrum.real)
    np.multiply(np.sin(phase), amplitude, out=spectrum.imag)
    spectrum[:, 0, 0] = 0.0
    fields: Array = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32, copy=False)
    deviation = np.sqrt(np.einsum("nij,nij->n", fields, fields) / np.float32(size * size))
    return fields / np.maximum(deviation, _TINY)[:, None, None]


def power_noise(
    rng: np.random.Generator,
    size: int,
    slope: float,
    count: int = 1,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Array:
    """``count`` fields with amplitude spectrum 1 / f^slope and random phases [count, S, S]; natural images: 1."""
    amplitude = _radius(size, stretch, angle) ** np.float32(-slope)
    return _synthesise(rng, size, np.broadcast_to(amplitude, (count, *amplitude.shape)))


def band_noise(
    rng: np.random.Generator,
    size: int,
    frequency: float | npt.ArrayLike,
    width: float = 0.3,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Array:
    """Fields around ``frequency`` [n] or scalar (cycles per image), ``width`` octaves broad [n, S, S]."""
    centre = np.minimum(np.atleast_1d(np.asarray(frequency, np.float32)), np.float32(0.45 * size))
    octaves = np.log2(_radius(size, stretch, angle))[None] - np.log2(centre)[:, None, None]
    return _synthesise(rng, size, np.exp(octaves * octaves * np.float32(-0.5 / width**2)))


def squash(field: Array, gain: float = 0.25) -> Array:
    """A unit-variance field in [0, 1], its mean at one half."""
    squashed: Array = np.clip(field * np.float32(gain) + np.float32(0.5), 0.0, 1.0)
    return squashed


def spread(field: Array) -> Array:
    """A field stretched to [0, 1]; the outermost two per cent are clipped."""
    some = np.sort(field[..., ::3, ::3].ravel())
    cut = len(some) // 50
    low, high = some[cut], some[-1 - cut]
    stretched: Array = np.clip((field - low) / np.maximum(high - low, _TINY), 0.0, 1.0)
    return stretched


def smoothstep(value: Array, width: float) -> Array:
    """0 below ``-width / 2``, 1 above ``width / 2``, smooth between."""
    t = np.clip(value / np.float32(max(width, 1e-3)) + np.float32(0.5), 0.0, 1.0)
    step: Array = t * t * (np.float32(3.0) - np.float32(2.0) * t)
    return step


def sample(field: Array, x: Array, y: Array) -> Array:
    """``field`` [..., S, S] at pixels (x, y), bilinear and periodic -> [..., *x.shape]."""
    size = field.shape[-1]
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top
    column, row = left.astype(np.intp) % size, top.astype(np.intp) % size
    right, below = (column + 1) % size, (row + 1) % size
    flat = field.reshape(*field.shape[:-2], size * size)
    row, below = row * size, below * size
    upper = flat.take(row + column, axis=-1) * (1 - fx) + flat.take(row + right, axis=-1) * fx
    lower = flat.take(below + column, axis=-1) * (1 - fx) + flat.take(below + right, axis=-1) * fx
    sampled: Array = upper * (1 - fy) + lower * fy
    return sampled


def warp(rng: np.random.Generator, field: Array, amount: float, frequency: float) -> Array:
    """``field`` [..., S, S] seen through wavy glass: shifted by about ``amount`` of the image's side."""
    size = field.shape[-1]
    shift = band_noise(rng, size, (frequency, frequency), 0.5) * np.float32(amount * size)
    place = np.arange(size, dtype=np.float32)
    return sample(field, place[None, :] + shift[0], place[:, None] + shift[1])


def ridged(rng: np.random.Generator, size: int, frequency: float, octaves: int, gain: float) -> Array:
    """Ridged multifractal noise in [0, 1]: sharp crests where octaves of smooth noise cross zero.

    Finer octaves grow only on the crests of the coarser ones (Musgrave's ridged multifractal).
    """
    noises = band_noise(rng, size, frequency * 2.0 ** np.arange(octaves), 0.4)
    height, weight = np.zeros((size, size), np.float32), np.ones((size, size), np.float32)
    for octave in range(octaves):
        crest = np.float32(1.0) - np.minimum(np.abs(noises[octave]) * np.float32(0.7), 1.0)
        crest = crest * crest * weight
        height += crest * np.float32(gain**octave)
        weight = np.minimum(crest * np.float32(1.6), 1.0)
    return spread(height)


def cellular(
    rng: np.random.Generator,
    size: int,
    across: float,
    jitter: float = 1.0,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> tuple[Array, Array, Index]:
    """Worley's cellular noise: points near the nodes of a turned lattice, about ``across`` cells a side.

    Returns:
        distances to the nearest and to the second nearest point, in lattice units, and the nearest point's
        number (0 to 1023).
    """
    x, y = axes(size)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    half, root = np.float32(across / 2.0), np.float32(np.sqrt(stretch))
    u = (x * cos + y * sin) * (half / root) + np.float32(500.5 * rng.random())
    v = (y * cos - x * sin) * (half * root) + np.float32(500.5 * rng.random())
    column, row = np.floor(u), np.floor(v)
    fu, fv = u - column, v - row
    column, row = column.astype(np.intp), row.astype(np.intp)
    # 1024 random offsets, found by hashing the node: no more than that are in an image.
    offset = (rng.random((2, 1024), dtype=np.float32) - np.float32(0.5)) * np.float32(jitter) + np.float32(
        0.5
    )
    nearest = np.full((size, size), 9.0, np.float32)
    second, owner = nearest.copy(), np.zeros((size, size), np.intp)
    for right in (-1, 0, 1):
        for down in (-1, 0, 1):
            node = ((column + right) * 73 + (row + down) * 179) & 1023
            du, dv = offset[0].take(node) + (right - fu), offset[1].take(node) + (down - fv)
            distance = du * du + dv * dv
            closer = distance < nearest
            second = np.minimum(second, np.maximum(distance, nearest))
            nearest = np.minimum(distance, nearest)
            np.copyto(owner, node, where=closer)
    return np.sqrt(nearest), np.sqrt(second), owner


def slopes(height: Array) -> tuple[Array, Array]:
    """Differences of a field to its left and upper neighbours, doubled at the border -> d/dx, d/dy."""
    across, down = np.empty_like(height), np.empty_like(height)
    np.subtract(height[:, 1:], height[:, :-1], out=across[:, 1:])
    np.subtract(height[1:], height[:-1], out=down[1:])
    across[:, 0], down[0] = across[:, 1], down[1]
    return across, down
