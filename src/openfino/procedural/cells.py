"""Cell-like fields: tissue of touching cells, cells apart on a dark ground, fibres, rods and vesicles.

Seen as under a microscope: stains in colours of their own add up on black, or absorb from white.
"""

import numpy as np

from openfino.procedural.fields import (
    Array,
    axes,
    band_noise,
    cellular,
    power_noise,
    ridged,
    smoothstep,
    squash,
)
from openfino.procedural.leaves import power_law
from openfino.procedural.outlines import draw_outline, polar, turned
from openfino.procedural.palettes import from_hsv


def cell_field(rng: np.random.Generator, size: int) -> Array:
    """Two to four stains of one field of cells [3, S, S]."""
    make = _tissue if rng.random() < 0.5 else _apart
    stains = make(rng, size)
    extra = rng.random()
    if extra < 0.3:
        stains.append(ridged(rng, size, rng.uniform(2.0, 6.0), 3, 0.5) ** 3 * stains[0])
    elif extra < 0.5:
        stains.append(_vesicles(rng, size))
    hue = (
        rng.random() + rng.permutation(len(stains)) / len(stains) + rng.normal(0.0, 0.05, len(stains))
    ) % 1.0
    grey = rng.random() < 0.15
    saturation = np.zeros(len(stains)) if grey else rng.uniform(0.5, 1.0, len(stains))
    colours = from_hsv(hue, saturation, rng.uniform(0.6, 1.0, len(stains)))
    amount = np.stack(stains) * rng.uniform(0.5, 1.2, (len(stains), 1, 1)).astype(np.float32)
    if rng.random() < 0.3:  # bright field: stains absorb
        paper = np.float32(rng.uniform(0.8, 1.0))
        absorbed: Array = paper * np.exp(-np.tensordot((1.1 - colours).T, amount, axes=1) * np.float32(1.3))
        return absorbed
    lit: Array = np.tensordot(colours.T, amount, axes=1) + np.float32(rng.uniform(0.0, 0.08))
    return lit


def _tissue(rng: np.random.Generator, size: int) -> list[Array]:
    """Cells that touch: membranes, bodies, nuclei."""
    across = float(np.exp(rng.uniform(np.log(2.0), np.log(12.0))))
    stretch = rng.uniform(1.5, 3.0) if rng.random() < 0.3 else 1.0
    near, far, owner = cellular(rng, size, across, rng.uniform(0.5, 1.0), stretch, rng.uniform(0.0, np.pi))
    wall = far - near
    bright = rng.uniform(0.25, 1.0, 1024).astype(np.float32)
    some = rng.random(1024) < rng.uniform(0.5, 1.0)
    membrane = np.exp(-wall / np.float32(rng.uniform(0.06, 0.2)))
    body = smoothstep(wall - np.float32(rng.uniform(0.05, 0.3)), 0.15) * bright.take(owner)
    body = body * (np.float32(0.75) + np.float32(0.25) * band_noise(rng, size, 0.2 * size, 0.6)[0])
    size_of = (rng.uniform(0.16, 0.38) * rng.uniform(0.7, 1.25, 1024) * some).astype(np.float32)
    ragged = near + np.float32(0.03) * power_noise(rng, size, 1.2)[0]
    nuclei = smoothstep(size_of.take(owner) - ragged, 0.06) * some.take(owner)
    nuclei = nuclei * (np.float32(0.5) + np.float32(0.5) * bright.take((owner * 7 + 3) & 1023))
    kept = [
        nuclei * squash(band_noise(rng, size, 0.15 * size, 0.6)[0], 0.2) * 1.6,
        membrane,
        np.maximum(body, 0.0),
    ]
    return kept if rng.random() < 0.5 else kept[: 2 if rng.random() < 0.5 else 1] + kept[2:]


def _apart(rng: np.random.Generator, size: int) -> list[Array]:
    """Cells of one kind of outline, apart or in clumps, with nuclei and grain: blood, yeast, bacteria, spread cells."""
    count = int(rng.integers(3, 28))
    kind = str(rng.choice(["disc", "ellipse", "blob", "blob", "rectangle", "leaf", "jagged", "drop"]))
    outlines = [draw_outline(rng, kind) for _ in range(4)]
    radii = np.exp(rng.normal(0.0, 0.2, count)) * size * rng.uniform(0.28, 0.5) / count**0.5
    places = rng.uniform(0.0, size, (count, 2))
    if rng.random() < 0.3:  # a clump
        places = size * (rng.uniform(0.3, 0.7, 2) + rng.normal(0.0, 0.2, (count, 2)))
    angles = rng.uniform(0.0, 2.0 * np.pi, count)
    body, nuclei, rim = (np.zeros((size, size), np.float32) for _ in range(3))
    inner, profile = rng.uniform(0.25, 0.6), rng.uniform(0.3, 1.5)
    for cell in range(count):
        x, y = (int(place) for place in places[cell])
        window = polar(size, x, y, int(radii[cell]) + 2)
        if window is None:
            continue
        rows, columns, distance, entry = window
        edge = (turned(outlines[cell % 4], angles[cell]) * np.float32(radii[cell])).take(entry)
        share = distance / np.maximum(edge, np.float32(1.0))
        alpha = np.clip(edge - distance + np.float32(0.5), 0.0, 1.0)
        bright = np.float32(rng.uniform(0.4, 1.0))
        part = body[rows, columns]
        height = np.maximum(np.float32(1.0) - share * share, np.float32(0.0)) ** np.float32(profile)
        np.maximum(part, alpha * bright * (np.float32(0.25) + np.float32(0.75) * height), out=part)
        ring = rim[rows, columns]
        np.maximum(ring, alpha * np.exp(-((share - np.float32(0.9)) ** 2) * np.float32(120.0)), out=ring)
        core = nuclei[rows, columns]
        nucleus = np.clip((np.float32(inner) - share) * np.float32(radii[cell] * 0.7), 0.0, 1.0)
        np.maximum(core, nucleus * bright, out=core)
    body *= np.float32(0.75) + np.float32(0.25) * power_noise(rng, size, rng.uniform(0.3, 1.2))[0]
    np.maximum(body, 0.0, out=body)
    stains = [body, nuclei * squash(band_noise(rng, size, 0.2 * size, 0.6)[0], 0.15) * np.float32(1.7)]
    return [*stains, rim] if rng.random() < 0.4 else stains


def _vesicles(rng: np.random.Generator, size: int) -> Array:
    """Bright spots of all sizes."""
    x, y = axes(size)
    count = int(rng.integers(10, 60))
    places = rng.uniform(-1.0, 1.0, (2, count)).astype(np.float32)
    width = power_law(rng, count, 0.015, 0.08, 2.5)[:, None]
    # A Gaussian spot is the product of two profiles: all spots are one product of matrices.
    across = np.exp(-(((x - places[0][:, None]) / width) ** 2))
    down = np.exp(-(((y.ravel()[None, :] - places[1][:, None]) / width) ** 2))
    spots: Array = np.minimum(down.T @ (across * rng.uniform(0.3, 1.0, (count, 1)).astype(np.float32)), 1.5)
    return spots
