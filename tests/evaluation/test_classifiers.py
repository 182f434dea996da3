import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from openfino.evaluation import classifiers
from openfino.evaluation.classifiers import PENALTIES, fit_linear, knn_predict, stratified_holdout
from openfino.evaluation.metrics import macro_f1
from openfino.keyed import keyed_generator


def blobs(rows, width, classes, spread, seed=0):
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, classes, rows)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    features = centres[codes] + spread * generator.normal(size=(rows, width))
    return features.astype(np.float32), codes


def naive_knn(bank, bank_codes, query, k):
    similarity = [bank[i] @ query / np.linalg.norm(bank[i]) / np.linalg.norm(query) for i in range(len(bank))]
    votes = {}
    for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
        votes[bank_codes[i]] = votes.get(bank_codes[i], 0.0) + np.exp(similarity[i] / 0.07)
    return max(sorted(votes), key=lambda code: votes[code])


@pytest.fixture
def data():
    bank, bank_codes = blobs(120, 6, 5, 1.5)
    queries, codes = blobs(50, 6, 5, 1.5, seed=1)
    return bank, bank_codes * 3 + 2, queries, codes * 3 + 2  # codes need not be 0, 1, ...


@pytest.mark.parametrize("k", [1, 7, 20])
def test_knn_votes_as_written_in_the_paper(data, k):
    bank, bank_codes, queries, _ = data
    expected = [
        naive_knn(bank.astype(np.float64), bank_codes, query, k) for query in queries.astype(np.float64)
    ]
    assert knn_predict(bank, bank_codes, queries, k=k).tolist() == expected


def test_knn_weights_by_similarity_not_by_count(data):
    """Near the query one neighbour, far away two of another class: the near one wins."""
    bank = np.array([[1.0, 0.0], [0.2, 1.0], [0.2, 1.0]], dtype=np.float32)
    assert knn_predict(bank, np.array([4, 9, 9]), np.array([[1.0, 0.1]], dtype=np.float32), k=3).tolist() == [
        4
    ]


def test_nearest_neighbour_agrees_with_scikit_learn(data):
    bank, bank_codes, queries, _ = data
    reference = KNeighborsClassifier(1, metric="cosine").fit(bank, bank_codes)
    assert (knn_predict(bank, bank_codes, queries, k=1) == reference.predict(queries)).all()


def test_chunks_change_nothing(data, monkeypatch):
    bank, bank_codes, queries, _ = data
    whole = knn_predict(bank, bank_codes, queries, k=10)
    monkeypatch.setattr(classifiers, "QUERY_CHUNK", 7)
    monkeypatch.setattr(classifiers, "BANK_CHUNK", 9)  # smaller than k
    assert (knn_predict(bank, bank_codes, queries, k=10) == whole).all()


def test_knn_does_not_depend_on_the_length_of_features(data):
    bank, bank_codes, queries, _ = data
    lengths = np.linspace(0.1, 50, len(bank), dtype=np.float32)[:, None]
    assert (
        knn_predict(bank * lengths, bank_codes, queries * 3, k=9)
        == knn_predict(bank, bank_codes, queries, k=9)
    ).all()


def test_more_neighbours_than_the_bank_has(data):
    bank, bank_codes, queries, _ = data
    everyone = knn_predict(bank, bank_codes, queries, k=len(bank))
    assert (knn_predict(bank, bank_codes, queries, k=10_000) == everyone).all()


def test_votes_do_not_underflow_when_everything_is_far():
    bank = np.array([[-1.0, 0.0], [-1.0, 0.01]], dtype=np.float32)
    near_opposite = np.array([[1.0, 1e-3]], dtype=np.float32)
    assert knn_predict(bank, np.array([1, 2]), near_opposite, k=2).tolist() == [2]


@settings(max_examples=50, deadline=None)
@given(
    codes=st.lists(st.integers(0, 6), max_size=60),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_holdout_is_stratified(codes, fraction, seed):
    codes = np.array(codes, dtype=np.int64)
    held = stratified_holdout(codes, fraction, keyed_generator(seed))
    for code in np.unique(codes):
        count, drawn = np.sum(codes == code), np.sum(held[codes == code])
        assert drawn == (max(1, int(fraction * count)) if count > 1 else 0)
        assert drawn < count


def test_holdout_depends_on_its_key_alone():
    codes = np.arange(100) % 4
    first = stratified_holdout(codes, 0.5, keyed_generator(1))
    assert (stratified_holdout(codes, 0.5, keyed_generator(1)) == first).all()
    assert (stratified_holdout(codes, 0.5, keyed_generator(2)) != first).any()


def test_linear_probe_is_scikit_learns_regression_with_the_penalty_that_generalises():
    features, codes = blobs(300, 40, 4, 3.0)
    probe = fit_linear(features, codes, keyed_generator(0))
    held = stratified_holdout(codes, 0.2, keyed_generator(0))
    scaler = StandardScaler().fit(features[~held])
    scores = {}
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=500).fit(
            scaler.transform(features[~held]), codes[~held]
        )
        scores[penalty] = macro_f1(codes[held], model.predict(scaler.transform(features[held])))
    assert probe.penalty == min(penalty for penalty in PENALTIES if scores[penalty] == max(scores.values()))
    scaler = StandardScaler().fit(features)
    final = LogisticRegression(C=probe.penalty, max_iter=500).fit(scaler.transform(features), codes)
    queries, _ = blobs(200, 40, 4, 3.0, seed=5)
    assert (probe.predict(queries) == final.predict(scaler.transform(queries))).all()
    assert probe.converged


def test_linear_probe_does_not_care_about_the_scale_of_a_feature():
    features, codes = blobs(200, 10, 3, 1.0)
    scales = 10.0 ** np.linspace(-3, 3, 10, dtype=np.float32)
    queries, truth = blobs(200, 10, 3, 1.0, seed=1)
    plain = fit_linear(features, codes, keyed_generator(0)).predict(queries)
    scaled = fit_linear(features * scales, codes, keyed_generator(0)).predict(queries * scales)
    assert np.mean(plain == scaled) > 0.98
    assert np.mean(plain == truth) > 0.8


def test_a_constant_feature_does_no_harm():
    features, codes = blobs(100, 5, 2, 0.3)
    features[:, 2] = 7.0
    assert np.mean(fit_linear(features, codes, keyed_generator(0)).predict(features) == codes) > 0.95


def test_one_row_per_class_leaves_nothing_to_choose_the_penalty_with():
    features = np.eye(3, 4, dtype=np.float32)
    probe = fit_linear(features, np.array([5, 6, 7]), keyed_generator(0))
    assert probe.predict(features).tolist() == [5, 6, 7]
    assert probe.penalty == 1.0


def test_an_unfinished_fit_is_reported_and_does_not_warn(monkeypatch):
    monkeypatch.setattr(classifiers, "MAX_ITERATIONS", 1)
    features, codes = blobs(200, 40, 4, 2.0)
    assert not fit_linear(features, codes, keyed_generator(0)).converged


def test_linear_probe_is_quick():
    features, codes = blobs(1500, 256, 10, 4.0)
    start = time.perf_counter()
    fit_linear(features, codes, keyed_generator(0))
    assert time.perf_counter() - start < 10
