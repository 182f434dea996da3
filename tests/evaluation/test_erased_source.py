"""What erasure takes out of features, token by token."""

import numpy as np
import pytest

from openfino.evaluation.erased_source import erase_source, plain_features
from openfino.evaluation.leakage import Known
from openfino.evaluation.sources import ArraySource

LAYERS, WIDTH, TOKENS, ROWS = 2, 6, 5, 240


@pytest.fixture
def planted():
    """Features of which every block tells one of three plates, and a label beside it."""
    generator = np.random.default_rng(0)
    plates = generator.integers(0, 3, ROWS)
    linear = generator.normal(size=(ROWS, (LAYERS + 1) * WIDTH))
    patches = generator.normal(size=(ROWS, TOKENS, LAYERS * WIDTH))
    for block in range(LAYERS + 1):
        linear[:, block * WIDTH : block * WIDTH + 3] += 4 * np.eye(3)[plates]
    for block in range(LAYERS):
        patches[:, :, block * WIDTH : block * WIDTH + 3] += 4 * np.eye(3)[plates][:, None]
    source = ArraySource(
        np.arange(ROWS), linear.astype(np.float32), patches.astype(np.float32), layers=LAYERS
    )
    return source, plates


def means(features, plates):
    return np.stack([features[plates == plate].mean(axis=0) for plate in range(3)])


def test_no_block_has_a_mean_that_depends_on_the_factor(planted):
    source, plates = planted
    every = np.arange(ROWS)
    erased = erase_source(source, Known(plates, np.ones(ROWS, dtype=bool)), every)
    for part in ("linear", "patches"):
        before = (
            source.take(every, part)
            .numpy()
            .reshape(ROWS, -1, source.take(every, part).shape[-1])
            .mean(axis=1)
        )
        after = erased.take(every, part).numpy().reshape(ROWS, -1, before.shape[1]).mean(axis=1)
        assert np.ptp(means(before, plates), axis=0).max() > 3
        assert np.ptp(means(after, plates), axis=0).max() < 1e-4
    assert np.allclose(erased.cls(), plain_features(erased, every).cls, atol=1e-6)


def test_it_is_fitted_on_the_rows_that_train_alone(planted):
    source, plates = planted
    train = np.arange(ROWS // 2)
    known = Known(np.where(np.arange(ROWS) < ROWS // 2, plates, 0), np.arange(ROWS) < ROWS // 2)
    first = erase_source(source, known, train)
    changed = ArraySource(source.rows, source.linear.copy(), source.patches.copy(), layers=LAYERS)
    changed.linear[ROWS // 2 :] += 100
    changed.patches[ROWS // 2 :] += 100
    second = erase_source(changed, known, train)
    assert np.array_equal(first.take(train, "patches"), second.take(train, "patches"))
    assert np.array_equal(first.of(changed).take([ROWS - 1], "linear"), second.take([ROWS - 1], "linear"))


def test_shapes_and_order_are_the_sources(planted):
    source, plates = planted
    erased = erase_source(source, Known(plates, np.ones(ROWS, dtype=bool)), np.arange(ROWS))
    assert erased.take([3, 1, 3], "patches").shape == (3, TOKENS, LAYERS * WIDTH)
    assert np.array_equal(erased.take([3, 1], "linear")[1], erased.take([1], "linear")[0])
