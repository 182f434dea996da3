import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, v_measure_score

from openfino.errors import OpenfinoError
from openfino.evaluation.clustering import cluster_labels, group_means


def proteins(spread, seed=0):
    """30 proteins of 3 kinds, 8 images of each: features, labels, groups."""
    generator = np.random.default_rng(seed)
    labels, groups = np.repeat(np.arange(30) % 3, 8), np.repeat(np.arange(30), 8)
    features = 4 * np.eye(3)[labels] + spread * generator.normal(size=(240, 3))
    return features.astype(np.float32), labels, groups


def test_averages_of_groups_against_a_loop():
    features, labels, groups = proteins(3.0)
    labels = labels.copy()
    labels[3], labels[8:12] = 2, 2  # group 0 has one odd label; group 1 is tied between 1 and 2
    order = np.random.default_rng(1).permutation(240)
    means, commonest, mixed = group_means(
        features[order].astype(np.float64), labels[order] * 7, groups[order] + 5
    )
    assert mixed == 2
    for group in range(30):
        np.testing.assert_allclose(means[group], features[groups == group].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(commonest, 7 * (np.arange(30) % 3))


def test_clusters_that_are_the_labels():
    features, labels, groups = proteins(0.3)
    found = cluster_labels(features, labels, groups)
    assert (found.ari, found.v_measure, found.clusters, found.units, found.mixed) == (1, 1, 3, 30, 0)


def test_averaging_helps_where_images_are_noisy():
    features, labels, groups = proteins(3.0)
    assert cluster_labels(features, labels, groups).ari > cluster_labels(features, labels).ari + 0.2


def test_scores_are_those_of_scikit_learn():
    features, labels, groups = proteins(4.0)
    found = cluster_labels(features, labels, groups, seed=2)
    means, truth, _ = group_means(features.astype(np.float64), labels, groups)
    clusters = KMeans(3, n_init=50, random_state=0).fit_predict(means)
    assert found.ari == pytest.approx(adjusted_rand_score(truth, clusters))
    assert found.v_measure == pytest.approx(v_measure_score(truth, clusters))
    assert found == cluster_labels(features, labels, groups, seed=2)


def test_rows_without_label_or_group_are_left_out():
    features, labels, groups = proteins(0.3)
    odd = np.full((4, 3), 100, dtype=np.float32)
    found = cluster_labels(
        np.concatenate([features, odd]),
        np.concatenate([labels, [-1, -1, 0, 0]]),
        np.concatenate([groups, [3, 40, -1, -1]]),
    )
    assert (found.ari, found.units) == (1, 30)


@pytest.mark.parametrize("labels", [np.zeros(6, dtype=int), np.arange(6), np.full(6, -1)])
def test_nothing_to_cluster_is_refused(labels):
    with pytest.raises(OpenfinoError, match="two labels, and more groups"):
        cluster_labels(np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32), labels)
