"""LEACE: the smallest linear change of features after which no linear reader tells a factor from them.

Closed form of Belrose et al. 2023 (arXiv 2306.03819, theorem 4.3). It costs no training, so it is what guidance
that erases has to beat.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openfino.errors import OpenfinoError
from openfino.evaluation.metrics import Codes

Doubles = NDArray[np.float64]
AnyFloat = TypeVar("AnyFloat", np.float32, np.float64)

# Covariance of features of variance 1 with a target of scale 1 that is rounding, and no direction to take out.
NO_COVARIANCE = 1e-10


@dataclass(frozen=True)
class Eraser:
    """The fitted map r(x) = x - W^+ U U^T W (x - E[x]), by its factors.

    Attributes:
        mean: E[x], float64 [D].
        give_back: W^+ U, float64 [D, r].
        take: U^T W, float64 [r, D].
    """

    mean: Doubles
    give_back: Doubles
    take: Doubles

    @property
    def dimensions(self) -> int:
        """r, the directions that are taken out; at most the number of values less one, and at most D."""
        return self.take.shape[0]

    def __call__(self, features: NDArray[AnyFloat]) -> NDArray[AnyFloat]:
        """Features [n, D] without what a linear reader could tell the factor from; same dtype, computed in float64."""
        centred = features.astype(np.float64) - self.mean
        return (features - (centred @ self.take.T) @ self.give_back.T).astype(features.dtype)


def fit_eraser(
    features: NDArray[np.floating], target: Codes | NDArray[np.floating], *, shrinkage: float = 0.0
) -> Eraser:
    """Fit LEACE: with W = (Sigma_xx^(1/2))^+ and U an orthonormal basis of the span of W Sigma_xz.

    Where Sigma_xx has not full rank (fewer rows than dimensions, constant dimensions), the pseudo-inverse leaves the
    directions in which the rows do not differ as they are. With few more rows than dimensions the smallest variances
    are far too small, and rows that took no part are thrown far off; a little ``shrinkage`` prevents that, and leaves
    the erasure as exact as it was: only what counts as the smallest change differs.

    Args:
        features: of the rows to fit on, and of no others [n, D], n >= 1.
        target: the factor on these rows: classes, int64 [n] (taken one-hot), or numbers, float [n, t].
        shrinkage: share of Sigma_xx, from 0 (the paper) to 1, that is replaced by the identity times the mean variance.

    Raises:
        OpenfinoError: if there is no row, or their numbers differ.
    """
    if len(features) == 0 or len(features) != len(target):
        raise OpenfinoError(
            f"an erasure needs rows with a value to be fitted on: {len(features)} rows, {len(target)} values"
        )
    exact = features.astype(np.float64)
    mean = exact.mean(axis=0)
    centred = exact - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
    kept = variances > len(variances) * np.finfo(np.float64).eps * max(variances[-1], 0.0)
    scales, axes = np.sqrt(variances[kept]), axes[:, kept]
    # In the coordinates of the axes W is diagonal: whitened = W Sigma_xz.
    whitened = axes.T @ _cross_covariance(centred, target) / scales[:, None]
    left, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
    basis = left[:, sizes > NO_COVARIANCE * _scale(target)]
    return Eraser(mean, (axes * scales) @ basis, (basis / scales[:, None]).T @ axes.T)


def _cross_covariance(centred: Doubles, target: Codes | NDArray[np.floating]) -> Doubles:
    """Sigma_xz [D, t]; classes one-hot, without writing the zeros out."""
    if target.ndim == 2:
        numbers = target.astype(np.float64)
        return centred.T @ (numbers - numbers.mean(axis=0)) / len(centred)
    classes, members = np.unique(target, return_inverse=True)
    sums = np.zeros((len(classes), centred.shape[1]))
    np.add.at(sums, members, centred)
    return sums.T / len(centred)


def _scale(target: Codes | NDArray[np.floating]) -> float:
    """What a covariance is measured against: 1 for one-hot classes, else the largest deviation of a column."""
    if target.ndim == 1:
        return 1.0
    deviation = float(target.std(axis=0, dtype=np.float64).max())
    return deviation if deviation > 1e-12 * float(np.abs(target).max()) else np.inf
