"""Columns read as numbers and as phases."""

import datetime as dt
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.factors.numbers import period_length, read_numbers, read_phases


def test_numbers_missing_and_unreadable():
    reading = read_numbers(pl.Series(["1", "007", None, "1e3", "abc", "inf"]))
    assert reading.numbers.to_list() == [1.0, 7.0, None, 1000.0, None, None]
    assert reading.unreadable.to_list() == [False, False, False, False, True, True]
    assert not reading.is_time
    reading = read_numbers(pl.Series([1.0, None, float("nan"), math.inf]))
    assert reading.numbers.to_list() == [1.0, None, None, None]
    assert reading.unreadable.to_list() == [False, False, False, True]


@pytest.mark.parametrize("values", [[True, None], [[1.0], None], [b"1", None], [dt.time(1), None]])
def test_other_types_are_unreadable(values):
    reading = read_numbers(pl.Series(values))
    assert reading.numbers.to_list() == [None, None]
    assert reading.unreadable.to_list() == [True, False]


def test_text_is_read_as_whatever_fits_more_values():
    times = ["2021-03-04", "2021-03-05", "7"]
    reading = read_numbers(pl.Series(times))
    assert reading.is_time
    assert reading.unreadable.to_list() == [False, False, True]
    forced = read_numbers(pl.Series(times), is_time=False)
    assert not forced.is_time
    assert forced.numbers.to_list() == [None, None, 7.0]
    assert not read_numbers(pl.Series(["2021-03-04", "5", "7"])).is_time


def test_what_was_fitted_on_numbers_reads_no_timestamps_and_the_reverse():
    date = pl.Series([dt.date(1970, 1, 2)])
    assert read_numbers(date).numbers.to_list() == [86_400.0]
    assert read_numbers(date, is_time=False).unreadable.to_list() == [True]
    assert read_numbers(pl.Series([3]), is_time=True).unreadable.to_list() == [True]
    assert read_numbers(pl.Series(["3"]), is_time=True).unreadable.to_list() == [True]


def test_phases_of_numbers():
    assert read_phases(pl.Series([0.0, 90.0, 360.0, -90.0, 450.0, None]), 360.0).numbers.to_list() == [
        0.0,
        0.25,
        0.0,
        0.75,
        0.25,
        None,
    ]


def test_named_periods_take_numbers_in_their_unit_and_refuse_others():
    reading = read_phases(pl.Series([0, 6, 24, 25, -1, None]), "hour")
    assert reading.numbers.to_list() == [0.0, 0.25, 0.0, None, None, None]
    assert reading.unreadable.to_list() == [False, False, False, True, True, False]
    assert read_phases(pl.Series([366]), "day_of_year").numbers.to_list() == [pytest.approx(0.75 / 365.25)]


def test_named_periods_take_the_local_time_of_timestamps():
    reading = read_phases(pl.Series(["2021-03-04T06:00:00+05:00", "2021-03-04T18:00:00", None, "x"]), "hour")
    assert reading.numbers.to_list() == [0.25, 0.75, None, None]
    assert reading.unreadable.to_list() == [False, False, False, True]
    assert reading.is_time


def test_weekdays_as_numbers_and_as_dates_agree():
    monday = read_phases(pl.Series([dt.date(2024, 1, 1)]), "weekday").numbers[0]
    assert monday == read_phases(pl.Series([1]), "weekday").numbers[0]
    january = read_phases(pl.Series([dt.date(2024, 1, 1)]), "month").numbers[0]
    assert january == read_phases(pl.Series([1]), "month").numbers[0]


def test_a_numeric_period_of_timestamps_is_in_seconds():
    reading = read_phases(pl.Series(["2021-03-04T06:00:00", "2021-03-05T12:00:00"]), 86_400.0)
    assert reading.numbers.to_list() == [0.25, 0.5]


def test_lengths():
    assert [period_length(name) for name in ("hour", "weekday", "month", "day_of_year", 360)] == [
        24.0,
        7.0,
        12.0,
        365.25,
        360.0,
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-(2**20), 2**20), min_size=1),
    st.integers(-1000, 1000),
    st.sampled_from([7.0, 24.0, 360.0, 365.25]),
)
def test_whole_turns_change_nothing(values, turns, period):
    once = read_phases(pl.Series(values, dtype=pl.Float64), period).numbers.to_numpy()
    again = read_phases(pl.Series(values, dtype=pl.Float64) + turns * period, period).numbers.to_numpy()
    difference = (once - again + 0.5) % 1.0 - 0.5
    assert np.abs(difference).max() < 1e-9
    assert once.min() >= 0.0
    assert once.max() <= 1.0
