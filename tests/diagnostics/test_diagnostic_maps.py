import math

import numpy as np
import pytest
import torch

from openfino.diagnostics.colours import colour_map, unit_colours
from openfino.diagnostics.diagnosis import diagnose, distribution
from openfino.diagnostics.maps import PatchColours, cls_cosines, patch_cosines
from openfino.evaluation.features import Features
from openfino.training.guards import feature_rank


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def naive_cosine(one, other):
    product = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    lengths = [math.sqrt(sum(float(a) ** 2 for a in vector)) for vector in (one, other)]
    return product / (lengths[0] * lengths[1])


def features_of(patches, cls=None):
    count, _, width = patches.shape
    cls = drawn(count, width, seed=9) if cls is None else cls
    return Features(np.arange(count), cls, patches.mean(axis=1), patches, [], [])


# Cosines


def test_cosines_are_those_of_a_loop():
    patches, cls = drawn(3, 6, 5), drawn(3, 5, seed=1)
    to_patch, to_cls = patch_cosines(patches, 4), cls_cosines(cls, patches)
    for image in range(3):
        for place in range(6):
            own = patches[image, place]
            assert to_patch[image, place] == pytest.approx(naive_cosine(own, patches[image, 4]), abs=1e-12)
            assert to_cls[image, place] == pytest.approx(naive_cosine(own, cls[image]), abs=1e-12)
    assert to_patch[:, 4] == pytest.approx(1.0, abs=1e-12)


def test_cosines_know_no_length_and_stay_in_their_range():
    patches = drawn(1, 50, 7)
    assert patch_cosines(patches * 1e3, 2) == pytest.approx(patch_cosines(patches, 2), abs=1e-6)
    assert np.abs(patch_cosines(np.repeat(patches[:, :1], 9, axis=1), 0)).max() <= 1.0


def test_a_token_of_length_zero_is_like_none():
    patches = drawn(1, 4, 3)
    patches[0, 1] = 0
    assert patch_cosines(patches, 0)[0, 1] == 0
    assert not patch_cosines(patches, 1).any()


# Principal components


def naive_projection(patches):
    """Centred tokens on the eigenvectors of their covariance, one by one; every sign as the docstring says."""
    tokens = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    mean = sum(tokens) / len(tokens)
    covariance = sum(np.outer(token - mean, token - mean) for token in tokens) / len(tokens)
    values, vectors = np.linalg.eig(covariance)
    chosen = sorted(range(len(values)), key=lambda place: -values[place])[:3]
    directions = []
    for place in chosen:
        vector = vectors[:, place]
        largest = max(range(len(vector)), key=lambda entry: abs(vector[entry]))
        directions.append(vector if vector[largest] > 0 else -vector)
    shares = [values[place] / sum(values) for place in chosen]
    return np.array([[(token - mean) @ each for each in directions] for token in tokens]), shares


def test_colours_are_the_scaled_components_of_all_images_together():
    patches = drawn(4, 15, 6) * np.array([5, 3, 2, 1, 0.5, 0.2], dtype=np.float32)
    expected, shares = naive_projection(patches)
    fitted = PatchColours.fit(patches)
    for component in range(3):
        low, high = (np.percentile(expected[:, component], share) for share in (2, 98))
        scaled = [min(max((value - low) / (high - low), 0), 1) for value in expected[:, component]]
        assert fitted(patches)[..., component].ravel() == pytest.approx(scaled, abs=1e-9)
    assert fitted.explained == pytest.approx(shares, abs=1e-9)
    assert fitted.directions @ fitted.directions.T == pytest.approx(np.eye(3), abs=1e-12)


def test_the_fit_is_joint():
    patches = drawn(3, 30, 5)
    patches[2] += 20
    # The first component tells the odd image from the others, because their tokens are in one fit.
    first = PatchColours.fit(patches)(patches)[..., 0]
    assert np.ptp(first[2]) < 0.3
    assert np.ptp(PatchColours.fit(patches[2:])(patches[2:])[..., 0]) == 1
    assert first[2].min() > first[:2].max() or first[2].max() < first[:2].min()


def test_planted_regions_are_told_apart():
    generator = np.random.default_rng(5)
    region = generator.random((4, 64)) < 0.4
    places = np.stack([np.eye(24)[3], np.eye(24)[11]]) * 4
    patches = (places[region.astype(int)] + 0.3 * generator.standard_normal((4, 64, 24))).astype(np.float32)
    red = PatchColours.fit(patches)(patches)[..., 0]
    assert (red[region].min() > red[~region].max()) or (red[region].max() < red[~region].min())


