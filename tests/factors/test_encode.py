"""Tensors mean the same names, whatever happens to the table."""

import datetime as dt
import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.errors import OpenfinoError
from openfino.factors.batch import FactorBatch
from openfino.factors.encode import (
    Vocabulary,
    encode,
    fit_vocabulary,
    load_vocabularies,
    save_vocabularies,
)
from openfino.factors.spec import FactorSpec

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
quick = settings(max_examples=50, deadline=None)


def discrete(column="x"):
    return FactorSpec(column, (column,), "discrete", "informative")


def continuous(*columns):
    return FactorSpec(
        "x", columns or ("x",), "vector" if columns else "continuous", "spurious", output="sigmoid"
    )


def cyclic(period):
    return FactorSpec("x", ("x",), "cyclic", "informative", period, "tanh")


def frame(values, dtype=None):
    return pl.DataFrame({"x": pl.Series(values, dtype=dtype)})


def names(encoded):
    """Decode a discrete factor; None where not valid."""
    return [
        encoded.vocabulary.values[row] if valid else None
        for row, valid in zip(encoded.values.tolist(), encoded.valid.tolist(), strict=True)
    ]


# Discrete


@quick
@given(st.lists(st.one_of(st.none(), TEXT)).filter(lambda values: len(set(values) - {None}) > 1))
def test_discrete_values_round_trip_by_name(values):
    vocabulary = fit_vocabulary(frame(values), discrete())
    encoded = encode(frame(values), discrete(), vocabulary)
    assert encoded.values.dtype == torch.int64
    assert encoded.valid.dtype == torch.bool
    assert names(encoded) == values
    assert encoded.unseen == 0
    assert vocabulary.values == sorted(set(values) - {None})
    assert vocabulary.counts == [values.count(value) for value in vocabulary.values]
    assert vocabulary.n_missing == values.count(None)
    assert vocabulary.count == len(values) - values.count(None)
    assert encoded.target_size == len(vocabulary.values)


@quick
@given(
    st.lists(st.one_of(st.none(), TEXT)).filter(lambda values: len(set(values) - {None}) > 1), st.randoms()
)
def test_the_order_of_the_rows_changes_no_vocabulary(values, random):
    shuffled = random.sample(values, len(values))
    vocabulary = fit_vocabulary(frame(values), discrete())
    assert fit_vocabulary(frame(shuffled), discrete()) == vocabulary
    assert names(encode(frame(shuffled), discrete(), vocabulary)) == shuffled


@quick
@given(
    st.lists(st.one_of(st.none(), TEXT), max_size=20).filter(lambda values: len(set(values) - {None}) > 1),
    st.lists(st.one_of(st.none(), TEXT), max_size=20),
)
def test_extension_never_rebinds_a_value(before, after):
    old = fit_vocabulary(frame(before), discrete())
    table = frame(after, pl.String)
    new = old.extended(table, discrete())
    assert new.values[: len(old.values)] == old.values
    assert set(new.values) == (set(before) | set(after)) - {None}
    assert len(set(new.values)) == len(new.values)
    assert names(encode(table, discrete(), new)) == after
    assert new.counts == [after.count(value) for value in new.values]
    assert new.n_missing == after.count(None)
    unseen = sum(value is not None and value not in old.values for value in after)
    assert encode(table, discrete(), old).unseen == unseen
    assert new.extended(table, discrete()) == new


def test_unseen_values_are_not_valid_and_counted():
    vocabulary = fit_vocabulary(frame(["b", "a", "b"]), discrete())
    encoded = encode(frame(["a", "c", None, "b", "c"]), discrete(), vocabulary)
    assert names(encoded) == ["a", None, None, "b", None]
    assert encoded.unseen == 2
    assert encoded.values.min() >= 0
    assert encoded.values.max() < 2


def test_values_keep_their_name_when_the_column_is_stored_otherwise():
    vocabulary = fit_vocabulary(frame([3, 1, 2]), discrete())
    assert names(encode(frame([1.0, None, 3.0]), discrete(), vocabulary)) == ["1", None, "3"]
    assert names(encode(frame(["2", "x"]), discrete(), vocabulary)) == ["2", None]
    flags = fit_vocabulary(frame([True, False]), discrete())
    assert names(encode(frame(["true", "false"]), discrete(), flags)) == ["true", "false"]


# Continuous and vector


