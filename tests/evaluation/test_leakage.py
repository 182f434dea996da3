import math

import numpy as np
import polars as pl
import pytest

import openfino.evaluation.leakage as leakage
from openfino.evaluation.features import Features
from openfino.evaluation.leakage import (
    Known,
    erase,
    known_values,
    read_all,
    read_factor,
    read_quantity,
    score_classes,
    score_numbers,
)
from openfino.factors.encode import encode, fit_vocabulary
from openfino.factors.spec import FactorSpec


def as_features(vectors):
    vectors = np.asarray(vectors, dtype=np.float32)
    return Features(np.arange(len(vectors)), vectors, vectors * 2 + 1, None, [], [])


def plated(rows=800, dimensions=20, seed=0):
    """Features with two factors: the site in directions of its own, the dose in one dimension."""
    generator = np.random.default_rng(seed)
    sites, doses = generator.integers(0, 4, rows), generator.random(rows)
    vectors = generator.normal(size=(rows, dimensions)) + 2 * generator.normal(size=(4, dimensions))[sites]
    vectors[:, 0] += 6 * doses
    table = pl.DataFrame({"site": [f"s{site}" for site in sites], "dose": doses})
    return as_features(vectors), table


def spec(name, kind="discrete", **more):
    return FactorSpec(name, (name,), kind, "watched", **more)


def angles(hours):
    table = pl.DataFrame({"hour": hours})
    factor = spec("hour", "cyclic", period=24)
    return encode(table, factor, fit_vocabulary(table, factor))


# Scores and their errors


def test_balanced_accuracy_is_the_mean_over_values():
    truth, answers = np.array([0] * 8 + [1] * 2), np.array([0] * 8 + [0, 1])
    scores = score_classes(truth, answers)
    assert scores["accuracy"][0] == 0.9
    assert scores["balanced"][0] == (1.0 + 0.5) / 2


def test_errors_of_classes_are_those_of_drawing_the_rows_again():
    generator = np.random.default_rng(0)
    truth = generator.choice(3, 400, p=[0.6, 0.3, 0.1])
    answers = np.where(generator.random(400) < 0.7, truth, (truth + 1) % 3)
    drawn = []
    for _ in range(600):
        rows = generator.integers(0, 400, 400)
        drawn.append([score_classes(truth[rows], answers[rows])[key][0] for key in ("accuracy", "balanced")])
    deviations = np.std(drawn, axis=0)
    errors = [score_classes(truth, answers)[key][1] for key in ("accuracy", "balanced")]
    np.testing.assert_allclose(errors, deviations, rtol=0.15)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_is_certain(share):
    truth = np.zeros(10, dtype=np.int64)
    answers = np.full(10, int(1 - share))
    value, error = score_classes(truth, answers)["accuracy"]
    assert value == share
    assert error == pytest.approx(math.sqrt((2 / 14) * (12 / 14) / 14))


def test_errors_of_numbers_are_those_of_drawing_the_rows_again():
    generator = np.random.default_rng(0)
    turns = generator.random(500)
    truth = np.stack([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], axis=1)
    answers = 0.6 * truth + 0.5 * generator.normal(size=truth.shape)
    drawn = []
    for _ in range(600):
        rows = generator.integers(0, 500, 500)
        drawn.append([value for value, _ in score_numbers(truth[rows], answers[rows], cyclic=True).values()])
    errors = [error for _, error in score_numbers(truth, answers, cyclic=True).values()]
    np.testing.assert_allclose(errors, np.std(drawn, axis=0), rtol=0.15)


def test_the_cosine_measures_angles():
    truth = np.array([[0.0, 1.0]] * 4)
    answers = np.array([[0.0, 0.2], [0.5, 0.0], [0.0, -3.0], [0.0, 0.0]])
    assert score_numbers(truth, answers, cyclic=True)["cosine"][0] == pytest.approx((1 + 0 - 1 + 0) / 4)
    assert list(score_numbers(truth, answers, cyclic=False)) == []


# Readings


def test_both_readers_score_the_same_held_out_rows():
    features, table = plated()
    reading = read_factor(features, table["site"])
    assert reading.knn_accuracy > 0.9
    assert reading.linear_accuracy > 0.9
    assert set(reading.errors) == {f"{m}_{x}" for m in ("knn", "linear") for x in ("accuracy", "balanced")}
    knn = read_factor(features, table["site"], methods=("knn",))
    assert (knn.knn_accuracy, knn.rows) == (reading.knn_accuracy, reading.rows)
    assert (knn.linear_accuracy, knn.linear_balanced) == (None, None)


