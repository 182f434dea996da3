"""Everything that a sheet shows and ``viz.json`` says of some images, from their features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openfino.diagnostics.maps import PatchColours, cls_cosines, patch_cosines
from openfino.evaluation.features import Features
from openfino.training.guards import feature_rank

Array = NDArray[np.float64]
Grid = tuple[int, int]

PERCENTILES = (5, 25, 50, 75, 95)
SCALE_PERCENTILES = (1.0, 99.0)
# More tokens than these do not change a rank that is at most D, only the time that it takes.
MAX_RANKED = 20_000


@dataclass(frozen=True)
class Diagnosis:
    """The maps of n images with a grid of H x W patches.

    Attributes:
        rows: of the manifest, int64 [n].
        patch: row and column of the reference patch.
        colours: red, green and blue of every patch in [0, 1] [n, H, W, 3].
        explained: share of the variance of the patch tokens that each of the three has [3].
        similarity: cosine of every patch to the reference patch [n, H, W].
        cls: cosine of every patch to CLS [n, H, W].
        scales: what is dark and what is bright of ``similarity`` and ``cls``, over all images.
        ranks: RankMe (:func:`openfino.training.guards.feature_rank`) of CLS over the images, None for one image, and
            of the patch tokens of all images together.
    """

    rows: NDArray[np.int64]
    patch: Grid
    colours: Array
    explained: Array
    similarity: Array
    cls: Array
    scales: dict[str, tuple[float, float]]
    ranks: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """What holds for all images, as plain values."""
        return {
            "grid": list(self.similarity.shape[1:]),
            "reference_patch": list(self.patch),
            "rankme": self.ranks,
            "explained_variance": self.explained.tolist(),
            "scales": {name: list(scale) for name, scale in self.scales.items()},
        }

    def numbers_of(self, position: int) -> dict[str, dict[str, float]]:
        """Mean and percentiles of both maps of the image at ``position``."""
        return {
            "similarity_to_patch": distribution(self.similarity[position]),
            "similarity_to_cls": distribution(self.cls[position]),
        }


def diagnose(features: Features, grid: Grid, patch: Grid | None = None) -> Diagnosis:
    """Maps and numbers of the images of ``features``, which have patch tokens.

    Args:
        features: of at least one image.
        grid: rows and columns of patches.
        patch: row and column of the reference patch; the one at the centre, ``(H // 2, W // 2)``, when not given.
    """
    assert features.patches is not None
    row, column = patch or (grid[0] // 2, grid[1] // 2)
    shape = (len(features), *grid)
    fitted = PatchColours.fit(features.patches)
    similarity = patch_cosines(features.patches, row * grid[1] + column)
    cls = cls_cosines(features.cls, features.patches)
    return Diagnosis(
        rows=features.rows,
        patch=(row, column),
        colours=fitted(features.patches).reshape(*shape, 3),
        explained=fitted.explained,
        similarity=similarity.reshape(shape),
        cls=cls.reshape(shape),
        scales={name: _scale(values) for name, values in (("similarity", similarity), ("cls", cls))},
        ranks={
            "cls": _rank(features.cls) if len(features) > 1 else None,
            "patches": _rank(features.patches.reshape(-1, features.patches.shape[-1])),
        },
    )


def distribution(values: Array) -> dict[str, float]:
    """Mean, and percentiles as ``p5``, ``p25`` ..."""
    found = np.percentile(values, PERCENTILES)
    shares = {f"p{name}": float(value) for name, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": float(values.mean()), **shares}


def _scale(values: Array) -> tuple[float, float]:
    """From the first to the last percentile: a single patch must not make the others look alike."""
    low, high = np.percentile(values, SCALE_PERCENTILES)
    return float(low), float(high)


def _rank(tokens: NDArray[np.float32]) -> float:
    """RankMe of tokens [m, D]; of many, of evenly spaced ones."""
    chosen = tokens[:: -(-len(tokens) // MAX_RANKED)]
    return float(feature_rank(torch.from_numpy(np.ascontiguousarray(chosen))))