@quick
@given(
    st.lists(st.one_of(st.none(), NUMBERS), min_size=2).filter(lambda values: len(set(values) - {None}) > 1)
)
def test_numbers_are_mapped_from_their_range_to_zero_and_one(values):
    vocabulary = fit_vocabulary(frame(values), continuous())
    present = [value for value in values if value is not None]
    assert vocabulary.minimum == [min(present)]
    assert vocabulary.maximum == [max(present)]
    encoded = encode(frame(values), continuous(), vocabulary)
    assert encoded.values.dtype == torch.float32
    assert encoded.values.shape == (len(values), 1)
    assert torch.isfinite(encoded.values).all()
    assert encoded.values.min() >= 0
    assert encoded.values.max() <= 1
    assert encoded.valid.tolist() == [value is not None for value in values]
    found = encoded.values[encoded.valid, 0].tolist()
    assert found[present.index(min(present))] == 0.0
    assert found[present.index(max(present))] == 1.0
    order = np.argsort(present, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()
    assert encoded.clamped == 0


def test_seconds_of_one_minute_in_2026_keep_their_distance():
    # As float32 these moments would all be one: its spacing at 1.8e9 is 128 s.
    start = dt.datetime(2026, 11, 21, 7, 0, 0)
    moments = [start + dt.timedelta(seconds=second) for second in range(61)]
    for column in (moments, [moment.isoformat() for moment in moments]):
        spec = continuous()
        values = encode(frame(column), spec, fit_vocabulary(frame(column), spec)).values[:, 0]
        np.testing.assert_allclose(values.numpy(), np.arange(61) / 60, atol=1e-6)


def test_large_integers_keep_their_distance():
    values = [2**52 + step for step in range(5)]
    spec = continuous()
    encoded = encode(frame(values), spec, fit_vocabulary(frame(values), spec))
    assert encoded.values[:, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_numbers_outside_the_range_are_clamped_and_counted():
    vocabulary = fit_vocabulary(frame([10.0, 20.0]), continuous())
    encoded = encode(frame([5.0, 10.0, 15.0, 25.0, None]), continuous(), vocabulary)
    assert encoded.values[:4, 0].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert encoded.valid.tolist() == [True, True, True, True, False]
    assert encoded.clamped == 2
    assert encoded.unseen == 0


def test_extension_leaves_ranges_alone():
    vocabulary = fit_vocabulary(frame([10.0, 20.0, None]), continuous())
    extended = vocabulary.extended(frame([0.0, 15.0, 100.0, None, None]), continuous())
    assert (extended.minimum, extended.maximum) == ([10.0], [20.0])
    assert (extended.count, extended.n_missing) == (3, 2)


def test_unreadable_values_are_not_valid_and_counted():
    vocabulary = fit_vocabulary(frame([1.0, 2.0]), continuous())
    encoded = encode(frame(["1.5", "abc", None, "2021-03-04"]), continuous(), vocabulary)
    assert encoded.valid.tolist() == [True, False, False, False]
    assert encoded.unseen == 2
    times = fit_vocabulary(frame(["2021-03-04", "2021-03-06"]), continuous())
    again = encode(frame([dt.date(2021, 3, 5), None]), continuous(), times)
    assert again.values[0, 0] == 0.5
    assert encode(frame([5.0]), continuous(), times).unseen == 1


def test_a_vector_is_valid_where_every_component_is():
    table = pl.DataFrame({"lat": [0.0, 10.0, None, 5.0], "lon": [100.0, 300.0, 200.0, None]})
    spec = continuous("lat", "lon")
    vocabulary = fit_vocabulary(table, spec)
    assert vocabulary.minimum == [0.0, 100.0]
    assert vocabulary.maximum == [10.0, 300.0]
    assert vocabulary.n_missing == 2
    encoded = encode(table, spec, vocabulary)
    assert encoded.values.shape == (4, 2)
    assert encoded.valid.tolist() == [True, True, False, False]
    assert encoded.values[:2].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert torch.isfinite(encoded.values).all()
    assert encoded.target_size == 2
    outside = encode(pl.DataFrame({"lat": [5.0, 20.0], "lon": [200.0, 50.0]}), spec, vocabulary)
    assert outside.values.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert outside.clamped == 1


# Cyclic


def test_cyclic_values_lie_on_the_circle():
    vocabulary = fit_vocabulary(frame([0.0, 90.0]), cyclic(360.0))
    encoded = encode(frame([0.0, 90.0, 180.0, -90.0, None]), cyclic(360.0), vocabulary)
    expected = [[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]]
    np.testing.assert_allclose(encoded.values[:4].numpy(), expected, atol=1e-6)
    assert encoded.valid.tolist() == [True] * 4 + [False]
    assert encoded.target_size == 2


@quick
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2), st.integers(-100, 100), st.sampled_from([7.0, 24.0, 360.0])
)
def test_a_cycle_wraps_around(values, turns, period):
    vocabulary = Vocabulary("cyclic", is_time=[False], period=period)
    once = encode(frame(values), cyclic(period), vocabulary).values
    again = encode(frame([value + turns * period for value in values]), cyclic(period), vocabulary).values
    torch.testing.assert_close(once, again, atol=1e-6, rtol=0)
    torch.testing.assert_close(once.norm(dim=1), torch.ones(len(values)))
    expected = [[math.sin(2 * math.pi * v / period), math.cos(2 * math.pi * v / period)] for v in values]
    torch.testing.assert_close(once, torch.tensor(expected), atol=1e-6, rtol=0)


def test_midnight_is_near_itself():
    times = ["2026-11-21T23:59:59", "2026-11-22T00:00:01", "2026-11-21T12:00:00"]
    late, early, noon = encode(
        frame(times), cyclic("hour"), fit_vocabulary(frame(times), cyclic("hour"))
    ).values
    assert (late - early).norm() < 2e-4
    assert (late - noon).norm() > 1.99


# Missing values


