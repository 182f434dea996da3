"""Numbers as colours."""

import numpy as np
from numpy.typing import NDArray

# From dark violet over blue and green to yellow; the lightness (CIE L*) rises by about 12 at each step, so that equal
# differences look equal, also in grey and to colour-blind eyes.
_STOPS = np.array(
    [
        [32, 12, 64],
        [56, 40, 122],
        [44, 84, 148],
        [28, 122, 148],
        [28, 158, 128],
        [92, 190, 90],
        [180, 214, 62],
        [252, 238, 72],
    ],
    dtype=np.float64,
)


def colour_map(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """``values`` [...] as RGB [..., 3]: dark violet at ``low`` and below, yellow at ``high`` and above.

    Everything has the middle colour when ``low`` and ``high`` are equal.
    """
    shares = np.clip((values - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    places = shares * (len(_STOPS) - 1)
    channels = [np.interp(places, np.arange(len(_STOPS)), stops) for stops in _STOPS.T]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def unit_colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Red, green and blue in [0, 1] as uint8."""
    return np.rint(255 * values).astype(np.uint8)
