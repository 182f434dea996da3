"""Which rows of a table a probe is fitted on, and which it is scored on."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.errors import Problem
from openfino.evaluation.classifiers import stratified_holdout
from openfino.evaluation.metrics import Codes
from openfino.factors.spec import FactorSpec
from openfino.keyed import Purpose, keyed_generator
from openfino.manifest import Manifest
from openfino.recipe import ProbeSettings
from openfino.tables import value_keys

Rows = NDArray[np.int64]

HELD_OUT = "held_out"
HELD_OUT_FRACTION = 0.2
FEWEST_GROUPS = 4


@dataclass(frozen=True)
class SplitRows:
    """The labelled rows of one split that a probe uses, and how many of the split have no label."""

    rows: Rows
    missing_label: int


def encode_column(column: pl.Series) -> Codes:
    """Numbers 0, 1, ... of a column's values in their sorted order as text; -1 where missing.

    Raises:
        OpenfinoError: for a column of lists or structures.
    """
    keys = value_keys(column)
    known = pl.Enum(keys.drop_nulls().unique().sort())
    codes: Codes = keys.cast(known).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    return codes


def probe_generator(seed: int, purpose: str) -> np.random.Generator:
    """The generator of one draw of a probe, the same for every model that is probed."""
    return keyed_generator(seed, Purpose.PROBE, zlib.crc32(purpose.encode()))


def check_probe(
    manifest: Manifest, settings: ProbeSettings, factors: Mapping[str, FactorSpec] | None = None
) -> list[Problem]:
    """Every reason why a probe cannot be carried out on this manifest; no image is read."""
    table = manifest.table
    named = [(f"probe.{key}", getattr(settings, key)) for key in ("label", "split", "group")]
    named += [("leakage", column) for spec in (factors or {}).values() for column in spec.columns]
    problems = [
        manifest.absent(column, where)
        for where, column in named
        if column is not None and column not in table.columns
    ]
    if problems:
        return problems
    problems = _check_splits(table, settings)
    if settings.label is not None and not problems:
        problems = _check_labels(table, settings, settings.label)
    if settings.group is not None and table[settings.group].null_count() == len(table):
        remedy = "Fill it, or leave probe.group out"
        problems.append(Problem("probe.group", f"column {settings.group!r} has no value", remedy))
    return problems


def _check_splits(table: pl.DataFrame, settings: ProbeSettings) -> list[Problem]:
    if settings.split is None:
        return []
    tested = [("probe.tests", value) for value in settings.tests]
    if settings.val is not None:
        tested.append(("probe.val", settings.val))
    return split_problems(table[settings.split], ("probe.train", settings.train), tested)


def split_problems(
    column: pl.Series, train: tuple[str, str], scored: Sequence[tuple[str, str]]
) -> list[Problem]:
    """Splits that no row has, or that train and are scored.

    Args:
        column: the split of every row.
        train: where the split that trains is named, and its name.
        scored: where each other split is named, and its name.
    """
    present = value_keys(column).drop_nulls().unique().sort().to_list()
    remedy = f"Values there: {', '.join(present[:20])}" if present else "Fill the column"
    problems = [
        Problem(where, f"no row has {value!r} in column {column.name!r}", remedy)
        for where, value in [train, *scored]
        if value not in present
    ]
    problems += [
        Problem(where, f"{value!r} is the split that probes are fitted on", "Name another split")
        for where, value in scored
        if value == train[1]
    ]
    return problems


def _check_labels(table: pl.DataFrame, settings: ProbeSettings, label: str) -> list[Problem]:
    """Two labels to tell apart, and something to score."""
    problems = []
    codes = encode_column(table[label])
    for name in [settings.train, *scored_splits(settings)]:
        rows = rows_of_split(table, settings, name)
        different = len(np.unique(codes[rows][codes[rows] >= 0]))
        needed, use = (2, "fit a probe") if name == settings.train else (1, "score it")
        if different < needed:
            where = f"column {label}" + (f", split {name}" if settings.split is not None else "")
            what = (
                f"{different} different labels among {len(rows)} rows; {needed} or more are needed to {use}"
            )
            problems.append(Problem(where, what, "Check probe.label, or fill the column"))
    return problems


def scored_splits(settings: ProbeSettings) -> list[str]:
    """The splits that the user names for scoring, ``val`` first."""
    named = [settings.val] if settings.val is not None else []
    return list(dict.fromkeys([*named, *settings.tests]))


def rows_of_split(table: pl.DataFrame, settings: ProbeSettings, split: str) -> Rows:
    """All rows of a split; of the whole table when there is no split column."""
    return split_rows(table, settings.split, split)


def split_rows(table: pl.DataFrame, column: str | None, split: str) -> Rows:
    """The rows where ``column`` says ``split``; all when there is no column."""
    if column is None:
        return np.arange(len(table), dtype=np.int64)
    found = (value_keys(table[column]) == split).fill_null(False)
    return found.arg_true().to_numpy().astype(np.int64)


def at_most(rows: Rows, settings: ProbeSettings, seed: int, purpose: str) -> Rows:
    """``max_rows`` of ``rows``, drawn by key, in rising order; all of them without a limit."""
    if settings.max_rows is None or len(rows) <= settings.max_rows:
        return rows
    drawn = probe_generator(seed, f"rows {purpose}").choice(rows, settings.max_rows, replace=False)
    return np.sort(drawn)


def plan_splits(
    table: pl.DataFrame, settings: ProbeSettings, label: str, seed: int
) -> tuple[SplitRows, dict[str, SplitRows]]:
    """The rows to fit on, and the rows to score by split.

    When neither ``val`` nor ``tests`` names a split to score, a fifth of the labelled train rows, drawn by
    key and stratified by label, is held out as split ``held_out``.
    """
    codes = encode_column(table[label])

    def plan(name: str) -> SplitRows:
        rows = rows_of_split(table, settings, name)
        labelled = at_most(rows[codes[rows] >= 0], settings, seed, name)
        return SplitRows(labelled, int((codes[rows] < 0).sum()))

    train = plan(settings.train)
    names = scored_splits(settings)
    if names:
        return train, {name: plan(name) for name in names}
    held = stratified_holdout(codes[train.rows], HELD_OUT_FRACTION, probe_generator(seed, HELD_OUT))
    return SplitRows(train.rows[~held], train.missing_label), {HELD_OUT: SplitRows(train.rows[held], 0)}


def held_groups(
    groups: Codes, seed: int, name: str, *, share: float, purpose: str
) -> tuple[Codes, list[Problem]]:
    """Groups drawn by key until they hold ``share`` of the rows that have one; never more than half of them.

    Args:
        groups: of every row, int64, -1 where there is none.
        seed: of the draw.
        name: of the column, for the problem that there are too few.
        share: of the rows.
        purpose: keeps draws apart.
    """
    values, counts = np.unique(groups[groups >= 0], return_counts=True)
    if len(values) < FEWEST_GROUPS:
        what = f"{len(values)} different values among the rows that probes are fitted on"
        remedy = f"Name a column with {FEWEST_GROUPS} or more, or leave --group out"
        return values, [Problem(f"--group {name}", what, remedy)]
    order = probe_generator(seed, purpose).permutation(len(values))
    enough = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum())) + 1
    return values[order[: min(enough, len(values) // 2)]], []
