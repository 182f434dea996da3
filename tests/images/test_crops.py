import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.images.crops import Box, as_source, cut, sample_crop_box, sample_turn
from openfino.keyed import keyed_generator

PORTRAIT = (3 / 4, 4 / 3)


def photograph(channels=3, height=90, width=120, seed=0):
    """Structure and noise that stay off the limits of the range, as float64 [C, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0.2, 0.8, (1, channels, 8, 8)))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0].numpy()
    return np.clip(smooth + rng.normal(0, 0.02, smooth.shape), 0.02, 0.98)


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    low=st.floats(0.001, 1),
    span=st.floats(0, 1),
    aspect_low=st.floats(0.1, 3),
    aspect_factor=st.floats(1, 4),
    seed=st.integers(0, 1000),
)
def test_a_box_lies_within_the_image(height, width, low, span, aspect_low, aspect_factor, seed):
    scale = (low, low + span * (1 - low))
    aspect = (aspect_low, aspect_low * aspect_factor)
    box = sample_crop_box(keyed_generator(seed), height, width, scale, aspect)
    assert box.height >= 1
    assert box.width >= 1
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width


def test_area_is_uniform_and_aspect_log_uniform_and_place_uniform():
    rng = keyed_generator(3)
    boxes = [sample_crop_box(rng, 1000, 1000, (0.1, 0.3), PORTRAIT) for _ in range(4000)]
    area = np.array([box.height * box.width / 1e6 for box in boxes])
    ratio = np.log([box.width / box.height for box in boxes])
    top = np.array([box.top / (1000 - box.height) for box in boxes])
    left = np.array([box.left / (1000 - box.width) for box in boxes])
    # Expectation and standard deviation of the uniform distribution; the errors of the mean are under 1e-2.
    for values, low, high in (
        (area, 0.1, 0.3),
        (ratio, math.log(3 / 4), math.log(4 / 3)),
        (top, 0, 1),
        (left, 0, 1),
    ):
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.03)
        assert values.min() >= low - 0.01
        assert values.max() <= high + 0.01


def test_an_image_too_long_for_any_box_gives_its_central_part():
    # The whole area at an aspect near one cannot fit a strip of 10:1.
    box = sample_crop_box(keyed_generator(0), 10, 100, (1.0, 1.0), PORTRAIT)
    assert box == Box(0, (100 - 13) // 2, 10, 13)
    box = sample_crop_box(keyed_generator(0), 100, 10, (1.0, 1.0), PORTRAIT)
    assert box == Box((100 - 13) // 2, 0, 13, 10)


def test_a_whole_image_at_its_own_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 48), dtype=np.uint8)
    crop = cut(as_source(image), Box(0, 0, 32, 48), (32, 48))
    assert crop.dtype == torch.uint8
    np.testing.assert_array_equal(crop.numpy(), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("box", [Box(3, 5, 80, 100), Box(10, 20, 12, 9)])
def test_a_crop_is_the_antialiased_resize_of_its_box_alone(channels, box):
    image = photograph(channels)
    exact = torch.from_numpy(image[None, :, box.top : box.top + box.height, box.left : box.left + box.width])
    expected = F.interpolate(exact, (24, 32), mode="bicubic", antialias=True)[0]
    deep = cut(as_source((image * 65535).round().astype(np.uint16)), box, (24, 32))
    assert deep.dtype == torch.float32
    torch.testing.assert_close(deep, expected.float(), atol=2e-5, rtol=0)
    plain = cut(as_source((image * 255).round().astype(np.uint8)), box, (24, 32))
    assert plain.dtype == torch.uint8
    # The 8-bit kernel rounds after each of its two passes.
    assert (plain.double() / 255 - expected).abs().max() < 2 / 255


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (150, 200)])
def test_eight_and_sixteen_bits_give_the_same_crops(size):
    image = (photograph(4) * 255).round().astype(np.uint8)
    box = Box(4, 6, 70, 90)
    plain = cut(as_source(image), box, size).float() / 255
    deep = cut(as_source(image.astype(np.uint16) * 257), box, size)
    difference = (plain - deep).abs() * 255
    assert (difference <= 1).float().mean() > 0.999
    assert difference.max() < 2


def test_overshoot_stays_in_range():
    image = np.zeros((1, 20, 20), np.uint16)
    image[:, :, 10:] = 65535
    crop = cut(as_source(image), Box(0, 0, 20, 20), (60, 60))
    assert crop.min() == 0
    assert crop.max() == 1
    # The transition stays where it was.
    assert crop[0, :, 29].mean() < 0.5 < crop[0, :, 30].mean()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (10, 40)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_smaller_than_the_crop_are_enlarged(shape, dtype):
    image = np.full((3, *shape), np.iinfo(dtype).max // 3, dtype)
    crop = cut(as_source(image), Box(0, 0, *shape), (32, 48))
    assert crop.shape == (3, 32, 48)
    value = crop.float() / 255 if dtype == np.uint8 else crop
    torch.testing.assert_close(value, torch.full_like(value, 1 / 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flips_and_turns(dtype):
    image = np.random.default_rng(1).integers(0, 200, (3, 6, 10)).astype(dtype)
    source, box = as_source(image), Box(0, 0, 6, 10)
    value = image if dtype == np.uint8 else image.astype(np.float32) / 65535

    def result(size, *turn):
        return cut(source, box, size, *turn).numpy()

    np.testing.assert_allclose(result((6, 10), True, False, 0), value[:, :, ::-1], atol=1e-7)
    np.testing.assert_allclose(result((6, 10), False, True, 0), value[:, ::-1], atol=1e-7)
    np.testing.assert_allclose(result((6, 10), True, True, 0), value[:, ::-1, ::-1], atol=1e-7)
    np.testing.assert_allclose(result((10, 6), False, False, 1), np.rot90(value, 1, (1, 2)), atol=1e-7)
    np.testing.assert_allclose(result((6, 10), True, False, 2), value[:, ::-1], atol=1e-7)
    np.testing.assert_allclose(result((10, 6), False, False, 3), np.rot90(value, 3, (1, 2)), atol=1e-7)


@pytest.mark.parametrize(
    ("preset", "turns"),
    [("natural", {(0, 0, 0), (1, 0, 0)}), ("fluorescence", {(h, v, 0) for h in (0, 1) for v in (0, 1)})],
)
def test_flips_of_a_preset_are_equally_likely(preset, turns):
    rng = keyed_generator(0)
    drawn = [tuple(int(part) for part in sample_turn(rng, preset)) for _ in range(2000)]
    assert set(drawn) == turns
    for turn in turns:
        assert drawn.count(turn) / 2000 == pytest.approx(1 / len(turns), abs=0.05)


def test_overhead_reaches_all_eight_orientations_equally():
    rng = keyed_generator(0)
    image = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    seen = [
        tuple(cut(image, Box(0, 0, 2, 2), (2, 2), *sample_turn(rng, "overhead")).flatten().tolist())
        for _ in range(4000)
    ]
    assert len(set(seen)) == 8
    for orientation in set(seen):
        assert seen.count(orientation) / 4000 == pytest.approx(1 / 8, abs=0.03)


def test_threads_do_not_change_a_crop():
    image = np.random.default_rng(2).integers(0, 65536, (3, 200, 300)).astype(np.uint16)
    sources = [as_source(image), as_source((image >> 8).astype(np.uint8))]
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append([cut(source, Box(7, 9, 180, 250), (96, 96)) for source in sources])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
