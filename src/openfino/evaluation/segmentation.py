"""Linear segmentation on patch tokens: what a patch shows, told by one linear layer (dinov3.md section 6.1)."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openfino.errors import OpenfinoError
from openfino.evaluation.choice import Choice
from openfino.evaluation.features import Progress
from openfino.evaluation.grid import (
    Grid,
    Head,
    Stack,
    best_point,
    head_of,
    in_order,
    read_ahead,
    row_order,
    stacks_of,
    train_stacks,
)
from openfino.evaluation.heads import LinearHead, new_head
from openfino.evaluation.metrics import Codes
from openfino.evaluation.sources import FeatureSource, Rows
from openfino.keyed import Purpose, keyed_seed

GRID = Grid(lrs=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), weight_decays=(1e-3,))
EPOCHS = 20.0
BATCH_SIZE = 16
STANDARDISED_IMAGES = 1024
"""Mean and deviation of the tokens are taken over at most this many images that train."""


def patch_classes(mask: NDArray[np.integer], patch: int, classes: int) -> Codes:
    """The commonest class of the pixels of every patch, the smaller one at a tie.

    Args:
        mask: class of every pixel [H, W], H and W multiples of ``patch``; what is not in [0, ``classes``) is not known.
        patch: pixels of a side.
        classes: how many there are.

    Returns:
        int64 [H / patch, W / patch], -1 where no pixel is known.
    """
    rows, columns = mask.shape[0] // patch, mask.shape[1] // patch
    pixels = mask.reshape(rows, patch, columns, patch).swapaxes(1, 2).reshape(rows, columns, -1)
    counts = (pixels[..., None] == np.arange(classes)).sum(axis=2)
    return np.where(counts.sum(axis=-1) > 0, counts.argmax(axis=-1), -1)


def confusion(truth: Codes, predicted: Codes, classes: int) -> NDArray[np.int64]:
    """How often each class [row] is taken for each [column]; rows or pixels with truth -1 are left out."""
    known = truth >= 0
    pairs = truth[known] * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def class_ious(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class of a confusion table; NaN for classes that the truth does not have."""
    both, own = table.diagonal(), table.sum(axis=1)
    either = own + table.sum(axis=0) - both
    return np.where(own > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(truth: Codes, predicted: Codes) -> float:
    """Intersection over union of each class that occurs in ``truth`` over all patches or pixels, then the mean.

    Raises:
        ValueError: if nothing in ``truth`` is known (above -1).
    """
    if not (truth >= 0).any():
        raise ValueError("no patch has a known class")
    classes = int(max(truth.max(), predicted.max())) + 1
    return float(np.nanmean(class_ious(confusion(truth, predicted, classes))))


def pixel_classes(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Codes:
    """The class of every pixel: logits of the patches, interpolated bilinearly, then the largest.

    Args:
        logits: [m, P, t], patches row by row.
        grid: rows and columns of patches. size: height and width in pixels.

    Returns:
        int64 [m, height, width].
    """
    maps = logits.mT.unflatten(2, grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).argmax(dim=1).numpy()


@dataclass(frozen=True)
class FittedSegmentation(Choice):
    """The linear layer of a grid that is best on the validation images.

    Attributes:
        lr: its peak learning rate. weight_decay: its weight decay.
        head: on tokens as the backbone gives them.
        points: (learning rate, weight decay) of every point of the grid.
        val_scores: mIoU over the validation patches, of every point; NaN where training diverged.
        steps: optimizer steps. batch_size: images in each.
    """

    lr: float
    weight_decay: float
    head: Head
    points: tuple[tuple[float, float], ...]
    val_scores: tuple[float, ...]
    steps: int
    batch_size: int
    source: FeatureSource = field(repr=False)
    device: torch.device | str

    @torch.no_grad()
    def logits(self, positions: Rows, source: FeatureSource | None = None) -> Iterator[Tensor]:
        """Logits [m, P, t] batch by batch, on the CPU, for positions of the features it was fitted on or of others."""
        head = self.head.to(self.device)
        for _, tokens in in_order(source or self.source, "patches", positions, self.batch_size):
            yield head(tokens.to(self.device)).cpu()

    def predict(self, positions: Rows, source: FeatureSource | None = None) -> Codes:
        """The class of every patch, int64 [m, P]."""
        found = [logits.argmax(dim=2) for logits in self.logits(positions, source)]
        return torch.cat(found).numpy()


def fit_segmentation(
    source: FeatureSource,
    classes: Codes,
    train: Rows,
    val: Rows,
    outputs: int,
    grid: Grid = GRID,
    *,
    steps: int | None = None,
    epochs: float = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FittedSegmentation:
    """Train a linear layer on patch tokens for every point of ``grid`` and keep the one with the best mIoU on ``val``.

    Tokens are standardised by their mean and deviation over patches that train, where the authors have a batch
    normalisation; both are put into the layer afterwards. Cross-entropy over the known patches of a batch of images;
    AdamW and half a cosine as in :func:`openfino.evaluation.grid.fit_grid`.

    Args:
        source: features of n images.
        classes: of every patch, int64 [n, P], -1 where not known (:func:`patch_classes`).
        train: positions in ``source``; images without a known patch are left out.
        val: positions to choose by, none of them in ``train``.
        outputs: number of classes.
        grid: learning rates and weight decays.
        steps: of the optimizer; when not given, as many as ``epochs`` passes need.
        epochs: passes.
        batch_size: images of a step.
        seed: of the first weights and the order of the images.
        device: where the layers are trained.
        progress: called with (steps done, steps in all).

    Raises:
        OpenfinoError: if ``train`` and ``val`` share an image, one of them has no known patch, or every point diverged.
    """
    if len(np.intersect1d(source.rows[train], source.rows[val])):
        raise OpenfinoError("segmentation: images are both trained on and chosen by; name different splits")
    labelled = np.asarray((classes >= 0).any(axis=1))
    train, val = train[labelled[train]], val[labelled[val]]
    if len(train) == 0 or len(val) == 0:
        raise OpenfinoError(
            "segmentation: no image with a known patch to train on or to choose by; check the masks"
        )
    batch_size = min(batch_size, len(train))
    steps = max(1, math.ceil(epochs * len(train) / batch_size)) if steps is None else steps
    mean, scale = _token_statistics(source, next(row_order(train, len(train), 1, seed)), batch_size)
    init = keyed_seed(seed, Purpose.PROBE, zlib.crc32(b"segmentation"))
    head = new_head("linear", len(mean), outputs, seed=init)
    stacks = stacks_of(head, grid.points, device, rows=batch_size * classes.shape[1], kept=outputs**2)
    truth = torch.from_numpy(classes)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, tokens in read_ahead(source, "patches", row_order(train, batch_size, steps, seed)):
            known = truth[rows] >= 0
            yield ((tokens[known] - mean) / scale).to(device), truth[rows][known].to(device)

    train_stacks(stacks, batches(), _cross_entropy, steps=steps, progress=progress)
    scores = _val_scores(stacks, source, classes, val, mean, scale, batch_size)
    best = best_point(scores, [0.0] * len(scores), "miou")
    chosen = _unstandardised(head_of(stacks, best, head), mean, scale)
    return FittedSegmentation(
        *grid.points[best], chosen, grid.points, tuple(scores), steps, batch_size, source, device
    )


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """[g, N, t] and [N] -> [g, N]."""
    return F.cross_entropy(
        logits.permute(1, 2, 0), classes[:, None].expand(-1, len(logits)), reduction="none"
    ).T


def _token_statistics(source: FeatureSource, train: Rows, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1 where constant) of every dimension over the patches of the first images of ``train``."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for _, tokens in in_order(source, "patches", train[:STANDARDISED_IMAGES], batch_size):
        exact = tokens.flatten(0, 1).double()
        count += len(exact)
        total, squares = total + exact.sum(dim=0), squares + (exact**2).sum(dim=0)
    mean = total / count
    scale = (squares / count - mean**2).clamp(min=0).sqrt()
    scale[scale <= 1e-6 * (squares / count).mean().sqrt()] = 1.0
    return mean.float(), scale.float()


@torch.no_grad()
def _val_scores(
    stacks: list[Stack],
    source: FeatureSource,
    classes: Codes,
    val: Rows,
    mean: Tensor,
    scale: Tensor,
    batch_size: int,
) -> list[float]:
    """mIoU of every point over all patches of ``val``."""
    outputs = stacks[0].parameters["bias"].shape[1]
    tables = [np.zeros((outputs, outputs), dtype=np.int64) for stack in stacks for _ in stack.points]
    finite = [True] * len(tables)
    for rows, tokens in in_order(source, "patches", val, batch_size):
        truth = classes[rows].ravel()
        inputs = ((tokens - mean) / scale).flatten(0, 1).to(stacks[0].parameters["bias"].device)
        logits = [each.cpu() for stack in stacks for each in stack.logits(inputs)]
        for number, each in enumerate(logits):
            finite[number] &= bool(each.isfinite().all())
            tables[number] += confusion(truth, each.argmax(dim=1).numpy(), outputs)
    return [
        float(np.nanmean(class_ious(table))) if whole else math.nan
        for table, whole in zip(tables, finite, strict=True)
    ]


def _unstandardised(head: Head, mean: Tensor, scale: Tensor) -> Head:
    """The same layer for tokens as they are."""
    assert isinstance(head, LinearHead)
    with torch.no_grad():
        head.bias.sub_(head.weight @ (mean / scale))
        head.weight.div_(scale)
    return head
