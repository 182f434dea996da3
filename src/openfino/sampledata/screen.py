"""The screen behind the sample: which antibodies, cell lines and plates exist, and which image shows what.

The dependence structure is that of the Human Protein Atlas (FINO, App. A.3): a plate carries one cell line, a
plate carries a small panel of antibodies, an antibody is stained on one to three plates, and an antibody
has one localisation pattern.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

import numpy as np
from scipy.optimize import linear_sum_assignment

from openfino.keyed import Purpose, keyed_generator

LOCALIZATIONS = (
    "nucleoplasm",
    "nucleoli",
    "nuclear_membrane",
    "cytosol",
    "mitochondria",
    "golgi",
    "er",
    "microtubules",
    "plasma_membrane",
    "vesicles",
)
# As in the atlas, nucleoplasm and cytosol are the commonest patterns.
ANTIBODIES_PER_PATTERN = (9, 6, 4, 9, 7, 5, 4, 4, 5, 7)
TRAIN_PLATES, VAL_PLATES, OOD_PLATES = 24, 4, 10
OPERATORS = ("AK", "BN", "JS", "LM", "RT")
FIELDS_PER_WELL = 4
CAMPAIGN_START = datetime(2023, 9, 4)
CAMPAIGN_DAYS = 420


class Stream(IntEnum):
    """Second part of every key of the sample: what the numbers are for."""

    ANTIBODY = 1
    PANEL = 2
    PLATE = 3
    WELL = 4
    SPLIT = 5
    IMAGE = 6
    MISSING = 7
    EXPRESSION = 8


@dataclass(frozen=True)
class CellLine:
    """Morphology of a cell line; lengths in micrometres."""

    name: str
    plates: float  # relative share of the plates
    diameter: float
    elongation: float  # long over short axis
    nucleus: float  # diameter
    nucleus_elongation: float
    irregularity: float  # standard deviation of the log radius of the outline
    confluence: float  # share of the places that hold a cell
    colony: bool  # grows in islands
    nucleoli: float  # mean number per nucleus


CELL_LINES = (
    CellLine("U-2 OS", 6, 29.0, 1.30, 13.5, 1.20, 0.13, 0.80, False, 2.6),
    CellLine("A-431", 4, 23.0, 1.10, 12.0, 1.10, 0.07, 0.95, True, 2.2),
    CellLine("U-251 MG", 4, 28.5, 1.75, 13.0, 1.30, 0.20, 0.65, False, 2.0),
    CellLine("HEK 293", 3, 17.5, 1.15, 10.4, 1.08, 0.10, 1.00, True, 3.2),
    CellLine("MCF-7", 3, 24.0, 1.15, 12.8, 1.15, 0.10, 0.90, True, 1.6),
    CellLine("SH-SY5Y", 2, 18.5, 2.00, 10.0, 1.25, 0.17, 0.80, True, 2.8),
    CellLine("PC-3", 2, 23.0, 1.50, 12.0, 1.20, 0.15, 0.60, False, 3.4),
)


@dataclass(frozen=True)
class Antibody:
    """What tells an antibody from the others of its pattern; ratios are relative to a typical antibody."""

    name: str
    pattern: int  # index into LOCALIZATIONS
    intensity: float
    scale: float  # size of the stained structures
    abundance: float  # number of the stained structures
    shape: float  # in [0, 1]; its meaning is the pattern's own
    variability: float  # standard deviation of the log intensity from cell to cell
    expressing: float  # share of the cells that are stained at all
    secondary: int  # a second, weaker pattern
    secondary_weight: float
    haze: float  # unspecific staining of the whole cell


@dataclass(frozen=True)
class Plate:
    """A plate: one cell line, a panel of antibodies, one session at the microscope."""

    name: str
    number: int
    role: str  # train, val or test_ood
    cell_line: int
    panel: tuple[int, ...]
    started: datetime


@dataclass(frozen=True)
class Shot:
    """One image of the screen, as it is known to the laboratory (nothing missing yet)."""

    number: int  # the key of its random numbers
    plate: int
    antibody: int
    well: str
    well_number: int
    acquired: datetime
    operator: str
    split: str


@dataclass(frozen=True)
class Screen:
    """Everything that is decided before the first image is drawn."""

    seed: int
    antibodies: tuple[Antibody, ...]
    plates: tuple[Plate, ...]
    shots: tuple[Shot, ...]


def plan_screen(images: int, seed: int) -> Screen:
    """Decide plates, panels, wells, times and splits of a screen of ``images`` images."""
    antibodies = _draw_antibodies(seed)
    plates = _draw_plates(seed, antibodies)
    return Screen(seed, antibodies, plates, _draw_shots(images, seed, plates))


def _draw_antibodies(seed: int) -> tuple[Antibody, ...]:
    patterns = np.repeat(np.arange(len(LOCALIZATIONS)), ANTIBODIES_PER_PATTERN)
    patterns = keyed_generator(seed, Purpose.SAMPLE, Stream.ANTIBODY).permutation(patterns)
    return tuple(_draw_antibody(seed, number, int(pattern)) for number, pattern in enumerate(patterns))


def _draw_antibody(seed: int, number: int, pattern: int) -> Antibody:
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.ANTIBODY, number)
    others = [other for other in range(len(LOCALIZATIONS)) if other != pattern]
    # Real antibodies that stain a second compartment mostly stain nucleoplasm, cytosol or vesicles.
    likely = np.array(
        [4.0 if LOCALIZATIONS[other] in ("nucleoplasm", "cytosol", "vesicles") else 1.0 for other in others]
    )
    return Antibody(
        name=f"AB-{number + 1:03d}",
        pattern=pattern,
        intensity=float(np.exp(rng.normal(0.0, 0.30))),
        scale=float(rng.uniform(0.75, 1.4)),
        abundance=float(rng.uniform(0.6, 1.6)),
        shape=float(rng.uniform()),
        variability=float(rng.uniform(0.08, 0.55)),
        expressing=1.0 if rng.uniform() < 0.7 else float(rng.uniform(0.55, 0.9)),
        secondary=int(rng.choice(others, p=likely / likely.sum())),
        secondary_weight=float(rng.uniform(0.05, 0.35)) if rng.uniform() < 0.6 else 0.0,
        haze=float(rng.uniform(0.02, 0.14)),
    )


def _draw_plates(seed: int, antibodies: Sequence[Antibody]) -> tuple[Plate, ...]:
    """Plates in the order of their acquisition; roles are spread over the whole campaign."""
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.PANEL)
    train_lines = _spread_lines(rng, TRAIN_PLATES)
    val_lines = _spread_lines(rng, VAL_PLATES)
    ood_lines = _spread_lines(rng, OOD_PLATES)
    train_panels = _draw_train_panels(rng, train_lines, len(antibodies))
    seen = np.zeros((len(antibodies), len(CELL_LINES)), dtype=bool)
    for line, train_panel in zip(train_lines, train_panels, strict=True):
        seen[train_panel, line] = True
    val_panels = _deal(rng, _one_of_each_pattern(rng, antibodies, 6 * VAL_PLATES), val_lines, seen)
    ood_panels = _deal(rng, np.arange(len(antibodies)), ood_lines, seen)
    roles = ["train"] * TRAIN_PLATES + ["val"] * VAL_PLATES + ["test_ood"] * OOD_PLATES
    lines = [*train_lines, *val_lines, *ood_lines]
    dealt = [*train_panels, *val_panels, *ood_panels]
    order = rng.permutation(len(roles))
    days = np.sort(rng.choice(CAMPAIGN_DAYS, size=len(roles), replace=False))
    plates = []
    for number, (chosen, day) in enumerate(zip(order, days, strict=True)):
        started = CAMPAIGN_START + timedelta(days=int(day), seconds=int(rng.integers(8 * 3600, 18 * 3600)))
        panel = tuple(int(antibody) for antibody in dealt[chosen])
        plates.append(
            Plate(f"PL-{number + 1:02d}", number, roles[chosen], int(lines[chosen]), panel, started)
        )
    return tuple(plates)


def _spread_lines(rng: np.random.Generator, plates: int) -> np.ndarray:
    """A cell line for each plate, every line at least once where the number of plates allows it."""
    share = np.array([line.plates for line in CELL_LINES]) / sum(line.plates for line in CELL_LINES)
    lines = rng.permutation(len(CELL_LINES))[:plates]
    further = rng.choice(len(CELL_LINES), size=max(plates - len(lines), 0), p=share)
    return np.concatenate([lines, further])


def _draw_train_panels(rng: np.random.Generator, lines: np.ndarray, antibodies: int) -> list[np.ndarray]:
    """One to three plates for every antibody, in different cell lines, on the emptiest plates first."""
    capacity = rng.uniform(3.0, 6.0, size=len(lines))
    load = np.zeros(len(lines))
    panels: list[list[int]] = [[] for _ in lines]
    for antibody in rng.permutation(antibodies):
        used_lines: set[int] = set()
        for _ in range(int(rng.choice([1, 2, 3], p=[0.35, 0.5, 0.15]))):
            fullness = load / capacity + rng.uniform(0.0, 0.2, size=len(lines))
            fullness[np.isin(lines, list(used_lines))] = np.inf
            plate = int(np.argmin(fullness))
            panels[plate].append(int(antibody))
            load[plate] += 1
            used_lines.add(int(lines[plate]))
    return [np.array(panel, dtype=int) for panel in panels]


def _one_of_each_pattern(rng: np.random.Generator, antibodies: Sequence[Antibody], count: int) -> np.ndarray:
    """``count`` antibodies that cover every pattern."""
    order = rng.permutation(len(antibodies))
    patterns = np.array([antibodies[antibody].pattern for antibody in order])
    first = np.unique(patterns, return_index=True)[1]
    return np.concatenate([order[first], np.delete(order, first)])[:count]


def _deal(
    rng: np.random.Generator, antibodies: np.ndarray, lines: np.ndarray, seen: np.ndarray
) -> list[np.ndarray]:
    """Deal ``antibodies`` evenly to new plates, each in a cell line in which training never shows it."""
    slots = np.arange(len(antibodies)) % len(lines)
    cost = rng.uniform(size=(len(antibodies), len(slots))) + 1000.0 * seen[antibodies][:, lines[slots]]
    rows, columns = linear_sum_assignment(cost)
    return [antibodies[rows[slots[columns] == plate]] for plate in range(len(lines))]


def _draw_shots(images: int, seed: int, plates: Sequence[Plate]) -> tuple[Shot, ...]:
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.SPLIT)
    held_out = {"val": round(0.06 * images), "test_id": round(0.10 * images)}
    pool = {"val": round(0.06 * images), "test_ood": round(0.18 * images)}
    pool["train"] = images - sum(pool.values())
    shots: list[Shot] = []
    for role, count in pool.items():
        members = [plate for plate in plates if plate.role == role]
        for plate, share in zip(members, _even_shares(rng, count, len(members)), strict=True):
            shots.extend(_shoot_plate(rng, plate, int(share), len(shots)))
    return _hold_out(rng, shots, held_out)


def _even_shares(rng: np.random.Generator, count: int, parts: int) -> np.ndarray:
    shares = np.full(parts, count // parts)
    shares[rng.permutation(parts)[: count % parts]] += 1
    return shares


def _shoot_plate(rng: np.random.Generator, plate: Plate, count: int, first: int) -> list[Shot]:
    """Wells in random places of a 96-well plate, imaged along the columns, a few fields in each."""
    wells = []
    for antibody, share in zip(plate.panel, _even_shares(rng, count, len(plate.panel)), strict=True):
        wells.extend([(antibody, fields) for fields in _well_sizes(int(share))])
    places = np.sort(rng.choice(96, size=len(wells), replace=len(wells) > 96))
    now, shots = plate.started, list[Shot]()
    for chosen, place in zip(rng.permutation(len(wells)), places, strict=True):
        antibody, fields = wells[chosen]
        now += timedelta(seconds=float(rng.uniform(90, 200)))
        name = f"{'ABCDEFGH'[place % 8]}{place // 8 + 1:02d}"
        for _ in range(fields):
            now += timedelta(seconds=float(rng.uniform(8, 20)))
            # Whoever signs the log entry says nothing about the image.
            operator = OPERATORS[int(rng.integers(len(OPERATORS)))]
            number = first + len(shots)
            shots.append(Shot(number, plate.number, antibody, name, int(place), now, operator, plate.role))
    return shots


def _well_sizes(fields: int) -> list[int]:
    """``fields`` in wells of at most ``FIELDS_PER_WELL``."""
    return [min(FIELDS_PER_WELL, fields - start) for start in range(0, fields, FIELDS_PER_WELL)]


def _hold_out(rng: np.random.Generator, shots: list[Shot], held_out: dict[str, int]) -> tuple[Shot, ...]:
    """Give images of training plates to ``held_out`` splits, but leave one of each antibody in training."""
    order = [int(index) for index in rng.permutation(len(shots)) if shots[index].split == "train"]
    kept: set[int] = set()
    movable, only = list[int](), list[int]()
    for index in order:
        (movable if shots[index].antibody in kept else only).append(index)
        kept.add(shots[index].antibody)
    moved, start = [*movable, *only], 0
    for split, count in held_out.items():
        for index in moved[start : start + count]:
            shots[index] = Shot(**{**vars(shots[index]), "split": split})
        start += count
    return tuple(shots)
