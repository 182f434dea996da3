"""Columns as small whole numbers: every value, or every bin of a continuous or cyclic column, gets a code."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.factors.infer import infer_kind
from openfino.factors.numbers import Period, period_length, read_numbers, read_phases
from openfino.recipe import FactorKind
from openfino.tables import value_keys

Codes = NDArray[np.unsignedinteger]

MOST_BINS = 32
# Quantiles and kinds of longer columns are taken from this many evenly spaced rows.
_QUANTILE_ROWS = 200_000
_INFERENCE_ROWS = 1_000_000
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Coded:
    """A column of N rows as codes.

    Attributes:
        name: of the column or factor.
        kind: discrete, continuous, cyclic or vector.
        reason: why it has this kind, one sentence without its full stop.
        codes: 0 ... K-1, and K where the value is missing or unreadable; the smallest unsigned type, [N].
        counts: rows with each code, int64 [K]; none is 0.
        labels: what each code stands for, K texts; for bins their ranges.
        binned: whether codes are bins.
        low: smallest number (all kinds but discrete; fractions of a turn for cyclic).
        high: largest number.
        is_time: whether the numbers are seconds since 1970.
    """

    name: str
    kind: FactorKind
    reason: str
    codes: Codes
    counts: NDArray[np.int64]
    labels: Sequence[str]
    binned: bool = False
    low: float | None = None
    high: float | None = None
    is_time: bool = False

    @property
    def size(self) -> int:
        """K, the number of codes."""
        return len(self.counts)

    @property
    def known(self) -> int:
        """Rows with a value."""
        return int(self.counts.sum())


def code_column(column: pl.Series, kind: FactorKind | None = None, period: Period | None = None) -> Coded:
    """Encode a column of N rows; the kind is inferred unless given. A column without any value has no code."""
    reason = "kind as declared"
    if kind is None:
        kind, reason = _infer(column)
    if kind == "discrete":
        return _discrete(column, reason)
    reading = read_phases(column, period) if period is not None else read_numbers(column)
    numbers = reading.numbers.to_numpy()
    length = None if period is None else period_length(period)
    form = time_text if reading.is_time and period is None else number_text
    coded = _binned(column.name, numbers, length, form)
    return replace(coded, kind=kind, reason=reason, is_time=reading.is_time)


def join(columns: Sequence[Coded], name: str = "") -> Coded:
    """The values of several columns taken together; missing where one of them is."""
    keys = np.zeros(len(columns[0].codes), dtype=np.int64)
    known = np.ones(len(keys), dtype=bool)
    for column in columns:
        # Numbered anew after each column, so that the product never leaves 64 bits.
        keys = np.unique(keys * (column.size + 1) + column.codes, return_inverse=True)[1]
        known &= column.codes != column.size
    _, codes = np.unique(keys[known], return_inverse=True)
    counts = np.bincount(codes)
    out = np.full(len(keys), len(counts), dtype=_smallest(len(counts)))
    out[known] = codes
    return Coded(name, "vector", "", out, counts, [], binned=any(column.binned for column in columns))


def bins_for(rows: int) -> int:
    """How many quantile bins ``rows`` values get: the cube root, from 2 to 32."""
    return int(np.clip(round(rows ** (1 / 3)), 2, MOST_BINS))


def _infer(column: pl.Series) -> tuple[FactorKind, str]:
    present = column.drop_nulls() if column.null_count() else column
    if present.is_empty():
        return "discrete", "there is no value"
    step = -(-len(present) // _INFERENCE_ROWS)
    inference = infer_kind(present.gather_every(step) if step > 1 else present)
    note = f" (judged by one row in {step})" if step > 1 else ""
    return inference.kind, inference.reason + note


def _discrete(column: pl.Series, reason: str) -> Coded:
    if column.dtype in (pl.String, pl.Categorical, pl.Enum):
        numbers = column.cast(pl.Categorical).to_physical()
    else:
        numbers = column.rank("dense")
    missing = numbers.is_null().to_numpy() if numbers.null_count() else None
    raw = numbers.fill_null(0).to_numpy()
    counted = np.bincount(raw if missing is None else raw[~missing])
    used = np.flatnonzero(counted)
    new = np.full(max(len(counted), 1), len(used), dtype=_smallest(len(used)))
    new[used] = np.arange(len(used))
    codes = new[raw]
    if missing is not None:
        codes[missing] = len(used)
    labels = value_keys(column.gather(_first_rows(codes, len(used)))).to_list()
    return Coded(column.name, "discrete", reason, codes, counted[used], labels)


def _first_rows(codes: Codes, size: int) -> NDArray[np.int64]:
    """A row that holds each code, [K]; stops as soon as all are found."""
    rows = np.full(size + 1, -1, dtype=np.int64)
    for start in range(0, len(codes), _CHUNK):
        part = codes[start : start + _CHUNK]
        new = np.flatnonzero(rows[part] < 0)
        rows[part[new]] = start + new
        if (rows[:size] >= 0).all():
            break
    return rows[:size]


def _binned(
    name: str, numbers: NDArray[np.float64], length: float | None, form: Callable[[float], str]
) -> Coded:
    """Quantile bins of numbers with NaN where missing; fractions of a turn if there is a ``length`` of the turn."""
    missing = np.isnan(numbers)
    known = int(len(numbers) - np.count_nonzero(missing))
    if known == 0:
        return Coded(
            name, "continuous", "", np.zeros(len(numbers), np.uint8), np.zeros(0, np.int64), [], True
        )
    sample = numbers[~missing] if known < len(numbers) else numbers
    low, high = float(sample.min()), float(sample.max())
    sample = np.sort(sample[:: -(-known // _QUANTILE_ROWS)])
    start = _widest_gap(sample) if length is not None else 0.0
    if start:
        sample = np.sort((sample - start) % 1.0)
        numbers = (numbers - start) % 1.0
    edges = _edges(sample, bins_for(known))
    codes = np.searchsorted(edges, numbers, side="right").astype(np.uint8)
    codes[missing] = len(edges) + 1
    counts = np.bincount(codes, minlength=len(edges) + 2)[: len(edges) + 1]
    ends = [float(sample[0]), *edges.tolist(), float(sample[-1])]
    if length is not None:
        ends = [(end + start) % 1.0 * length for end in ends]
    labels = [f"{form(a)} to {form(b)}" for a, b in pairwise(ends)]
    coded = Coded(name, "continuous", "", codes, counts, labels, True, low, high)
    return coded if np.all(counts > 0) else _without_empty(coded)


def _edges(ordered: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Where each bin but the first begins: values of the data, so that equal numbers share a bin."""
    picked = ordered[(np.arange(1, bins) * len(ordered)) // bins]
    # Many rows of the smallest number, as of counts that are mostly 0, get a bin of their own.
    next_up = int(np.searchsorted(ordered, ordered[0], side="right"))
    if next_up == len(ordered):
        return ordered[:0]
    return np.unique(np.maximum(picked, ordered[next_up]))


def _widest_gap(ordered: NDArray[np.float64]) -> float:
    """The phase after the widest gap between neighbours on the circle: bins are cut where data are fewest."""
    gaps = np.diff(np.append(ordered, ordered[0] + 1.0))
    return float(ordered[(int(np.argmax(gaps)) + 1) % len(ordered)])


def _without_empty(coded: Coded) -> Coded:
    used = np.flatnonzero(coded.counts)
    new = np.full(coded.size + 1, len(used), dtype=np.uint8)
    new[used] = np.arange(len(used))
    labels = [coded.labels[code] for code in used.tolist()]
    return replace(coded, codes=new[coded.codes], counts=coded.counts[used], labels=labels)


def number_text(value: float) -> str:
    """A number in at most six digits."""
    return f"{value:.6g}"


def time_text(seconds: float) -> str:
    """A moment as a date, with minutes if it has any."""
    try:
        moment = datetime.fromtimestamp(math.floor(seconds), UTC)
    except (OverflowError, OSError, ValueError):
        return f"{seconds:.6g}"
    return moment.strftime("%Y-%m-%d" if seconds % 86_400 == 0 else "%Y-%m-%d %H:%M")


def _smallest(size: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the codes 0 ... ``size``."""
    return np.uint8 if size < 1 << 8 else np.uint16 if size < 1 << 16 else np.uint32
