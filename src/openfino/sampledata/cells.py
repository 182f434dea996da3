"""The cells in the field of view: outlines, nuclei, nucleoli, and the distances that stains are drawn from.

Lengths are in micrometres, images are [S, S] float32, n is the number of cells.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from openfino.sampledata.screen import CellLine
from openfino.sampledata.textures import Array, smoothstep

FIELD = 50.0  # side of the field of view
MARGIN = 9.0  # cells whose centre lies this far outside are drawn too
_ANGLES = 512
_MAX_NUCLEOLI = 5


@dataclass(frozen=True)
class Cells:
    """One entry per cell."""

    centre: Array  # [n, 2] x, y
    radius: Array  # [n] of the equal circle
    axis: Array  # [n] direction of the long axis, radians
    elongation: Array  # [n]
    nucleus: Array  # [n, 2] centre
    nucleus_radius: Array  # [n]
    centrosome: Array  # [n, 2], beside the nucleus

    def __len__(self) -> int:
        return len(self.radius)


@dataclass(frozen=True)
class Scene:
    """The geometry of one field, sampled on S x S pixels."""

    side: int
    pixel: float  # micrometres per pixel
    cells: Cells
    owner: npt.NDArray[np.intp]  # the cell that a pixel belongs to, or would if its outline were larger
    edge: Array  # distance to the outline, positive inside
    contact: Array  # in [0, 1]: whether the nearest outline is shared with a neighbour
    envelope: Array  # distance to the nuclear envelope, positive inside the nucleus
    nucleolus: Array  # distance to the nearest nucleolus's surface, positive inside
    cell: Array  # soft masks in [0, 1]
    nucleus: Array
    thickness: Array  # height of the cell in [0, 1]: flat at the rim, high around the nucleus

    @property
    def cytoplasm(self) -> Array:
        """Soft mask of the cells without their nuclei."""
        return self.cell * (1.0 - self.nucleus)

    def pixels(self, length: float) -> float:
        """``length`` in pixels."""
        return length / self.pixel


def build_scene(rng: np.random.Generator, line: CellLine, side: int) -> Scene:
    """Grow cells of ``line`` in a field of view that is ``side`` pixels wide."""
    cells = _place_cells(rng, line)
    pixel = FIELD / side
    axis = ((np.arange(side) + 0.5) * pixel).astype(np.float32)
    x, y = np.broadcast_to(axis, (side, side)), np.broadcast_to(axis[:, None], (side, side))
    owner, edge, contact = _partition(rng, cells, line, x, y)
    # A neighbour that comes close flattens a nucleus.
    envelope = _smooth_minimum(_nuclear_distance(rng, cells, line, owner, x, y), edge - np.float32(0.5), 2.5)
    nucleolus = np.minimum(_nucleolar_distance(rng, cells, line, owner, x, y), envelope - np.float32(0.7))
    dome: Array = np.exp(-((np.minimum(envelope, 0.0) / np.float32(5.0)) ** 2))
    rounded: Array = np.exp(-np.maximum(edge, 0.0) / np.float32(1.6))
    cell = smoothstep(edge, 0.8)
    return Scene(
        side=side,
        pixel=pixel,
        cells=cells,
        owner=owner,
        edge=edge,
        contact=contact,
        envelope=envelope,
        nucleolus=nucleolus,
        cell=cell,
        nucleus=smoothstep(envelope, 0.7),
        thickness=cell * (0.30 + 0.70 * dome) * (1.0 - rounded),
    )


def _place_cells(rng: np.random.Generator, line: CellLine) -> Cells:
    centre = _scatter(rng, line)
    count = len(centre)
    radius = 0.5 * line.diameter * np.exp(rng.normal(0.0, 0.12, count))
    # Elongated cells lie side by side: one direction for the field, some scatter for each cell.
    axis = rng.uniform(0.0, np.pi) + rng.normal(0.0, 0.35, count)
    elongation = 1.0 + (line.elongation - 1.0) * rng.uniform(0.4, 1.6, count)
    nucleus_radius = 0.5 * line.nucleus * np.exp(rng.normal(0.0, 0.09, count))
    shift = rng.normal(0.0, 0.08, (count, 2)) * radius[:, None]
    nucleus = centre + shift
    side = rng.uniform(0.0, 2.0 * np.pi, count)
    # Half of the way, the centrosome sits where the cytoplasm is widest: opposite to the nucleus's shift.
    side = np.where(rng.uniform(size=count) < 0.5, np.arctan2(-shift[:, 1], -shift[:, 0]), side)
    reach = nucleus_radius + rng.uniform(0.3, 1.6, count)
    centrosome = nucleus + reach[:, None] * np.stack([np.cos(side), np.sin(side)], axis=1)
    arrays = (centre, radius, axis, elongation, nucleus, nucleus_radius, centrosome)
    return Cells(*(array.astype(np.float32) for array in arrays))


def _scatter(rng: np.random.Generator, line: CellLine) -> npt.NDArray[np.float64]:
    """Centres [n, 2], most of a diameter apart, thinned to the line's confluence; one near the middle."""
    points = rng.uniform(-MARGIN, FIELD + MARGIN, size=(200, 2))
    points[0] = FIELD * rng.uniform(0.3, 0.7, size=2)
    distance = cdist(points, points)
    spacing = 0.79 * line.diameter
    chosen: list[int] = []
    free = np.ones(len(points), dtype=bool)
    for index in range(len(points)):
        if free[index]:
            chosen.append(index)
            free &= distance[index] > spacing
    kept = max(1, round(len(chosen) * min(1.0, line.confluence * rng.uniform(0.75, 1.15))))
    if line.colony:  # islands: the cells nearest to the first one stay
        chosen.sort(key=lambda index: distance[index, 0] * rng.uniform(0.85, 1.15))
    return points[chosen[:kept]]


