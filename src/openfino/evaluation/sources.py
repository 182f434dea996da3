"""Where a probe gets its features from: parts of them by position, so that they need not fit into memory.

:class:`ArraySource` holds them in memory, :class:`openfino.evaluation.cache.CachedFeatures` on a disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]
Part = Literal["linear", "patches"]
"""``linear``: CLS of the last L blocks, then the mean patch token of the last. ``patches``: patch tokens of the last L
blocks side by side (fino.md section 7)."""


class FeatureSource(Protocol):
    """Frozen features of images, read by position."""

    @property
    def rows(self) -> Rows:
        """Row numbers of the manifest, one per position, int64 [n]."""

    def take(self, positions: Sequence[int] | Rows, part: Part) -> Tensor:
        """The features at ``positions``, in their order, repeats allowed, float32 on the CPU.

        ``linear``: [m, L * D + D]. ``patches``: [m, P, L * D].
        """

    def cls(self) -> NDArray[np.float32]:
        """CLS of the last block after the final norm, of every position, [n, D]."""


@dataclass(frozen=True)
class ArraySource:
    """Features in memory.

    Attributes:
        rows: row numbers of the manifest, int64 [n].
        linear: CLS of the last L blocks from the earlier to the later, then the mean patch token of the last,
            float32 [n, L * D + D].
        patches: patch tokens of the last L blocks side by side, float32 [n, P, L * D]; None where no probe needs
            them.
        layers: L.
    """

    rows: Rows
    linear: NDArray[np.float32]
    patches: NDArray[np.float32] | None = None
    layers: int = 4

    def take(self, positions: Sequence[int] | Rows, part: Part) -> Tensor:
        """See :meth:`FeatureSource.take`.

        Raises:
            ValueError: if there are no patches and ``part`` is ``patches``.
        """
        held = self.linear if part == "linear" else self.patches
        if held is None:
            raise ValueError("these features hold no patch tokens")
        return torch.from_numpy(held[np.asarray(positions, dtype=np.int64)].astype(np.float32, copy=False))

    def cls(self) -> NDArray[np.float32]:
        """See :meth:`FeatureSource.cls`."""
        width = self.linear.shape[1] // (self.layers + 1)
        return np.asarray(self.linear[:, -2 * width : -width], dtype=np.float32)
