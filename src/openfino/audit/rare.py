"""Chance where one column is nearly constant: the few odd rows are shuffled instead of trusting moments.

With five rows outside the commonest value the mutual information takes a handful of values, and a perfect match by
accident may have a probability of one in ten: no smooth distribution says so.
"""

import numpy as np
from numpy.typing import NDArray

from openfino.audit.contingency import Contingency
from openfino.keyed import Purpose, keyed_generator

FEW = 24
_DRAWS = 4000


def odd_rows(table: Contingency) -> int:
    """Rows outside the commonest value of X or of Y, whichever are fewer."""
    return table.rows - int(max(table.x_rows.max(), table.y_rows.max()))


def accident_probability(table: Contingency) -> float:
    """How often shuffling gives at least this mutual information; for tables with few odd rows."""
    if table.x_rows.max() > table.y_rows.max():
        table = table.swapped
    x_rows, common = table.x_rows, int(np.argmax(table.y_rows))
    odd = table.y != common
    kinds = np.repeat(table.y[odd], table.counts[odd])
    observed = _score(np.repeat(table.x[odd], table.counts[odd])[None], kinds, x_rows)[0]
    rng = keyed_generator(table.rows, len(kinds), Purpose.AUDIT)
    places = np.stack([rng.choice(table.rows, len(kinds), replace=False) for _ in range(_DRAWS)])
    drawn = np.searchsorted(np.cumsum(x_rows), places, side="right")
    reached = np.count_nonzero(_score(drawn, kinds, x_rows) >= observed - 1e-9)
    return (1 + reached) / (1 + _DRAWS)


def _score(x: NDArray[np.int64], kinds: NDArray[np.int64], x_rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """N times the mutual information up to a constant, for odd rows of the given kinds in the X values [D, r]."""
    draws, size = len(x), len(x_rows)
    draw = np.repeat(np.arange(draws), x.shape[1])
    cells, counts = np.unique(
        (draw * size + x.ravel()) * (kinds.max() + 1) + np.tile(kinds, draws), return_counts=True
    )
    of_draw = cells // ((kinds.max() + 1) * size)
    score: NDArray[np.float64] = np.bincount(of_draw, weights=_n_log_n(counts), minlength=draws).astype(
        np.float64
    )
    places, taken = np.unique(draw * size + x.ravel(), return_counts=True)
    rows = x_rows[places % size]
    change = _n_log_n(rows - taken) - _n_log_n(rows)
    score += np.bincount(places // size, weights=change, minlength=draws)
    return score


def _n_log_n(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return (counts * np.log(np.maximum(counts, 1))).astype(np.float64)
