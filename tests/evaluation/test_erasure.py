import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from openfino.errors import OpenfinoError
from openfino.evaluation.erasure import fit_eraser


def planted(rows=600, dimensions=12, classes=4, seed=0):
    """Correlated features that hold a class, linearly, in directions of their own."""
    generator = np.random.default_rng(seed)
    codes = generator.choice(classes, rows, p=np.arange(classes, 0, -1) / np.arange(classes + 1).sum())
    mixed = generator.normal(size=(rows, dimensions)) @ generator.normal(size=(dimensions, dimensions))
    return mixed + 3 * generator.normal(size=(classes, dimensions))[codes] + 5, codes


def one_hot(codes):
    return np.eye(codes.max() + 1)[codes]


def cross_covariance(features, target):
    """Sum over rows, one by one."""
    total = np.zeros((features.shape[1], target.shape[1]))
    for x, z in zip(features, target, strict=True):
        total += np.outer(x - features.mean(axis=0), z - target.mean(axis=0))
    return total / len(features)


def textbook(features, target):
    """P = I - W^+ P_(W Sigma_xz) W, matrix by matrix."""
    covariance = np.cov(features.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-10 * values.max()
    whitening = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    inverse = np.linalg.pinv(whitening, rcond=1e-10)
    image = whitening @ cross_covariance(features, target)
    projection = image @ np.linalg.pinv(image, rcond=1e-10)
    return np.eye(len(covariance)) - inverse @ projection @ whitening


def test_it_is_the_closed_form_of_the_paper():
    features, codes = planted()
    eraser = fit_eraser(features, codes)
    mean = features.mean(axis=0)
    expected = mean + (features - mean) @ textbook(features, one_hot(codes)).T
    np.testing.assert_allclose(eraser(features), expected, atol=1e-8)
    assert eraser.dimensions == 3


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_nothing_of_the_factor_covaries_with_what_is_left(shrinkage):
    features, codes = planted()
    left = fit_eraser(features, codes, shrinkage=shrinkage)(features)
    assert np.abs(cross_covariance(features, one_hot(codes))).max() > 0.1
    assert np.abs(cross_covariance(left, one_hot(codes))).max() < 1e-8
    np.testing.assert_allclose(left.mean(axis=0), features.mean(axis=0))


def test_a_linear_classifier_falls_to_the_majority():
    features, codes = planted()
    left = fit_eraser(features, codes)(features)
    before = LogisticRegression(max_iter=5000).fit(features, codes).score(features, codes)
    after = LogisticRegression(max_iter=5000).fit(left, codes).score(left, codes)
    assert before > 0.9
    assert after == pytest.approx(np.bincount(codes).max() / len(codes))


def test_what_is_erased_once_stays_as_it_is():
    features, codes = planted()
    eraser = fit_eraser(features, codes)
    once = eraser(features)
    np.testing.assert_allclose(eraser(once), once, atol=1e-8)
    assert fit_eraser(once, codes)(once) == pytest.approx(once, abs=1e-6)


def test_no_other_projection_that_erases_changes_less():
    features, codes = planted()
    mean, covariance = features.mean(axis=0), cross_covariance(features, one_hot(codes))
    change = ((fit_eraser(features, codes)(features) - features) ** 2).sum()
    basis = np.linalg.qr(covariance[:, :3])[0]
    orthogonal = basis @ basis.T
    generator = np.random.default_rng(1)
    others = [orthogonal]
    for scale in (0.01, 0.1, 1.0):
        # Oblique: along the same directions, read out by others; P Sigma_xz = Sigma_xz for each of them.
        for _ in range(10):
            readout = basis + scale * generator.normal(size=basis.shape)
            others.append(basis @ np.linalg.inv(readout.T @ basis) @ readout.T)
    for other in others:
        np.testing.assert_allclose(other @ covariance, covariance, atol=1e-6)
        assert (((features - mean) @ other.T) ** 2).sum() > change


def test_numbers_are_erased_too():
    features, codes = planted()
    target = np.stack([features[:, 0] + features[:, 3], np.sin(codes)], axis=1).astype(np.float32)
    eraser = fit_eraser(features, target)
    assert eraser.dimensions == 2
    assert LinearRegression().fit(features, target).score(features, target) > 0.5
    left = eraser(features)
    assert LinearRegression().fit(left, target).score(left, target) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("rows", [8, 30])
def test_covariances_without_full_rank(rows):
    features, codes = planted(rows, 40)
    features[:, 7] = 2.0
    features[:, 8] = features[:, 9]
    eraser = fit_eraser(features, codes)
    assert np.abs(cross_covariance(eraser(features), one_hot(codes))).max() < 1e-8
    assert eraser.dimensions == len(np.unique(codes)) - 1
    # A direction in which the rows to fit on do not differ is left alone.
    moved = features + 3 * np.eye(40)[7]
    np.testing.assert_allclose(eraser(moved) - eraser(features), moved - features, atol=1e-8)


def test_shrinkage_keeps_rows_that_took_no_part_near_where_they_were():
    features, codes = planted(1000, 60)
    few = slice(0, 62)

    def moved(shrinkage):
        eraser = fit_eraser(features[few], codes[few], shrinkage=shrinkage)
        return ((eraser(features[62:]) - features[62:]) ** 2).sum()

    assert moved(0.05) < 0.5 * moved(0.0)


def test_what_holds_no_factor_loses_nothing():
    features, _ = planted(40)
    assert fit_eraser(features, np.zeros(40, dtype=np.int64)).dimensions == 0
    assert fit_eraser(features, np.full((40, 2), 1e9 / 3)).dimensions == 0
    constant = np.ones((40, 5))
    np.testing.assert_array_equal(fit_eraser(constant, np.arange(40) % 3)(constant), constant)


def test_more_values_than_dimensions_leave_nothing_to_read():
    features, codes = planted(600, 5, classes=9)
    eraser = fit_eraser(features, codes)
    assert eraser.dimensions == 5
    np.testing.assert_allclose(eraser(features), np.broadcast_to(features.mean(axis=0), features.shape))


def test_the_dtype_stays_and_the_bill_of_rows_is_checked():
    features, codes = planted(50)
    assert fit_eraser(features, codes)(features.astype(np.float32)).dtype == np.float32
    with pytest.raises(OpenfinoError, match="0 rows"):
        fit_eraser(features[:0], codes[:0])
    with pytest.raises(OpenfinoError, match="50 rows, 49 values"):
        fit_eraser(features, codes[1:])
