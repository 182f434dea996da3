"""Random colours: palettes whose colours belong together, and ramps that colour a scalar field. RGB in [0, 1]."""

import numpy as np
import numpy.typing as npt

from openfino.procedural.fields import Array

_STEPS = 256
_SCHEMES = ("analogous", "opposed", "triad", "any", "earth", "grey", "neon")
_SCHEME_WEIGHTS = (0.22, 0.18, 0.12, 0.2, 0.13, 0.08, 0.07)


def from_hsv(hue: npt.ArrayLike, saturation: npt.ArrayLike, value: npt.ArrayLike) -> Array:
    """Hue (turns), saturation and value [n] -> RGB [n, 3]."""
    hue, saturation, value = (np.asarray(part, np.float32)[..., None] for part in (hue, saturation, value))
    sector = (np.array([5.0, 3.0, 1.0], np.float32) + hue * 6.0) % 6.0
    colour = value - value * saturation * np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0)
    return colour.astype(np.float32)


def draw_palette(rng: np.random.Generator, count: int) -> Array:
    """``count`` colours of one scheme [count, 3], from dark to bright and never all alike."""
    scheme = _SCHEMES[int(rng.choice(len(_SCHEMES), p=_SCHEME_WEIGHTS))]
    hue = np.full(count, rng.random())
    saturation = rng.beta(2.0, 2.0, count) * rng.uniform(0.4, 1.0)
    low, high = rng.uniform(0.02, 0.35), rng.uniform(0.65, 1.0)
    value = low + (high - low) * (rng.permutation(count) + rng.random(count)) / count
    if scheme == "analogous":
        hue = hue + rng.normal(0.0, 0.06, count)
    elif scheme == "opposed":
        hue = hue + 0.5 * rng.integers(2, size=count) + rng.normal(0.0, 0.03, count)
    elif scheme == "triad":
        hue = hue + rng.integers(3, size=count) / 3.0 + rng.normal(0.0, 0.03, count)
    elif scheme == "any":
        hue = rng.random(count)
    elif scheme == "earth":
        hue, saturation = rng.uniform(0.03, 0.33, count), saturation * 0.7
    elif scheme == "grey":
        saturation = saturation * 0.06
    else:
        hue, saturation = rng.random(count), 0.8 + 0.2 * rng.random(count)
    return from_hsv(hue, saturation, value)


def draw_ramp(rng: np.random.Generator, colours: Array | None = None) -> Array:
    """A look-up table [3, 256] through ``colours`` [n, 3], or through two to six of a palette of its own."""
    if colours is None:
        colours = draw_palette(rng, int(rng.integers(2, 7)))
        if rng.random() < 0.6:
            colours = colours[np.argsort(colours.sum(axis=1))]
    place = np.linspace(0.0, 1.0, _STEPS)
    if rng.random() < 0.15:  # hard steps
        edges = np.sort(rng.uniform(0.1, 0.9, len(colours) - 1))
        return np.ascontiguousarray(colours[np.searchsorted(edges, place)].T)
    stops = np.concatenate([[0.0], np.sort(rng.uniform(0.1, 0.9, len(colours) - 2)), [1.0]])
    return np.stack([np.interp(place, stops, channel) for channel in colours.T]).astype(np.float32)


def colourise(ramp: Array, field: Array) -> Array:
    """A field in [0, 1] through a ramp [3, 256] -> [3, H, W]."""
    return ramp.take((field * np.float32(_STEPS - 1)).astype(np.intp), axis=1)
