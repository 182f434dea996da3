import numpy as np
import pytest
from sklearn.metrics import f1_score

from openfino.evaluation.metrics import accuracy, macro_f1, score, worst_group_accuracy

TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 3, 3])


def naive_f1(truth, predicted, label):
    hits = np.sum((truth == label) & (predicted == label))
    wrong = np.sum((truth != label) & (predicted == label))
    missed = np.sum((truth == label) & (predicted != label))
    return 2 * hits / (2 * hits + wrong + missed)


def test_accuracy_is_the_share_of_right_answers():
    assert accuracy(TRUTH, PREDICTED) == pytest.approx(3 / 6)


def test_macro_f1_averages_the_classes_of_the_truth_alone():
    expected = np.mean([naive_f1(TRUTH, PREDICTED, label) for label in (0, 1, 2)])
    assert macro_f1(TRUTH, PREDICTED) == pytest.approx(expected)
    # scikit-learn's own average counts class 3, which no test row has, as a fourth class with F1 0.
    assert f1_score(TRUTH, PREDICTED, average="macro", zero_division=0) == pytest.approx(expected * 3 / 4)


def test_macro_f1_agrees_with_scikit_learn_where_all_classes_are_present():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 5, (2, 200))
    assert macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_a_false_alarm_costs_the_precision_of_a_present_class():
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 0, 0])) == pytest.approx(np.mean([2 * 2 / (4 + 1), 0]))


def test_worst_group_is_the_lowest_accuracy_of_any_group():
    truth = np.array([0, 0, 1, 1, 0, 1])
    predicted = np.array([0, 0, 1, 0, 1, 0])
    groups = np.array([5, 5, 7, 7, -1, -1])  # the rows without a group are all wrong and must not count
    assert worst_group_accuracy(truth, predicted, groups) == pytest.approx(0.5)


def test_without_any_group_there_is_no_worst_one():
    nobody = np.full(6, -1)
    with pytest.raises(ValueError, match="no row has a group"):
        worst_group_accuracy(TRUTH, PREDICTED, nobody)
    assert set(score(TRUTH, PREDICTED, nobody)) == {"accuracy", "macro_f1"}
    assert set(score(TRUTH, PREDICTED, np.zeros(6, dtype=int))) == {
        "accuracy",
        "macro_f1",
        "worst_group_accuracy",
    }
