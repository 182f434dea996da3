"""Fewer labels: shares of the labelled training rows, each within the next, with every class in each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from openfino.evaluation.splits import probe_generator
from openfino.evaluation.tasks import Targets, Task

Rows = NDArray[np.int64]


def nested_rows(
    rows: Rows, targets: Targets, task: Task, fractions: Sequence[float], seed: int
) -> dict[float, Rows]:
    """Rows for every share, in rising order.

    Rows get an order by key, class by class, such that every start of it holds each class in its share; of a class
    with n rows a share f has the first round(f n), at least one. Several labels, and numbers (in tenths by their
    rank), are drawn likewise, by the rarest label that a row has and by the tenth.

    Args:
        rows: labelled rows.
        targets: of these rows.
        task: what they are.
        fractions: in (0, 1].
        seed: of the draw.
    """
    strata = _strata(targets, task)
    shuffled = probe_generator(seed, "label fractions").permutation(len(rows))
    by_stratum = [shuffled[strata[shuffled] == stratum] for stratum in np.unique(strata)]
    drawn = {}
    for fraction in fractions:
        kept = [own[: max(1, round(fraction * len(own)))] for own in by_stratum]
        drawn[fraction] = np.sort(rows[np.concatenate(kept)])
    return drawn


def _strata(targets: Targets, task: Task) -> Rows:
    if task.kind == "single":
        return targets.values.astype(np.int64)
    values = targets.values.astype(np.float64)
    if task.kind == "multi":
        # By its rarest label: a common one is in every share anyway.
        rarity = np.where(values > 0, values.sum(axis=0), np.inf)
        return np.where((values > 0).any(axis=1), rarity.argmin(axis=1), -1).astype(np.int64)
    ranks = values[:, 0].argsort(kind="stable").argsort(kind="stable")
    return (ranks * 10 // max(len(ranks), 1)).astype(np.int64)
