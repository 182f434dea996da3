"""Masks of class numbers: what every pixel of an image shows."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from openfino.images.read import ImageReadError, guarded

ClassMap = NDArray[np.integer]

MODES = ("1", "L", "P", "I")


def read_class_map(path: Path) -> ClassMap:
    """One mask, whole numbers [H, W] as they are stored; of a palette image the index, not the colour.

    Formats: what Pillow opens (PNG above all), TIFF, ``.npy``. No scaling, and no orientation tag is looked at.

    Raises:
        ImageReadError: if the file is absent, corrupt, has several channels or no whole numbers.
    """
    array = guarded(_read, path)
    if array.ndim != 2 or 0 in array.shape:
        raise ImageReadError(path, f"has shape {array.shape}; a mask has one class number for each pixel")
    if array.dtype.kind not in "bui":
        raise ImageReadError(path, f"holds {array.dtype} values; a mask holds whole numbers")
    found: ClassMap = array.astype(np.uint8) if array.dtype == np.bool_ else array
    return found


def _read(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        stored = np.load(path, allow_pickle=False)
    elif suffix in (".tif", ".tiff"):
        stored = tifffile.imread(path)
    else:
        with Image.open(path) as image:
            if image.mode not in MODES and not image.mode.startswith("I;16"):
                raise ImageReadError(
                    path, f"is a {image.mode} image; a mask has one channel of class numbers"
                )
            stored = np.array(image)
    array: np.ndarray = np.squeeze(stored) if stored.ndim == 3 else stored
    return array


def at_size(mask: ClassMap, size: tuple[int, int]) -> ClassMap:
    """The mask stretched to ``size`` (height, width), as images are: the number of the nearest pixel."""
    rows, columns = (
        ((np.arange(length) + 0.5) * own / length).astype(np.int64)
        for length, own in zip(size, mask.shape, strict=True)
    )
    stretched: ClassMap = mask[rows[:, None], columns]
    return stretched
