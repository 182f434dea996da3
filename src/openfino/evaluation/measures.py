"""Every metric of a probe as a function of how often each row counts.

One code path gives the metric itself (each row counts once) and its value in a thousand bootstrap draws at a time: what
does not depend on the draw, such as the order of the scores, is worked out once. Equations and edge cases stand in
docs/probes.md.
"""

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from openfino.evaluation.metrics import Codes
from openfino.evaluation.tasks import Kind, Predictions, Targets, Task

Doubles = NDArray[np.float64]
Measure = Callable[[Doubles], Doubles]
"""How often each row counts in each of d draws [n, d] -> the metric in each draw [d]; NaN where it is not defined."""

_OF_CLASSES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "worst_group_accuracy",
    "macro_auroc",
    "map",
    "calibration_error",
)
METRICS: dict[Kind, tuple[str, ...]] = {
    "single": _OF_CLASSES,
    "multi": _OF_CLASSES,
    "regression": ("r2",),
}
LOWER_IS_BETTER = frozenset({"calibration_error"})
BINS = 15


def measures(
    task: Task,
    predictions: Predictions,
    targets: Targets,
    groups: Codes | None = None,
    metrics: Collection[str] | None = None,
) -> dict[str, Measure]:
    """The metrics that ``task`` has, or those of them that ``metrics`` names.

    Args:
        task: the task.
        predictions: of n rows.
        targets: of the same rows, all of them valid.
        groups: of the same rows, -1 where there is none; without any there is no worst group.
        metrics: names; all when not given.
    """
    makers = _makers(task, predictions, targets, groups)
    return {name: make() for name, make in makers.items() if metrics is None or name in metrics}


def _makers(
    task: Task, predictions: Predictions, targets: Targets, groups: Codes | None
) -> dict[str, Callable[[], Measure]]:
    """How each metric is prepared."""
    scores = predictions.scores.astype(np.float64)
    if task.kind == "regression":
        return {"r2": lambda: r2(targets.values.astype(np.float64), scores)}
    truth = targets.values.astype(np.int64)
    chosen = predictions.chosen.astype(np.int64)
    if task.kind == "single":
        members, picked = _one_hot(truth, task.outputs), _one_hot(chosen, task.outputs)
        right = truth == chosen
        top = np.arange(len(truth)), chosen
        confidence, outcome = scores[top][:, None], right[:, None]
        positive = truth[:, None] == np.arange(task.outputs)
    else:
        members, picked = csr_array(truth.T), csr_array(chosen.T)
        right = (truth == chosen).all(axis=1)
        confidence, outcome = scores, truth.astype(bool)
        positive = outcome
    makers: dict[str, Callable[[], Measure]] = {
        "accuracy": lambda: accuracy(right),
        "balanced_accuracy": lambda: balanced_accuracy(members, picked, both_sides=task.kind == "multi"),
        "macro_f1": lambda: macro_f1(members, picked),
        "macro_auroc": lambda: over_classes(positive, scores, auroc),
        "map": lambda: over_classes(positive, scores, average_precision),
        "calibration_error": lambda: calibration_error(confidence, outcome),
    }
    if groups is not None and (groups >= 0).any():
        makers["worst_group_accuracy"] = lambda: worst_group(right, groups)
    return makers


def accuracy(right: NDArray[np.bool_]) -> Measure:
    """Share of rows that are right; of several labels, all must be."""
    return lambda weights: _ratio(right.astype(np.float64) @ weights, weights.sum(axis=0))


def balanced_accuracy(members: csr_array, picked: csr_array, *, both_sides: bool) -> Measure:
    """Mean over the classes that occur of the share of their rows that is found.

    Args:
        members: which rows are of a class [t, n]. picked: which are said to be.
        both_sides: of a label, the mean of the shares of its rows that are found and of the others that are left
            alone; labels that all rows have, or none, are left out.
    """
    hits = members.multiply(picked).tocsr()

    def value(weights: Doubles) -> Doubles:
        own, found = members @ weights, hits @ weights
        if not both_sides:
            return _mean_where(own > 0, _ratio(found, own))
        total = weights.sum(axis=0)
        left_alone = total - own - (picked @ weights - found)
        sides = (_ratio(found, own) + _ratio(left_alone, total - own)) / 2
        return _mean_where((own > 0) & (own < total), sides)

    return value


def macro_f1(members: csr_array, picked: csr_array) -> Measure:
    """Mean F1 of the classes or labels that occur, as :func:`openfino.evaluation.metrics.macro_f1` has it."""
    hits = members.multiply(picked).tocsr()

    def value(weights: Doubles) -> Doubles:
        own, said = members @ weights, picked @ weights
        return _mean_where(own > 0, _ratio(2 * (hits @ weights), own + said))

    return value


def worst_group(right: NDArray[np.bool_], groups: Codes) -> Measure:
    """The lowest accuracy of any group that occurs; rows without a group (-1) count for none."""
    _, numbers = np.unique(groups, return_inverse=True)
    known = np.where(groups >= 0, numbers, -1)
    members = _one_hot(known, int(numbers.max()) + 1)
    hits = _one_hot(np.where(right, known, -1), members.shape[0])

    def value(weights: Doubles) -> Doubles:
        size = members @ weights
        shares = np.where(size > 0, _ratio(hits @ weights, size), np.inf)
        worst: Doubles = shares.min(axis=0)
        return np.where(np.isfinite(worst), worst, np.nan)

    return value


