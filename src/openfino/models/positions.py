"""Absolute position embeddings: a square grid, resized to the grid of a crop."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import sides


def resize_positions(
    stored: Tensor, grid: tuple[int, int], mode: Literal["bicubic", "bilinear"], *, antialias: bool
) -> Tensor:
    """Position embeddings [rows * columns, D] for a ``grid`` of patches, from the ``stored`` [S * S, D].

    As transformers resizes them, in float32 at least; but always, without its short cut for the stored grid, which
    would tie a traced model to one size (resized to their own grid they stay as they are, bit for bit).
    """
    side = math.isqrt(stored.shape[0])
    table = stored.to(torch.promote_types(stored.dtype, torch.float32)).T.unflatten(1, (side, side))[None]
    resized = F.interpolate(table, grid, mode=mode, align_corners=False, antialias=antialias)
    return resized[0].flatten(1).T.to(stored.dtype)


def refuse_oblong_positions(config: PreTrainedConfig) -> None:
    """Position embeddings are stored as a square grid; transformers would misread any other.

    Raises:
        OpenfinoError: if ``image_size`` is not square.
    """
    height, width = sides(config.image_size)
    if height != width:
        raise OpenfinoError(
            f"image_size {height} x {width}: the position embeddings of a {config.model_type} model must be a "
            "square grid (crops may have any shape). Give one number"
        )
