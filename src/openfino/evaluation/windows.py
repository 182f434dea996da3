"""Images larger than the crop of the model, read as overlapping windows at their own scale."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.images.normalize import normalize
from openfino.images.preprocess import Preprocessing, require_channels
from openfino.images.read import as_unit_float, read_image

OVERLAP = 0.25
"""Share of a window that its neighbour sees too, at least."""


@dataclass(frozen=True)
class Side:
    """How one side of an image is covered.

    Attributes:
        length: pixels that the side is resized to.
        starts: where the windows start, in pixels of ``length``, evenly spread from border to border.
    """

    length: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """The windows of one image, row by row.

    Attributes:
        pixels: [K, C, h, w], each normalised on its own, as the crops of training are.
        rows: how its height is covered.
        columns: how its width is covered; K is the product of both.
    """

    pixels: Tensor
    rows: Side
    columns: Side


def plan_windows(size: tuple[int, int], crop: tuple[int, int], most: int) -> tuple[Side, Side]:
    """Cover an image by windows of the size of the crop.

    An image keeps its own scale, unless more than ``most`` windows per side were needed: then it shrinks, both sides
    alike, until they suffice. A side that is shorter than the crop is stretched to it. ``most=1`` is the whole image
    at the size of the crop, as without windows.

    Args:
        size: height and width of the image.
        crop: height and width of a window.
        most: windows per side, at most.

    Returns:
        How height and width are covered.

    Raises:
        ValueError: if ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"windows must be 1 or more per side, not {most}")
    strides = [max(1, math.floor((1 - OVERLAP) * length)) for length in crop]
    reach = [length + (most - 1) * stride for length, stride in zip(crop, strides, strict=True)]
    scale = min(1.0, *(far / length for far, length in zip(reach, size, strict=True)))
    height, width = (
        _cover(min(max(round(scale * length), window), far), window, stride)
        for length, window, far, stride in zip(size, crop, reach, strides, strict=True)
    )
    return height, width


def _cover(length: int, window: int, stride: int) -> Side:
    """Windows over ``length`` pixels, no two neighbours further apart than ``stride``."""
    steps = math.ceil((length - window) / stride)
    return Side(length, tuple(round(step * (length - window) / max(steps, 1)) for step in range(steps + 1)))


def load_windows(preprocessing: Preprocessing, paths: Sequence[Path], most: int) -> Windows:
    """One image as windows: read, resized if need be (bilinear, antialiased), cut, normalised.

    Raises:
        ImageReadError: if the image cannot be read or has another number of channels.
    """
    image = read_image(paths)
    require_channels(image.shape[0], len(preprocessing.channels), paths)
    return cut_windows(torch.from_numpy(as_unit_float(image)), preprocessing, most)


def cut_windows(image: Tensor, preprocessing: Preprocessing, most: int) -> Windows:
    """The same for an image [C, H, W] with values in [0, 1]."""
    height, width = preprocessing.size
    rows, columns = plan_windows((image.shape[1], image.shape[2]), (height, width), most)
    size = (rows.length, columns.length)
    resized = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    corners = itertools.product(rows.starts, columns.starts)
    cut = torch.stack([resized[:, top : top + height, left : left + width] for top, left in corners])
    return Windows(normalize(cut, preprocessing.normalization), rows, columns)


def stitch(patches: Tensor, rows: Side, columns: Side, grid: tuple[int, int]) -> Tensor:
    """The patch tokens of an image's windows as one map of the image, with the grid of a single window.

    Each cell of the map is the mean of all tokens over the area that they share with it, so that a probe gets as many
    tokens from every image, in their places.

    Args:
        patches: [K, P, D], the windows row by row.
        rows: how the height is covered.
        columns: how the width is covered.
        grid: rows and columns of the patches of one window; P is their product.

    Returns:
        [P, D], row by row.
    """
    maps = patches.unflatten(1, grid).unflatten(0, (len(rows.starts), len(columns.starts)))
    maps = maps.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)  # rows of tokens, columns of tokens, D
    down, across = (_shares(side, cells).to(maps) for side, cells in zip((rows, columns), grid, strict=True))
    return torch.einsum("ay,bx,yxd->abd", down, across, maps).flatten(0, 1)


def _shares(side: Side, cells: int) -> Tensor:
    """What every token of the windows along a side adds to every cell of the map, [cells, windows * cells]."""
    window = side.length - side.starts[-1]
    token = window / cells
    starts = torch.tensor(side.starts, dtype=torch.float64)[:, None] + token * torch.arange(cells)
    starts = starts.flatten()
    cell = side.length / cells
    left = cell * torch.arange(cells, dtype=torch.float64)[:, None]
    shared = (torch.minimum(starts + token, left + cell) - torch.maximum(starts, left)).clamp(min=0)
    return shared / shared.sum(dim=1, keepdim=True)
