"""What a plate does to an image, one effect at a time."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from openfino.keyed import keyed_generator
from openfino.sampledata.microscope import Optics, acquire, lamp_output, plate_optics, warm_up
from openfino.sampledata.screen import CAMPAIGN_START

SIDE = 48
IDEAL = Optics(
    gain=np.ones(4, np.float32),
    offset=np.zeros(4, np.float32),
    bleed=np.eye(4, dtype=np.float32),
    illumination=np.ones((4, SIDE, SIDE), np.float32),
    defocus=np.zeros(4, np.float32),
    photons=np.full(4, 1e6, np.float32),
    read_noise=0.0,
)


def stains() -> np.ndarray:
    image = np.zeros((4, SIDE, SIDE), np.float32)
    image[0, 10:20, 10:20] = 1.0
    image[1, 30:40, 30:40] = 1.0
    return image


def photograph(optics: Optics, lamp: float = 1.0, drift: float = 0.0) -> np.ndarray:
    return acquire(keyed_generator(1), stains(), optics, pixel=0.8, lamp=lamp, drift=drift).astype(float)


def test_gain_and_lamp_scale_the_light() -> None:
    plain = photograph(IDEAL)
    brighter = photograph(replace(IDEAL, gain=np.full(4, 1.5, np.float32)))
    dimmer = photograph(IDEAL, lamp=0.5)
    assert plain[1, 35, 35] > 90
    assert brighter[1, 35, 35] == pytest.approx(1.5 * plain[1, 35, 35], rel=0.02)
    assert dimmer[1, 35, 35] == pytest.approx(0.5 * plain[1, 35, 35], rel=0.02)


def test_offset_lifts_the_background() -> None:
    lifted = photograph(replace(IDEAL, offset=np.full(4, 0.1, np.float32)))
    assert photograph(IDEAL)[2].max() == 0
    assert lifted[2].mean() == pytest.approx(25.5, abs=1.0)


def test_light_leaks_from_the_true_channel_into_the_seen_one() -> None:
    bleed = np.eye(4, dtype=np.float32)
    bleed[1, 0] = 0.2
    leaky, plain = photograph(replace(IDEAL, bleed=bleed)), photograph(IDEAL)
    assert leaky[1, 15, 15] == pytest.approx(0.2 * plain[0, 15, 15], rel=0.15)
    assert leaky[0, 35, 35] == 0


def test_defocus_and_drift_blur() -> None:
    sharp = np.abs(np.diff(photograph(IDEAL)[1], axis=1)).max()
    for optics, drift in ((replace(IDEAL, defocus=np.full(4, 1.2, np.float32)), 0.0), (IDEAL, 1.2)):
        assert np.abs(np.diff(photograph(optics, drift=drift)[1], axis=1)).max() < 0.7 * sharp


def test_fewer_photons_and_read_noise_make_it_noisier() -> None:
    bright = np.s_[1, 32:38, 32:38]
    quiet = photograph(IDEAL)[bright].std()
    shot = photograph(replace(IDEAL, photons=np.full(4, 100.0, np.float32)))[bright].std()
    read = photograph(replace(IDEAL, read_noise=0.03))[bright].std()
    # The light is 0.52 of full scale: sqrt(0.52 * 100) / 100 of 255, and 0.03 of 255.
    assert shot == pytest.approx(255 * np.sqrt(0.52 * 100) / 100, rel=0.4)
    assert read == pytest.approx(0.03 * 255, rel=0.4)
    assert quiet < 1.5


def test_plates_differ_and_are_reproducible() -> None:
    one, same, other = plate_optics(0, 3, SIDE), plate_optics(0, 3, SIDE), plate_optics(0, 4, SIDE)
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(same, name)), name
        assert not np.array_equal(value, getattr(other, name)), name
    assert np.diag(one.bleed) == pytest.approx(1.0)
    assert one.illumination.mean(axis=(1, 2)) == pytest.approx(1.0, abs=1e-5)
    assert one.illumination.min() > 0


def test_optics_scale_with_the_size_of_the_image() -> None:
    small, large = plate_optics(0, 3, 16), plate_optics(0, 3, 64)
    averaged = large.illumination.reshape(4, 16, 4, 16, 4).mean(axis=(2, 4))
    assert np.allclose(averaged, small.illumination, atol=0.01)
    assert np.array_equal(small.gain, large.gain)


def test_the_lamp_fades_until_it_is_replaced() -> None:
    def day(number: int) -> float:
        return lamp_output(CAMPAIGN_START + timedelta(days=number))

    assert day(5) > day(75) > day(149)
    assert day(151) > day(149) + 0.2
    assert warm_up(0.0) > warm_up(20.0) > warm_up(90.0) >= 0
