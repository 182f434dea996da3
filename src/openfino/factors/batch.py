"""One factor's values for the images of a batch: what terms receive."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openfino.distributed import to_device


@dataclass(frozen=True)
class FactorBatch:
    """One factor's values for the images of a batch.

    Attributes:
        values: discrete: row of the vocabulary, int64 [B]; continuous and vector: float32 [B, n] in [0, 1],
            mapped linearly from the (minimum, maximum) of the vocabulary per dimension; cyclic: (sin, cos) of
            the phase, float32 [B, 2]. Arbitrary (but finite, in range) where not valid.
        valid: bool [B]; False where the manifest holds no value.
    """

    values: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> "FactorBatch":
        """The same values on ``device``."""
        return FactorBatch(to_device(self.values, device), to_device(self.valid, device))

    def slice(self, start: int, stop: int) -> "FactorBatch":
        """Images ``start`` to ``stop``, without copying."""
        return FactorBatch(self.values[start:stop], self.valid[start:stop])

    @classmethod
    def cat(cls, pieces: Sequence["FactorBatch"]) -> "FactorBatch":
        """Join the pieces of one batch, in order."""
        values = torch.cat([piece.values for piece in pieces])
        return cls(values, torch.cat([piece.valid for piece in pieces]))