def calibration_error(confidence: Doubles, outcome: NDArray[np.bool_]) -> Measure:
    """Expected calibration error: how far confidence is from the share that is right, in 15 bins of equal width.

    Guo et al. 2017, eq. 3: the mean over the bins, weighted by their size, of |share right - mean confidence|.

    Args:
        confidence: single: of the chosen class [n, 1]; multi: of every label [n, t].
        outcome: whether that class is the true one, or the label is there.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rows = np.broadcast_to(np.arange(len(bins))[:, None], bins.shape)
    gaps = csr_array(((confidence - outcome).ravel(), (bins.ravel(), rows.ravel())), (BINS, len(bins)))
    each = confidence.shape[1]

    def value(weights: Doubles) -> Doubles:
        return _ratio(np.abs(gaps @ weights).sum(axis=0), each * weights.sum(axis=0))

    return value


def r2(truth: Doubles, predicted: Doubles) -> Measure:
    """1 - squared error / squared error of the mean of these rows, averaged over the numbers [n, t] that vary."""
    centred = truth - truth.mean(axis=0)
    squared_errors, squares = (truth - predicted) ** 2, centred**2

    def value(weights: Doubles) -> Doubles:
        total = weights.sum(axis=0)
        spread = squares.T @ weights - _ratio((centred.T @ weights) ** 2, total)
        # What is left of numbers that are all the same is rounding.
        varies = spread > 1e-12 * np.maximum(squares.T @ weights, np.finfo(np.float64).tiny)
        return _mean_where(varies, 1 - _ratio(squared_errors.T @ weights, spread))

    return value


class Ranking:
    """The rows of one class in the order of their scores, cut at the scores of its own rows.

    Attributes:
        above: [q, n]: q different scores of the class's own rows, the highest first: the rows with at least this score
            and less than the one before.
        own: [q, n]: the class's own rows with this score.
        ties: [q, n]: other rows with exactly this score.
    """

    def __init__(self, positive: NDArray[np.bool_], scores: Doubles) -> None:
        order = np.argsort(-scores, kind="stable").astype(np.int32)
        falling = scores[order]
        cuts = np.unique(scores[positive])[::-1]
        # Where the rows with at least this score end, and where those with exactly this score begin.
        ends = np.searchsorted(-falling, -cuts, side="right")
        begins = np.searchsorted(-falling, -cuts, side="left")
        shape = (len(cuts), len(scores))
        indptr = np.concatenate([[0], ends]).astype(np.int32)
        last = int(indptr[-1])
        self.above = csr_array((np.ones(last), order[:last], indptr), shape)
        place = np.repeat(np.arange(len(cuts)), ends - begins)
        at = np.concatenate(
            [np.arange(0)] + [np.arange(b, e) for b, e in zip(begins, ends, strict=True)]
        ).astype(np.int64)
        rows, mine = order[at], positive[order[at]]
        self.own = csr_array((np.ones(mine.sum()), (place[mine], rows[mine])), shape)
        self.ties = csr_array((np.ones((~mine).sum()), (place[~mine], rows[~mine])), shape)


def auroc(ranking: Ranking, weights: Doubles) -> Doubles:
    """Share of the pairs of an own and another row that are in the right order, ties counted half."""
    own = ranking.own @ weights
    positives = own.sum(axis=0)
    negatives = weights.sum(axis=0) - positives
    others_so_far = np.cumsum(ranking.above @ weights - own, axis=0)
    below = negatives - others_so_far + 0.5 * (ranking.ties @ weights)
    return _ratio((own * below).sum(axis=0), positives * negatives)


def average_precision(ranking: Ranking, weights: Doubles) -> Doubles:
    """Mean over the own rows of the share of own rows among those that score at least as high."""
    own = ranking.own @ weights
    precision = _ratio(np.cumsum(own, axis=0), np.cumsum(ranking.above @ weights, axis=0))
    return _ratio(np.where(own > 0, own * precision, 0.0).sum(axis=0), own.sum(axis=0))


def over_classes(
    positive: NDArray[np.bool_], scores: Doubles, metric: Callable[[Ranking, Doubles], Doubles]
) -> Measure:
    """Mean of ``metric`` over the classes or labels [n, t], each against the rest, where it is defined."""
    rankings = [Ranking(own, score) for own, score in zip(positive.T, scores.T, strict=True) if own.any()]

    def value(weights: Doubles) -> Doubles:
        if not rankings:
            return np.full(weights.shape[1], np.nan)
        values = np.stack([metric(ranking, weights) for ranking in rankings])
        return _mean_where(~np.isnan(values), values)

    return value


def _one_hot(codes: Codes, count: int) -> csr_array:
    """Which of n rows have each of ``count`` codes [count, n]; those with -1 have none."""
    rows = np.flatnonzero(codes >= 0)
    return csr_array((np.ones(len(rows)), (codes[rows], rows)), (count, len(codes)))


def _ratio(part: Doubles, whole: Doubles) -> Doubles:
    """part / whole, NaN where the whole is 0."""
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.divide(part, whole, out=np.full(shape, np.nan), where=whole != 0)


def _mean_where(defined: NDArray[np.bool_], values: Doubles) -> Doubles:
    """Mean over the first dimension of ``values`` where they are defined; NaN where none is."""
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))
