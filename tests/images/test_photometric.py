import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from openfino.images.photometric import apply_photometric, draw_parameters, gaussian_blur, luma, shift_hue
from openfino.keyed import keyed_generator

RGB = ("red", "green", "blue")
FOUR = ("nucleus", "protein", "microtubules", "er")
OFF = {
    "jitter": 0.0,
    "brightness": 1.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.0,
    "gray": 0.0,
    "blur_sigma": 0.0,
    "solarise": 0.0,
}


def crops(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def parameters(count, names=tuple(OFF), **changed):
    values = {**OFF, **changed}
    return {name: torch.full((count,), values[name]) for name in names}


def drawn(preset, kind, channels, protein=None, count=2000):
    draws = [
        draw_parameters(keyed_generator(5, number), preset, kind, channels, protein)
        for number in range(count)
    ]
    return {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}


def reference(image, values):
    """``natural`` for one RGB image [3, H, W] in float64, operation by operation."""
    image = image.astype(np.float64)
    weights = np.array([0.299, 0.587, 0.114])

    def gray(values):
        return np.tensordot(weights, values, 1)[None]

    if values["jitter"]:
        image = np.clip(image * values["brightness"], 0, 1)
        mean = gray(image).mean()
        image = np.clip(mean + values["contrast"] * (image - mean), 0, 1)
        image = np.clip(gray(image) + values["saturation"] * (image - gray(image)), 0, 1)
        image = turn_hue(image, values["hue"])
    if values["gray"]:
        image = np.repeat(gray(image), 3, 0)
    if values["blur_sigma"]:
        for axis in (1, 2):
            image = gaussian_filter1d(image, values["blur_sigma"], axis=axis, mode="mirror", radius=4)
    if values["solarise"]:
        image = np.where(image >= 128 / 255, 1 - image, image)
    return image


def turn_hue(image, shift):
    turned = np.empty_like(image)
    for row, column in np.ndindex(image.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column])
        turned[:, row, column] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    return turned


def test_natural_agrees_with_a_naive_implementation():
    rng = np.random.default_rng(0)
    images = crops(24, 3, 12, 15)
    values = {
        "jitter": rng.integers(0, 2, 24),
        "brightness": rng.uniform(0.6, 1.4, 24),
        "contrast": rng.uniform(0.6, 1.4, 24),
        "saturation": rng.uniform(0.8, 1.2, 24),
        "hue": rng.uniform(-0.1, 0.1, 24),
        "gray": rng.integers(0, 2, 24),
        "blur_sigma": rng.uniform(0.1, 2, 24) * rng.integers(0, 2, 24),
        # Solarising jumps at its threshold, where float32 and float64 may part: apart from the rest, below.
        "solarise": np.zeros(24),
    }
    before = images.clone()
    result = apply_photometric(
        images,
        {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()},
        "natural",
    )
    assert torch.equal(images, before)
    for number in range(24):
        one = {name: value[number] for name, value in values.items()}
        np.testing.assert_allclose(
            result[number].numpy(), reference(images[number].numpy(), one), atol=3e-6, err_msg=str(one)
        )


def test_solarise_inverts_from_128_on():
    image = (torch.arange(256).float() / 255).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = apply_photometric(image, parameters(1, solarise=1.0), "natural")
    levels = (result[0, 0] * 255).round().flatten().int().tolist()
    assert levels == [level if level < 128 else 255 - level for level in range(256)]


def test_what_is_off_changes_no_bit():
    images = crops(2, 3, 3, 16, 16)
    off = {name: value.view(2, 3) for name, value in parameters(6).items()}
    assert torch.equal(apply_photometric(images, off, "natural"), images)
    # Factors without the jitter's flag have no effect, and one crop's operations leave the others alone.
    off = parameters(6, brightness=0.5, hue=0.1)
    off["blur_sigma"][4] = 1.0
    result = apply_photometric(images.view(6, 3, 16, 16), off, "natural")
    changed = [
        number for number in range(6) if not torch.equal(result[number], images.view(6, 3, 16, 16)[number])
    ]
    assert changed == [4]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_of_nine_taps_per_image(sigma):
    images = crops(3, 5, 11, 8)
    sigmas = torch.tensor([sigma, 1.3, 0.4])
    result = gaussian_blur(images, sigmas)
    for number, own in enumerate(sigmas.tolist()):
        expected = images[number].double().numpy()
        for axis in (1, 2):
            expected = gaussian_filter1d(expected, own, axis=axis, mode="mirror", radius=4)
        np.testing.assert_allclose(result[number].numpy(), expected, atol=1e-6)


