"""Features with a factor taken out, and features as other readers want them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openfino.evaluation.erasure import Eraser
from openfino.evaluation.features import Features
from openfino.evaluation.leakage import Known, shrunk_eraser
from openfino.evaluation.sources import FeatureSource, Part

Rows = NDArray[np.int64]
CHUNK = 512


@dataclass(frozen=True)
class ErasedSource:
    """A :class:`openfino.evaluation.sources.FeatureSource` without a factor (LEACE, closed form).

    Each D-wide block of the features has an eraser of its own: CLS of each layer, the mean patch token, and of each
    layer the patch tokens. That of the patch tokens is fitted on their mean over an image and moves every token alike,
    so that the mean of the erased tokens is the erased mean: no linear reader of it tells the factor. What attention
    may still tell is measured, not promised.

    Attributes:
        source: the features as they are.
        linear: of the blocks of ``linear``.
        patches: of the blocks of ``patches``; empty where no probe needs them.
    """

    source: FeatureSource
    linear: list[Eraser]
    patches: list[Eraser]

    @property
    def rows(self) -> Rows:
        """See :class:`FeatureSource`."""
        return self.source.rows

    def take(self, positions: Sequence[int] | Rows, part: Part) -> Tensor:
        """See :meth:`FeatureSource.take`."""
        erasers = self.linear if part == "linear" else self.patches
        found = self.source.take(positions, part)
        blocks = found.flatten(0, -2).numpy().reshape(-1, len(erasers), found.shape[-1] // len(erasers))
        erased = np.stack([eraser(blocks[:, place]) for place, eraser in enumerate(erasers)], axis=1)
        return torch.from_numpy(erased.reshape(found.shape))

    def cls(self) -> NDArray[np.float32]:
        """See :meth:`FeatureSource.cls`."""
        return self.linear[-2](self.source.cls())

    def of(self, source: FeatureSource) -> "ErasedSource":
        """Other features with the same erasure."""
        return ErasedSource(source, self.linear, self.patches)


def erase_source(
    source: FeatureSource, known: Known, positions: Rows, *, patches: bool = True
) -> ErasedSource:
    """Fit the erasure of a factor.

    Args:
        source: of n rows.
        known: the factor on these rows.
        positions: to fit on; those without a value are passed over.
        patches: whether the features have patch tokens, which are to be erased from too.
    """
    fitted = positions[known.valid[positions]]
    target = known.target[fitted]
    width = source.cls().shape[1]

    def erasers(features: NDArray[np.float32]) -> list[Eraser]:
        blocks = np.split(features, features.shape[1] // width, axis=1)
        return [shrunk_eraser(block, target) for block in blocks]

    linear = erasers(source.take(fitted, "linear").numpy())
    if not patches:
        return ErasedSource(source, linear, [])
    tokens = [
        source.take(fitted[start : start + CHUNK], "patches").mean(dim=1)
        for start in range(0, len(fitted), CHUNK)
    ]
    return ErasedSource(source, linear, erasers(torch.cat(tokens).numpy()))


def plain_features(source: FeatureSource, positions: Rows) -> Features:
    """CLS and mean of the last block, as leakage reads them."""
    linear = source.take(positions, "linear").numpy()
    width = source.cls().shape[1]
    return Features(
        source.rows[positions],
        np.ascontiguousarray(linear[:, -2 * width : -width]),
        np.ascontiguousarray(linear[:, -width:]),
        None,
        [],
        [],
    )
