import numpy as np
import pytest

from openfino.evaluation.classifiers import knn_average, knn_predict
from openfino.evaluation.neighbours import knn_predictions
from openfino.evaluation.tasks import Targets, Task

GENERATOR = np.random.default_rng(0)
BANK, QUERIES = (GENERATOR.normal(size=(rows, 5)).astype(np.float32) for rows in (60, 20))
CODES = GENERATOR.integers(0, 4, 60)
NUMBERS = GENERATOR.normal(size=(60, 3)).astype(np.float32)
EVERY = np.ones(60, dtype=bool)


def test_classes_are_those_of_the_vote():
    task = Task("single", "y", ("a", "b", "c", "d", "e"))  # nobody has the last one
    found = knn_predictions(task, BANK, Targets(CODES, EVERY), QUERIES, [1, 5, 500])
    for k, predictions in found.items():
        np.testing.assert_array_equal(predictions.chosen, knn_predict(BANK, CODES, QUERIES, k=k))
        np.testing.assert_allclose(predictions.scores.sum(axis=1), 1, rtol=1e-5)
        one_hot = np.eye(5, dtype=np.float32)[CODES]
        np.testing.assert_allclose(
            predictions.scores, knn_average(BANK, one_hot, QUERIES, k=k), rtol=1e-5, atol=1e-7
        )


def test_many_labels_and_numbers_are_weighted_means():
    multi = Task("multi", "y", ("a", "b", "c"))
    held = (NUMBERS > 0).astype(np.float32)
    found = knn_predictions(multi, BANK, Targets(held, EVERY), QUERIES, [7])[7]
    np.testing.assert_allclose(found.scores, knn_average(BANK, held, QUERIES, k=7), rtol=1e-5)
    np.testing.assert_array_equal(found.chosen, found.scores > 0.5)
    number = Task("regression", "y", ("y",), centre=9, scale=9)
    found = knn_predictions(number, BANK, Targets(NUMBERS[:, :1], EVERY), QUERIES, [7])[7]
    np.testing.assert_allclose(
        found.scores, knn_average(BANK, NUMBERS[:, :1], QUERIES, k=7), rtol=1e-5, atol=1e-6
    )


def test_rows_without_a_label_are_no_neighbours():
    task = Task("single", "y", ("a", "b", "c", "d"))
    valid = np.arange(60) % 2 == 0
    found = knn_predictions(task, BANK, Targets(np.where(valid, CODES, -1), valid), QUERIES, [5])[5]
    np.testing.assert_array_equal(found.chosen, knn_predict(BANK[valid], CODES[valid], QUERIES, k=5))
    with pytest.raises(ValueError, match="0 rows of the bank"):
        knn_predictions(task, BANK, Targets(CODES, ~EVERY), QUERIES, [5])
    with pytest.raises(ValueError, match="k = "):
        knn_predictions(task, BANK, Targets(CODES, EVERY), QUERIES, [5, 0])
    assert knn_predictions(task, BANK, Targets(CODES, EVERY), QUERIES[:0], [5])[5].scores.shape == (0, 4)