def test_hue_turns_primary_into_secondary_and_keeps_gray():
    primaries = torch.eye(3).view(3, 3, 1, 1)
    turned = shift_hue(primaries, torch.full((3,), 1 / 6))
    expected = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]]).view(3, 3, 1, 1)
    torch.testing.assert_close(turned, expected)
    gray = torch.linspace(0, 1, 12).view(1, 1, 3, 4).expand(1, 3, 3, 4)
    torch.testing.assert_close(shift_hue(gray, torch.tensor([0.1])), gray)


def test_luma_weighs_green_most():
    assert luma(torch.eye(3).view(3, 3, 1, 1)).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    torch.testing.assert_close(luma(torch.ones(1, 3, 1, 1)), torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("preset", ["natural", "overhead"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_than_three_channels_get_brightness_contrast_and_blur(preset, channels):
    names = [f"channel_{number}" for number in range(channels)]
    assert set(drawn(preset, "local", names, count=1)) == {"jitter", "brightness", "contrast", "blur_sigma"}
    images = crops(2, channels, 12, 12)
    given = parameters(
        2, ("jitter", "brightness", "contrast", "blur_sigma"), jitter=1.0, brightness=1.2, contrast=0.7
    )
    given["blur_sigma"][1] = 1.0
    result = apply_photometric(images, given, preset)
    expected = np.clip(images.numpy().astype(np.float64) * 1.2, 0, 1)
    mean = expected.mean((1, 2, 3), keepdims=True)
    expected = np.clip(mean + 0.7 * (expected - mean), 0, 1)
    np.testing.assert_allclose(result[0].numpy(), expected[0], atol=1e-6)
    for axis in (1, 2):
        expected[1] = gaussian_filter1d(expected[1], 1.0, axis=axis, mode="mirror", radius=4)
    np.testing.assert_allclose(result[1].numpy(), expected[1], atol=1e-6)


def test_fluorescence_scales_about_the_mean_of_each_channel():
    images = crops(2, 3, 4, 10, 10)
    rng = np.random.default_rng(1)
    contrast, brightness = rng.uniform(0.5, 1.6, (2, 2, 3, 4)).astype(np.float32)
    keep = np.ones((2, 3, 4), np.float32)
    keep[1, 2, 0] = 0
    given = {"contrast": contrast, "brightness": brightness, "keep": keep}
    before = images.clone()
    result = apply_photometric(
        images, {name: torch.from_numpy(value) for name, value in given.items()}, "fluorescence"
    )
    assert torch.equal(images, before)
    pixels = images.double().numpy()
    mean = pixels.mean((-2, -1), keepdims=True)
    expected = (mean + contrast[..., None, None] * (pixels - mean)) * brightness[..., None, None]
    expected = np.clip(expected * keep[..., None, None], 0, 1)
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-6)
    assert (result[1, 2, 0] == 0).all()


@pytest.mark.parametrize(
    ("kind", "blur", "solarise"), [("global_1", 1.0, 0.0), ("global_2", 0.1, 0.2), ("local", 0.5, 0.0)]
)
def test_probabilities_and_ranges_of_natural(kind, blur, solarise):
    values = drawn("natural", kind, RGB)
    assert set(values) == set(OFF)
    assert all(value.dtype == np.float32 and value.shape == (2000,) for value in values.values())
    # Binomial standard errors are at most 0.011.
    for name, probability in (("jitter", 0.8), ("gray", 0.2), ("solarise", solarise)):
        assert set(np.unique(values[name])) <= {0.0, 1.0}
        assert values[name].mean() == pytest.approx(probability, abs=0.04)
    blurred = values["blur_sigma"] > 0
    assert blurred.mean() == pytest.approx(blur, abs=0.04)
    assert values["blur_sigma"][blurred].min() >= 0.1
    assert values["blur_sigma"].max() <= 2.0
    assert values["blur_sigma"][blurred].mean() == pytest.approx(1.05, abs=0.12)
    for name, centre, reach in (
        ("brightness", 1, 0.4),
        ("contrast", 1, 0.4),
        ("saturation", 1, 0.2),
        ("hue", 0, 0.1),
    ):
        assert np.abs(values[name] - centre).max() == pytest.approx(reach, rel=0.02)
        assert values[name].mean() == pytest.approx(centre, abs=0.05 * reach + 1e-3)


def test_overhead_neither_grays_nor_solarises():
    assert set(drawn("overhead", "global_2", RGB, count=1)) == set(OFF) - {"gray", "solarise"}


def test_draws_of_fluorescence():
    values = drawn("fluorescence", "local", FOUR, protein=1)
    assert set(values) == {"contrast", "brightness", "keep"}
    assert all(value.dtype == np.float32 and value.shape == (2000, 4) for value in values.values())
    for name in ("contrast", "brightness"):
        others = values[name][:, [0, 2, 3]]
        assert others.min() >= 0.5
        assert others.mean() == pytest.approx(1, abs=0.02)
        assert others.std() == pytest.approx(0.2, abs=0.01)
    # The protein's contrast has the uniform factor too: variance (1 + 0.04)(1 + 1 / 12) - 1.
    assert values["contrast"][:, 1].std() == pytest.approx(np.sqrt(1.04 * (1 + 1 / 12) - 1), abs=0.02)
    assert values["brightness"][:, 1].std() == pytest.approx(0.2, abs=0.01)
    dropped = 1 - values["keep"]
    assert dropped.sum(1).max() == 1
    assert dropped[:, 1].sum() == 0
    np.testing.assert_allclose(dropped[:, [0, 2, 3]].mean(0), 0.25 / 3, atol=0.02)


def test_without_a_protein_channel_any_one_may_be_dropped():
    values = drawn("fluorescence", "local", FOUR)
    np.testing.assert_allclose((1 - values["keep"]).mean(0), 0.25 / 4, atol=0.02)
    assert values["contrast"].std() == pytest.approx(0.2, abs=0.01)


def test_a_single_channel_is_never_dropped():
    for protein in (None, 0):
        assert drawn("fluorescence", "local", ("protein",), protein=protein)["keep"].min() == 1


@pytest.mark.parametrize("preset", ["natural", "fluorescence", "overhead"])
def test_values_stay_in_range(preset):
    rng = keyed_generator(0)
    draws = [draw_parameters(rng, preset, "global_2", RGB, None) for _ in range(64)]
    stacked = {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}
    result = apply_photometric(crops(64, 3, 16, 16).round(), stacked, preset)
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("preset", ["natural", "fluorescence"])
def test_neither_type_nor_memory_layout_matters(preset):
    draws = [draw_parameters(keyed_generator(1, number), preset, "local", RGB, None) for number in range(6)]
    stacked = {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}
    levels = (crops(6, 3, 12, 12) * 255).to(torch.uint8)
    expected = apply_photometric(levels.float() / 255, stacked, preset)
    assert torch.equal(apply_photometric(levels, stacked, preset), expected)
    interleaved = levels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply_photometric(interleaved, stacked, preset), expected)
    assert torch.equal(apply_photometric(interleaved.float() / 255, stacked, preset), expected)


def test_no_crops_pass():
    assert apply_photometric(torch.empty(0, 4, 3, 8, 8), {}, "natural").shape == (0, 4, 3, 8, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["natural", "fluorescence", "overhead"])
def test_a_gpu_computes_the_same(preset):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    draws = [draw_parameters(keyed_generator(0, number), preset, "local", RGB, 1) for number in range(32)]
    stacked = {name: torch.from_numpy(np.stack([draw[name] for draw in draws])) for name in draws[0]}
    images = crops(32, 3, 24, 24)
    on_gpu = apply_photometric(
        images.cuda(), {name: value.cuda() for name, value in stacked.items()}, preset
    ).cpu()
    torch.testing.assert_close(on_gpu, apply_photometric(images, stacked, preset), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("low", "high"), [(0.1, 2.0), (0.1, 0.5), (1.0, 1.0)])
def test_blur_lies_within_the_sigmas_that_the_recipe_gives(low: float, high: float) -> None:
    draws = [
        draw_parameters(keyed_generator(3, number), "natural", "global_1", RGB, None, (low, high))[
            "blur_sigma"
        ]
        for number in range(64)
    ]
    assert low <= min(draws)
    assert max(draws) <= high + 1e-6
    assert (max(draws) - min(draws)) >= 0.8 * (high - low)
