"""Glyphs: invented scripts, written with strokes of a pen. No font is used.

A script has a lattice of anchors, a pen and a few letters; a letter is two to five strokes between anchors,
straight or bent.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openfino.procedural.fields import Array, band_noise
from openfino.procedural.palettes import draw_palette
from openfino.procedural.textures import draw_backdrop, draw_texture

_BEND = np.linspace(0.0, 1.0, 10)  # where along a bent stroke its points are


@dataclass(frozen=True)
class Pen:
    """How strokes look.

    Attributes:
        width: in units of the letter's height.
        nib: how much the width depends on the direction of the stroke, 0 to 1.
        angle: of the nib.
        slant: shear of the letters.
        hollow: width of the white inside, as a share of ``width``; 0 for none.
        soft: of the edge, in pixels.
    """

    width: float
    nib: float
    angle: float
    slant: float
    hollow: float
    soft: float


def draw_pen(rng: np.random.Generator) -> Pen:
    """A pen: fine or bold, round or broad, upright or slanted."""
    return Pen(
        width=float(np.exp(rng.uniform(np.log(0.06), np.log(0.22)))),
        nib=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.4 else 0.0,
        angle=float(rng.uniform(0.0, np.pi)),
        slant=float(rng.normal(0.0, 0.2)) if rng.random() < 0.6 else 0.0,
        hollow=float(rng.uniform(0.3, 0.6)) if rng.random() < 0.12 else 0.0,
        soft=float(rng.uniform(0.7, 2.0)),
    )


def draw_letter(rng: np.random.Generator, curved: float) -> list[Array]:
    """A letter as the points of its strokes, each [2, points] (x and y) in [-1, 1].

    ``curved`` is how likely a stroke is bent. Strokes mostly go on where the last one ended; some letters are
    symmetric.
    """
    lattice = np.array([-0.75, 0.0, 0.75])
    start, lines = lattice[rng.integers(3, size=2)] * (0.7, 1.0), []
    for _ in range(int(rng.integers(2, 6)) if rng.random() < 0.9 else 1):
        kind = rng.random()
        if kind < curved * 0.4:  # an arc, up to a whole ring
            reach, turn = rng.uniform(0.3, 0.7, 2), rng.uniform(0.0, 2.0 * np.pi)
            theta = turn + _BEND * rng.choice([np.pi, 1.5 * np.pi, 2.0 * np.pi]) * rng.choice([-1.0, 1.0])
            line = np.stack([np.cos(theta) * reach[0], np.sin(theta) * reach[1]])
            line = np.clip(line + (start - line[:, 0])[:, None], -0.95, 0.95)
        else:
            end = lattice[rng.integers(3, size=2)] * (0.7, 1.0)
            if np.abs(end - start).sum() < 0.5:
                end = -end + (0.3, -0.4)
            if kind < curved:
                middle = (start + end) / 2.0 + rng.normal(0.0, 0.7, 2)
                weights = np.stack([(1 - _BEND) ** 2, 2 * _BEND * (1 - _BEND), _BEND**2])
                line = np.stack([start, middle, end], axis=1) @ weights
            else:
                line = np.stack([start, end], axis=1)
        lines.append(line)
        start = line[:, -1] if rng.random() < 0.65 else lattice[rng.integers(3, size=2)] * (0.7, 1.0)
    if rng.random() < 0.2:
        lines += [line * np.array([[-1.0], [1.0]]) for line in lines[:2]]
    return _fitted(lines)


def _fitted(lines: list[npt.NDArray[np.float64]]) -> list[Array]:
    """The strokes moved and scaled to fill the square."""
    points = np.concatenate(lines, axis=1)
    low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
    scale = 1.9 / max(float((high - low).max()), 0.5)
    return [((line - (low + high) / 2.0) * scale).astype(np.float32) for line in lines]


def ink(letter: list[Array], pen: Pen, height: int, turn: float = 0.0) -> Array:
    """How much ink lies on each pixel of a square [height, height] around the letter, 0 to 1."""
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, -pen.slant], [0.0, 1.0]])
    # Room for the pen around the outermost anchors.
    scale = 0.5 * height * (1.0 - pen.width) / (1.0 + abs(pen.slant))
    width = max(pen.width * height, 1.2)
    field = np.full((height, height), 1e3, np.float32)
    for line in letter:
        _nearest(field, (turned @ line * scale + 0.5 * height).astype(np.float32), width, pen)
    soft = np.float32(pen.soft)
    inked: Array = np.clip(np.float32(0.5) - field / soft, 0.0, 1.0)
    if pen.hollow > 0.0:
        inside = np.clip(np.float32(0.5) - (field + np.float32(width * pen.hollow / 2.0)) / soft, 0.0, 1.0)
        inked = inked - inside
    return inked


def _nearest(field: Array, line: Array, width: float, pen: Pen) -> None:
    """Lower ``field`` to the distance from the outline of a stroke through ``line`` [2, points], where that is near."""
    reach, height = width + 2.0, len(field)
    (left, top), (right, bottom) = (
        np.clip(np.floor(corner), 0, height).astype(int)
        for corner in (line.min(axis=1) - reach, line.max(axis=1) + reach + 1.0)
    )
    if top >= bottom or left >= right:
        return
    ax, ay = line[:, :-1, None, None]
    dx, dy = np.diff(line, axis=1)[..., None, None]
    thin = np.abs(np.cos(np.arctan2(dy, dx) - np.float32(pen.angle)))
    half = np.float32(0.5 * width) * (np.float32(1.0) - np.float32(pen.nib) * thin)
    px = np.arange(left, right, dtype=np.float32) + np.float32(0.5) - ax
    py = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5) - ay
    long = np.float32(1.0) / np.maximum(dx * dx + dy * dy, np.float32(1e-3))
    along = np.clip(px * (dx * long) + py * (dy * long), 0.0, 1.0)
    across, down = px - along * dx, py - along * dy
    near = field[top:bottom, left:right]
    np.minimum(near, (np.sqrt(across * across + down * down) - half).min(axis=0), out=near)


def glyphs(rng: np.random.Generator, size: int) -> Array:
    """One letter, lines of text, scattered letters or scribble on any ground [3, S, S]."""
    palette = draw_palette(rng, int(rng.integers(2, 6)))
    image = _paper(rng, size, palette)
    pen, curved = draw_pen(rng), float(rng.choice([0.1, 0.5, 0.9]))
    layout = rng.random()
    if layout < 0.35:
        height = int(rng.uniform(0.6, 1.0) * size)
        cover = _written(rng, size, pen, curved, 1, height)
    elif layout < 0.65:
        cover = _text(rng, size, pen, curved)
    elif layout < 0.88:
        count = int(rng.integers(3, 16))
        cover = _written(
            rng, size, pen, curved, count, max(int(rng.uniform(0.8, 1.3) * size / count**0.5), 8)
        )
    else:
        cover = scribble(rng, size)
    if rng.random() < 0.3:
        soiled = np.float32(0.3) + np.float32(0.7) * draw_texture(rng, size)
        cover = cover * soiled
    colour = _contrasting(image, palette, rng)
    if rng.random() < 0.15:  # a shadow, or the second colour of a misprint
        away = max(size // 32, 1)
        image *= np.float32(1.0) - np.float32(0.6) * np.roll(cover, (away, away), (0, 1))
    image += (colour - image) * cover
    return image


def _paper(rng: np.random.Generator, size: int, palette: Array) -> Array:
    kind = rng.random()
    if kind < 0.35:
        return np.tile(palette[0][:, None, None], (1, size, size))
    if kind < 0.55:
        return np.full((3, size, size), rng.choice([0.0, 0.0, 1.0]), np.float32)
    return draw_backdrop(rng, size)


def _contrasting(image: Array, palette: Array, rng: np.random.Generator) -> Array:
    """The colour of ``palette``, black or white that is furthest from the image's mean [3, 1, 1]."""
    mean = image.mean(axis=(1, 2))
    colours = np.concatenate([palette, np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)])
    contrast = np.abs(colours - mean).sum(axis=1) * rng.uniform(0.6, 1.0, len(colours))
    return colours[int(np.argmax(contrast))][:, None, None]