@pytest.mark.parametrize(
    ("spec", "draw"),
    [
        (discrete(), lambda generator, count: [f"v{value}" for value in generator.integers(0, 5, count)]),
        (continuous(), lambda generator, count: generator.normal(size=count).tolist()),
        (cyclic(24.0), lambda generator, count: generator.uniform(0, 24, count).tolist()),
    ],
)
def test_thirty_per_cent_missing_are_masked_and_change_no_other_row(spec, draw):
    generator = np.random.default_rng(3)
    values = draw(generator, 1000)
    missing = generator.random(1000) < 0.3
    holes = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    vocabulary = fit_vocabulary(frame(values), spec)
    whole, partial = encode(frame(values), spec, vocabulary), encode(frame(holes), spec, vocabulary)
    assert whole.valid.all()
    np.testing.assert_array_equal(partial.valid.numpy(), ~missing)
    assert torch.equal(partial.values[partial.valid], whole.values[partial.valid])
    assert torch.isfinite(partial.values.float()).all()
    assert partial.unseen == 0
    assert fit_vocabulary(frame(holes), spec).n_missing == missing.sum()


def test_nan_is_missing_and_not_unseen():
    vocabulary = fit_vocabulary(frame([1.0, 2.0]), continuous())
    encoded = encode(frame([math.nan, 1.5]), continuous(), vocabulary)
    assert encoded.valid.tolist() == [False, True]
    assert encoded.unseen == 0


def test_a_wholly_missing_column_encodes_as_not_valid():
    for spec, values in ((discrete(), ["a", "b"]), (continuous(), [1.0, 2.0]), (cyclic(24.0), [1.0, 2.0])):
        vocabulary = fit_vocabulary(frame(values), spec)
        for column in ([None, None], pl.Series([None, None], dtype=pl.String)):
            encoded = encode(frame(column), spec, vocabulary)
            assert not encoded.valid.any()
            assert encoded.unseen == 0
        assert vocabulary.extended(frame([None]), spec).count == 0


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (discrete(), ["a", "a", None]),
        (discrete(), [None, None]),
        (continuous(), [3.0, 3.0]),
        (continuous(), [None]),
        (cyclic(24.0), [0.0, None]),
    ],
)
def test_fewer_than_two_values_are_refused(spec, values):
    with pytest.raises(OpenfinoError, match="fewer than two values of x"):
        fit_vocabulary(frame(values), spec)


# Batches and files


def test_batches_pick_rows():
    encoded = encode(frame(["a", None, "b"]), discrete(), fit_vocabulary(frame(["a", "b"]), discrete()))
    batch = encoded.batch(torch.tensor([2, 1, 2]))
    assert isinstance(batch, FactorBatch)
    assert batch.values[[0, 2]].tolist() == [1, 1]
    assert batch.valid.tolist() == [True, False, True]


def vocabularies():
    vector = pl.DataFrame({"lat": [0.1, 1 / 3], "lon": [1e300, -5e-324]})
    return {
        "plate": fit_vocabulary(frame(["\u00e4", "007", None]), discrete()),
        "time": fit_vocabulary(frame([dt.date(2021, 3, 4), dt.date(2021, 3, 5)]), continuous()),
        "position": fit_vocabulary(vector, continuous("lat", "lon")),
        "hour": fit_vocabulary(frame([1.0, 2.0]), cyclic("hour")),
        "angle": fit_vocabulary(frame([1.0, 2.0]), cyclic(360.0)),
    }


def test_vocabularies_come_back_from_disk_as_they_were(tmp_path):
    stored = vocabularies()
    save_vocabularies(tmp_path / "factors.json", stored)
    assert load_vocabularies(tmp_path / "factors.json") == stored
    assert list(load_vocabularies(tmp_path / "factors.json")) == list(stored)
    assert [file.name for file in tmp_path.iterdir()] == ["factors.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "holds no vocabularies"),
        ("[]", "holds no vocabularies"),
        ("{}", "holds no vocabularies"),
        ('{"format": 1, "factors": {"a": {"kind": "discrete", "surprise": 1}}}', "holds no vocabularies"),
        ('{"format": 2, "factors": {}}', "has format 2, this version reads 1"),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    file = tmp_path / "factors.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OpenfinoError, match=message):
        load_vocabularies(file)


def test_the_file_says_its_format(tmp_path):
    save_vocabularies(tmp_path / "factors.json", vocabularies())
    content = json.loads((tmp_path / "factors.json").read_text())
    assert content["format"] == 1
    assert content["factors"]["plate"]["values"] == ["007", "\u00e4"]


def test_a_vocabulary_of_another_kind_size_or_period_is_refused():
    stored = vocabularies()
    for name, spec in {
        "plate": continuous(),
        "time": continuous("lat", "lon"),
        "angle": cyclic(180.0),
        "hour": cyclic(24.0),
    }.items():
        with pytest.raises(OpenfinoError, match="stored vocabulary has"):
            encode(frame([1.0, 2.0]), spec, stored[name])
        with pytest.raises(OpenfinoError, match="stored vocabulary has"):
            stored[name].extended(frame([1.0, 2.0]), spec)
