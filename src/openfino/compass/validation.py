"""What roles are chosen on: rows that no arm trains on, in and out of distribution, apart from the tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.errors import Problem
from openfino.evaluation.classifiers import stratified_holdout
from openfino.evaluation.splits import encode_column, held_groups, probe_generator
from openfino.manifest import Manifest
from openfino.recipe import Recipe
from openfino.tables import value_keys

Part = Literal["in", "out"]
PARTS: tuple[Part, ...] = ("in", "out")
WORDS: dict[Part, str] = {"in": "in distribution", "out": "out of distribution"}

COLUMN = "compass_split"  # of the table that the arms read
CARVED: dict[Part, str] = {"in": "compass_in", "out": "compass_out"}
ASIDE, UNNAMED, TRAIN = "compass_aside", "compass_unnamed", "compass_train"
RESERVED = (*CARVED.values(), ASIDE, UNNAMED, TRAIN)
IN_SHARE, OUT_SHARE = 0.10, 0.15
FEW_ROWS = 100

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """What the user says about validation.

    Attributes:
        group: column whose unseen values are out of distribution.
        names: splits of the recipe's own split column, named for a part.
    """

    group: str | None = None
    names: dict[Part, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """The splits of the arms.

    Attributes:
        column: split of every row, the column ``COLUMN`` of the arms' table.
        parts: value of ``column`` of each part of the validation there is.
        rows: labelled rows of each part.
        train: values of ``column`` whose rows train.
        probe_train: the value whose rows a probe is fitted on.
        tests: values that only the final report is measured on.
        how: where the parts come from, a sentence.
        warnings: what weakens them.
    """

    column: pl.Series
    parts: dict[Part, str]
    rows: dict[Part, int]
    train: list[str]
    probe_train: str
    tests: list[str]
    how: str
    warnings: list[str]

    @property
    def deciding(self) -> Part:
        """The part that roles are chosen on: out of distribution where there is such a part."""
        return "out" if "out" in self.parts else "in"


def check_asked(manifest: Manifest, recipe: Recipe, asked: Asked) -> list[Problem]:
    """Every reason why no validation can be made as asked."""
    columns, split, problems = manifest.table.columns, recipe.probe.split, []
    if COLUMN in columns:
        what = f"the table has a column {COLUMN!r}, which the compass writes itself"
        problems.append(Problem(manifest.name, what, "Rename it"))
    if asked.group is not None and asked.group not in columns:
        problems.append(manifest.absent(asked.group, "--group"))
    if asked.names and split is None:
        problems.append(
            Problem("--val-in, --val-out", "the recipe names no split column", "Write probe.split")
        )
    if asked.names and asked.group is not None:
        what = "--val-in and --val-out name the parts that --group would make"
        problems.append(Problem("--group", what, "Leave one of them out"))
    if split is None or split not in columns:
        return problems
    present = value_keys(manifest.table[split]).drop_nulls().unique().sort().to_list()
    training = recipe.training_splits or []
    for part, name in asked.names.items():
        where = f"--val-{part}"
        if name not in present:
            what = f"no row has {name!r} in column {split!r}"
            problems.append(Problem(where, what, f"Values there: {', '.join(present[:20])}"))
        elif name in (*training, recipe.probe.train):
            problems.append(Problem(where, f"the rows of {name!r} train", "Name a split that does not"))
    if len(set(asked.names.values())) < len(asked.names):
        problems.append(Problem("--val-in, --val-out", "both name one split", "Name two, or one of them"))
    if taken := [name for name in present if name in RESERVED]:
        what = f"column {split!r} has the value {taken[0]!r}, which the compass writes itself"
        problems.append(Problem(manifest.name, what, "Rename it"))
    return problems


def plan_validation(
    manifest: Manifest, recipe: Recipe, asked: Asked
) -> tuple[Validation | None, list[Problem]]:
    """Splits for the arms of a checked recipe.

    The parts of the validation are, in this order: the splits named for them; the rows of ``probe.val``, by the group
    column out of distribution where no training row has their group; or rows taken from those that train, drawn by the
    recipe's seed: whole groups of about ``OUT_SHARE`` of the rows, and ``IN_SHARE`` of the other rows, stratified by
    label. Where rows are taken, rows of the held-out groups in other training splits, and rows without a group, are
    set aside: they neither train nor count.
    """
    table, probe = manifest.table, recipe.probe
    plain = pl.Series([TRAIN] * len(table)) if probe.split is None else value_keys(table[probe.split])
    column = plain.fill_null(UNNAMED).rename(COLUMN)
    probe_train = TRAIN if probe.split is None else probe.train
    training = recipe.training_splits
    if probe.split is None or training is None:
        # All rows train: all but those that are scored by the compass.
        training = [name for name in column.unique().sort().to_list() if name != probe.val]
    problems: list[Problem] = []
    if asked.names:
        parts = dict(asked.names)
        how = "the splits named with --val-in and --val-out"
    elif probe.val is not None:
        column, how = _divide(column, table, probe.val, training, asked.group)
        parts = {part: CARVED[part] for part in PARTS if (column == CARVED[part]).any()}
    else:
        column, how, problems = _carve(column, manifest, recipe, training, probe_train, asked.group)
        parts = {part: CARVED[part] for part in PARTS if (column == CARVED[part]).any()}
    labelled = table[probe.label or COLUMN].is_not_null()
    rows = {part: int(((column == name) & labelled).sum()) for part, name in parts.items()}
    problems += [
        Problem(f"validation {WORDS[part]}", "no row with a label", "Name other splits, or fill the label")
        for part, count in rows.items()
        if count == 0
    ]
    if not parts and not problems:
        problems.append(Problem("probe.val", "no row is left to choose on", "Name a split with rows"))
    if problems:
        return None, problems
    tests = [name for name in probe.tests if name not in (probe.val, *parts.values())]
    training = [name for name in training if name not in (*parts.values(), ASIDE)]
    warnings = _warnings(parts, rows, tests)
    return Validation(column, parts, rows, training, probe_train, tests, how, warnings), []


def _warnings(parts: dict[Part, str], rows: dict[Part, int], tests: Sequence[str]) -> list[str]:
    warnings = [
        f"Only {count} labelled rows to choose on {WORDS[part]}: another {count} rows could choose otherwise."
        for part, count in rows.items()
        if count < FEW_ROWS
    ]
    if "out" not in parts:
        warnings.append(
            "Nothing tells how the roles do out of distribution: name a split with --val-out, or with --group a column "
            "whose values come as a whole, such as the plate or the hospital."
        )
    if not tests:
        warnings.append(
            "There is no split that the roles were not chosen on, so that nothing can say honestly by how much they "
            "help: name splits with probe.tests."
        )
    return warnings


def _divide(
    column: pl.Series, table: pl.DataFrame, val: str, training: Sequence[str], group: str | None
) -> tuple[pl.Series, str]:
    """The rows of ``val`` by whether a training row has their group."""
    own = (column == val).to_numpy()
    if group is None:
        return _with(column, own, CARVED["in"]), f"the rows of split {val!r}, taken as in distribution"
    groups = encode_column(table[group])
    seen = np.isin(groups, groups[column.is_in(training).to_numpy() & ~own])
    known = groups >= 0
    column = _with(column, own & ~known, ASIDE)
    column = _with(column, own & known & seen, CARVED["in"])
    column = _with(column, own & known & ~seen, CARVED["out"])
    how = f"the rows of split {val!r}: out of distribution where no training row has their {group}"
    lost = int((own & ~known).sum())
    return column, how + (f" ({lost} rows without {group} are left out)" if lost else "")


def _carve(
    column: pl.Series,
    manifest: Manifest,
    recipe: Recipe,
    training: Sequence[str],
    probe_train: str,
    group: str | None,
) -> tuple[pl.Series, str, list[Problem]]:
    """Take rows from those that probes are fitted on: whole groups, and some of the others."""
    table = manifest.table
    fitted, trains = (column == probe_train).to_numpy(), column.is_in(training).to_numpy()
    labels = encode_column(table[str(recipe.probe.label)])
    how = f"{IN_SHARE:.0%} of the rows of split {probe_train!r}"
    if group is not None:
        groups = encode_column(table[group])
        held, problems = held_groups(
            groups[fitted], recipe.seed, group, share=OUT_SHARE, purpose="compass out"
        )
        if problems:
            return column, "", problems
        away = np.isin(groups, held)
        aside = (trains | fitted) & ((away & ~fitted) | (groups < 0))
        column = _with(column, aside, ASIDE)
        column = _with(column, fitted & away, CARVED["out"])
        fitted = fitted & ~away & ~aside
        how += (
            f", and all rows of {len(held)} of its values of {group}, which no arm sees "
            f"({int(aside.sum())} other rows without {group} or of these values are left out)"
        )
    rows = np.flatnonzero(fitted & (labels >= 0))
    taken = stratified_holdout(labels[rows], IN_SHARE, probe_generator(recipe.seed, "compass in"))
    mask = np.zeros(len(column), dtype=bool)
    mask[rows[taken]] = True
    return _with(column, mask, CARVED["in"]), f"{how}, drawn by the recipe's seed and taken from training", []


def _with(column: pl.Series, rows: Mask, name: str) -> pl.Series:
    """``column`` with ``name`` in ``rows``."""
    return pl.Series(column.name, [name]).new_from_index(0, len(column)).zip_with(pl.Series(rows), column)
