"""Which rows train, which choose, and which are read once at the end."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.errors import Problem
from openfino.evaluation.classifiers import stratified_holdout
from openfino.evaluation.splits import encode_column, held_groups, probe_generator
from openfino.manifest import Manifest
from openfino.recipe import Recipe
from openfino.tables import value_keys

COLUMN = "compare_split"  # of the table that the arms read
TRAIN, VAL, TEST, UNNAMED = "compare_train", "compare_val", "compare_test", "compare_unnamed"
RESERVED = (TRAIN, VAL, TEST, UNNAMED)
VAL_SHARE, TEST_SHARE = 0.15, 0.2


@dataclass(frozen=True)
class Splits:
    """The splits of the arms.

    Attributes:
        column: split of every row, the column ``COLUMN`` of the arms' table.
        training: values of ``column`` whose rows adaptation sees.
        train: the value whose labelled rows heads and supervised arms train on.
        val: the value that everything is chosen on.
        tests: values that are read once, at the end.
        how: where they come from, a sentence.
    """

    column: pl.Series
    training: list[str]
    train: str
    val: str
    tests: list[str]
    how: str


def plan_splits(manifest: Manifest, recipe: Recipe, group: str | None) -> tuple[Splits | None, list[Problem]]:
    """Splits for a recipe: its own, and where it has no validation or no test split, rows taken from those that train.

    Rows are drawn by the recipe's seed: whole groups where ``group`` names a column (rows without one stay), else
    stratified by label.

    Args:
        manifest: the table, with the columns that the recipe names.
        recipe: with label and splits.
        group: a column whose values come as a whole, such as the plate.
    """
    table, probe = manifest.table, recipe.probe
    problems = _name_problems(manifest, recipe)
    if problems:
        return None, problems
    plain = pl.Series([TRAIN] * len(table)) if probe.split is None else value_keys(table[probe.split])
    column = plain.fill_null(UNNAMED).rename(COLUMN)
    train = TRAIN if probe.split is None else probe.train
    present = [name for name in column.unique().sort().to_list() if name != UNNAMED]
    declared = recipe.training_splits
    known = {train, probe.val, *probe.tests, *(declared or [])}
    # Without tests of its own a recipe is scored on every other split, as `openfino probe` does.
    others = [] if declared is None and recipe.train_split == "all" else present
    tests = list(probe.tests) or [name for name in others if name not in known]
    training = (
        declared if declared is not None else [name for name in present if name not in (probe.val, *tests)]
    )
    taken, said = [], []
    for wanted, name, share in ((not tests, TEST, TEST_SHARE), (probe.val is None, VAL, VAL_SHARE)):
        if wanted:
            column, words, found = _carve(column, manifest, recipe, train, group, name, share)
            problems += found
            said.append(words)
            taken.append(name)
    if problems:
        return None, problems
    how = "; ".join(said) if said else "the recipe's own splits"
    return Splits(column, training, train, probe.val or VAL, tests or [TEST], how), []


def _name_problems(manifest: Manifest, recipe: Recipe) -> list[Problem]:
    table, probe, problems = manifest.table, recipe.probe, []
    if COLUMN in table.columns:
        what = f"the table has a column {COLUMN!r}, which the comparison writes itself"
        problems.append(Problem(manifest.name, what, "Rename it"))
    if probe.split is None:
        return problems
    present = value_keys(table[probe.split]).drop_nulls().unique().to_list()
    if taken := sorted(set(present) & set(RESERVED)):
        what = f"column {probe.split!r} has the value {taken[0]!r}, which the comparison writes itself"
        problems.append(Problem(manifest.name, what, "Rename it"))
    training = set(recipe.training_splits or [])
    for key, name in [("val", probe.val), *(("tests", name) for name in probe.tests)]:
        if name is not None and name in training:
            what = f"the rows of {name!r} train, and the arms are scored on them"
            problems.append(Problem(f"train_split, probe.{key}", what, "Take it out of one of the two"))
    if recipe.train_split == "all" and (probe.val or probe.tests):
        what = "all rows train, and the arms are scored on some of them"
        problems.append(Problem("train_split", what, "Name the splits that train"))
    if probe.val is not None and probe.val in probe.tests:
        what = f"{probe.val!r} is what arms are chosen on, and cannot be a test too"
        problems.append(Problem("probe.tests", what, "Take it out of the tests"))
    return problems


def _carve(
    column: pl.Series,
    manifest: Manifest,
    recipe: Recipe,
    train: str,
    group: str | None,
    name: str,
    share: float,
) -> tuple[pl.Series, str, list[Problem]]:
    """Take about ``share`` of the rows of ``train``, as split ``name``."""
    table, fitted = manifest.table, (column == train).to_numpy()
    if group is not None:
        groups = encode_column(table[group])
        held, problems = held_groups(
            groups[fitted], recipe.seed, group, share=share, purpose=f"compare {name}"
        )
        if problems:
            return column, "", problems
        # A group is held out of everything that trains.
        training = recipe.training_splits
        trains = fitted if training is None else fitted | column.is_in(training).to_numpy()
        mask = trains & np.isin(groups, held) & (groups >= 0)
        words = f"{name}: all {int(mask.sum())} training rows of {len(held)} values of {group}"
    else:
        rows = np.flatnonzero(fitted & table[str(recipe.probe.label)].is_not_null().to_numpy())
        drawn = stratified_holdout(
            _strata(table, recipe, rows), share, probe_generator(recipe.seed, f"compare {name}")
        )
        mask = np.zeros(len(column), dtype=bool)
        mask[rows[drawn]] = True
        words = f"{name}: {int(mask.sum())} rows of {train}"
    named = pl.Series(column.name, [name]).new_from_index(0, len(column)).zip_with(pl.Series(mask), column)
    return named, f"{words}, drawn by the recipe's seed and taken from training", []


def _strata(table: pl.DataFrame, recipe: Recipe, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes to draw evenly from; one for all where the label is no class."""
    column = table[str(recipe.probe.label)]
    if column.dtype.is_nested() or column.dtype.is_float() or recipe.compare.task in ("multi", "regression"):
        return np.zeros(len(rows), dtype=np.int64)
    return encode_column(column)[rows]
