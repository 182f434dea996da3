"""Random-resized crops, cut on the workers (DESIGN decision 9).

8-bit images are resized as 8-bit integers (PyTorch's vectorised kernel, several times faster than floating
point) and stay uint8 until they reach the device; 16-bit and floating-point images become float32 in [0, 1].
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openfino.images.read import as_unit_float

_TRIES = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class Turn(NamedTuple):
    """Flips, then anticlockwise quarter turns: the last arguments of :func:`cut`."""

    flip_h: bool
    flip_v: bool
    quarter_turns: int


def sample_crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """A random box of the image: its share of the area uniform in ``scale``, width / height log-uniform.

    Ten draws; when none fits, the largest central box whose aspect is nearest to the image's own and within
    ``aspect``.

    Args:
        rng: the image's own generator.
        height: of the image, in pixels.
        width: of the image, in pixels.
        scale: (low, high) share of the image's area.
        aspect: (low, high) width / height.
    """
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_TRIES):
        u_scale, u_aspect, u_top, u_left = rng.random(4).tolist()
        area = height * width * (scale[0] + u_scale * (scale[1] - scale[0]))
        ratio = math.exp(log_low + u_aspect * (log_high - log_low))
        box_height = max(1, round(math.sqrt(area / ratio)))
        box_width = max(1, round(math.sqrt(area * ratio)))
        if box_height <= height and box_width <= width:
            top = int(u_top * (height - box_height + 1))
            left = int(u_left * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_height = max(1, min(height, round(width / ratio)))
    box_width = max(1, min(width, round(height * ratio)))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def sample_turn(rng: np.random.Generator, preset: str) -> Turn:
    """Flips and turns of a preset.

    ``natural`` mirrors left to right half of the time, ``fluorescence`` mirrors both ways independently,
    ``overhead`` mirrors both ways and turns by a right angle, all equally likely.
    """
    flip_h, flip_v, turns = rng.random(3).tolist()
    if preset == "natural":
        return Turn(flip_h < 0.5, False, 0)
    quarter_turns = int(4 * turns) if preset == "overhead" else 0
    return Turn(flip_h < 0.5, flip_v < 0.5, quarter_turns)


def as_source(image: np.ndarray) -> Tensor:
    """The image to cut crops from: uint8, or float32 in [0, 1].

    8-bit images of three or four channels get pixel-interleaved memory, for which the resize is fastest.
    """
    if image.dtype != np.uint8:
        return torch.from_numpy(as_unit_float(image))
    source = torch.from_numpy(image)
    if image.shape[0] in (3, 4):
        source = source.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return source


def cut(
    image: Tensor,
    box: Box,
    size: Sequence[int],
    flip_h: bool = False,
    flip_v: bool = False,
    quarter_turns: int = 0,
) -> Tensor:
    """Cut ``box`` out of ``image`` and resize it to ``size`` (bicubic, antialiased), then flip and turn it.

    A box smaller than ``size`` is enlarged. Overshoot of the bicubic filter is clamped to the value range.

    Args:
        image: [C, H, W], uint8, or float32 in [0, 1] (see :func:`as_source`).
        box: within the image.
        size: (height, width) of the result.
        flip_h: mirror left to right.
        flip_v: mirror top to bottom.
        quarter_turns: anticlockwise, after the flips.

    Returns:
        [C, height, width] of the image's type.
    """
    height, width = size if quarter_turns % 2 == 0 else (size[1], size[0])
    region = image[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    crop = F.interpolate(region, (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
    if crop.is_floating_point():
        crop = crop.clamp(0.0, 1.0)
    flips = [axis for axis, flipped in ((1, flip_v), (2, flip_h)) if flipped]
    if flips:
        crop = crop.flip(flips)
    return torch.rot90(crop, quarter_turns, (1, 2)) if quarter_turns else crop
