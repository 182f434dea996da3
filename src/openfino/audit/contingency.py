"""Counts of which values occur together, and what they say about each other in nats.

Every pair of columns is counted once; all figures come from the counts, never from the rows again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openfino.audit.coding import Coded, join

Counts = NDArray[np.int64]

# Tables up to this many cells are counted cell by cell; larger ones by sorting the rows' cell numbers.
_DENSE_CELLS = 1 << 17
_CHUNK = 1 << 19
_KEY_LIMIT = 1 << 62


@dataclass(frozen=True)
class Contingency:
    """The occupied cells of a table of X by Y over the rows where both are known.

    Attributes:
        counts: rows in each cell, int64 [C].
        x: value of X in each cell, an index into ``x_rows``, int64 [C].
        y: value of Y in each cell, an index into ``y_rows``, int64 [C].
        x_rows: rows with each value of X, int64 [Kx]; zeros where only Y is missing.
        y_rows: rows with each value of Y, int64 [Ky].
    """

    counts: Counts
    x: Counts
    y: Counts
    x_rows: Counts
    y_rows: Counts

    @property
    def rows(self) -> int:
        """Rows where both are known."""
        return int(self.x_rows.sum())

    @property
    def swapped(self) -> "Contingency":
        """The same table of Y by X."""
        return Contingency(self.counts, self.y, self.x, self.y_rows, self.x_rows)

    @property
    def is_one_to_one(self) -> bool:
        """Whether each value of either column goes with one value of the other."""
        cells = len(self.counts)
        return cells == np.count_nonzero(self.x_rows) == np.count_nonzero(self.y_rows)


def count_pair(x: Coded, y: Coded) -> Contingency:
    """The contingency table of two columns of N rows."""
    return count_joint([x], y)


def count_joint(given: Sequence[Coded], y: Coded) -> Contingency:
    """The table of the values of ``given`` taken together (one column or several) by ``y``."""
    if math.prod(column.size + 1 for column in (*given, y)) >= _KEY_LIMIT:
        given = [join(given)]
    columns = [*given, y]
    sizes = [column.size + 1 for column in columns]  # the last code is the missing value
    cells = math.prod(sizes)
    if cells <= _DENSE_CELLS:
        keys, counts = _dense(columns, sizes, cells)
    else:
        keys, counts = _sorted(columns, sizes, cells)
    known = np.ones(len(keys), dtype=bool)
    digits = []
    rest = keys
    for column, size in zip(reversed(columns), reversed(sizes), strict=True):
        rest, digit = np.divmod(rest, size)
        known &= digit != column.size
        digits.append(digit)
    y_codes, counts = digits[0][known], counts[known]
    x_codes, x_size = digits[1][known], given[-1].size
    if len(given) > 1:
        joint = (keys // sizes[-1])[known]
        groups, x_codes = np.unique(joint, return_inverse=True)
        x_size = len(groups)
    x_rows = np.bincount(x_codes, weights=counts, minlength=x_size).astype(np.int64)
    y_rows = np.bincount(y_codes, weights=counts, minlength=y.size).astype(np.int64)
    return Contingency(counts, x_codes, y_codes, x_rows, y_rows)


def _keys(columns: Sequence[Coded], sizes: Sequence[int], dtype: type, rows: slice) -> NDArray[Any]:
    """The number of each row's cell."""
    keys: NDArray[Any] = columns[0].codes[rows].astype(dtype)
    for column, size in zip(columns[1:], sizes[1:], strict=True):
        keys *= dtype(size)
        keys += column.codes[rows].astype(dtype, copy=False)
    return keys


def _dense(columns: Sequence[Coded], sizes: Sequence[int], cells: int) -> tuple[Counts, Counts]:
    table = np.zeros(cells, dtype=np.int64)
    for start in range(0, len(columns[0].codes), _CHUNK):
        keys = _keys(columns, sizes, np.int64, slice(start, start + _CHUNK))
        table += np.bincount(keys, minlength=cells)
    occupied = np.flatnonzero(table)
    return occupied, table[occupied]


def _sorted(columns: Sequence[Coded], sizes: Sequence[int], cells: int) -> tuple[Counts, Counts]:
    keys = _keys(columns, sizes, np.uint32 if cells < 1 << 32 else np.uint64, slice(None))
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    counts = np.diff(np.append(starts, len(keys)))
    return keys[starts].astype(np.int64), counts
