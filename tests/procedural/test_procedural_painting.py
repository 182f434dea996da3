"""Outlines, stamps and things."""

import numpy as np
import pytest

from openfino.keyed import keyed_generator
from openfino.procedural.leaves import power_law
from openfino.procedural.outlines import ANGLES, OUTLINES, draw_outline, mirrored, turned
from openfino.procedural.painting import DOMED, RIMMED, SLOPED, Surface, draw_light, stamp
from openfino.procedural.palettes import draw_palette
from openfino.procedural.things import draw_thing, paint_thing

LIGHT = np.array([0.6, 0.0, 0.8], np.float32)
DISC = np.ones(ANGLES, np.float32)


def plain(size, **settings):
    """A surface of red 0.2, green 0.4, blue 0.6."""
    dark = np.array([0.2, 0.4, 0.6], np.float32)[:, None, None]
    return Surface(dark, np.zeros_like(dark), np.zeros((size, size), np.float32), **settings)


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_closed_curves_of_reach_one(name):
    for seed in range(30):
        table = draw_outline(keyed_generator(seed), name)
        assert table.shape == (ANGLES,)
        assert table.max() == 1
        assert table.min() > 0
        assert np.abs(np.diff(table, append=table[0])).max() < 0.45


def test_a_turned_outline_is_the_outline_at_other_angles():
    table = draw_outline(keyed_generator(0), "jagged")
    quarter = turned(table, np.pi / 2)
    assert quarter[ANGLES // 4] == table[0]
    assert np.array_equal(turned(quarter, -np.pi / 2), table)
    other = mirrored(table)
    assert other[ANGLES // 2] == table[0]  # left for right
    assert other[ANGLES // 4] == table[ANGLES // 4]  # below stays below
    assert np.array_equal(mirrored(other), table)


def test_a_stamp_covers_its_outline_and_nothing_else():
    image = np.ones((3, 64, 64), np.float32)
    stamp(image, plain(64), DISC, 30, 34, 12.0, LIGHT)
    covered = (1 - image[0]) / 0.8
    assert covered.sum() == pytest.approx(np.pi * 12**2, rel=0.02)
    assert image[:, 34, 30] == pytest.approx([0.2, 0.4, 0.6])
    rows, columns = np.indices((64, 64))
    assert (covered[np.hypot(rows - 34, columns - 30) > 13] == 0).all()


def test_a_square_outline_is_a_square():
    theta = np.arange(ANGLES) * 2 * np.pi / ANGLES
    table = (1 / np.maximum(np.abs(np.cos(theta)), np.abs(np.sin(theta)))).astype(np.float32)
    image = np.ones((3, 64, 64), np.float32)
    stamp(image, plain(64), table, 32, 32, 10.0, LIGHT)
    covered = (1 - image[0]) / 0.8
    assert covered[23:42, 23:42].min() > 0.6
    assert covered.sum() == pytest.approx(400, rel=0.08)


@pytest.mark.parametrize("relief", [0, SLOPED, DOMED, RIMMED])
@pytest.mark.parametrize("place", [(0, 0), (-6, 20), (45, 60), (30, 31)])
def test_a_stamp_at_the_border_is_a_part_of_a_whole_one(relief, place):
    x, y = place
    small, large = np.ones((3, 48, 48), np.float32), np.ones((3, 144, 144), np.float32)
    table = draw_outline(keyed_generator(3), "star")
    for image, shift, size in ((small, 0, 48), (large, 48, 144)):
        surface = plain(size, relief=relief, depth=0.8, gloss=0.5, border=0.2)
        stamp(image, surface, table, x + shift, y + shift, 17.0, LIGHT)
    assert small == pytest.approx(large[:, 48:96, 48:96], abs=1e-6)


def test_a_stamp_far_outside_changes_nothing():
    image = np.ones((3, 32, 32), np.float32)
    stamp(image, plain(32), DISC, -40, 10, 20.0, LIGHT)
    assert (image == 1).all()


def test_a_dome_is_brighter_towards_the_light_and_opacity_mixes():
    image = np.ones((3, 64, 64), np.float32)
    stamp(image, plain(64, relief=DOMED, depth=1.0), DISC, 32, 32, 20.0, LIGHT)
    assert image[0, 32, 44] > 1.5 * image[0, 32, 20]
    half = np.ones((3, 64, 64), np.float32)
    stamp(half, plain(64), DISC, 32, 32, 20.0, LIGHT, opacity=0.5)
    assert half[:, 32, 32] == pytest.approx([0.6, 0.7, 0.8])


def test_light_is_a_unit_vector_from_above():
    lights = np.stack([draw_light(keyed_generator(seed)) for seed in range(40)])
    assert np.linalg.norm(lights, axis=1) == pytest.approx(1, abs=1e-5)
    assert lights[:, 2].min() > 0


@pytest.mark.parametrize("exponent", [1.5, 3.0])
def test_sizes_follow_the_power_law(exponent):
    sizes = power_law(keyed_generator(1), 20_000, 2.0, 50.0, exponent)
    assert sizes.min() >= 2
    assert sizes.max() <= 50
    power = 1 - exponent
    for size in (3.0, 10.0, 30.0):
        expected = (size**power - 2**power) / (50**power - 2**power)
        assert (sizes < size).mean() == pytest.approx(expected, abs=0.015)


def things():
    for seed in range(60):
        rng = keyed_generator(seed)
        yield draw_thing(rng, draw_palette(rng, 5), [np.full((97, 97), 0.5, np.float32)])


def test_things_have_parts_and_lie_about_their_middle():
    parts = [len(plan) for plan in things()]
    assert min(parts) >= 2
    assert np.mean(parts) > 4
    for plan in things():
        reach = max(np.hypot(part.x, part.y) + part.radius for part in plan)
        assert 0.4 < reach < 2.6


def test_a_thing_turned_by_a_quarter_is_the_turned_image_of_it():
    # Without light and borders, which do not turn with it, and on odd sides, whose middle is a pixel.
    rng = keyed_generator(8)
    plans = [plan for plan in things() if not any(part.surface.relief for part in plan)]
    assert plans
    for plan in plans:
        upright, lying = np.ones((3, 97, 97), np.float32), np.ones((3, 97, 97), np.float32)
        light = draw_light(rng)
        paint_thing(upright, plan, 48, 48, 24.0, 0.0, light)
        paint_thing(lying, plan, 48, 48, 24.0, np.pi / 2, light)
        expected = np.rot90(upright, -1, axes=(1, 2))
        assert np.abs(lying - expected).mean() < 0.01
        assert (upright < 1).any(axis=0).mean() > 0.015
