import re

import numpy as np
import pytest
from fake_compass import MEANS, fake_compass
from rich.console import Console

from openfino.compass.page import page_html
from openfino.compass.plot import HEIGHT, WIDTH, plot_pixels, plot_svg
from openfino.compass.terminal import print_compass


def text_of(compass):
    console = Console(width=160, record=True, file=None, quiet=False, no_color=True)
    with console.capture() as captured:
        print_compass(compass, console)
    return captured.get()


def test_the_terminal_ends_with_the_advice_and_its_gain():
    said = text_of(fake_compass())
    assert re.search(r"plate\W+-0.010 \+- 0.0\d\d\W+\+0.060 \+- 0.0\d\d\W+spurious only", said)
    assert "antibody informative, plate spurious" in said.split("Recommended")[1]
    assert "On test, which it was not chosen on, it beats the control" in said.split("Recommended")[1]


def test_the_page_loads_nothing_and_shows_every_factor():
    page = page_html(fake_compass(), "manifest: <odd>.csv\n")
    assert "&lt;odd&gt;.csv" in page
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import|<script", page)
    for name in MEANS:
        assert page.count(f"</svg>{name}</th>") == 2
    assert page.count("<span class='quadrant drop'>spurious only") == 1
    assert "$" not in page


def test_names_are_text_and_not_markup():
    odd = {"<b>": MEANS["antibody"]}
    page = page_html(fake_compass(odd), "")
    assert "<b>" not in page.replace("<b>localization", "")
    assert "&lt;b&gt;" in page


def points(svg):
    """Centres of the points that decide, and of the rings."""
    found = re.findall(
        r"<circle class='point \w( hollow)?' cx='([\d.]+)' cy='([\d.]+)' r='[\d.]+'><title>", svg
    )
    return [((float(x), float(y)), bool(hollow)) for hollow, x, y in found]


def test_points_lie_in_their_quadrants():
    svg = plot_svg(fake_compass())
    regions = {
        name: tuple(map(float, numbers))
        for name, *numbers in re.findall(
            r"<rect class='(\w+)' x='([\d.]+)' y='([\d.]+)' width='([\d.]+)' height='([\d.]+)'", svg
        )
    }
    filled = [place for place, hollow in points(svg) if not hollow]
    assert len(filled) == len(MEANS)
    for (x, y), region in zip(filled, ("keep", "drop", "noise", "bad"), strict=True):
        left, top, width, height = regions[region]
        assert left < x < left + width
        assert top < y < top + height


def test_the_picture_shows_what_the_page_shows():
    compass = fake_compass()
    pixels = plot_pixels(compass)
    assert pixels.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    (x, y), _ = next(point for point in points(plot_svg(compass)) if not point[1])
    np.testing.assert_array_equal(pixels[round(2 * y), round(2 * x)], [0x00, 0x72, 0xB2])


@pytest.mark.parametrize("count", [1, 9])
def test_names_do_not_cover_points(count):
    means = {
        f"factor number {index}": {"informative": (0.1, 0.01 * index, 0), "spurious": (0, 0.0, 0)}
        for index in range(count)
    }
    svg = plot_svg(fake_compass(means))
    names = re.findall(r"<text class='name' x='([\d.]+)' y='([\d.]+)'", svg)
    assert len(names) == count
    assert len(set(names)) == count
