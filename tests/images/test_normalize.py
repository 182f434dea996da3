import numpy as np
import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.images.normalize import _on_device, channel_statistics, normalize, same_normalization
from openfino.recipe import GivenNormalization


def images(*shape):
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def test_imagenet_statistics():
    pixels = images(2, 5, 3, 4, 6)
    before = pixels.clone()
    result = normalize(pixels, "imagenet")
    assert torch.equal(pixels, before)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (pixels[:, :, channel] - mean) / std
        torch.testing.assert_close(result[:, :, channel], expected)


def test_given_statistics_of_any_channel_count():
    pixels = images(2, 5, 4, 6)
    given = GivenNormalization(mean=[0.1, 0.2, 0.3, 0.4, 0.5], std=[1.0, 2.0, 3.0, 4.0, 5.0])
    result = normalize(pixels, given)
    torch.testing.assert_close(result[:, 3], (pixels[:, 3] - 0.4) / 4)


def test_zscore_is_per_image_and_channel():
    pixels = images(3, 2, 4, 16, 12) * torch.tensor([1.0, 0.5, 0.1, 0.01]).view(4, 1, 1)
    before = pixels.clone()
    result = normalize(pixels, "zscore")
    assert torch.equal(pixels, before)
    torch.testing.assert_close(result.mean((-2, -1)), torch.zeros(3, 2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((-2, -1), correction=0), torch.ones(3, 2, 4), atol=1e-4, rtol=0)
    # An affine change of a channel leaves nothing behind.
    torch.testing.assert_close(normalize(0.3 * pixels + 0.2, "zscore"), result, atol=2e-4, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1 / 3, 1.0])
def test_a_constant_channel_becomes_zero(level):
    pixels = images(1, 2, 50, 50)
    pixels[:, 1] = level
    result = normalize(pixels, "zscore")
    assert torch.isfinite(result).all()
    assert result[0, 1].abs().max() < 0.05
    assert result[0, 0].std() > 0.9


def test_dim_sixteen_bit_images_keep_their_contrast():
    levels = torch.randint(0, 40, (1, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    assert normalize(levels / 65535, "zscore").std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("normalization", ["imagenet", GivenNormalization(mean=[0.5] * 3, std=[1.0] * 2)])
def test_statistics_for_other_channels_are_refused(normalization):
    with pytest.raises(OpenfinoError, match=r"images.normalization: 3 means .* for 4 channels"):
        normalize(images(1, 4, 2, 2), normalization)


def test_statistics_by_channel():
    assert channel_statistics("zscore", 2) == ([0.0, 0.0], [1.0, 1.0])
    assert channel_statistics(GivenNormalization(mean=[0.5], std=[0.1]), 1) == ([0.5], [0.1])
    assert channel_statistics("imagenet", 3)[0] == [0.485, 0.456, 0.406]


def test_statistics_are_put_on_the_device_once():
    """Also when the first call is an evaluation: training must be able to use what it left behind."""
    with torch.inference_mode():
        first = normalize(
            images(1, 3, 4, 4), GivenNormalization(mean=[0.5, 0.25, 0.125], std=[0.5, 1.0, 2.0])
        )
    made = _on_device.cache_info().misses
    pixels = images(1, 3, 4, 4).requires_grad_()
    second = normalize(pixels, GivenNormalization(mean=[0.5, 0.25, 0.125], std=[0.5, 1.0, 2.0]))
    second.sum().backward()
    assert _on_device.cache_info().misses == made
    assert torch.equal(first, second)
    assert pixels.grad[0, :, 0, 0].tolist() == [2.0, 1.0, 0.5]


def test_the_same_statistics_are_the_same_however_they_are_written():
    spelled = GivenNormalization(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    other = GivenNormalization(mean=[0.5, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert same_normalization("imagenet", spelled)
    assert same_normalization("zscore", "zscore")
    for one in ("imagenet", spelled, "zscore"):
        assert not same_normalization(other, one)
    assert not same_normalization("imagenet", "zscore")
