"""Maps over the patches of an image: cosine similarities, and principal components as colours.

The pictures with which DINOv2 and DINOv3 show dense features (DINOv3, arXiv 2508.10104, sections 4 and 6). All of it is
computed in float64, image by image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COMPONENTS = 3
SHOWN_PERCENTILES = (2.0, 98.0)
# A component whose spread is less than this share of the length of a token is rounding, not structure.
MIN_SPREAD = 1e-6
PCA_RECIPE = (
    "PCA of the patch tokens after the last norm (CLS and registers dropped), one fit over all images of the sheet; "
    "centred, not whitened; components 1, 2, 3 are red, green, blue, each from its 2nd to its 98th percentile over all "
    "images; the largest entry of each direction is positive"
)


def patch_cosines(patches: NDArray[np.floating], patch: int) -> Array:
    """Cosine of every patch token to one patch token of the same image.

    Args:
        patches: [n, P, D].
        patch: the place of the reference patch, in [0, P).

    Returns:
        [n, P] in [-1, 1]; 0 for a token of length zero.
    """
    return np.stack([_cosines(own, own[patch]) for own in patches])


def cls_cosines(cls: NDArray[np.floating], patches: NDArray[np.floating]) -> Array:
    """Cosine of the CLS token to every patch token of the same image.

    Args:
        cls: [n, D].
        patches: [n, P, D].

    Returns:
        [n, P] in [-1, 1]; 0 for a token of length zero.
    """
    return np.stack([_cosines(own, token) for own, token in zip(patches, cls, strict=True)])


@dataclass(frozen=True)
class PatchColours:
    """Principal components of patch tokens, scaled to colours.

    Attributes:
        mean: of the tokens it was fitted on [D].
        directions: orthonormal, by falling variance [3, D]; zero where there are fewer components than three. The
            entry with the largest magnitude (the first of equals) is positive: the sign of a component is arbitrary,
            and must not differ from one call to the next.
        low: what of each component is 0 [3].
        high: what of each component is 1 [3]; equal to ``low`` for a component without spread, which is 0.5 everywhere.
        explained: share of the variance that each component has [3].
    """

    mean: Array
    directions: Array
    low: Array
    high: Array
    explained: Array

    @classmethod
    def fit(cls, patches: NDArray[np.floating]) -> "PatchColours":
        """Fit on the tokens of several images together, as :data:`PCA_RECIPE` says.

        Args:
            patches: patch tokens after the last norm, without CLS and registers [n, P, D].
        """
        mean = np.mean([own.mean(axis=0, dtype=np.float64) for own in patches], axis=0)
        covariance = sum(_scatter(own - mean) for own in patches) / patches[..., 0].size
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = variances[::-1].clip(0), vectors[:, ::-1].T  # largest first
        directions, explained = np.zeros((COMPONENTS, len(mean))), np.zeros(COMPONENTS)
        length = np.sqrt(mean @ mean + variances.sum())
        known = int((np.sqrt(variances[:COMPONENTS]) > MIN_SPREAD * length).sum())
        for place in range(known):
            directions[place] = _with_sign(vectors[place])
        explained[:known] = variances[:known] / variances.sum()
        projected = np.concatenate([(own - mean) @ directions.T for own in patches])
        low, high = np.percentile(projected, SHOWN_PERCENTILES, axis=0)
        return cls(mean, directions, low, high, explained)

    def __call__(self, patches: NDArray[np.floating]) -> Array:
        """Red, green and blue in [0, 1] of patch tokens: [n, P, D] -> [n, P, 3]."""
        projected = np.stack([(own - self.mean) @ self.directions.T for own in patches])
        spread = self.high - self.low
        scaled = (projected - self.low) / np.where(spread > 0, spread, 1)
        return np.where(spread > 0, np.clip(scaled, 0, 1), 0.5)


def _cosines(tokens: NDArray[np.floating], reference: NDArray[np.floating]) -> Array:
    """Cosine of each of ``tokens`` [P, D] to ``reference`` [D]."""
    tokens, reference = tokens.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(tokens, axis=1) * np.linalg.norm(reference)
    cosines: Array = (tokens @ reference) / np.where(lengths > 0, lengths, 1)
    return cosines.clip(-1, 1)


def _scatter(centred: Array) -> Array:
    return centred.T @ centred


def _with_sign(direction: Array) -> Array:
    """``direction`` or its opposite, so that its largest entry is positive."""
    return direction * np.copysign(1.0, direction[np.abs(direction).argmax()])
