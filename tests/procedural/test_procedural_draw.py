"""Procedural images as training sees them: keyed, varied, neither empty nor burnt out."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.errors import OpenfinoError
from openfino.procedural import FAMILIES, draw_image, draw_of_family

DRAWS, SIDE = 500, 64


@pytest.fixture(scope="module")
def images():
    return np.stack([draw_image(11, index, SIDE) for index in range(DRAWS)])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(16, 140))
def test_any_key_and_size_draws_an_image_and_always_the_same(seed, index, size):
    image = draw_image(seed, index, size)
    assert image.shape == (3, size, size)
    assert image.dtype == np.uint8
    assert image.std() > 12
    assert image.flags.c_contiguous
    draw_image(seed, index + 1, size + 1)
    assert np.array_equal(draw_image(seed, index, size), image)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_keyed_and_varied(name):
    drawn = [draw_of_family(name, 5, index, 48) for index in range(40)]
    assert np.array_equal(draw_of_family(name, 5, 3, 48), drawn[3])
    assert len({image.tobytes() for image in drawn}) == 40
    assert not np.array_equal(draw_of_family(name, 6, 3, 48), drawn[3])
    deviations = np.array([image.std() for image in drawn])
    assert deviations.min() > 15
    assert deviations.max() > 1.5 * deviations.min()
    means = np.array([image.mean() for image in drawn])
    assert means.std() > 15


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [16, 33, 97])
def test_every_family_draws_small_and_odd_sizes(name, size):
    for index in range(12):
        assert draw_of_family(name, 0, index, size).shape == (3, size, size)


def test_another_process_draws_the_same_bytes():
    program = (
        "import hashlib; from openfino.procedural import draw_image;"
        "print(hashlib.sha256(b''.join(draw_image(2, i, 40).tobytes() for i in reversed(range(30)))).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(draw_image(2, index, 40).tobytes() for index in reversed(range(30))))
    assert there.stdout.strip() == here.hexdigest()


def test_no_image_is_constant_and_contrasts_are_those_of_photographs(images):
    deviations = images.reshape(DRAWS, -1).std(axis=1)
    assert deviations.min() > 15
    assert 35 < np.median(deviations) < 70
    assert np.quantile(deviations, 0.95) > 1.5 * np.quantile(deviations, 0.05)
    means = images.reshape(DRAWS, -1).mean(axis=1)
    assert 85 < means.mean() < 150
    assert means.std() > 25


def test_few_images_are_near_empty_or_burnt_out(images):
    grey = images.astype(np.float32).mean(axis=1)
    patches = grey.reshape(DRAWS, 8, SIDE // 8, 8, SIDE // 8).std(axis=(2, 4)).reshape(DRAWS, -1)
    eventful = (patches > 4.0).mean(axis=1)
    assert np.quantile(eventful, 0.02) > 0.15
    assert np.median(eventful) > 0.7
    extreme = ((images <= 2) | (images >= 253)).reshape(DRAWS, -1).mean(axis=1)
    assert np.quantile(extreme, 0.9) < 0.3


def test_colours_vary_and_some_images_are_grey(images):
    chroma = (images.max(axis=1).astype(int) - images.min(axis=1)).reshape(DRAWS, -1).mean(axis=1)
    assert 0.03 < (chroma < 8).mean() < 0.35
    assert np.quantile(chroma, 0.75) > 40
    channels = images.reshape(DRAWS, 3, -1).mean(axis=2)
    assert np.abs(channels.mean(axis=0) - channels.mean()).max() < 15  # no colour is preferred
    assert channels.std(axis=0).min() > 30


def test_all_images_differ_even_as_thumbnails(images):
    thumbnails = images.reshape(DRAWS, 3, 8, SIDE // 8, 8, SIDE // 8).mean(axis=(3, 5)).reshape(DRAWS, -1)
    square = (thumbnails**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2.0 * thumbnails @ thumbnails.T
    np.fill_diagonal(distance, np.inf)
    assert np.sqrt(distance.min() / thumbnails.shape[1]) > 2.0


@pytest.mark.parametrize(
    ("key", "message"),
    [((-1, 0, 64), "negative"), ((0, -1, 64), "negative"), ((0, 0, 15), "at least 16")],
)
def test_impossible_keys_are_refused(key, message):
    with pytest.raises(OpenfinoError, match=message):
        draw_image(*key)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(OpenfinoError, match=r"no family 'leafs'.*leaves"):
        draw_of_family("leafs", 0, 0, 64)
