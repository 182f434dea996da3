"""Histograms of oriented gradients: what one would have classified images by before networks were trained."""

import numpy as np
from numpy.typing import NDArray

BINS, BLOCK = 9, 2
CLIP = 0.2
CHUNK = 512


def hog(images: NDArray[np.uint8], cell: int) -> NDArray[np.float32]:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of every channel, side by side.

    Centred differences (none at the border), nine orientations without sign, each gradient shared by the two nearest
    ones, cells that do not overlap, blocks of 2 x 2 cells at every place, L2 norm clipped at 0.2 ("L2-Hys").

    Args:
        images: [n, C, H, W].
        cell: side of a cell in pixels; what is left of the sides is not seen.

    Returns:
        [n, C * (H // cell - 1) * (W // cell - 1) * 36].
    """
    parts = [
        _blocks(_cells(images[start : start + CHUNK].astype(np.float32) / 255, cell))
        for start in range(0, len(images), CHUNK)
    ]
    return np.concatenate(parts)


def _cells(images: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """Histograms of the cells [n, C, rows, columns, 9]."""
    down, right = np.zeros_like(images), np.zeros_like(images)
    down[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    right[..., 1:-1] = images[..., 2:] - images[..., :-2]
    magnitude = np.hypot(down, right)
    place = np.arctan2(down, right) % np.pi / np.pi * BINS - 0.5
    low = np.floor(place)
    upper = place - low
    first = low.astype(np.int64) % BINS
    second = (first + 1) % BINS
    rows, columns = images.shape[2] // cell, images.shape[3] // cell
    histograms = []
    for orientation in range(BINS):
        share = (first == orientation) * (1 - upper) + (second == orientation) * upper
        weight = (magnitude * share)[:, :, : rows * cell, : columns * cell]
        histograms.append(weight.reshape(*images.shape[:2], rows, cell, columns, cell).sum(axis=(3, 5)))
    return np.stack(histograms, axis=-1).astype(np.float32)


def _blocks(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalised blocks of cells, side by side [n, F]."""
    rows, columns = (side - BLOCK + 1 for side in cells.shape[2:4])
    shifted = [
        cells[:, :, top : top + rows, left : left + columns] for top in range(BLOCK) for left in range(BLOCK)
    ]
    blocks = _unit(np.minimum(_unit(np.concatenate(shifted, axis=-1)), CLIP))
    return blocks.reshape(len(blocks), -1)


def _unit(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt((blocks**2).sum(axis=-1, keepdims=True) + np.float32(1e-10))
    return blocks / length
