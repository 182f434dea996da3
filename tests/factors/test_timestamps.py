"""Timestamps are read in one way only, in local time and in UTC."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.factors.timestamps import read_timestamps

MOMENT = dt.datetime(2021, 3, 4, 5, 6, 7)


def seconds(moment):
    return moment.replace(tzinfo=dt.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2021-03-04", dt.datetime(2021, 3, 4)),
        ("2021-03-04T05:06", dt.datetime(2021, 3, 4, 5, 6)),
        ("2021-03-04T05:06:07", MOMENT),
        ("2021-03-04 05:06:07", MOMENT),
        ("2021-03-04T05:06:07.250", dt.datetime(2021, 3, 4, 5, 6, 7, 250_000)),
        ("2021/03/04 05:06:07", MOMENT),
        ("2021:03:04 05:06:07", MOMENT),
        ("20210304T050607", MOMENT),
        ("04.03.2021", dt.datetime(2021, 3, 4)),
        ("04.03.2021 05:06", dt.datetime(2021, 3, 4, 5, 6)),
        ("4 Mar 2021", dt.datetime(2021, 3, 4)),
        ("4 March 2021 05:06:07", MOMENT),
        ("04-Mar-2021", dt.datetime(2021, 3, 4)),
        ("Mar 4, 2021", dt.datetime(2021, 3, 4)),
        ("2016-02-29", dt.datetime(2016, 2, 29)),
        ("1900-01-01", dt.datetime(1900, 1, 1)),
    ],
)
def test_accepted_text(text, moment):
    read = read_timestamps(pl.Series([text]))
    assert read.clock.to_list() == [moment]
    assert read.seconds.to_list() == [seconds(moment)]


@pytest.mark.parametrize(
    "text",
    [
        "03/04/2021",
        "2021-02-30",
        "2021-13-01",
        "2021-03",
        "20210304",
        "12",
        "1.5",
        "may",
        "1-May-21",
        "0000-01-01",
        "2021-03-04 x",
        "x 2021-03-04",
        "2021-03-04T25:00",
        "",
    ],
)
def test_refused_text(text):
    read = read_timestamps(pl.Series([text]))
    assert read.clock.to_list() == [None]
    assert read.seconds.to_list() == [None]


def test_every_format_may_occur_in_one_column():
    texts = ["2021-03-04T05:06:07", None, "4 Mar 2021 05:06:07", "rubbish", "2021:03:04 05:06:07Z"] * 3
    read = read_timestamps(pl.Series(texts))
    assert read.clock.to_list() == [MOMENT, None, MOMENT, None, MOMENT] * 3


def test_a_format_that_occurs_once_among_many_is_found():
    texts = ["2021-03-04T05:06:07"] * 5000
    texts[1237] = "Mar 4, 2021"
    read = read_timestamps(pl.Series(texts))
    assert read.clock.null_count() == 0
    assert read.clock[1237] == dt.datetime(2021, 3, 4)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("+02:00", 2.0), ("-0230", -2.5), ("Z", 0.0), (" +01:00", 1.0), ("+05:45", 5.75), ("-00:30", -0.5)],
)
def test_offsets_shift_seconds_but_not_the_local_clock(text, hours):
    read = read_timestamps(pl.Series(["2021-03-04T05:06:07" + text, "2021-03-04T05:06:07"]))
    assert read.clock.to_list() == [MOMENT, MOMENT]
    assert read.seconds.to_list() == [seconds(MOMENT) - 3600 * hours, seconds(MOMENT)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_stored_datetimes_and_dates(unit):
    column = pl.Series([MOMENT, None]).cast(pl.Datetime(unit))
    assert read_timestamps(column).seconds.to_list() == [seconds(MOMENT), None]
    zoned = read_timestamps(column.dt.replace_time_zone("Asia/Kathmandu"))
    assert zoned.clock.to_list() == [MOMENT, None]
    assert zoned.seconds.to_list() == [seconds(MOMENT) - 5.75 * 3600, None]
    assert read_timestamps(pl.Series([MOMENT.date()])).seconds.to_list() == [seconds(dt.datetime(2021, 3, 4))]


def test_parts():
    read = read_timestamps(pl.Series(["2024-01-01T00:00", "2024-02-15T18:30", "2023-12-31T23:59:59", None]))
    assert read.part("hour").to_list() == [0.0, 18.5, pytest.approx(24 - 1 / 3600), None]
    assert read.part("weekday").to_list() == [1.0, 4.0, 7.0, None]
    assert read.part("month").to_list() == [
        1.0,
        pytest.approx(2 + (14 + 18.5 / 24) / 29),
        pytest.approx(13, abs=1e-5),
        None,
    ]
    assert read.part("day_of_year").to_list() == [
        1.0,
        pytest.approx(46 + 18.5 / 24),
        pytest.approx(366, abs=2e-5),
        None,
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.datetimes(dt.datetime(1000, 1, 1), dt.datetime(9999, 12, 31)), min_size=1),
    st.sampled_from([0, 60, -330, 845]),
)
def test_isoformat_round_trip(moments, minutes):
    zone = dt.timezone(dt.timedelta(minutes=minutes))
    read = read_timestamps(pl.Series([moment.replace(tzinfo=zone).isoformat() for moment in moments]))
    assert read.clock.to_list() == moments
    for found, moment in zip(read.seconds.to_list(), moments, strict=True):
        assert found == pytest.approx(seconds(moment) - 60 * minutes, abs=1e-4)
