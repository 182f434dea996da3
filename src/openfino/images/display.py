"""Images of any channel count as colours on a screen."""

import numpy as np
from numpy.typing import NDArray

# As in the Human Protein Atlas: nucleus blue, protein green, microtubules red, ER yellow.
ATLAS = np.array([[0.15, 0.25, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.55, 0.45, 0.0]], dtype=np.float32)
SHOWN_PERCENTILES = (0.5, 99.5)


def composite(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[4, H, W] -> RGB [H, W, 3]: the sum of the coloured channels."""
    return _sum_of_colours(image, ATLAS)


def as_colours(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """An image of :func:`openfino.images.read.read_image` [C, H, W] for the eye, uint8 [H, W, 3].

    One channel is grey, three are red, green and blue, four are coloured as in :func:`composite`; of other counts each
    channel has a hue of its own, evenly around the circle. 8-bit images keep their values. Others (a camera's 12 of 16
    bits would look black) are stretched channel by channel from the 0.5th to the 99.5th percentile.
    """
    is_8_bit = image.dtype == np.uint8
    levels = image.astype(np.uint8) if is_8_bit else np.stack([_stretched(plane) for plane in image])
    channels = len(levels)
    if channels in (1, 3):
        return np.ascontiguousarray(np.broadcast_to(np.moveaxis(levels, 0, 2), (*levels.shape[1:], 3)))
    return composite(levels) if channels == len(ATLAS) else _sum_of_colours(levels, _hues(channels))


def _sum_of_colours(levels: NDArray[np.uint8], colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    mixed = np.tensordot(levels.astype(np.float32), colours, axes=(0, 0))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _stretched(plane: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A channel [H, W] from 0 to 255; black if it is constant."""
    values = plane.astype(np.float64)
    low, high = np.percentile(values, SHOWN_PERCENTILES)
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _hues(count: int) -> NDArray[np.float32]:
    """``count`` saturated colours [count, 3], evenly around the circle from green; two are green and magenta."""
    angle = 2 * np.pi * (np.arange(count)[:, None] / count + np.array([-1, 0, 1]) / 3)
    return np.clip(0.5 + np.cos(angle), 0, 1).astype(np.float32)
