"""Timestamps: text of many formats to moments and to phases of a day, week or year."""

import itertools
from dataclasses import dataclass

import numpy as np
import polars as pl

# Formats that can be read in one way only: 03/04/2021 is in March or in April, so it is not among them.
_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y:%m:%d", "%d.%m.%Y", "%d %B %Y", "%d-%B-%Y", "%B %d, %Y")
_CLOCKS = ("", "T%H:%M:%S", "T%H:%M:%S%.f", "T%H:%M", " %H:%M:%S", " %H:%M:%S%.f", " %H:%M")
_FORMATS = (*(date + clock for date, clock in itertools.product(_DATES, _CLOCKS)), "%Y%m%dT%H%M%S")
# Most text that is no date at all fails this at once instead of failing every format.
_PLAUSIBLE = r"^(\d{4}[-/:]\d|\d{1,2}[. -]|[A-Za-z]{3,9} \d|\d{8}T)"
_OFFSET = r"(\d)\s?(Z|[+-]\d{2}:?\d{2})$"
_SAMPLE = 1000
_NEVER = np.datetime64("NaT", "us")
_NOTHING = pl.Series([None], dtype=pl.Datetime("us"))

ACCEPTED = "ISO 8601 such as 2021-03-04 or 2021-03-04T05:06:07+01:00"

NAMED_PERIODS = {"hour": 24.0, "weekday": 7.0, "month": 12.0, "day_of_year": 365.25}


@dataclass(frozen=True)
class Timestamps:
    """The moments of a column, N rows.

    Attributes:
        clock: local date and time as written, without time zone; Datetime[us], null where unreadable.
        seconds: seconds since 1970-01-01 UTC, Float64; times without a zone count as UTC.
    """

    clock: pl.Series
    seconds: pl.Series

    def part(self, name: str) -> pl.Series:
        """Where each moment stands in its cycle, Float64.

        ``hour`` [0, 24) with minutes and seconds as fraction; ``weekday`` 1 (Monday) to 7; ``month`` [1, 13)
        with the day as fraction; ``day_of_year`` [1, 367) with the hour as fraction.
        """
        clock = self.clock.dt
        day = clock.hour().cast(pl.Float64) / 24 + clock.minute() / 1440 + clock.second() / 86_400
        if name == "hour":
            return day * 24
        if name == "weekday":
            return clock.weekday().cast(pl.Float64)
        if name == "month":
            return clock.month() + (clock.day() - 1 + day) / clock.days_in_month()
        return clock.ordinal_day() + day


def is_temporal(column: pl.Series) -> bool:
    """Whether the column is stored as dates or as dates with times."""
    return column.dtype == pl.Date or column.dtype == pl.Datetime


def read_timestamps(column: pl.Series) -> Timestamps:
    """Moments of a text, Date or Datetime column, N rows; null where missing or unreadable.

    Text may be ISO 8601 (with or without time, fraction and offset), the same with ``/`` or ``:`` in the date
    (EXIF), ``04.03.2021``, ``4 Mar 2021``, ``04-Mar-2021`` or ``Mar 4, 2021``.
    """
    if column.dtype == pl.String:
        return _parse(column)
    zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
    moments = column.cast(pl.Datetime("us", zone))
    seconds = moments.dt.timestamp("us") / 1e6
    return Timestamps(moments.dt.replace_time_zone(None) if zone else moments, seconds)


def _parse(text: pl.Series) -> Timestamps:
    zoned = text.str.contains(_OFFSET).fill_null(False)
    if not zoned.any():
        clock = _parse_clock(text)
        return Timestamps(clock, clock.dt.timestamp("us") / 1e6)
    clock = _parse_clock(text.str.replace(_OFFSET, "${1}"))
    zone = text.str.extract(_OFFSET, 2).str.replace("Z", "+0000").str.replace(":", "")
    sign = 1 - 2 * zone.str.starts_with("-").cast(pl.Float64)
    hours, minutes = (zone.str.slice(start, 2).cast(pl.Float64, strict=False) for start in (1, 3))
    offset = (sign * (hours * 3600 + minutes * 60)).fill_null(0.0)
    return Timestamps(clock, clock.dt.timestamp("us") / 1e6 - offset)


def _parse_clock(text: pl.Series) -> pl.Series:
    """Datetime[us] of text without offset; formats that occur in a sample are tried first."""
    rows = text.str.contains(_PLAUSIBLE).fill_null(False).arg_true()
    unread = text.gather(rows)
    sample = unread.gather_every(max(1, len(unread) // _SAMPLE))
    likely = [form for form in _FORMATS if _strptime(sample, form).null_count() < len(sample)]
    moments = np.full(len(text), _NEVER)
    for form in dict.fromkeys([*likely, *_FORMATS]):
        if unread.is_empty():
            break
        found = _strptime(unread, form)
        read = found.is_not_null()
        moments[rows.filter(read).to_numpy()] = found.drop_nulls().to_numpy()
        rows, unread = rows.filter(~read), unread.filter(~read)
    clock = pl.Series(text.name, moments)
    # Year 21 is a year written with two digits.
    return clock.zip_with(clock.dt.year().is_between(1000, 9999), _NOTHING)


def _strptime(text: pl.Series, form: str) -> pl.Series:
    return text.str.to_datetime(form, strict=False, time_unit="us")
