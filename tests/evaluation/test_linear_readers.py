import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

import openfino.evaluation.linear_readers as readers
from openfino.evaluation.linear_readers import read_classes, read_numbers


def generator():
    return np.random.default_rng(5)


def blobs(rows=400, dimensions=10, classes=5, seed=0):
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, classes, rows) * 3 + 1
    mixed = draw.normal(size=(rows, dimensions)) @ draw.normal(size=(dimensions, dimensions))
    centres = draw.normal(size=(3 * classes, dimensions))
    return (mixed + 2.5 * centres[codes]).astype(np.float32), codes


def test_one_shrinkage_is_discriminant_analysis(monkeypatch):
    features, codes = blobs()
    monkeypatch.setattr(readers, "SHRINKAGES", (0.2,))
    answers = read_classes(features[:300], codes[:300], features[300:], generator())
    deviation = features[:300].std(axis=0, dtype=np.float64)
    scaled = features / deviation
    model = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Pooled(0.2))
    expected = model.fit(scaled[:300], codes[:300]).predict(scaled[300:])
    assert (answers == expected).mean() > 0.98
    assert len(np.unique(answers)) == 5


class Pooled:
    """Covariance of one class, shrunk; scikit-learn takes the mean over classes, weighted by their rows."""

    def __init__(self, shrinkage):
        self.shrinkage = shrinkage

    def fit(self, features):
        covariance = np.cov(features.T, bias=True)
        level = np.trace(covariance) / len(covariance)
        self.covariance_ = (1 - self.shrinkage) * covariance + self.shrinkage * level * np.eye(
            len(covariance)
        )
        return self


def test_one_shrinkage_is_ridge_regression(monkeypatch):
    features, _ = blobs()
    targets = (features[:, :2] @ np.array([[1.0, 0.5], [-0.3, 2.0]]) + 4).astype(np.float32)
    monkeypatch.setattr(readers, "SHRINKAGES", (0.3,))
    answers = read_numbers(features[:300], targets[:300], features[300:], generator())
    standard = (features - features[:300].mean(axis=0)) / features[:300].std(axis=0)
    # (1 - s) C + s I = (1 - s) (C + s / (1 - s) I), as standardised features have mean variance 1.
    ridge = Ridge(alpha=300 * 0.3 / 0.7).fit(standard[:300], targets[:300])
    middle = targets[:300].mean(axis=0)
    np.testing.assert_allclose(answers - middle, (ridge.predict(standard[300:]) - middle) / 0.7, atol=1e-3)


def test_the_shrinkage_is_chosen_without_the_rows_that_are_read():
    features, codes = blobs(dimensions=150, rows=300)
    answers = read_classes(features[:200], codes[:200], features[200:], generator())
    parts = [
        read_classes(features[:200], codes[:200], features[[row]], generator())[0] for row in range(200, 300)
    ]
    assert list(answers) == parts
    assert (answers == codes[200:]).mean() > 0.5


def test_numbers_that_are_not_there_are_answered_with_their_mean():
    draw = np.random.default_rng(0)
    features = draw.normal(size=(400, 30)).astype(np.float32)
    targets = draw.normal(size=(400, 1)).astype(np.float32)
    answers = read_numbers(features[:200], targets[:200], features[200:], generator())
    assert ((answers - targets[200:]) ** 2).mean() < 1.2 * targets[200:].var()


@pytest.mark.parametrize("constant", [0.0, 7.5])
def test_features_that_do_not_differ_are_answered_by_the_commonest(constant):
    features = np.full((30, 4), constant, dtype=np.float32)
    codes = np.repeat([3, 8, 9], [5, 15, 10])
    assert set(read_classes(features, codes, features[:6], generator())) == {8}
    targets = np.arange(30, dtype=np.float32)[:, None]
    np.testing.assert_allclose(read_numbers(features, targets, features[:2], generator()), 14.5)


def test_what_rounding_leaves_is_not_read():
    """Features that an erasure made constant but for the last bit, which still depends on the class."""
    codes = np.tile([0, 1, 1], 40)
    features = np.ones((120, 4), dtype=np.float32)
    features[codes == 0] = np.nextafter(np.float32(1), np.float32(2))
    assert set(read_classes(features, codes, features, generator())) == {1}


def test_few_rows_and_many_rows(monkeypatch):
    features, codes = blobs()
    lonely = read_classes(features[:2], np.array([4, 2]), features[:2], generator())
    assert list(lonely) == [4, 2]
    monkeypatch.setattr(readers, "MAX_ROWS", 100)
    drawn = read_classes(features[:300], codes[:300], features[300:], generator())
    again = read_classes(features[:300], codes[:300], features[300:], generator())
    assert list(drawn) == list(again)
    assert (drawn == codes[300:]).mean() > 0.6
    few = read_numbers(features[:300], features[:300, :1], features[300:], generator())
    np.testing.assert_allclose(few, features[300:, :1], atol=0.2)
