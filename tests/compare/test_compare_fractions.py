"""Shares of the labels: each within the next, every class in each."""

import itertools

import numpy as np
import pytest

from openfino.compare.fractions import nested_rows
from openfino.evaluation.tasks import Targets, Task

SHARES = [0.01, 0.1, 0.5, 1.0]


def single(values):
    values = np.asarray(values)
    return Targets(values, np.ones(len(values), dtype=bool)), Task("single", "y", tuple("abc"))


def test_shares_are_nested_and_stratified():
    targets, task = single([0] * 200 + [1] * 60 + [2] * 3)
    rows = np.arange(263) + 1000
    drawn = nested_rows(rows, targets, task, SHARES, seed=3)
    for less, more in itertools.pairwise(SHARES):
        assert set(drawn[less]) < set(drawn[more])
    counts = {
        share: np.bincount(targets.values[own - 1000], minlength=3).tolist() for share, own in drawn.items()
    }
    assert counts == {0.01: [2, 1, 1], 0.1: [20, 6, 1], 0.5: [100, 30, 2], 1.0: [200, 60, 3]}


def test_a_seed_draws_the_same_rows_and_another_seed_others():
    targets, task = single([0, 1] * 100)
    rows = np.arange(200)
    first, again, other = (nested_rows(rows, targets, task, [0.1], seed)[0.1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert set(first) != set(other)
    alone = nested_rows(rows, targets, task, [0.01, 0.1, 1.0], 1)[0.1]
    assert (alone == first).all(), "a share depends on no other share"


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_other_labels(kind):
    generator = np.random.default_rng(0)
    rows = np.arange(300)
    if kind == "multi":
        values = (generator.random((300, 3)) < [0.9, 0.5, 0.02]).astype(np.float32)
        values[7, 2] = 1
    else:
        values = generator.normal(size=(300, 1)).astype(np.float32)
    targets = Targets(values, np.ones(300, dtype=bool))
    drawn = nested_rows(rows, targets, Task(kind, "y", tuple("abc")), [0.1, 0.5], 0)
    assert set(drawn[0.1]) < set(drawn[0.5])
    assert len(drawn[0.5]) == pytest.approx(150, abs=2)
    if kind == "multi":
        assert values[drawn[0.1], 2].any(), "the rarest label is among few rows too"
    else:
        assert abs(values[drawn[0.1]].mean() - values.mean()) < 0.15
