"""The three reference stains and the ten localisation patterns, drawn from the geometry of a scene.

Every function returns [S, S] float32 where a brightly stained structure is about 1. ``shape`` is the
antibody's own number in [0, 1]: what it does is said in each pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openfino.sampledata.cells import Scene
from openfino.sampledata.screen import LOCALIZATIONS, Antibody
from openfino.sampledata.textures import Array, blur, network, smooth_noise, smoothstep, splat, walk


@dataclass(frozen=True)
class References:
    """The stains that every image has."""

    nucleus: Array
    microtubules: Array
    er: Array


@dataclass(frozen=True)
class _Canvas:
    """What a pattern is drawn with."""

    rng: np.random.Generator
    scene: Scene
    references: References
    antibody: Antibody

    def noise(self, length: float) -> Array:
        """Field correlated over ``length`` micrometres times the antibody's scale."""
        return smooth_noise(self.rng, self.scene.side, self.scene.pixels(length * self.antibody.scale))


def draw_references(rng: np.random.Generator, scene: Scene) -> References:
    """Nucleus (DNA), microtubules and endoplasmic reticulum of all cells; cells differ in brightness."""

    def per_cell(spread: float) -> Array:
        values = np.exp(rng.normal(0.0, spread, len(scene.cells))).astype(np.float32)
        return values[scene.owner]

    return References(
        nucleus=_dna(rng, scene) * per_cell(0.16),
        microtubules=_microtubule_stain(rng, scene) * per_cell(0.18),
        er=_er_stain(rng, scene) * per_cell(0.2),
    )


def draw_protein(rng: np.random.Generator, scene: Scene, references: References, antibody: Antibody) -> Array:
    """The antibody's stain: its pattern, a weaker second one, haze, and its variation from cell to cell."""
    canvas = _Canvas(rng, scene, references, antibody)
    count = len(scene.cells)
    stained = np.where(rng.uniform(size=count) < antibody.expressing, 1.0, 0.25)
    level = (stained * np.exp(rng.normal(0.0, antibody.variability, count))).astype(np.float32)
    image = PATTERNS[LOCALIZATIONS[antibody.pattern]](canvas)
    if antibody.secondary_weight > 0:
        weight = np.float32(antibody.secondary_weight)
        image = image + weight * PATTERNS[LOCALIZATIONS[antibody.secondary]](canvas)
    haze = np.float32(antibody.haze) * scene.thickness
    return np.float32(antibody.intensity) * (image * level[scene.owner] + haze)


# ---- reference stains ------------------------------------------------------------------------------------


def _dna(rng: np.random.Generator, scene: Scene) -> Array:
    chromatin = smooth_noise(rng, scene.side, scene.pixels(0.9))
    fine = smooth_noise(rng, scene.side, scene.pixels(0.4))
    holes = 1.0 - 0.55 * smoothstep(scene.nucleolus, 0.8)
    stain: Array = scene.nucleus * holes * np.maximum(0.72 + 0.10 * chromatin + 0.06 * fine, 0.1)
    return stain