def _written(rng: np.random.Generator, size: int, pen: Pen, curved: float, count: int, height: int) -> Array:
    """``count`` letters at random places, or one in the middle."""
    cover = np.zeros((size, size), np.float32)
    for _ in range(count):
        turn = 0.0 if count == 1 else float(rng.uniform(-0.6, 0.6))
        letter = ink(draw_letter(rng, curved), pen, height, turn)
        free = size - height
        top, left = rng.integers(0, free + 1, 2) if free >= 0 else (0, 0)
        if count == 1:
            top, left = free // 2 + int(rng.integers(-1, 2)) * (free // 4), free // 2
        near = cover[top : top + height, left : left + height]
        np.maximum(near, letter[: near.shape[0], : near.shape[1]], out=near)
    return cover


def _text(rng: np.random.Generator, size: int, pen: Pen, curved: float) -> Array:
    """Lines of words in letters of a small alphabet."""
    height = min(max(int(np.exp(rng.uniform(np.log(0.1), np.log(0.4))) * size), 7), size)
    alphabet = [ink(draw_letter(rng, curved), pen, height) for _ in range(int(rng.integers(3, 9)))]
    cover = np.zeros((size, size), np.float32)
    advance, leading = (
        max(int(height * rng.uniform(0.7, 1.0)), 1),
        max(int(height * rng.uniform(0.95, 1.7)), 1),
    )
    space = rng.uniform(0.0, 0.3)
    indent, top = int(rng.integers(0, height)), int(rng.integers(0, height))
    for row in range(top - height, size, leading):
        for column in range(indent - height, size, advance):
            if rng.random() < space:
                continue
            letter = alphabet[int(rng.integers(len(alphabet)))]
            up, left = max(row, 0), max(column, 0)
            near = cover[up : row + height, left : column + height]
            np.maximum(near, letter[up - row :, left - column :][: near.shape[0], : near.shape[1]], out=near)
    return cover


