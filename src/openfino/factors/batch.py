"""One factor's values for the images of a batch: what terms receive."""

from dataclasses import dataclass

from torch import Tensor


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
