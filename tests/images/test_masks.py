import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.images.masks import block_mask, mask_plan
from openfino.keyed import keyed_generator

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "mask_generation.json"


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


def adjacent_pairs(mask):
    return int((mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum())


def regions(rows, columns):
    centre, border, corners = (np.zeros((rows, columns), bool) for _ in range(3))
    centre[rows // 2 - 2 : rows // 2 + 2, columns // 2 - 2 : columns // 2 + 2] = True
    border[[0, -1]] = border[:, [0, -1]] = True
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return {"center_4x4": centre, "border": border, "corners": corners}


@pytest.mark.golden
@pytest.mark.parametrize("number", range(5))
def test_statistics_of_the_authors_masks(number):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is absent: the authors' reference values are not part of the project")
    case = json.loads(GOLDEN.read_text(encoding="utf-8"))["14x14_recipe"]
    rows, columns = case["hparams"]["input_size"]
    expected = case["rows"][number]
    assert int(expected["ratio"] * rows * columns) == expected["requested"]
    rng = keyed_generator(17, number)
    masks = np.stack([block_mask(rng, (rows, columns), expected["requested"]) for _ in range(2000)])
    assert (masks.sum((1, 2)) == expected["requested"]).all()
    pairs = np.array([adjacent_pairs(mask) for mask in masks])
    # Two samples of 2,000: three and a half standard errors of the difference.
    deviation = expected["std_adjacent_masked_pairs"]
    error = 3.5 * deviation * np.sqrt(2 / 2000)
    assert pairs.mean() == pytest.approx(expected["mean_adjacent_masked_pairs"], abs=error)
    assert pairs.std() == pytest.approx(deviation, rel=0.1)
    occupancy = masks.mean(0)
    for name, region in regions(rows, columns).items():
        assert occupancy[region].mean() == pytest.approx(expected[f"occupancy_{name}"], abs=0.02), name


@pytest.mark.golden
@pytest.mark.parametrize("case", ["collate_B8_p0.5", "collate_B12_p0.25"])
def test_counts_of_the_authors_batches(case):
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is absent: the authors' reference values are not part of the project")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[case]
    given = expected["hparams"]
    plan = mask_plan(
        0,
        0,
        given["n_mask_rows"],
        given["n_tokens"],
        given["mask_probability"],
        tuple(given["mask_ratio_tuple"]),
    )
    assert sorted(plan.tolist()) == expected["masked_counts_sorted"]
