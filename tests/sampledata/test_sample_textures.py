"""Random fields and curves."""

import numpy as np
import pytest

from openfino.keyed import keyed_generator
from openfino.sampledata.textures import network, smooth_noise, smoothstep, splat, walk


@pytest.mark.parametrize("side", [63, 64, 128])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_noise_has_unit_variance_at_every_scale(side: int, sigma: float) -> None:
    fields = np.stack([smooth_noise(keyed_generator(seed), side, sigma) for seed in range(12)])
    assert fields.std() == pytest.approx(1.0, abs=0.06)
    assert abs(fields.mean()) < 1e-3
    assert fields.dtype == np.float32


def test_noise_is_correlated_over_sigma() -> None:
    field = smooth_noise(keyed_generator(0), 256, 3.0)
    for distance in (1, 3, 6):
        found = np.corrcoef(field[:, :-distance].ravel(), field[:, distance:].ravel())[0, 1]
        assert found == pytest.approx(np.exp(-(distance**2) / (4 * 3.0**2)), abs=0.05)


def test_network_is_thin_and_within_bounds() -> None:
    mesh = network(keyed_generator(0), 128, 4.0, 0.3)
    assert mesh.min() >= 0
    assert mesh.max() <= 1
    assert 0.05 < (mesh > 0.5).mean() < 0.35


def test_splat_conserves_weight_and_place_and_loses_what_is_outside() -> None:
    x, y = np.array([[3.25, -2.0]], np.float32), np.array([[5.5, 4.0]], np.float32)
    image = splat(x, y, np.array([[2.0, 1.0]], np.float32), 16)
    rows, columns = np.indices(image.shape)
    assert image.sum() == pytest.approx(2.0)
    assert (image * columns).sum() / image.sum() == pytest.approx(3.25)
    assert (image * rows).sum() / image.sum() == pytest.approx(5.5)


def test_walks_start_at_their_start_and_keep_their_step() -> None:
    start, heading = np.zeros((5, 2), np.float32), np.linspace(0, 3, 5).astype(np.float32)
    x, y = walk(keyed_generator(1), start, heading, steps=20, step=0.5, bend=0.05, turn=0.1)
    assert x.shape == y.shape == (5, 20)
    assert np.hypot(x[:, 0], y[:, 0]) == pytest.approx(0.5, abs=1e-5)
    assert np.hypot(np.diff(x), np.diff(y)) == pytest.approx(0.5, abs=1e-4)
    straight = walk(keyed_generator(1), start, heading, steps=20, step=0.5, bend=0.0, turn=0.0)
    assert straight[0][:, -1] == pytest.approx(10 * np.cos(heading), abs=1e-4)
    assert straight[1][:, -1] == pytest.approx(10 * np.sin(heading), abs=1e-4)


def test_smoothstep_goes_from_zero_to_one_over_its_width() -> None:
    values = smoothstep(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32), 1.0)
    assert values.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
