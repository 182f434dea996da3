"""Columns as numbers: measurements, seconds of a timestamp, phases of a cycle."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from openfino.factors.timestamps import NAMED_PERIODS, Timestamps, is_temporal, read_timestamps

Period = str | float

_NOTHING = pl.Series([None], dtype=pl.Float64)


@dataclass(frozen=True)
class Reading:
    """A column of N rows read as numbers.

    Attributes:
        numbers: Float64, finite; null where missing or unreadable.
        unreadable: Boolean; True where there is a value but no number.
        is_time: whether the values are moments (the numbers then are seconds since 1970-01-01 UTC, or the
            named part of the moment) and not plain numbers.
    """

    numbers: pl.Series
    unreadable: pl.Series
    is_time: bool


def read_numbers(column: pl.Series, is_time: bool | None = None) -> Reading:
    """Read a column as numbers or timestamps.

    Args:
        column: N values of any type; text is parsed.
        is_time: read text as timestamps or as numbers; when not given, as whatever fits more values.
    """
    return _read(column, is_time)[0]


def read_phases(column: pl.Series, period: Period, is_time: bool | None = None) -> Reading:
    """Read a column as positions in a cycle; ``numbers`` are fractions of a turn in [0, 1].

    A named period takes timestamps (local time), or numbers in its own unit: hours 0 to 24, weekdays 0 to 7,
    months 0 to 12, days of the year 0 to 366. A number is the length of the cycle in the column's units,
    which are seconds for timestamps (UTC).
    """
    length = period_length(period)
    reading, times = _read(column, is_time)
    numbers, unreadable = reading.numbers, reading.unreadable
    if isinstance(period, str) and times is not None:
        numbers = times.part(period)
    elif isinstance(period, str):
        inside = numbers.is_between(0, math.ceil(length))
        unreadable = unreadable | (numbers.is_not_null() & ~inside.fill_null(True))
        numbers = numbers.zip_with(inside, _NOTHING)
    # Modulo in float64 and before any product: seconds since 1970 leave no digits to spare.
    turns = np.mod(numbers.to_numpy(), length) / length
    return Reading(pl.Series(column.name, turns).fill_nan(None), unreadable, reading.is_time)


def period_length(period: Period) -> float:
    """The length of a cycle: 24 for ``hour``, the number itself for a number."""
    return NAMED_PERIODS[period] if isinstance(period, str) else float(period)


def _read(column: pl.Series, is_time: bool | None) -> tuple[Reading, Timestamps | None]:
    """The column as numbers, and as timestamps if that is what it holds."""
    dtype = column.dtype
    if dtype.is_numeric():
        return (_unreadable(column, True) if is_time else _reading(column, _finite(column))), None
    if dtype != pl.String and not is_temporal(column):
        return _unreadable(column, bool(is_time)), None
    if is_temporal(column) and is_time is False:
        return _unreadable(column, False), None
    numbers = None
    if dtype == pl.String and not is_time:
        numbers = _reading(column, _finite(column))
        if is_time is False or not numbers.unreadable.any():
            return numbers, None
    times = read_timestamps(column)
    reading = _reading(column, times.seconds, is_time=True)
    if numbers is not None and numbers.unreadable.sum() <= reading.unreadable.sum():
        return numbers, None
    return reading, times


def _finite(column: pl.Series) -> pl.Series:
    """Float64 with null for whatever is not a finite number."""
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.zip_with(numbers.is_finite(), _NOTHING)


def _reading(column: pl.Series, numbers: pl.Series, *, is_time: bool = False) -> Reading:
    present = column.is_not_null()
    if column.dtype.is_float():
        present = present & column.is_not_nan().fill_null(False)
    return Reading(numbers, present & numbers.is_null(), is_time)


def _unreadable(column: pl.Series, is_time: bool) -> Reading:
    return Reading(_NOTHING.new_from_index(0, len(column)), column.is_not_null(), is_time)
