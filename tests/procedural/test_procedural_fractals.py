"""Iterated function systems, glyphs, and names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openfino.errors import OpenfinoError
from openfino.keyed import keyed_generator
from openfino.procedural import FAMILIES, draw_image, draw_of_family, image_name, is_image_name, named_image
from openfino.procedural.fractals import attractor, draw_maps
from openfino.procedural.glyphs import Pen, draw_letter, ink
from openfino.procedural.sheet import contact_sheet, main

SIERPINSKI = np.array([[0.5, 0.5, 0.5], [0, 0, 0], [0, 1, 0.5 + 1j]], np.complex64)


def occupied(points, side=24):
    place = np.floor((np.stack([points.real, points.imag]) + 1.2) / 2.4 * side).clip(0, side - 1).astype(int)
    grid = np.zeros((side, side), bool)
    grid[place[1], place[0]] = True
    return grid


def played(maps, weight, count):
    """The chaos game, one point after the other, brought to the unit disc."""
    rng = np.random.default_rng(0)
    z, points = 0j, []
    for step in range(count + 50):
        a, b, c = maps[:, rng.choice(len(weight), p=weight)]
        z = complex(a * z + b * np.conj(z) + c)
        if step >= 50:
            points.append(z)
    return np.array(points)


def centred(points):
    low, high = np.quantile(points.real, [0.02, 0.98]), np.quantile(points.imag, [0.02, 0.98])
    moved = points - (low.mean() + 1j * high.mean())
    return moved / np.quantile(np.abs(moved), 0.98)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_cloud_is_what_the_chaos_game_plays(seed):
    maps, weight = (SIERPINSKI, np.full(3, 1 / 3)) if seed is None else draw_maps(keyed_generator(seed))
    points, _, _ = attractor(keyed_generator(9), maps, weight, 8192)
    cloud, game = occupied(points), occupied(centred(played(maps, weight, 8000)))
    assert (cloud & game).sum() > 0.8 * (cloud | game).sum()


def test_addresses_say_which_maps_came_last():
    points, last, before = attractor(keyed_generator(9), SIERPINSKI, np.full(3, 1 / 3), 4096)
    middles = np.array([points[last == number].mean() for number in range(3)])
    # The triangle's own corners: right of the first is the second, below both (y down) the third.
    assert middles[1].real - middles[0].real > 0.5
    assert middles[2].imag - middles[0].imag > 0.5
    for number in range(3):
        part = points[(last == 0) & (before == number)].mean()
        expected = middles[0] + 0.5 * (middles[number] - middles.mean())
        assert part == pytest.approx(expected, abs=0.05)


def test_systems_contract_and_their_weights_add_up():
    for seed in range(100):
        maps, weight = draw_maps(keyed_generator(seed))
        assert 2 <= maps.shape[1] <= 8
        assert (np.abs(maps[0]) + np.abs(maps[1])).max() < 0.95
        assert weight.sum() == pytest.approx(1)
        points, _, _ = attractor(keyed_generator(seed), maps, weight, 2048)
        assert np.isfinite(points).all()
        assert (np.abs(points) <= 1).mean() > 0.95


def test_ink_lies_within_half_a_width_of_the_stroke():
    pen = Pen(width=0.2, nib=0.0, angle=0.0, slant=0.0, hollow=0.0, soft=1.0)
    inked = ink([np.array([[0.0, 0.0], [-1.0, 1.0]], np.float32)], pen, 40)
    line = np.arange(40) + 0.5
    x, y = np.meshgrid(line, line)
    # 0.8 of the half height is left to the anchors when the pen takes 0.2.
    end = np.clip(y, 20 - 16, 20 + 16)
    distance = np.hypot(x - 20, y - end) - 4.0
    assert inked == pytest.approx(np.clip(0.5 - distance, 0, 1), abs=1e-4)


def test_broad_nibs_and_hollow_strokes_use_less_ink():
    letter = draw_letter(keyed_generator(4), 0.5)
    pens = [Pen(0.15, nib, 0.3, 0.0, hollow, 1.0) for nib, hollow in ((0.0, 0.0), (0.7, 0.0), (0.0, 0.5))]
    full, broad, hollow = (ink(letter, pen, 48).sum() for pen in pens)
    assert broad < 0.95 * full
    assert hollow < 0.95 * full


def test_letters_fill_their_square():
    for seed in range(60):
        points = np.concatenate(draw_letter(keyed_generator(seed), 0.6), axis=1)
        assert np.abs(points).max() < 1
        assert np.ptp(points, axis=1).max() > 1.2


def test_a_name_names_the_image_that_is_drawn():
    name = image_name(3, 12, 40)
    assert is_image_name(name)
    assert is_image_name(Path("/data") / name)
    assert not is_image_name("/data/3-12-40.png")
    assert np.array_equal(named_image(Path("/data") / name), draw_image(3, 12, 40))


@pytest.mark.parametrize(
    "name", ["x.procedural", "1-2.procedural", "1-2-3-4.procedural", "-1-2-64.procedural"]
)
def test_other_names_are_refused(name):
    with pytest.raises(OpenfinoError, match="is no name of a procedural image"):
        named_image(name)


def test_a_name_of_too_small_an_image_is_refused():
    with pytest.raises(OpenfinoError, match="at least 16"):
        named_image("0-0-8.procedural")


def test_the_sheet_has_a_row_for_every_family(tmp_path):
    main([str(tmp_path / "new" / "sheet.png")])
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert pixels.shape[0] == len(FAMILIES) * 83
    for row, name in enumerate(FAMILIES):
        tile = pixels[row * 83 :][:80, 76 : 76 + 80].astype(int)
        drawn = np.moveaxis(draw_of_family(name, 0, 0, 80), 0, 2)
        assert np.abs(tile - drawn).mean() < 16  # 256 colours for them all
    assert (tmp_path / "new" / "sheet.png").stat().st_size < 1_000_000
    assert (
        contact_sheet(tmp_path / "other.png", seed=1).read_bytes()
        != (tmp_path / "new" / "sheet.png").read_bytes()
    )


def test_the_command_says_how_it_is_used():
    with pytest.raises(SystemExit, match="usage"):
        main([])
