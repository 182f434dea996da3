import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.images.masks import block_mask, blocks, mask_plan
from openfino.keyed import keyed_generator


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(0, 1000))
def test_a_mask_has_exactly_its_count(rows, columns, share, seed):
    count = round(share * rows * columns)
    mask = block_mask(keyed_generator(seed), (rows, columns), count)
    assert mask.shape == (rows, columns)
    assert mask.dtype == np.bool_
    assert mask.sum() == count


@pytest.mark.parametrize("count", [-1, 13])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(ValueError, match=f"cannot mask {count} of 12 patches"):
        block_mask(keyed_generator(0), (3, 4), count)


@settings(max_examples=50, deadline=None)
@given(
    crops=st.integers(0, 300),
    patches=st.integers(1, 400),
    fraction=st.floats(0, 1),
    low=st.floats(0, 1),
    span=st.floats(0, 1),
    step=st.integers(0, 10**6),
)
def test_a_plan_has_the_counts_of_the_formula(crops, patches, fraction, low, span, step):
    ratio = (low, low + span * (1 - low))
    plan = mask_plan(0, step, crops, patches, fraction, ratio)
    masked = int(fraction * crops)
    ratios = np.linspace(*ratio, masked + 1)
    expected = [int(patches * ratios[index + 1]) for index in range(masked)] + [0] * (crops - masked)
    assert plan.dtype == np.int64
    assert sorted(plan.tolist()) == sorted(expected)


def test_a_plan_is_shuffled_by_step_and_seed_alone():
    plan = mask_plan(1, 2, 64, 196, 0.5, (0.1, 0.5))
    assert np.array_equal(plan, mask_plan(1, 2, 64, 196, 0.5, (0.1, 0.5)))
    for other in (mask_plan(1, 3, 64, 196, 0.5, (0.1, 0.5)), mask_plan(2, 2, 64, 196, 0.5, (0.1, 0.5))):
        assert not np.array_equal(plan, other)
        assert sorted(plan) == sorted(other)
    # Neither the masked crops nor their ratios lie in order.
    assert plan[:32].astype(bool).sum() not in (0, 32)
    assert np.any(np.diff(plan[plan > 0]) < 0)


def test_places_are_spread_over_the_crops():
    hits = np.stack([mask_plan(0, step, 8, 196, 0.5, (0.1, 0.5)) > 0 for step in range(800)])
    np.testing.assert_allclose(hits.mean(0), 0.5, atol=0.07)


def test_single_patches_only_complete_the_blocks():
    completed = 0
    for seed in range(200):
        before, after = (draw(keyed_generator(seed), (14, 14), 19) for draw in (blocks, block_mask))
        assert before.sum() <= after.sum() == 19
        assert not np.any(before & ~after)
        completed += before.sum() < 19
    assert 0 < completed < 100


@pytest.mark.parametrize("grid", [(1, 20), (20, 1)])
def test_no_block_fits_a_grid_of_one_row_or_column(grid):
    """A block is lower and narrower than the grid."""
    for seed in range(20):
        assert not blocks(keyed_generator(seed), grid, 10).any()


def test_no_block_spans_a_whole_side():
    """With four patches to mask, only a single block of 3 x 1 (here not allowed) fills three in a line across."""
    for seed in range(200):
        low, narrow = (blocks(keyed_generator(seed), grid, 4) for grid in ((3, 8), (8, 3)))
        assert not low.all(axis=0).any()
        assert not narrow.all(axis=1).any()
