"""The microscope: what a plate, the day and the lamp do to an image (the batch effect).

[C, H, W] float32 in, uint8 out; C in the order of :data:`CHANNELS`, which is that of the wavelengths.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from openfino.keyed import Purpose, keyed_generator
from openfino.sampledata.screen import CAMPAIGN_START, Stream
from openfino.sampledata.textures import Array, blur

CHANNELS = ("nucleus", "protein", "microtubules", "er")
_LAMP_DAYS = 150.0


@dataclass(frozen=True)
class Optics:
    """What stays the same for all images of a plate."""

    gain: Array  # [C]
    offset: Array  # [C] background, share of full scale
    bleed: Array  # [C, C] seen channel x true channel
    illumination: Array  # [C, H, W]
    defocus: Array  # [C] sigma in micrometres
    photons: Array  # [C] at full scale
    read_noise: float  # share of full scale


def plate_optics(seed: int, plate: int, side: int) -> Optics:
    """Draw the optics of ``plate`` for images of ``side`` pixels."""
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.PLATE, plate)
    channels = len(CHANNELS)
    bleed = np.eye(channels)
    # Excitation at 405, 488, 555 and 647 nm: light leaks mostly into the next longer wavelength.
    for channel in range(channels - 1):
        bleed[channel + 1, channel] = rng.beta(1.2, 6.0) * 0.5
        bleed[channel, channel + 1] = rng.uniform(0.0, 0.03)
    return Optics(
        gain=np.exp(rng.normal(0.0, 0.28, channels)).astype(np.float32),
        offset=rng.uniform(0.01, 0.09, channels).astype(np.float32),
        bleed=bleed.astype(np.float32),
        illumination=_illumination(rng, channels, side),
        defocus=(rng.gamma(3.0, 0.12) + rng.uniform(0.0, 0.2, channels)).astype(np.float32),
        photons=np.exp(rng.normal(np.log(350.0), 0.5, channels)).astype(np.float32),
        read_noise=float(rng.uniform(0.004, 0.018)),
    )


def _illumination(rng: np.random.Generator, channels: int, side: int) -> Array:
    """A tilt and a vignette, nearly the same for all channels; mean 1."""
    axis = (np.arange(side) + 0.5) / side * 2.0 - 1.0
    x, y = axis[None, None, :], axis[None, :, None]
    direction, tilt = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.0, 0.38)
    centre, vignette = rng.normal(0.0, 0.3, 2), rng.uniform(0.0, 0.30)
    tilts = tilt * rng.uniform(0.7, 1.3, (channels, 1, 1))
    field = 1.0 + tilts * (np.cos(direction) * x + np.sin(direction) * y)
    field = field - vignette * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    field = np.maximum(field, 0.15)
    return (field / field.mean(axis=(1, 2), keepdims=True)).astype(np.float32)


def lamp_output(when: datetime) -> float:
    """Brightness of the lamp: it fades until it is replaced, and the room is warmer and dimmer in summer."""
    day = (when - CAMPAIGN_START).total_seconds() / 86400.0
    age = (day % _LAMP_DAYS) / _LAMP_DAYS
    season = np.cos(2.0 * np.pi * (day - 130.0) / 365.25)
    return float((1.12 - 0.30 * age) * (1.0 + 0.05 * season))


def warm_up(elapsed_minutes: float) -> float:
    """The stage drifts out of focus in the first half hour of a session; micrometres of extra defocus."""
    return float(0.25 * np.exp(-elapsed_minutes / 15.0))


def acquire(
    rng: np.random.Generator, stains: Array, optics: Optics, *, pixel: float, lamp: float, drift: float
) -> npt.NDArray[np.uint8]:
    """Image ``stains`` [C, H, W]: blur, bleed-through, illumination, gain, shot and read noise, 8 bits.

    Args:
        rng: the image's own generator.
        stains: the fluorescence, 1 = bright structure.
        optics: of the plate.
        pixel: micrometres per pixel.
        lamp: brightness of the lamp, 1 = typical.
        drift: extra defocus in micrometres.
    """
    focus = abs(float(rng.normal(0.0, 0.2))) + drift
    sigma = np.sqrt(optics.defocus**2 + focus**2) / pixel
    blurred = np.stack([blur(stain, float(width)) for stain, width in zip(stains, sigma, strict=True)])
    mixed = np.tensordot(optics.bleed, blurred, axes=1)
    exposure = 0.52 * lamp * optics.gain * np.exp(rng.normal(0.0, 0.05, len(stains)))
    light = (mixed * exposure[:, None, None] + optics.offset[:, None, None]) * optics.illumination
    photons = optics.photons[:, None, None]
    noisy = rng.poisson(np.maximum(light, 0.0) * photons) / photons
    noisy = noisy + optics.read_noise * rng.standard_normal(noisy.shape)
    return np.clip(np.rint(noisy * 255.0), 0, 255).astype(np.uint8)
