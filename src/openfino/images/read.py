"""Image files of any channel count as arrays [C, H, W].

8-bit integers stay uint8, 16-bit integers stay uint16 and floating point becomes float32, which must lie in
[0, 1]: integers carry their range in their type, floating point does not, and a guess from one image would
change from image to image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from openfino.errors import OpenfinoError
from openfino.procedural import is_image_name, named_image

_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})

_ORIENTATION_TAG = 0x0112
# Orientation -> (transpose, flip rows, flip columns), applied in that order (TIFF 6.0, section 8).
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_FLOAT_TOLERANCE = 1e-3


class ImageReadError(OpenfinoError):
    """A file that holds no readable image; the message names the file and the cause."""

    def __init__(self, path: Path | str, cause: str) -> None:
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


def read_image(paths: Sequence[Path]) -> np.ndarray:
    """Read one image; the channels of several files are concatenated in the given order.

    Formats: PNG, JPEG, BMP, WebP, GIF (first frame) and whatever else Pillow opens; TIFF as HW, HWC, CHW or
    pages (TIFF pages become channels); ``.npy`` as HW, HWC or CHW. Where a three-dimensional TIFF or array
    does not name its channel axis, the shorter of the first and the last axis holds the channels (the first
    when equal). Alpha is dropped, palettes become RGB, the orientation tag is applied.

    Returns:
        [C, H, W], writable, uint8, uint16 or float32 in [0, 1]; the memory may be laid out as H, W, C.

    Raises:
        ImageReadError: if a file is absent, corrupt, of another number type, out of range or not finite, or
            if the files of one image differ in size.
    """
    parts = [guarded(_read_file, path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            height, width = parts[0].shape[1:]
            found = f"{part.shape[1]}x{part.shape[2]}"
            raise ImageReadError(
                path, f"is {found} pixels, but {paths[0]} of the same image is {height}x{width}"
            )
    if len({part.dtype for part in parts}) > 1:
        parts = [as_unit_float(part) for part in parts]
    return np.concatenate(parts)


def count_channels(paths: Sequence[Path]) -> int:
    """How many channels :func:`read_image` would return, without decoding the pixels where possible.

    Raises:
        ImageReadError: if a file is absent or no image.
    """
    return sum(guarded(_count_file, path) for path in paths)


def as_unit_float(image: np.ndarray) -> np.ndarray:
    """An array of :func:`read_image` as float32 in [0, 1]; the array itself when it is float32 already."""
    if image.dtype == np.float32:
        return image
    scaled = image.astype(np.float32)
    scaled /= np.float32(np.iinfo(image.dtype).max)
    return scaled


def guarded(function: Callable[[Path], Any], path: Path) -> Any:
    """Call ``function(path)`` and name the file in whatever goes wrong."""
    try:
        return function(Path(path))
    except ImageReadError:
        raise
    except FileNotFoundError:
        raise ImageReadError(path, "there is no such file") from None
    except Exception as error:  # decoders raise almost anything on a corrupt file
        raise ImageReadError(path, f"cannot be read ({type(error).__name__}: {error})") from error


def _read_file(path: Path) -> np.ndarray:
    if is_image_name(path):
        return named_image(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = _channels_first(np.load(path, allow_pickle=False), path)
    elif suffix in _TIFF_SUFFIXES:
        array = _read_tiff(path)
    elif suffix == ".png" and _is_deep_png(path):
        array = _read_deep_png(path)
    else:
        array = _read_pillow(path)
    if 0 in array.shape:
        raise ImageReadError(path, f"holds no pixels (shape {array.shape})")
    return _as_supported(array, path)


def _as_supported(array: np.ndarray, path: Path) -> np.ndarray:
    """One of the three number types, native byte order, writable."""
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return native if native.flags.writeable else native.copy(order="K")
    if array.dtype.kind == "f":
        return _checked_float(array, path)
    raise ImageReadError(
        path, f"holds {array.dtype} values; write uint8, uint16, or floating point scaled to [0, 1]"
    )


def _checked_float(array: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):
        raise ImageReadError(path, "holds values that are not finite; replace them")
    if low < -_FLOAT_TOLERANCE or high > 1 + _FLOAT_TOLERANCE:
        raise ImageReadError(
            path,
            f"holds floating point values from {low:g} to {high:g}; scale them to [0, 1] with one factor for "
            "the whole data set, or write uint8 or uint16",
        )
    return np.clip(array.astype(np.float32), 0.0, 1.0)


def _channels_first(array: np.ndarray, path: Path) -> np.ndarray:
    """[H, W], [H, W, C] or [C, H, W] -> [C, H, W]; the shorter outer axis holds the channels."""
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ImageReadError(path, f"has shape {array.shape}; an image has two or three dimensions")
    return array if array.shape[0] <= array.shape[2] else np.moveaxis(array, 2, 0)


def _oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation tag to [C, H, W]."""
    transpose, rows, columns = _ORIENTATIONS.get(orientation, (False, False, False))
    if transpose:
        array = array.swapaxes(1, 2)
    if rows or columns:
        array = array[:, :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(array) if transpose or rows or columns else array


# Pillow


def _read_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        # np.array copies: PyTorch warns about the read-only memory that np.asarray would share.
        array = np.array(_plain(image, path))
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
    return _oriented(planes, orientation)


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image in a mode with plain channels: 1, L, I;16, F or RGB."""
    mode = image.mode
    if mode in ("1", "L", "RGB", "F") or mode.startswith("I;16"):
        return image
    if mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageReadError(
                path, f"holds 32-bit values from {values.min()} to {values.max()}; write uint16"
            )
        return image.convert("I;16")
    if mode in ("LA", "La"):
        return image.convert("L")
    if mode == "P" and "transparency" in image.info:
        # Straight to RGB warns: the transparent colours would be lost without a word.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _pillow_channels(image: Image.Image) -> int:
    single = image.mode in ("1", "L", "F", "I", "LA", "La") or image.mode.startswith("I;16")
    return 1 if single else 3


def _is_deep_png(path: Path) -> bool:
    """Whether a PNG has 16 bits and several channels, which Pillow would cut down to 8."""
    with path.open("rb") as file:
        header = file.read(26)
    return len(header) == 26 and header[24] == 16 and header[25] in (2, 4, 6)


def _read_deep_png(path: Path) -> np.ndarray:
    array = imagecodecs.png_decode(path.read_bytes())
    colours = 1 if array.shape[2] == 2 else 3
    with Image.open(path) as image:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return _oriented(np.moveaxis(array[..., :colours], 2, 0), orientation)


# TIFF


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return _read_pillow(path)
        array = _tiff_channels_first(series.asarray(), series.axes, path)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "ub":
            array = ~array
        tag = page.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None else 1
        return _oriented(array[: _tiff_colours(page, array.shape[0])], orientation)


def _tiff_colours(page: Any, channels: int) -> int:
    """The channels without an alpha channel, which only colour and grey images with extra samples carry."""
    alpha = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in alpha
    return channels - 1 if has_alpha and channels in (2, 4) else channels


def _tiff_channels_first(array: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """Order the named axes of a TIFF series: everything but Y and X becomes channels."""
    kept = [axis for axis, length in zip(axes, array.shape, strict=True) if length > 1 or axis in "YX"]
    array = array.reshape(
        [array.shape[i] for i, axis in enumerate(axes) if array.shape[i] > 1 or axis in "YX"]
    )
    if "Y" not in kept or "X" not in kept:
        raise ImageReadError(path, f"has the TIFF axes {axes}; an image needs rows (Y) and columns (X)")
    if len(kept) == 3 and not {"S", "C"} & set(kept):
        return _channels_first(array, path)
    array = np.moveaxis(array, (kept.index("Y"), kept.index("X")), (-2, -1))
    return array.reshape(-1, *array.shape[-2:])


# Channel counts


def _count_file(path: Path) -> int:
    if is_image_name(path):
        return 3
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return int(_channels_first(np.load(path, mmap_mode="r", allow_pickle=False), path).shape[0])
    if suffix not in _TIFF_SUFFIXES:
        with Image.open(path) as image:
            return _pillow_channels(image)
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        if series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return 3
        # A broadcast array has the shape of the pixels without their memory.
        blank = np.broadcast_to(np.uint8(0), series.shape)
        channels = _tiff_channels_first(blank, series.axes, path).shape[0]
        return _tiff_colours(series.keyframe, channels)
