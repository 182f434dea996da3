"""The kind of a factor from its column, with the reason in one sentence."""

from dataclasses import dataclass

import polars as pl

from openfino.factors.numbers import Reading, read_numbers
from openfino.factors.timestamps import is_temporal
from openfino.recipe import FactorKind
from openfino.tables import typed

_FEW_DISTINCT = 50
_SAMPLE = 2000
_MOSTLY = 0.9


@dataclass(frozen=True)
class Inference:
    """What a column seems to be.

    Attributes:
        kind: the inferred kind.
        reason: why, one sentence without its full stop.
        doubtful: the reading whose unreadable values contradict the reason; None when there are none.
    """

    kind: FactorKind
    reason: str
    doubtful: Reading | None = None


def infer_kind(column: pl.Series) -> Inference:
    """The kind of a factor with one column, N values of which at least one is not null."""
    if is_temporal(column):
        return _moments(column)
    if column.dtype.is_numeric():
        return _numeric(column)
    if column.dtype != pl.String:
        return Inference("discrete", f"{column.dtype} values")
    return _text(column)


def _moments(column: pl.Series) -> Inference:
    count = column.count()
    hint = (
        "for the time of day, week or year write kind: cyclic and period: hour, weekday, month or day_of_year"
    )
    return Inference("continuous", f"{count:,} timestamps; {hint}")


def _numeric(column: pl.Series) -> Inference:
    numbers = column.drop_nulls().cast(pl.Float64)
    if (numbers != numbers.floor()).any():
        return Inference("continuous", "decimal numbers")
    distinct = numbers.n_unique()
    counted = f"{distinct:,} distinct whole numbers in {len(numbers):,} rows"
    if distinct <= _FEW_DISTINCT and 2 * distinct <= len(numbers):
        return Inference("discrete", f"{counted}; for a quantity write kind: continuous")
    return Inference("continuous", f"{counted}; for labels write kind: discrete")


def _text(column: pl.Series) -> Inference:
    numbers = typed(column)
    if numbers.dtype.is_numeric():
        return _numeric(numbers)
    present = column.drop_nulls()
    plain = Inference("discrete", f"{present.n_unique():,} distinct texts in {len(present):,} rows")
    sample = present.gather_every(max(1, len(present) // _SAMPLE))
    if 2 * read_numbers(sample).unreadable.sum() > len(sample):
        return plain
    reading = read_numbers(column)
    wrong = int(reading.unreadable.sum())
    if wrong == 0:
        # Numbers that typed() left alone: identifiers such as 007.
        return _moments(column) if reading.is_time else plain
    if wrong > (1 - _MOSTLY) * len(present):
        return plain
    readable = _moments(column) if reading.is_time else _numeric(reading.numbers)
    if readable.kind == "discrete":
        return plain
    return Inference("continuous", readable.reason, doubtful=reading)
