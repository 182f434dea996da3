"""Linear readers in closed form: regularised discriminant analysis for classes, ridge regression for numbers.

They tell how much of a factor a linear map finds in frozen features, for every factor of a run and for factors of
hundreds of values, where fitting a logistic regression each time would take longer than the training they watch.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openfino.evaluation.classifiers import HELD_OUT_FRACTION, Matrix, stratified_holdout
from openfino.evaluation.metrics import Codes

Doubles = NDArray[np.float64]
Known = TypeVar("Known", Codes, Matrix)

# Share of the covariance that is replaced by a multiple of the identity, strongest first.
SHRINKAGES = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
# Rows that a reader is fitted on, at most: beyond, time grows and the reading hardly changes.
MAX_ROWS = 20_000


@dataclass(frozen=True)
class LinearReader:
    """Scores of features x: ((x - mean) / scale) @ weights + bias.

    Attributes:
        mean: [D]. scale: [D]. weights: [D, c]. bias: [c]; all float64.
        shrinkage: the chosen one.
    """

    mean: Doubles
    scale: Doubles
    weights: Doubles
    bias: Doubles
    shrinkage: float

    def scores(self, features: Matrix) -> Doubles:
        """Of ``features`` [m, D], float64 [m, c]."""
        return ((features - self.mean) / self.scale) @ self.weights + self.bias


def read_classes(bank: Matrix, codes: Codes, queries: Matrix, generator: np.random.Generator) -> Codes:
    """Tell classes by linear discriminant analysis with a shrunk pooled covariance.

    The shrinkage with the best accuracy on a fifth of the bank that it did not see wins, the stronger one at equal
    accuracy. No row of ``queries`` takes part.

    Args:
        bank: features with known class [n, D].
        codes: their classes, int64 [n].
        queries: features to classify [m, D].
        generator: a keyed generator; decides which rows of the bank choose the shrinkage.

    Returns:
        Predicted classes, int64 [m]; at equal scores the smaller one.
    """
    bank, codes = _at_most(bank, codes, generator)
    held = stratified_holdout(codes, HELD_OUT_FRACTION, generator)
    shrinkage = SHRINKAGES[0]
    if held.any():
        classes, readers = _discriminants(bank[~held], codes[~held], SHRINKAGES)
        right = [
            (classes[reader.scores(bank[held]).argmax(axis=1)] == codes[held]).mean() for reader in readers
        ]
        shrinkage = SHRINKAGES[int(np.argmax(right))]
    classes, (reader,) = _discriminants(bank, codes, (shrinkage,))
    predicted: Codes = classes[reader.scores(queries).argmax(axis=1)]
    return predicted


def read_numbers(bank: Matrix, targets: Matrix, queries: Matrix, generator: np.random.Generator) -> Doubles:
    """Predict numbers by ridge regression; its strength is chosen as that of :func:`read_classes`, by squared error.

    Args:
        bank: features with known targets [n, D], n >= 1.
        targets: their numbers, float32 [n, t].
        queries: features to predict for [m, D].
        generator: a keyed generator.

    Returns:
        Predicted numbers, float64 [m, t].
    """
    bank, targets = _at_most(bank, targets, generator)
    held = stratified_holdout(np.zeros(len(bank), dtype=np.int64), HELD_OUT_FRACTION, generator)
    shrinkage = SHRINKAGES[0]
    if held.any():
        readers = _ridges(bank[~held], targets[~held], SHRINKAGES)
        errors = [((reader.scores(bank[held]) - targets[held]) ** 2).sum() for reader in readers]
        shrinkage = SHRINKAGES[int(np.argmin(errors))]
    (reader,) = _ridges(bank, targets, (shrinkage,))
    return reader.scores(queries)


def _at_most(bank: Matrix, known: Known, generator: np.random.Generator) -> tuple[Matrix, Known]:
    if len(bank) <= MAX_ROWS:
        return bank, known
    drawn = np.sort(generator.choice(len(bank), MAX_ROWS, replace=False))
    return bank[drawn], known[drawn]


def _discriminants(
    features: Matrix, codes: Codes, shrinkages: tuple[float, ...]
) -> tuple[Codes, list[LinearReader]]:
    """The classes in rising order, and one reader for each shrinkage."""
    mean, scale, standard = _standardised(features)
    classes, members, counts = np.unique(codes, return_inverse=True, return_counts=True)
    sums = np.zeros((len(classes), standard.shape[1]))
    np.add.at(sums, members, standard)
    centres: Doubles = sums / counts[:, None]
    standard -= centres[members]
    covariance = standard.T @ standard / len(standard)
    readers = []
    for shrinkage in shrinkages:
        solved = np.linalg.solve(_shrunk(covariance, shrinkage), centres.T)
        weights: Doubles = solved.astype(np.float64, copy=False)
        bias = np.log(counts / len(codes)) - 0.5 * (centres.T * weights).sum(axis=0)
        readers.append(LinearReader(mean, scale, weights, bias, shrinkage))
    return classes, readers


def _ridges(features: Matrix, targets: Matrix, shrinkages: tuple[float, ...]) -> list[LinearReader]:
    """One reader for each shrinkage."""
    mean, scale, standard = _standardised(features)
    middle = targets.astype(np.float64).mean(axis=0)
    covariance = standard.T @ standard / len(standard)
    along = standard.T @ (targets - middle) / len(standard)
    weights = [np.linalg.solve(_shrunk(covariance, each), along) for each in shrinkages]
    return [
        LinearReader(mean, scale, own, middle, each) for own, each in zip(weights, shrinkages, strict=True)
    ]


def _standardised(features: Matrix) -> tuple[Doubles, Doubles, Doubles]:
    """Mean and deviation of every dimension (1 where it is constant), and the features in these terms."""
    exact = features.astype(np.float64)
    mean, scale = exact.mean(axis=0), exact.std(axis=0)
    # What an exact erasure leaves of a dimension is rounding: blown up to deviation 1 it would be noise.
    scale[scale <= 1e-6 * np.sqrt((exact**2).mean())] = 1.0
    return mean, scale, (exact - mean) / scale


def _shrunk(covariance: Doubles, shrinkage: float) -> Doubles:
    """(1 - s) covariance + s (its mean variance) identity, never singular."""
    average = float(np.trace(covariance)) / len(covariance)
    if average == 0:
        return np.eye(len(covariance))
    return (1 - shrinkage) * covariance + shrinkage * average * np.eye(len(covariance))
