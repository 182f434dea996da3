import numpy as np
import pytest

from openfino.images.display import as_colours, composite

GENERATOR = np.random.default_rng(0)


def test_8_bit_grey_and_colour_keep_their_values():
    grey = GENERATOR.integers(0, 256, (1, 4, 5), dtype=np.uint8)
    assert np.array_equal(as_colours(grey), np.repeat(grey[0][:, :, None], 3, axis=2))
    colour = GENERATOR.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert np.array_equal(as_colours(colour), colour.transpose(1, 2, 0))


def test_four_channels_are_the_composite_of_the_sample_set():
    image = np.zeros((4, 1, 4), dtype=np.uint8)
    image[range(4), 0, range(4)] = 200
    assert as_colours(image)[0].tolist() == [[30, 50, 200], [0, 200, 0], [200, 0, 0], [110, 90, 0]]
    assert np.array_equal(as_colours(image), composite(image))


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_every_channel_of_other_counts_has_its_own_colour(channels):
    image = np.zeros((channels, 1, channels), dtype=np.uint8)
    image[range(channels), 0, range(channels)] = 255
    colours = as_colours(image)[0]
    assert len({tuple(colour) for colour in colours.tolist()}) == channels
    assert colours.max(axis=1).tolist() == [255] * channels  # none is darker than another
    if channels == 2:
        assert colours.tolist() == [[0, 255, 0], [255, 0, 255]]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_what_is_not_8_bit_is_stretched_channel_by_channel(dtype):
    ramp = np.linspace(100, 4000, 1000).reshape(20, 50)
    scale = 1 if dtype == np.uint16 else 1 / 65535
    image = np.stack([ramp, ramp / 10, np.full_like(ramp, 500)]) * scale
    shown = as_colours(image.astype(dtype)).astype(int)
    assert shown.shape == (20, 50, 3)
    for channel in (0, 1):
        values = shown[..., channel].ravel()
        assert (values[0], values[-1]) == (0, 255)
        assert (np.diff(values) >= 0).all()
        assert abs(values[500] - 127.5) < 2
    assert not shown[..., 2].any()  # constant: nothing to see
