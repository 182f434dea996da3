"""Stochastic fields: images that are nothing but a spectrum with random phases, and what can be made of them.

The power spectrum of natural images falls as 1 / f^2; each channel has its own phases here, mixed into colours, as
in Baradad et al. 2021 (section 3, "Spectrum" and "Spectrum + Color").
"""

import numpy as np

from openfino.procedural.fields import Array, band_noise, power_noise, smoothstep, spread, squash, warp
from openfino.procedural.palettes import colourise, draw_palette, draw_ramp
from openfino.procedural.textures import TEXTURES, draw_texture


def spectrum(rng: np.random.Generator, size: int) -> Array:
    """Coloured 1 / f noise of any slope and direction; even, in two regions, cut into levels or warped [3, S, S]."""
    image = _noise(rng, size)
    kind = rng.random()
    if kind < 0.3:  # regions with different statistics
        shape = (
            power_noise(rng, size, rng.uniform(1.6, 2.4))[0] if kind < 0.18 else band_noise(rng, size, 2.0)[0]
        )
        mask = smoothstep(shape - np.float32(rng.uniform(-0.5, 0.5)), rng.uniform(0.1, 1.0))
        image = image + mask * (_noise(rng, size) - image)
    elif kind < 0.45:
        image = warp(rng, image, rng.uniform(0.02, 0.12), rng.uniform(1.0, 4.0))
    return image


def _noise(rng: np.random.Generator, size: int) -> Array:
    """Three fields mixed into channels, or one through a ramp."""
    stretch = float(np.exp(rng.uniform(0.0, np.log(12.0)))) if rng.random() < 0.5 else 1.0
    angle, gain = rng.uniform(0.0, np.pi), rng.uniform(0.15, 0.4)
    kind = rng.random()
    if kind < 0.15:
        frequency = np.exp(rng.uniform(np.log(2.0), np.log(0.3 * size), 3))
        fields = band_noise(rng, size, frequency, rng.uniform(0.2, 1.0), stretch, angle)
    elif kind < 0.6:
        fields = power_noise(rng, size, rng.uniform(0.6, 2.3), 3, stretch, angle)
    else:
        field = power_noise(rng, size, rng.uniform(0.6, 2.3), 1, stretch, angle)[0]
        if kind > 0.8:  # levels: islands with coasts
            levels = int(rng.integers(2, 6))
            field = np.rint(squash(field, gain) * np.float32(levels)) / np.float32(levels)
            return colourise(draw_ramp(rng), field)
        return colourise(draw_ramp(rng), squash(field, gain))
    colours = draw_palette(rng, 4)
    mixed = np.tensordot((colours[1:] - colours[0]).T, fields, axes=1) * np.float32(
        gain * rng.uniform(0.8, 2.0)
    )
    image: Array = np.clip(colours.mean(axis=0)[:, None, None] + mixed, 0.0, 1.0)
    return image


def pattern(rng: np.random.Generator, size: int) -> Array:
    """A texture over the whole image in colours of its own, alone or on top of another [3, S, S]."""
    names = [name for name in TEXTURES if name not in ("flat", "fade", "cloud")]
    texture = TEXTURES[names[int(rng.integers(len(names)))]](rng, size)
    image = colourise(draw_ramp(rng), texture)
    if rng.random() < 0.5:
        other = colourise(draw_ramp(rng), draw_texture(rng, size))
        mask = TEXTURES[names[int(rng.integers(len(names)))]](rng, size)
        image = image + (other - image) * mask * np.float32(rng.uniform(0.4, 1.0))
    if rng.random() < 0.4:  # folds or uneven light
        light = spread(power_noise(rng, size, 1.8)[0])
        image = image * (np.float32(1.1) - np.float32(rng.uniform(0.2, 0.7)) * light)
    return image