def test_no_row_that_is_read_helps_to_read_it(monkeypatch):
    """The rows that the readers and the erasure are fitted on share none with those that are read."""
    features, table = plated()
    number = {row.tobytes(): place for place, row in enumerate(features.cls)}
    wide = {row.tobytes(): place for place, row in enumerate(features.side_by_side(features.rows))}
    seen = {}

    def watch(name, rows, *at):
        real = getattr(leakage, name)

        def call(*arguments, **options):
            seen.setdefault(name, [{rows.get(row.tobytes()) for row in arguments[place]} for place in at])
            return real(*arguments, **options)

        monkeypatch.setattr(leakage, name, call)

    watch("knn_predict", number, 0, 2)
    watch("read_classes", wide, 0, 2)
    watch("fit_eraser", number, 0)
    read_factor(features, table["site"])
    dose = known_values(table, spec("dose", "continuous"), features.rows)
    read_factor(features, table["site"], erased=dose)
    bank, queries = seen["knn_predict"]
    assert not bank & queries
    assert bank | queries == set(range(800))
    assert seen["read_classes"] == [bank, queries]
    assert seen["fit_eraser"] == [bank]


def test_an_erased_factor_is_read_at_the_majority_and_the_other_stays():
    features, table = plated()
    site, dose = spec("site"), spec("dose", "continuous")
    options = {"k": 10, "seed": 0, "device": "cpu", "methods": ("knn", "linear")}
    before = read_all(features, table, {"site": site, "dose": dose}, **options)
    without_site = read_all(features, table, {"site": site, "dose": dose}, **options, erased=site)
    without_dose = read_all(features, table, {"site": site, "dose": dose}, **options, erased=dose)
    assert without_site["site"].linear_accuracy == without_site["site"].majority
    assert without_site["site"].knn_accuracy < 0.4 < before["site"].knn_accuracy
    assert without_site["dose"].linear_r2 > before["dose"].linear_r2 - 0.1 > 0.4
    assert abs(without_dose["dose"].linear_r2) < 0.02
    assert without_dose["site"].linear_accuracy > 0.9
    assert [reading.rows for reading in without_site.values()] == [
        reading.rows for reading in before.values()
    ]


def test_rows_without_a_value_are_erased_but_not_fitted_on():
    features, table = plated()
    known = known_values(table, spec("site"), features.rows)
    some = Known(known.target, known.valid & (np.arange(800) % 2 == 0))
    fitted = np.arange(600, dtype=np.int64)
    found, dimensions = erase(features, some, fitted)
    direct, _ = erase(features, known, np.arange(0, 600, 2))
    np.testing.assert_array_equal(found.cls, direct.cls)
    assert dimensions == 3
    assert np.abs(found.cls[601::2] - features.cls[601::2]).max() > 0.1
    unchanged, none = erase(features, Known(known.target, np.zeros(800, dtype=bool)), fitted)
    assert (unchanged is features, none) == (True, 0)


def test_the_values_of_an_erased_factor_may_be_few_or_one():
    features, table = plated(40)
    rows = np.arange(40)
    for fitted in (rows[:1], rows[:2]):
        found, _ = erase(features, known_values(table, spec("site"), features.rows), fitted)
        assert np.isfinite(found.cls).all()
    same = as_features(np.ones((40, 3)))
    np.testing.assert_array_equal(erase(same, known_values(table, spec("site"), rows), rows)[0].cls, same.cls)


def test_an_hour_is_read_by_its_direction():
    turns = np.random.default_rng(0).random(600)
    circle = np.stack([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], axis=1)
    reading = read_quantity(as_features(circle), angles(24 * turns), k=5)
    assert min(reading.knn_cosine, reading.linear_cosine, reading.linear_r2) > 0.99
    assert abs(reading.constant_cosine) < 0.15
    noise = as_features(np.random.default_rng(1).normal(size=(600, 4)))
    morning = 8 + 2 * turns
    blind = read_quantity(noise, angles(morning), k=20)
    assert blind.constant_cosine > 0.95
    assert blind.knn_cosine == pytest.approx(blind.constant_cosine, abs=0.01)
    dose = pl.DataFrame({"dose": turns})
    continuous = spec("dose", "continuous")
    reading = read_quantity(noise, encode(dose, continuous, fit_vocabulary(dose, continuous)))
    assert (reading.knn_cosine, reading.constant_cosine) == (None, None)
