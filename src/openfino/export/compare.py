"""The features of what was written against those of the model in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from openfino.export.door import Opened
from openfino.images.normalize import normalize
from openfino.keyed import Purpose, keyed_generator
from openfino.models.store import LoadedModel

TOKENS = ("cls", "registers", "patches")


@dataclass(frozen=True)
class Difference:
    """Outputs compared over several images.

    Attributes:
        max_abs: largest absolute difference of any value of a token.
        min_cosine: smallest cosine similarity of two corresponding tokens.
        scale: root mean square of the values.
        images: [B, C, H, W] of the batches that were compared.
    """

    max_abs: float
    min_cosine: float
    scale: float
    images: list[tuple[int, ...]]

    def within(self, tolerance: float) -> bool:
        """Whether no value differs by more than ``tolerance`` of the scale, nor a cosine from 1 (NaN does)."""
        return self.max_abs <= tolerance * self.scale and self.min_cosine >= 1 - tolerance


def fixed_images(model: LoadedModel, *, any_size: bool = True) -> Iterator[Tensor]:
    """Batches of noise in [0, 1], the same in every run: of the preprocessing's size, square, and oblong.

    Args:
        model: for its channels, its preprocessing and the size of its patches.
        any_size: whether to leave the preprocessing's size.
    """
    patch = model.backbone.patch_size
    sizes = [(2, *model.preprocessing.size)]
    if any_size:
        sizes += [(3, 4 * patch, 4 * patch), (1, 3 * patch, 5 * patch)]
    for count, height, width in sizes:
        shape = (count, model.backbone.channels, height, width)
        noise = keyed_generator(0, Purpose.PROBE).random(shape, dtype="float32")
        yield torch.from_numpy(noise)


@torch.inference_mode()
def compare(model: LoadedModel, opened: Opened, *, any_size: bool = True) -> Difference:
    """``opened`` against ``model`` on :func:`fixed_images`: every output token."""
    largest, cosines, squares, count, shapes = 0.0, 1.0, 0.0, 0, []
    for images in fixed_images(model, any_size=any_size):
        ours = model.backbone(normalize(images, model.preprocessing.normalization))
        theirs = opened(images)
        shapes.append(tuple(images.shape))
        for name in TOKENS:
            here, there = getattr(ours, name).double(), getattr(theirs, name).double()
            if here.shape != there.shape:
                return Difference(float("inf"), -1.0, 1.0, shapes)
            if here.numel() == 0:
                continue
            # Not max(): it would lose a NaN.
            largest = float(torch.tensor([largest, float((here - there).abs().max())]).max())
            cosine = float(cosine_similarity(here, there, dim=-1).min())
            cosines = float(torch.tensor([cosines, cosine]).min())
            squares += float(here.square().sum())
            count += here.numel()
    return Difference(largest, cosines, (squares / max(count, 1)) ** 0.5, shapes)