def scribble(rng: np.random.Generator, size: int) -> Array:
    """Threads: contour lines of smooth noise, or curves that wander over the image [S, S]."""
    if rng.random() < 0.4:
        noise = band_noise(rng, size, rng.uniform(1.5, 5.0), 0.6)[0]
        lines = np.abs(np.sin(noise * np.float32(rng.uniform(1.0, 3.5))))
        return np.clip(np.float32(1.0) - lines / np.float32(rng.uniform(0.15, 0.5)), 0.0, 1.0)
    count, steps = int(rng.integers(2, 8)), 36
    heading = rng.uniform(0.0, 2.0 * np.pi, (count, 1))
    curve = np.cumsum(np.cumsum(rng.normal(0.0, 0.06, (count, steps)), axis=1) * 0.6, axis=1)
    angle = heading + curve
    x = rng.uniform(-0.7, 0.7, (count, 1)) + np.cumsum(np.cos(angle), axis=1) * 0.07
    y = rng.uniform(-0.7, 0.7, (count, 1)) + np.cumsum(np.sin(angle), axis=1) * 0.07
    # Those that leave the image come back in.
    x, y = (np.abs((part + 3.0) % 4.0 - 2.0) - 1.0 for part in (x, y))
    pen = Pen(float(rng.uniform(0.012, 0.05)), 0.0, 0.0, 0.0, 0.0, 1.0)
    return ink([np.stack(curve).astype(np.float32) for curve in zip(x, y, strict=True)], pen, size)
