"""The small heads of a probe: nearest neighbours (classes, numbers), and multinomial logistic regression."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from openfino.evaluation.metrics import Codes, macro_f1

Matrix = NDArray[np.float32]

KNN_TEMPERATURE = 0.07  # dinov3.md section 6.1
QUERY_CHUNK = 1024
BANK_CHUNK = 65_536  # similarities held at once: 1024 x 65,536 floats = 268 MB

# Inverse strength of the L2 penalty on standardised features, strongest first.
PENALTIES = tuple(float(10.0**exponent) for exponent in range(-5, 2))
HELD_OUT_FRACTION = 0.2
MAX_ITERATIONS = 500


def stratified_holdout(codes: Codes, fraction: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw int(fraction * n_c) rows of every class c to hold out: at least one, but never the only one.

    Args:
        codes: class of every row, int64 [n].
        fraction: share to hold out.
        generator: a keyed generator; decides which rows of a class are drawn.

    Returns:
        bool [n], True = held out. All False where every class has a single row.
    """
    held = np.zeros(len(codes), dtype=bool)
    if len(codes) == 0:
        return held
    _, members, counts = np.unique(codes, return_inverse=True, return_counts=True)
    quota = np.where(counts > 1, np.maximum(1, (fraction * counts).astype(np.int64)), 0)
    shuffled = generator.permutation(len(codes))
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    first = np.cumsum(counts) - counts
    rank_in_class = np.arange(len(codes)) - np.repeat(first, counts)
    held[by_class] = rank_in_class < np.repeat(quota, counts)
    return held


def knn_predict(
    bank: Matrix, bank_codes: Codes, queries: Matrix, *, k: int, device: torch.device | str = "cpu"
) -> Codes:
    """Classify by the k nearest neighbours in cosine similarity (dinov3.md section 6.1).

    Every neighbour votes for its class with weight exp(similarity / 0.07). Exact; bank and queries go through
    in chunks, so that the memory does not grow with their product.

    Args:
        bank: features with known class [n, D], of any length (they are L2-normalised here).
        bank_codes: their classes, int64 [n].
        queries: features to classify [m, D].
        k: neighbours; all of the bank where it has fewer.
        device: where the products are computed.

    Returns:
        Predicted classes, int64 [m]; at equal votes the smaller code.
    """
    classes, votes_for = np.unique(bank_codes, return_inverse=True)
    target = torch.from_numpy(votes_for.astype(np.int64)).to(device)
    predicted = [np.zeros(0, dtype=np.int64)]
    for weight, index in weighted_neighbours(bank, queries, k, device):
        votes = torch.zeros(len(weight), len(classes), dtype=weight.dtype, device=device)
        votes.scatter_add_(1, target[index], weight)
        predicted.append(classes[votes.argmax(dim=1).cpu().numpy()])
    return np.concatenate(predicted)


def knn_average(
    bank: Matrix, targets: Matrix, queries: Matrix, *, k: int, device: torch.device | str = "cpu"
) -> Matrix:
    """Predict numbers as the mean over the k nearest neighbours, weighted as the votes of :func:`knn_predict`.

    Args:
        bank: features with known targets [n, D], n >= 1.
        targets: their numbers, float32 [n, t].
        queries: features to predict for [m, D].
        k: neighbours; all of the bank where it has fewer.
        device: where the products are computed.

    Returns:
        Predicted numbers, float32 [m, t].
    """
    known = torch.from_numpy(np.ascontiguousarray(targets)).to(device)
    predicted = [np.zeros((0, targets.shape[1]), dtype=np.float32)]
    for weight, index in weighted_neighbours(bank, queries, k, device):
        share = weight / weight.sum(dim=1, keepdim=True)
        predicted.append((share[:, :, None] * known[index]).sum(dim=1).cpu().numpy())
    return np.concatenate(predicted)


def weighted_neighbours(
    bank: Matrix, queries: Matrix, k: int, device: torch.device | str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights in (0, 1] and rows of the bank of the k nearest neighbours, both [m, k], chunk by chunk."""
    for start in range(0, len(queries), QUERY_CHUNK):
        query = _unit(queries[start : start + QUERY_CHUNK], device)
        similarity, index = _nearest(query, bank, min(k, len(bank)), device)
        # The largest similarity is taken off, so that the weights cannot underflow all together.
        yield torch.exp((similarity - similarity[:, :1]) / KNN_TEMPERATURE), index


def _unit(features: Matrix, device: torch.device | str) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(features)).to(device), dim=1)


def _nearest(
    query: torch.Tensor, bank: Matrix, k: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest similarities of every query in falling order, and their rows of the bank, both [m, k]."""
    best = torch.empty(len(query), 0, device=device)
    index = torch.empty(len(query), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), BANK_CHUNK):
        similarity = query @ _unit(bank[start : start + BANK_CHUNK], device).T
        here, local = similarity.topk(min(k, similarity.shape[1]), dim=1)
        best, kept = torch.cat([best, here], dim=1).topk(min(k, best.shape[1] + here.shape[1]), dim=1)
        index = torch.cat([index, local + start], dim=1).gather(1, kept)
    return best, index


@dataclass(frozen=True)
class LinearProbe:
    """A fitted multinomial logistic regression on standardised features.

    Attributes:
        penalty: the chosen C, inverse strength of the L2 penalty.
        converged: whether the last fit met its tolerance within the iterations allowed.
    """

    scaler: StandardScaler
    regression: LogisticRegression
    penalty: float
    converged: bool

    def predict(self, features: Matrix) -> Codes:
        """Classes of ``features`` [m, D], int64 [m]."""
        predicted: Codes = self.regression.predict(self.scaler.transform(features))
        return predicted


def fit_linear(features: Matrix, codes: Codes, generator: np.random.Generator) -> LinearProbe:
    """Fit a linear probe; its penalty is chosen on a fifth of the training rows that it did not see.

    The penalty with the best macro-F1 on the held-out fifth wins, the stronger one at equal score; then all
    training rows are fitted with it. No test row takes part.

    Args:
        features: [n, D]. codes: their classes, at least two different ones, int64 [n].
        generator: a keyed generator; decides which rows are held out.
    """
    held = stratified_holdout(codes, HELD_OUT_FRACTION, generator)
    chosen = 1.0
    if held.any():
        scaler = StandardScaler().fit(features[~held])
        seen, unseen = scaler.transform(features[~held]), scaler.transform(features[held])
        scores = [
            macro_f1(codes[held], _fit(seen, codes[~held], penalty).predict(unseen)) for penalty in PENALTIES
        ]
        chosen = PENALTIES[int(np.argmax(scores))]
    scaler = StandardScaler().fit(features)
    regression = _fit(scaler.transform(features), codes, chosen)
    converged = bool((regression.n_iter_ < MAX_ITERATIONS).all())
    return LinearProbe(scaler, regression, chosen, converged)


def _fit(features: Matrix, codes: Codes, penalty: float) -> LogisticRegression:
    regression = LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # Whether it converged is part of the result, not a message.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return regression.fit(features, codes)