def test_the_sign_does_not_depend_on_the_call_nor_on_the_order_of_images():
    patches = drawn(3, 40, 8) * np.arange(1, 9, dtype=np.float32)
    first, again = PatchColours.fit(patches), PatchColours.fit(patches)
    assert np.array_equal(first.directions, again.directions)
    assert PatchColours.fit(patches[::-1]).directions == pytest.approx(first.directions, abs=1e-9)
    # The opposite tokens have the same components, of which the same sign is chosen.
    assert PatchColours.fit(-patches).directions == pytest.approx(first.directions, abs=1e-9)
    for direction in first.directions:
        assert direction[np.abs(direction).argmax()] > 0


def test_components_without_spread_are_grey():
    constant = np.ones((2, 9, 4), dtype=np.float32) * drawn(4)
    fitted = PatchColours.fit(constant)
    assert np.array_equal(fitted(constant), np.full((2, 9, 3), 0.5))
    assert not fitted.explained.any()
    line = drawn(2, 9, 1) * drawn(4)
    fitted = PatchColours.fit(line)
    assert fitted.explained == pytest.approx([1, 0, 0])
    assert np.ptp(fitted(line)[..., 0]) == 1
    assert np.array_equal(fitted(line)[..., 1:], np.full((2, 9, 2), 0.5))
    assert PatchColours.fit(drawn(2, 9, 2)).directions[2].tolist() == [
        0,
        0,
    ]  # two dimensions, three components


# Everything together


def naive_rank(tokens):
    """exp of the entropy of the normalised singular values of the centred tokens (RankMe, equations 1 and 2)."""
    values = np.linalg.svd(tokens.astype(np.float64) - tokens.astype(np.float64).mean(axis=0))[1]
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 1e-9))


def test_a_diagnosis_holds_the_maps_as_grids_and_the_ranks():
    patches = drawn(5, 12, 4)
    found = diagnose(features_of(patches), (3, 4), (2, 1))
    assert found.patch == (2, 1)
    assert np.array_equal(found.similarity, patch_cosines(patches, 9).reshape(5, 3, 4))
    assert np.array_equal(found.colours, PatchColours.fit(patches)(patches).reshape(5, 3, 4, 3))
    assert found.ranks["cls"] == pytest.approx(naive_rank(drawn(5, 4, seed=9)), rel=1e-4)
    assert found.ranks["patches"] == pytest.approx(naive_rank(patches.reshape(-1, 4)), rel=1e-4)
    assert diagnose(features_of(patches), (3, 4)).patch == (1, 2)  # the centre
    low, high = np.percentile(found.similarity, [1, 99])
    assert found.scales["similarity"] == (pytest.approx(low), pytest.approx(high))


def test_one_image_has_no_rank_over_images():
    assert diagnose(features_of(drawn(1, 4, 8)), (2, 2)).ranks["cls"] is None


def test_of_many_tokens_evenly_spaced_ones_are_ranked(monkeypatch):
    patches = drawn(4, 25, 6)
    monkeypatch.setattr("openfino.diagnostics.diagnosis.MAX_RANKED", 40)
    expected = float(feature_rank(torch.from_numpy(patches.reshape(-1, 6)[::3].copy())))
    assert diagnose(features_of(patches), (5, 5)).ranks["patches"] == expected


def test_the_distribution_is_mean_and_percentiles():
    found = distribution(np.arange(101.0))
    assert found == {"mean": 50, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}


# Colours


def luminance(colour):
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour / 255]
    return 116 * (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) ** (1 / 3) - 16


def test_the_colour_map_grows_lighter_evenly():
    lightness = np.array([luminance(colour) for colour in colour_map(np.linspace(0, 1, 15), 0, 1)])
    steps = np.diff(lightness)
    assert steps.min() > 0.7 * steps.mean()
    assert steps.max() < 1.3 * steps.mean()


def test_the_colour_map_has_ends():
    low, middle, high = colour_map(np.array([-0.2, 0.3, 0.8]), -0.2, 0.8)
    assert colour_map(np.array([-9.0, 9.0]), -0.2, 0.8).tolist() == [low.tolist(), high.tolist()]
    assert colour_map(np.array([[0.4, 0.4]]), 0.4, 0.4).tolist() == [[middle.tolist()] * 2]
    assert unit_colours(np.array([0, 0.5, 1])).tolist() == [0, 128, 255]
