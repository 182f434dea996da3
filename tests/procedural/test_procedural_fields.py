"""Random fields, textures and colours."""

import colorsys

import numpy as np
import pytest

from openfino.keyed import keyed_generator
from openfino.procedural import fields
from openfino.procedural.palettes import colourise, draw_palette, draw_ramp, from_hsv
from openfino.procedural.textures import TEXTURES, draw_backdrop


def power_spectrum(field):
    """Mean power of each whole frequency, from 1 on."""
    size = field.shape[-1]
    power = np.abs(np.fft.fft2(field)) ** 2
    line = np.fft.fftfreq(size, 1 / size)
    radius = np.rint(np.hypot(line[:, None], line[None])).astype(int)
    return np.array([power[..., radius == r].mean() for r in range(1, size // 2)])


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_power_noise_has_its_slope_and_unit_variance(slope):
    noise = fields.power_noise(keyed_generator(1), 128, slope, 6)
    assert noise.dtype == np.float32
    assert noise.mean(axis=(1, 2)) == pytest.approx(0, abs=1e-5)
    assert noise.std(axis=(1, 2)) == pytest.approx(1, abs=1e-4)
    spectrum = power_spectrum(noise)[2:40]
    found = np.polyfit(np.log(np.arange(3, 41)), np.log(spectrum), 1)[0]
    assert found == pytest.approx(-2 * slope, abs=0.15)


@pytest.mark.parametrize("frequency", [4.0, 16.0])
def test_band_noise_keeps_to_its_frequency(frequency):
    noise = fields.band_noise(keyed_generator(2), 128, (frequency,) * 3, 0.2)
    spectrum = power_spectrum(noise) * np.arange(1, 64)
    peak = (spectrum * np.arange(1, 64)).sum() / spectrum.sum()
    assert peak == pytest.approx(frequency, rel=0.1)


def test_stretched_noise_changes_slowly_along_its_angle():
    noise = fields.band_noise(keyed_generator(3), 96, 8.0, 0.3, 9.0, 0.0)[0]
    across, down = fields.slopes(noise)
    assert np.abs(down).mean() > 3 * np.abs(across).mean()
    turned = fields.band_noise(keyed_generator(3), 96, 8.0, 0.3, 9.0, np.pi / 2)[0]
    across, down = fields.slopes(turned)
    assert np.abs(across).mean() > 3 * np.abs(down).mean()


def test_sample_is_bilinear_and_periodic():
    field = keyed_generator(4).random((12, 12), dtype=np.float32)
    x, y = np.meshgrid(np.arange(12, dtype=np.float32), np.arange(12, dtype=np.float32))
    assert np.array_equal(fields.sample(field, x, y), field)
    assert fields.sample(field, x - 24, y + 36) == pytest.approx(field)
    middle = (field + np.roll(field, -1, 1) + np.roll(field, -1, 0) + np.roll(field, (-1, -1), (0, 1))) / 4
    assert fields.sample(field, x + 0.5, y + 0.5) == pytest.approx(middle, abs=1e-6)
    assert fields.sample(np.stack([field, -field]), x, y)[1] == pytest.approx(-field)


def test_cellular_distances_are_those_to_single_points():
    near, far, owner = fields.cellular(keyed_generator(5), 128, 8.0)
    assert (near <= far).all()
    pixel = 8.0 / 128
    steps = np.abs(np.diff(near, axis=0))
    assert (steps < 1.01 * pixel).mean() > 0.999
    # Within a cell the distance is a cone: its gradient has the length of one pixel.
    inside = (owner[1:-1, 1:-1] == owner[:-2, 1:-1]) & (owner[1:-1, 1:-1] == owner[2:, 1:-1])
    inside &= (owner[1:-1, 1:-1] == owner[1:-1, :-2]) & (owner[1:-1, 1:-1] == owner[1:-1, 2:])
    inside &= near[1:-1, 1:-1] > 0.25
    dx, dy = (near[1:-1, 2:] - near[1:-1, :-2]) / 2, (near[2:, 1:-1] - near[:-2, 1:-1]) / 2
    assert np.median(np.hypot(dx, dy)[inside]) == pytest.approx(pixel, rel=0.01)
    assert 40 < len(np.unique(owner)) < 130


def test_ridged_noise_and_spread_fill_the_unit_range():
    field = fields.ridged(keyed_generator(6), 64, 3.0, 4, 0.5)
    assert (field.min(), field.max()) == (0.0, 1.0)
    assert (fields.spread(np.full((16, 16), 3.0, np.float32)) == 0).all()


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_in_range_and_vary(name):
    drawn = [TEXTURES[name](keyed_generator(seed), 50) for seed in range(20)]
    for texture in drawn:
        assert texture.shape == (50, 50)
        assert texture.dtype == np.float32
        assert texture.min() >= 0
        assert texture.max() <= 1
    assert len({texture.tobytes() for texture in drawn}) == 20
    assert np.median([texture.std() for texture in drawn]) > (0.01 if name == "flat" else 0.1)


def test_hues_are_those_of_the_standard_library():
    rng = keyed_generator(7)
    hsv = rng.random((50, 3))
    expected = [colorsys.hsv_to_rgb(*colour) for colour in hsv]
    assert from_hsv(*hsv.T) == pytest.approx(np.array(expected), abs=1e-5)


def test_palettes_have_contrast_and_ramps_run_through_them():
    for seed in range(60):
        palette = draw_palette(keyed_generator(seed), 5)
        assert palette.min() >= 0
        assert palette.max() <= 1
        bright = palette.max(axis=1)
        assert np.ptp(bright) > 0.2
        ramp = draw_ramp(keyed_generator(seed), palette)
        assert ramp.shape == (3, 256)
        assert ramp[:, 0] == pytest.approx(palette[0], abs=1e-6)
        assert ramp[:, -1] == pytest.approx(palette[-1], abs=1e-6)
    field = np.array([[0.0, 1.0]], np.float32)
    assert np.array_equal(colourise(ramp, field)[:, 0], ramp[:, [0, 255]])


def test_backdrops_are_images():
    for seed in range(30):
        image = draw_backdrop(keyed_generator(seed), 40)
        assert image.shape == (3, 40, 40)
        assert -0.01 <= image.min() <= image.max() <= 1.01