def _radii(rng: np.random.Generator, count: int, irregularity: float, harmonics: int) -> Array:
    """Relative radius of smooth closed outlines, tabulated over angles from -pi to pi: [n, _ANGLES + 1]."""
    order = np.arange(2, harmonics + 2)
    amplitude = rng.normal(0.0, irregularity, (count, harmonics)) / (order - 1) ** 0.75
    phase = rng.uniform(0.0, 2.0 * np.pi, (count, harmonics))
    angle = np.linspace(-np.pi, np.pi, _ANGLES + 1)
    waves = np.cos(order[None, :, None] * angle + phase[:, :, None])
    return np.exp((amplitude[:, :, None] * waves).sum(axis=1)).astype(np.float32)


def _angle_index(y: npt.NDArray[np.floating], x: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    turn = np.arctan2(y, x) * np.float32(_ANGLES / (2.0 * np.pi))
    return np.rint(turn + np.float32(_ANGLES // 2)).astype(np.intp)


def _partition(
    rng: np.random.Generator, cells: Cells, line: CellLine, x: Array, y: Array
) -> tuple[npt.NDArray[np.intp], Array, Array]:
    """Owner of each pixel, distance to its outline, and whether that outline is shared.

    Each cell has a level function that is 0 at its centre and 1 on its free outline; where two cells meet,
    the border runs where their levels are equal.
    """
    count = len(cells)
    table = _radii(rng, count, line.irregularity, 6)
    dx, dy = x[None] - cells.centre[:, :1, None], y[None] - cells.centre[:, 1:, None]
    cos, sin = np.cos(cells.axis)[:, None, None], np.sin(cells.axis)[:, None, None]
    stretch = np.sqrt(cells.elongation)[:, None, None]
    along, across = (dx * cos + dy * sin) / stretch, (dy * cos - dx * sin) * stretch
    distance = np.sqrt(along * along + across * across)
    rows = np.arange(count)[:, None, None]
    radius = table[rows, _angle_index(across, along)] * cells.radius[:, None, None]
    level = distance / radius
    owner = np.argmin(level, axis=0)
    nearest = np.take_along_axis(level, owner[None], axis=0)[0]
    np.put_along_axis(level, owner[None], np.inf, axis=0)
    second = np.minimum(level.min(axis=0), np.float32(1e3))
    scale = np.take_along_axis(radius, owner[None], axis=0)[0]
    free, shared = 1.0 - nearest, 0.5 * (second - nearest)
    contact = smoothstep((free - shared) * scale, 1.5)
    return owner, np.minimum(free, shared) * scale, contact


def _smooth_minimum(a: Array, b: Array, width: float) -> Array:
    """Minimum with a rounded corner where ``a`` and ``b`` differ by less than ``width``."""
    overlap = np.maximum(np.float32(width) - np.abs(a - b), 0.0)
    smooth: Array = np.minimum(a, b) - overlap * overlap / np.float32(4.0 * width)
    return smooth


def _nuclear_distance(
    rng: np.random.Generator,
    cells: Cells,
    line: CellLine,
    owner: npt.NDArray[np.intp],
    x: Array,
    y: Array,
) -> Array:
    count = len(cells)
    table = _radii(rng, count, 0.035, 3)
    axis = cells.axis + rng.normal(0.0, 0.3, count).astype(np.float32)
    longer = 1.0 + (line.nucleus_elongation - 1.0) * rng.uniform(0.5, 1.5, count)
    stretch = np.sqrt(longer).astype(np.float32)[owner]
    cos, sin = np.cos(axis)[owner], np.sin(axis)[owner]
    dx, dy = x - cells.nucleus[owner, 0], y - cells.nucleus[owner, 1]
    along, across = (dx * cos + dy * sin) / stretch, (dy * cos - dx * sin) * stretch
    radius = table[owner, _angle_index(across, along)] * cells.nucleus_radius[owner]
    distance: Array = radius - np.sqrt(along * along + across * across)
    return distance


def _nucleolar_distance(
    rng: np.random.Generator,
    cells: Cells,
    line: CellLine,
    owner: npt.NDArray[np.intp],
    x: Array,
    y: Array,
) -> Array:
    count = len(cells)
    number = np.clip(rng.poisson(line.nucleoli - 1.0, count) + 1, 1, _MAX_NUCLEOLI)
    distance = np.full(x.shape, -FIELD, dtype=np.float32)
    for index in range(_MAX_NUCLEOLI):
        reach = cells.nucleus_radius * 0.62 * np.sqrt(rng.uniform(0.0, 1.0, count))
        angle = rng.uniform(0.0, 2.0 * np.pi, count)
        centre = cells.nucleus + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
        # The volume is shared: many small nucleoli or a few large ones.
        radius = 2.3 / np.sqrt(number) * rng.uniform(0.75, 1.25, count) * cells.nucleus_radius / 6.0
        radius = np.where(index < number, radius, -FIELD).astype(np.float32)
        flat = np.float32(rng.uniform(0.8, 1.25))
        centre = centre.astype(np.float32)
        dx, dy = (x - centre[owner, 0]) * flat, (y - centre[owner, 1]) / flat
        distance = np.maximum(distance, radius[owner] - np.sqrt(dx * dx + dy * dy))
    return distance
