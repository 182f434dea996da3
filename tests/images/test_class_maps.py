"""Masks are read as the numbers that are stored."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from openfino.images.class_maps import at_size, read_class_map
from openfino.images.read import ImageReadError

NUMBERS = np.array([[0, 1, 2], [3, 254, 255]], dtype=np.uint8)


def palette(path):
    indexed = Image.new("P", NUMBERS.shape[::-1])
    indexed.putdata(NUMBERS.ravel().tolist())
    indexed.putpalette([channel for number in range(256) for channel in (255 - number, 7, 7)])
    indexed.save(path)


WRITERS = {
    "grey.png": lambda path: Image.fromarray(NUMBERS).save(path),
    "palette.png": palette,
    "deep.png": lambda path: Image.fromarray(NUMBERS.astype(np.uint16)).save(path),
    "grey.tif": lambda path: tifffile.imwrite(path, NUMBERS),
    "signed.tif": lambda path: tifffile.imwrite(path, NUMBERS.astype(np.int32)),
    "paged.tif": lambda path: tifffile.imwrite(path, NUMBERS[None]),
    "array.npy": lambda path: np.save(path, NUMBERS.astype(np.int64)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_numbers_come_as_they_are_stored(tmp_path, name):
    WRITERS[name](tmp_path / name)
    np.testing.assert_array_equal(read_class_map(tmp_path / name), NUMBERS)


def test_black_and_white_is_nothing_and_one(tmp_path):
    Image.fromarray(NUMBERS > 1).save(tmp_path / "m.png")
    found = read_class_map(tmp_path / "m.png")
    assert (found.dtype, found.max()) == (np.uint8, 1)
    np.testing.assert_array_equal(found, NUMBERS > 1)


@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("rgb.png", lambda path: Image.new("RGB", (3, 3)).save(path), "one channel"),
        ("planes.npy", lambda path: np.save(path, np.zeros((2, 3, 3), dtype=int)), "shape"),
        ("float.npy", lambda path: np.save(path, np.zeros((3, 3))), "whole numbers"),
        ("bad.png", lambda path: path.write_bytes(b"no image"), "cannot be read"),
        ("absent.png", lambda path: None, "no such file"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(tmp_path, name, write, why):
    write(tmp_path / name)
    with pytest.raises(ImageReadError, match=f"{name}.*{why}"):
        read_class_map(tmp_path / name)


def test_a_mask_is_stretched_without_new_numbers():
    np.testing.assert_array_equal(at_size(NUMBERS, (4, 6)), NUMBERS.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(at_size(NUMBERS, (1, 1)), [[254]])
    large = np.arange(12 * 9).reshape(12, 9)
    np.testing.assert_array_equal(at_size(large, (4, 3)), large[1::3, 1::3])
