"""Histograms of oriented gradients against a loop over pixels."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from hog import hog


def naive(image, cell):
    """One channel [H, W] in [0, 1]."""
    height, width = image.shape
    rows, columns = height // cell, width // cell
    cells = np.zeros((rows, columns, 9))
    for y in range(rows * cell):
        for x in range(columns * cell):
            down = image[y + 1, x] - image[y - 1, x] if 0 < y < height - 1 else 0.0
            right = image[y, x + 1] - image[y, x - 1] if 0 < x < width - 1 else 0.0
            degrees = math.degrees(math.atan2(down, right)) % 180
            for orientation in range(9):
                away = abs(degrees - (20 * orientation + 10))
                away = min(away, 180 - away)
                cells[y // cell, x // cell, orientation] += max(0, 1 - away / 20) * math.hypot(down, right)
    found = []
    for row in range(rows - 1):
        for column in range(columns - 1):
            block = cells[row : row + 2, column : column + 2].ravel()
            block = np.minimum(block / math.sqrt((block**2).sum() + 1e-10), 0.2)
            found.append(block / math.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(found)


@pytest.mark.parametrize(("shape", "cell"), [((16, 16), 4), ((13, 18), 3)])
def test_hog_is_what_a_loop_over_pixels_finds(shape, cell):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, *shape), dtype=np.uint8)
    found = hog(images, cell)
    for image, features in zip(images, found, strict=True):
        expected = np.concatenate([naive(channel / 255, cell) for channel in image])
        np.testing.assert_allclose(features, expected, atol=1e-4)


def test_one_edge_has_one_orientation():
    image = np.zeros((1, 1, 16, 16), dtype=np.uint8)
    image[..., 8:] = 200
    blocks = hog(image, 4).reshape(3, 3, 4, 9)
    # A gradient of 0 degrees lies between the orientations around 10 and around 170.
    assert (blocks[1, 1].sum(axis=0) > 0.1).tolist() == [True] + 7 * [False] + [True]
    assert np.linalg.norm(blocks[1, 1]) == pytest.approx(1.0, abs=1e-4)


def test_a_flat_image_has_none_and_many_images_go_through_in_pieces():
    flat = np.full((600, 1, 8, 8), 7, dtype=np.uint8)
    assert not hog(flat, 4).any()
    assert hog(flat, 4).shape == (600, 36)
