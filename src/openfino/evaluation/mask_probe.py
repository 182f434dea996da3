"""Linear segmentation against mask files: from a column of the table to mIoU with intervals."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openfino.errors import OpenfinoError, Problem
from openfino.evaluation.features import Progress, patch_grid
from openfino.evaluation.metrics import Codes
from openfino.evaluation.scores import Interval, middle_of, row_draws
from openfino.evaluation.segmentation import (
    FittedSegmentation,
    fit_segmentation,
    patch_classes,
    pixel_classes,
)
from openfino.evaluation.sources import FeatureSource, Rows
from openfino.images.class_maps import ClassMap, at_size, read_class_map
from openfino.images.read import ImageReadError
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel

NOT_KNOWN = 255
"""In 8-bit masks, as in most benchmarks."""
UNSURE = -1  # 255 in an 8-bit mask, until all masks are read
MOST_CLASSES = 1024
READERS = 8
DRAWS = 1000


@dataclass(frozen=True)
class Masks:
    """The masks of a table.

    Attributes:
        manifest: the table.
        column: names a mask file for each image, relative to the same folder as images.
        values: the numbers that are classes, rising; a class is an index into them.
    """

    manifest: Manifest
    column: str
    values: tuple[int, ...]

    def classes(self, row: int, size: tuple[int, int]) -> Codes:
        """The class of every pixel of the image of ``row`` at ``size``, int64 [h, w], -1 where not known."""
        mask = at_size(_read(self.manifest, self.column, row), size).astype(np.int64)
        known = np.asarray(self.values, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, mask), len(known) - 1)
        return np.where(known[place] == mask, place, -1)


@dataclass(frozen=True)
class SegmentationScores:
    """How well the classes of pixels were told on one split.

    Attributes:
        images: with a mask and features.
        miou: mean over the classes that occur of intersection over union, over all pixels.
        patch_miou: the same over all patches, by which the layer was chosen: what the size of a patch hides does not
            count.
        intervals: 95 %, over images, of ``miou`` and ``patch_miou``.
        ious: of each class over all pixels, by its number in the masks; classes that do not occur are absent.
    """

    images: int
    miou: float
    patch_miou: float
    intervals: dict[str, Interval]
    ious: dict[str, float]


@dataclass(frozen=True)
class SegmentationResult:
    """Linear segmentation on frozen patch tokens.

    Attributes:
        masks: the column.
        classes: numbers in the masks.
        train_images: that the layer was fitted on.
        val_images: that its learning rate and weight decay were chosen on.
        chosen: see :meth:`openfino.evaluation.choice.Choice.choice`.
        splits: scores by name of the split.
    """

    masks: str
    classes: list[int]
    train_images: int
    val_images: int
    chosen: dict[str, Any]
    splits: dict[str, SegmentationScores]


def open_masks(manifest: Manifest, column: str, rows: Mapping[str, Rows]) -> tuple[Masks, list[Problem]]:
    """Read every mask once, and say what is wrong with them.

    Negative numbers are not known, nor is 255 in 8-bit masks, unless those hold nothing but 0 and 255.

    Args:
        manifest: the table.
        column: with the mask files.
        rows: rows with a mask by the split that they belong to; the first one trains.
    """
    every = np.unique(np.concatenate(list(rows.values())))

    def numbers(row: int) -> set[int] | ImageReadError:
        try:
            mask = _read(manifest, column, row)
        except ImageReadError as error:
            return error
        found = {number for number in np.unique(mask).tolist() if number >= 0}
        return {UNSURE if number == NOT_KNOWN else number for number in found} if _is_small(mask) else found

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(every.tolist(), pool.map(numbers, every.tolist()), strict=True))
    held = {row: values for row, values in found.items() if isinstance(values, set)}
    occurring = set[int]().union(*held.values())
    binary = occurring <= {0, UNSURE}
    classes = {NOT_KNOWN if number == UNSURE else number for number in occurring if binary or number >= 0}
    problems = [
        Problem(f"column {column}, {name}", "no row has a mask", "Fill it, or name another split")
        for name, own in rows.items()
        if len(own) == 0
    ]
    unread = [row for row, values in found.items() if not isinstance(values, set)]
    if unread:
        what = (
            f"{len(unread)} masks cannot be read: {manifest.list_rows(unread)}. The first: {found[unread[0]]}"
        )
        remedy = (
            "Write images of class numbers beside the images, one channel, and name them as the table does"
        )
        problems.append(Problem(f"column {column}", what, remedy))
    elif not problems and not 2 <= len(classes) <= MOST_CLASSES:
        what = f"its masks hold {len(classes)} different class numbers"
        remedy = f"A mask holds one number for each class, from 2 to {MOST_CLASSES:,} of them"
        problems.append(Problem(f"column {column}", what, remedy))
    return Masks(manifest, column, tuple(sorted(classes))), problems


def masked_rows(manifest: Manifest, column: str) -> NDArray[np.bool_]:
    """Whether each row of the table names a mask."""
    return manifest.table[column].is_not_null().to_numpy()


def fit_masks(
    masks: Masks,
    model: LoadedModel,
    source: FeatureSource,
    train: Rows,
    val: Rows,
    *,
    seed: int,
    device: torch.device | str,
    steps: int | None = None,
    progress: Progress | None = None,
) -> FittedSegmentation:
    """Fit a linear layer on patch tokens and choose it, for positions of ``source``; those without a mask are left out.

    See :func:`openfino.evaluation.segmentation.fit_segmentation` for the other arguments.

    Raises:
        OpenfinoError: if none of ``train`` or ``val`` has a known patch.
    """
    classes = np.full((len(source.rows), math.prod(patch_grid(model))), -1, dtype=np.int64)
    given = masked_rows(masks.manifest, masks.column)
    for position in np.concatenate([train, val]).tolist():
        row = int(source.rows[position])
        if given[row]:
            classes[position] = _of_patches(masks, model, masks.classes(row, _size(model)))
    count = len(masks.values)
    return fit_segmentation(
        source, classes, train, val, count, steps=steps, seed=seed, device=device, progress=progress
    )


def score_masks(
    masks: Masks,
    model: LoadedModel,
    fitted: FittedSegmentation,
    source: FeatureSource,
    positions: Rows,
    clusters: Codes | None,
    *,
    seed: int,
) -> SegmentationScores:
    """mIoU over patches, and over pixels at the model's evaluation size, to which logits are interpolated bilinearly.

    Args:
        masks: of the table.
        model: whose features these are.
        fitted: of :func:`fit_masks`.
        source: features of n images.
        positions: images in ``source``, each with a mask.
        clusters: of every row of the table, what is drawn together; rows by themselves when not given.
        seed: of the draws.

    Raises:
        OpenfinoError: if there is no pixel whose class is known.
    """
    count, grid, size = len(masks.values), patch_grid(model), _size(model)
    areas = {name: np.zeros((3, len(positions), count)) for name in ("miou", "patch_miou")}
    done = 0
    for batch in fitted.logits(positions, source):
        for logits in batch:
            pixels = masks.classes(int(source.rows[positions[done]]), size)
            areas["miou"][:, done] = _areas(pixels, pixel_classes(logits[None], grid, size)[0], count)
            said = logits.argmax(dim=1).numpy()
            areas["patch_miou"][:, done] = _areas(_of_patches(masks, model, pixels), said, count)
            done += 1
    if not areas["miou"].any():
        raise OpenfinoError(
            f"segmentation: no usable image with a known pixel among {len(positions)} masks to score"
        )
    own = None if clusters is None else clusters[source.rows[positions]]
    once = np.ones((len(positions), 1))
    draws: dict[str, list[NDArray[np.float64]]] = {name: [] for name in areas}
    for weights in row_draws(len(positions), own, DRAWS, seed):
        for name, every in areas.items():
            draws[name].append(_mean(_ious(every, weights)))
    ious = _ious(areas["miou"], once)[:, 0]
    return SegmentationScores(
        len(positions),
        float(_mean(_ious(areas["miou"], once))[0]),
        float(_mean(_ious(areas["patch_miou"], once))[0]),
        {name: middle_of(np.concatenate(drawn)) for name, drawn in draws.items()},
        {str(value): float(iou) for value, iou in zip(masks.values, ious, strict=True) if not np.isnan(iou)},
    )


def _areas(truth: Codes, said: Codes, count: int) -> NDArray[np.float64]:
    """How much of each class is told right, is in the truth, and is in the prediction, [3, C]; where it is known."""
    known = truth >= 0
    parts = truth[known & (truth == said)], truth[known], said[known]
    return np.stack([np.bincount(part, minlength=count) for part in parts]).astype(np.float64)


def _of_patches(masks: Masks, model: LoadedModel, pixels: Codes) -> Codes:
    """The class of every patch, row by row, int64 [P]."""
    return patch_classes(pixels, model.backbone.patch_size, len(masks.values)).ravel()


def _ious(areas: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each class in each draw [C, d]; NaN where the truth does not have it."""
    right, truth, said = (each.T @ weights for each in areas)
    return np.where(truth > 0, right / np.maximum(truth + said - right, 1), np.nan)


def _mean(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the classes that occur, [d]; NaN in a draw without any."""
    occurs = ~np.isnan(ious)
    count = occurs.sum(axis=0)
    return np.where(count > 0, np.where(occurs, ious, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _size(model: LoadedModel) -> tuple[int, int]:
    """Height and width that whole patches cover at the model's evaluation size."""
    rows, columns = patch_grid(model)
    return rows * model.backbone.patch_size, columns * model.backbone.patch_size


def _read(manifest: Manifest, column: str, row: int) -> ClassMap:
    return read_class_map(manifest.root / str(manifest.table[column][row]))


def _is_small(mask: ClassMap) -> bool:
    return mask.dtype == np.uint8
