"""Dead leaves: shapes of all sizes on top of each other (Lee, Mumford and Huang 2001; Baradad et al. 2021).

Sizes follow a power law, so that the image looks alike at every scale; what lies above hides what lies below.
"""

import numpy as np

from openfino.procedural.fields import Array
from openfino.procedural.outlines import OUTLINES, draw_outline, turned
from openfino.procedural.painting import Surface, draw_light, draw_surface, draw_textures, stamp
from openfino.procedural.palettes import draw_palette
from openfino.procedural.textures import draw_backdrop

_KINDS = tuple(OUTLINES)


def power_law(rng: np.random.Generator, count: int, low: float, high: float, exponent: float) -> Array:
    """``count`` sizes between ``low`` and ``high`` with density proportional to size^-exponent (not 1)."""
    power = 1.0 - exponent
    share = rng.random(count)
    return ((low**power + share * (high**power - low**power)) ** (1.0 / power)).astype(np.float32)


def dead_leaves(rng: np.random.Generator, size: int) -> Array:
    """Textured, shaded leaves of one to four outlines that cover the image [3, S, S]."""
    image = draw_backdrop(rng, size)
    palette = draw_palette(rng, int(rng.integers(3, 10)))
    textures = draw_textures(rng, size, int(rng.integers(1, 4)))
    surfaces = _draw_surfaces(rng, palette, textures)
    outlines = _draw_outlines(rng)
    light = draw_light(rng)
    count = int(rng.integers(25, 90))
    radii = power_law(
        rng, count, rng.uniform(0.02, 0.06) * size, rng.uniform(0.25, 0.6) * size, rng.uniform(1.6, 3.0)
    )
    if rng.random() < 0.5:  # large ones at the bottom: small ones stay visible
        radii = np.sort(radii)[::-1]
    x, y = rng.integers(-size // 8, size + size // 8, (2, count)).tolist()
    pick = rng.integers(len(surfaces), size=count).tolist()
    kind = rng.integers(len(outlines), size=count).tolist()
    angles = rng.uniform(0.0, 2.0 * np.pi, count) * (1.0 if rng.random() < 0.8 else 0.0)
    shifts = rng.random((count, 2)).tolist()
    opacity = float(rng.uniform(0.4, 0.9)) if rng.random() < 0.12 else 1.0
    for leaf in range(count):
        table = turned(outlines[kind[leaf]], angles[leaf])
        shift = (shifts[leaf][0], shifts[leaf][1])
        stamp(image, surfaces[pick[leaf]], table, x[leaf], y[leaf], float(radii[leaf]), light, shift, opacity)
    return image


def _draw_surfaces(rng: np.random.Generator, palette: Array, textures: list[Array]) -> list[Surface]:
    shaded, bordered = rng.choice([0.0, 0.7, 1.0]), rng.choice([0.0, 0.2, 0.8], p=[0.6, 0.3, 0.1])
    return [
        draw_surface(
            rng,
            textures[int(rng.integers(len(textures)))],
            palette,
            shaded=float(shaded),
            bordered=float(bordered),
        )
        for _ in range(8)
    ]


def _draw_outlines(rng: np.random.Generator) -> list[Array]:
    """Four to twelve outlines of one to four kinds; of a single kind one is enough now and then."""
    kinds = rng.choice(len(_KINDS), int(rng.integers(1, 5)), replace=False)
    count = 1 if len(kinds) == 1 and rng.random() < 0.4 else int(rng.integers(4, 13))
    return [draw_outline(rng, _KINDS[kinds[number % len(kinds)]]) for number in range(count)]