def _microtubule_stain(rng: np.random.Generator, scene: Scene) -> Array:
    """Wavy fibres from the centrosome in all directions, the long axis first, and a mesh of free ones."""
    cells, step, steps = scene.cells, 0.45, 56
    rooted, free = 40, 45
    owner = np.repeat(np.arange(len(cells)), rooted + free)
    is_free = np.tile(np.arange(rooted + free) >= rooted, len(cells))
    start = cells.centrosome[owner] + rng.normal(0.0, 0.6, (len(owner), 2))
    around = rng.uniform(0.0, 2.0 * np.pi, len(owner))
    reach = cells.radius[owner] * rng.uniform(0.25, 0.9, len(owner))
    spread = cells.nucleus[owner] + reach[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    start = np.where(is_free[:, None], spread, start)
    # Free fibres run around the nucleus or along the others, rooted ones leave the centrosome.
    heading = around + is_free * rng.normal(0.0, 1.1, len(owner))
    lean = 0.45 * np.log(cells.elongation)[owner]
    heading = heading - lean * np.sin(2.0 * (heading - cells.axis[owner]))
    x, y = walk(rng, start, heading, steps=steps, step=step, bend=0.025, turn=0.10)
    alive = np.cumprod(_owned(scene, x, y, owner, margin=0.4), axis=1)
    length = np.where(is_free, 0.5, 1.0)[:, None] * rng.uniform(0.3, 1.2, (len(owner), 1)) * steps
    weight = alive * (np.arange(steps)[None] < length) * rng.uniform(0.5, 1.2, (len(owner), 1))
    fibres = _curves(scene, x, y, weight.astype(np.float32), step, width=0.20)
    dense = np.minimum(blur(fibres, scene.pixels(1.4)), 1.6)
    stain = 0.75 * fibres / (1.0 + 0.5 * fibres) + 0.22 * dense + 0.10 * scene.thickness
    return (stain * (1.0 - 0.5 * scene.nucleus) * scene.cell).astype(np.float32)


def _er_stain(rng: np.random.Generator, scene: Scene) -> Array:
    mesh = network(rng, scene.side, scene.pixels(0.75), 0.55)
    sheets = smooth_noise(rng, scene.side, scene.pixels(1.8))
    outside = np.maximum(-scene.envelope, 0.0)
    decay = 0.22 + 0.78 * np.exp(-outside / np.float32(3.8))
    rim = 0.35 * np.exp(-((scene.envelope / np.float32(0.6)) ** 2))
    body = decay * np.maximum(0.30 + 0.60 * mesh + 0.14 * sheets, 0.0)
    inner = 1.0 - np.exp(-np.maximum(scene.edge, 0.0) / np.float32(0.9))
    return (scene.cytoplasm * inner * body + scene.cell * rim + 0.10 * scene.nucleus).astype(np.float32)


# ---- localisation patterns -------------------------------------------------------------------------------


def _nucleoplasm(canvas: _Canvas) -> Array:
    """``shape``: from even staining to nuclear speckles; nucleoli stay dark."""
    scene, shape = canvas.scene, canvas.antibody.shape
    grain = 0.70 + 0.12 * canvas.noise(0.5)
    speckles = smoothstep(canvas.noise(0.6) - np.float32(1.0), 0.8)
    hole = 1.0 - (0.5 + 0.45 * shape) * smoothstep(scene.nucleolus, 0.7)
    stain: Array = scene.nucleus * hole * ((1.0 - 0.45 * shape) * grain + 0.9 * shape * speckles)
    return stain


def _nucleoli(canvas: _Canvas) -> Array:
    """``shape``: from whole nucleoli to their rims and centres."""
    scene, shape = canvas.scene, canvas.antibody.shape
    whole = smoothstep(scene.nucleolus + np.float32(0.15 * canvas.antibody.scale), 0.7)
    rim = np.exp(-((scene.nucleolus / np.float32(0.5)) ** 2))
    body = (1.0 - 0.6 * shape) * whole + 0.6 * shape * rim
    stain: Array = scene.nucleus * (
        body * (1.05 + 0.12 * canvas.noise(0.5)) + 0.16 + 0.02 * canvas.noise(0.7)
    )
    return stain


def _nuclear_membrane(canvas: _Canvas) -> Array:
    """``shape``: how much of the membrane above and below the focus shows inside the rim."""
    scene, antibody = canvas.scene, canvas.antibody
    width = np.float32(0.55 * np.sqrt(antibody.scale))
    rim = np.exp(-(((scene.envelope - 0.2) / width) ** 2))
    folds = network(canvas.rng, scene.side, scene.pixels(2.2), 0.16) * scene.nucleus
    inside = (0.12 + 0.22 * antibody.shape) * scene.nucleus
    stain: Array = scene.cell * (rim * (1.0 + 0.18 * canvas.noise(1.0)) + inside + 0.25 * folds)
    return stain


def _cytosol(canvas: _Canvas) -> Array:
    """``shape``: how strictly the nucleus is spared."""
    scene, shape = canvas.scene, canvas.antibody.shape
    spared = 1.0 - (0.60 + 0.35 * shape) * scene.nucleus
    grain = 0.78 + 0.09 * canvas.noise(0.5) + 0.08 * canvas.noise(1.8)
    vacuoles = 1.0 - 0.45 * smoothstep(canvas.noise(0.7) - np.float32(1.5), 0.5)
    stain: Array = scene.thickness * spared * grain * vacuoles
    return stain


def _mitochondria(canvas: _Canvas) -> Array:
    """``shape``: from long filaments to short rods."""
    scene, antibody = canvas.scene, canvas.antibody
    near = np.exp(np.minimum(scene.envelope, 0.0) / np.float32(4.5))
    places = scene.cytoplasm * near * (scene.edge > 0.8)
    density = 0.24 * antibody.abundance
    x, y, owner = _sample(canvas, places, density)
    steps = round(14 - 9 * antibody.shape)
    towards = np.arctan2(y - scene.cells.nucleus[owner, 1], x - scene.cells.nucleus[owner, 0])
    heading = towards + canvas.rng.normal(0.0, 0.9, len(x))
    step = 0.35
    curve = walk(canvas.rng, np.stack([x, y], axis=1), heading, steps=steps, step=step, bend=0.08, turn=0.12)
    alive = np.cumprod(_owned(scene, *curve, owner, margin=0.5), axis=1)
    weight = alive * canvas.rng.uniform(0.6, 1.3, (len(x), 1))
    tubes = _curves(scene, *curve, weight.astype(np.float32), step, width=0.30 * antibody.scale)
    stain: Array = (1.5 * tubes / (1.0 + 0.6 * tubes)) * (1.0 - 0.8 * scene.nucleus) + 0.05 * scene.cytoplasm
    return stain


def _golgi(canvas: _Canvas) -> Array:
    """``shape``: from a compact ribbon at the centrosome to scattered stacks."""
    scene, antibody, rng = canvas.scene, canvas.antibody, canvas.rng
    cells = scene.cells
    stacks = max(4, round(11 * antibody.abundance))
    owner = np.repeat(np.arange(len(cells)), stacks)
    offset = cells.centrosome - cells.nucleus
    middle = np.arctan2(offset[:, 1], offset[:, 0])[owner]
    # The ribbon follows the nuclear envelope around the centrosome.
    angle = middle + rng.normal(0.0, 0.22 + 0.35 * antibody.shape, len(owner))
    reach = cells.nucleus_radius[owner] + np.abs(rng.normal(1.5, 0.7 + 0.8 * antibody.shape, len(owner)))
    start = cells.nucleus[owner] + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    heading = angle + np.pi / 2 + rng.normal(0.0, 0.6, len(owner))
    step = 0.3
    x, y = walk(rng, start, heading, steps=6, step=step, bend=0.12, turn=0.15)
    weight = _owned(scene, x, y, owner, margin=0.4) * rng.uniform(0.6, 1.5, (len(owner), 1))
    ribbon = _curves(scene, x, y, weight.astype(np.float32), step, width=0.36 * antibody.scale)
    stain: Array = (1.6 * ribbon / (1.0 + 0.5 * ribbon)) * (
        1.0 - 0.85 * scene.nucleus
    ) + 0.05 * scene.thickness
    return stain


def _er(canvas: _Canvas) -> Array:
    """``shape``: how far the staining reaches into the periphery; follows the ER stain of the same cell."""
    scene, shape = canvas.scene, canvas.antibody.shape
    mesh = network(canvas.rng, scene.side, scene.pixels(0.7 * canvas.antibody.scale), 0.5)
    outside = np.maximum(-scene.envelope, 0.0)
    decay = np.exp(-outside / np.float32(3.0 + 4.0 * shape))
    own: Array = scene.cytoplasm * decay * (0.25 + 0.65 * mesh)
    stain: Array = 0.8 * canvas.references.er + 0.8 * own
    return stain


def _microtubules(canvas: _Canvas) -> Array:
    """``shape``: from single fibres to thick bundles; follows the microtubule stain of the same cell."""
    scene, antibody = canvas.scene, canvas.antibody
    fibres = canvas.references.microtubules
    bundles = blur(fibres, scene.pixels(0.25 + 0.4 * antibody.shape))
    gaps = np.clip(0.75 + 0.30 * canvas.noise(1.2), 0.15, 1.3)
    fine = (1.0 - antibody.shape) * fibres + antibody.shape * np.maximum(1.9 * bundles - 0.35, 0.0)
    stain: Array = 1.15 * fine * gaps
    return stain


def _plasma_membrane(canvas: _Canvas) -> Array:
    """``shape``: how much the staining concentrates where cells touch."""
    scene, antibody = canvas.scene, canvas.antibody
    width = np.float32(0.62 * np.sqrt(antibody.scale))
    rim = np.exp(-(((scene.edge - 0.35) / width) ** 2))
    where = (1.0 - 0.4 * antibody.shape) + 0.55 * antibody.shape * scene.contact
    ruffles = np.clip(1.0 + 0.35 * canvas.noise(1.5), 0.2, 2.0)
    surface = scene.thickness * (0.14 + 0.05 * canvas.noise(0.6))
    stain: Array = rim * where * ruffles + surface
    return stain


def _vesicles(canvas: _Canvas) -> Array:
    """``shape``: from evenly spread puncta to a cloud around the nucleus."""
    scene, antibody, rng = canvas.scene, canvas.antibody, canvas.rng
    reach = np.float32(14.0 - 11.0 * antibody.shape)
    places = scene.cytoplasm * np.exp(np.minimum(scene.envelope, 0.0) / reach) * (scene.edge > 0.6)
    x, y, _ = _sample(canvas, places, 0.13 * antibody.abundance / antibody.scale)
    bright = np.exp(rng.normal(0.0, 0.5, len(x))).astype(np.float32)
    large = rng.uniform(size=len(x)) < 0.25
    image = 0.07 * scene.thickness
    for chosen, radius in ((~large, 0.38), (large, 0.62)):
        sigma = scene.pixels(radius * antibody.scale)
        points = splat(
            x[chosen] / scene.pixel - 0.5, y[chosen] / scene.pixel - 0.5, bright[chosen], scene.side
        )
        image = image + np.float32(2.0 * np.pi * sigma**2 * 0.85) * blur(points, sigma)
    stain: Array = image
    return stain


PATTERNS: dict[str, Callable[[_Canvas], Array]] = {
    "nucleoplasm": _nucleoplasm,
    "nucleoli": _nucleoli,
    "nuclear_membrane": _nuclear_membrane,
    "cytosol": _cytosol,
    "mitochondria": _mitochondria,
    "golgi": _golgi,
    "er": _er,
    "microtubules": _microtubules,
    "plasma_membrane": _plasma_membrane,
    "vesicles": _vesicles,
}


# ---- helpers ---------------------------------------------------------------------------------------------


def _owned(scene: Scene, x: Array, y: Array, owner: np.ndarray, margin: float) -> Array:
    """1 where the points (micrometres, [n, k]) lie ``margin`` inside the cell ``owner`` [n], else 0."""
    column, row = (x / scene.pixel).astype(np.int64), (y / scene.pixel).astype(np.int64)
    seen = (column >= 0) & (column < scene.side) & (row >= 0) & (row < scene.side)
    column, row = np.clip(column, 0, scene.side - 1), np.clip(row, 0, scene.side - 1)
    # What happens outside of the field is not known: curves that leave it may come back.
    own = (scene.owner[row, column] == owner[:, None]) & (scene.edge[row, column] > margin)
    return (own | ~seen).astype(np.float32)


def _curves(scene: Scene, x: Array, y: Array, weight: Array, step: float, width: float) -> Array:
    """Curves (micrometres, [n, k]) as tubes of Gaussian profile; one curve alone has a ridge of height 1."""
    points = splat(x / scene.pixel - 0.5, y / scene.pixel - 0.5, weight, scene.side)
    sigma = scene.pixels(width)
    return np.float32(np.sqrt(2.0 * np.pi) * sigma * scene.pixels(step)) * blur(points, sigma)


def _sample(canvas: _Canvas, places: Array, density: float) -> tuple[Array, Array, np.ndarray]:
    """Points at ``density`` per square micrometre of ``places`` -> x, y (micrometres) and their cells."""
    scene = canvas.scene
    cumulative = np.cumsum(places.ravel(), dtype=np.float64)
    count = canvas.rng.poisson(density * cumulative[-1] * scene.pixel**2)
    index = np.searchsorted(cumulative, canvas.rng.uniform(0.0, cumulative[-1], count), side="right")
    index = np.minimum(index, scene.side**2 - 1)
    x = (index % scene.side + canvas.rng.uniform(size=count)) * scene.pixel
    y = (index // scene.side + canvas.rng.uniform(size=count)) * scene.pixel
    return x.astype(np.float32), y.astype(np.float32), scene.owner.ravel()[index]
