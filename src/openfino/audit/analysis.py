"""The whole audit of a table."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from openfino.audit.advice import HOLDS, Advice, Table, advise, holds
from openfino.audit.coding import Coded
from openfino.audit.coverage import Coverage, cover_splits
from openfino.audit.dependence import Dependence, Pair, measure_given, measure_pair
from openfino.audit.describe import (
    Column,
    DeclaredKinds,
    describe_column,
    describe_paths,
    mark_path_leaks,
)
from openfino.audit.source import Source, open_source
from openfino.audit.words import split_column
from openfino.errors import InputProblemsError, Problem
from openfino.manifest import Manifest

_MEDIATOR = 0.5  # X must tell at least half of Z for Z to stand between X and Y
_CONDITIONALS = 24
_MANY_ROWS, _CONDITIONALS_OF_MANY = 1_000_000, 6
_ADDS_LITTLE = 0.05
_COPY = 0.5


@dataclass(frozen=True)
class Conditional:
    """Whether Z stands between X and Y.

    Attributes:
        both: U(Y|X,Z).
        alone: U(Y|X).
        mediator: U(Y|Z).
        asked: whether the user asked for it.
    """

    both: Dependence
    alone: Dependence
    mediator: Dependence
    asked: bool

    @property
    def explained(self) -> bool:
        """Whether X adds next to nothing to what Z says about Y."""
        return self.both.u_adjusted - self.mediator.u_adjusted < _ADDS_LITTLE

    def __str__(self) -> str:
        x, z = self.both.given
        y = self.both.of
        verdict = f"explains what {x} says" if self.explained else f"does not explain what {x} says"
        return (
            f"{z} {verdict} about {y}: U({y} | {x}, {z}) = {self.both.u:.3f} (corrected {self.both.u_adjusted:.3f}), "
            f"{self.mediator.u_adjusted:.3f} by {z} alone, {self.alone.u_adjusted:.3f} by {x} alone"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        x, z = self.both.given
        return {
            "given": x,
            "and": z,
            "of": self.both.of,
            "u": self.both.u,
            "u_adjusted": self.both.u_adjusted,
            "interval": list(self.both.interval),
            "u_adjusted_without_and": self.alone.u_adjusted,
            "u_adjusted_without_given": self.mediator.u_adjusted,
            "explained": self.explained,
        }


@dataclass(frozen=True)
class Audit:
    """What a table says about itself.

    Attributes:
        name: of the table.
        rows: in it.
        columns: every column by name, in the order of the table.
        table: U(Y|X) of every ordered pair of columns that are not set aside (copies included).
        conditional: U(Y|X,Z).
        advice: a role and a reason for every column but the image paths.
        splits: coverage across splits, if a column names them.
        label: the task's column, if named.
    """

    name: str
    rows: int
    columns: dict[str, Column]
    table: Table
    conditional: list[Conditional]
    advice: dict[str, Advice]
    splits: Coverage | None
    label: str | None

    @property
    def dependence(self) -> list[Dependence]:
        """Every ordered pair, in the order of the table's columns."""
        return list(self.table.pairs.values())

    @property
    def measured(self) -> list[str]:
        """The columns of the dependence table."""
        return list(dict.fromkeys(given for given, _ in self.table.pairs))

    def to_json(self) -> dict[str, Any]:
        """Plain values: columns, dependence, advice; conditional and splits beside them."""
        return {
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "dependence": [
                {
                    "given": pair.given[0],
                    "of": pair.of,
                    "u": pair.u,
                    "u_adjusted": pair.u_adjusted,
                    "interval": list(pair.interval),
                }
                for pair in self.dependence
            ],
            "advice": {
                name: {"role": item.role, "reason": item.reason} for name, item in self.advice.items()
            },
            "conditional": [item.to_json() for item in self.conditional],
            "splits": self.splits.to_json() if self.splits else None,
        }


def run_audit(
    manifest: Path | str | Manifest | pl.DataFrame,
    *,
    label: str | None = None,
    split: str | None = None,
    train: str | None = None,
    kinds: DeclaredKinds | None = None,
    given: Sequence[tuple[str, str, str]] = (),
    keep: Collection[str] = (),
    forget: Collection[str] = (),
    groups: Collection[str] = (),
    path_columns: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Audit:
    """Audit a table.

    Args:
        manifest: a table file, a folder of images, or a table in memory.
        label: the task's column: never a factor; columns that give it away are named.
        split: the column that names the splits; by default one called split, fold, subset or partition.
        train: the split that trains; by default one whose name begins with train, else the largest.
        kinds: declared kinds (and periods) by column; others are inferred.
        given: triples (X, Z, Y) for which U(Y|X,Z) is wanted besides the automatic ones.
        keep: columns that say what the image shows, whatever their names suggest.
        forget: columns that say how it was taken.
        groups: columns whose values belong on one side of a split.
        path_columns: columns with image paths; by default found.
        missing: further tokens that mean "no value".

    Raises:
        OpenfinoError: if the table cannot be read.
        InputProblemsError: if a named column is absent.
    """
    if isinstance(manifest, str):
        manifest = Path(manifest)
    source = open_source(manifest, path_columns=path_columns, missing=missing)
    kinds = kinds or {}
    _refuse_absent(source, [("--label", [label] if label else []), ("--split", [split] if split else []),
        ("--kind", kinds), ("--given", [name for names in given for name in names]), ("--keep", keep),
        ("--forget", forget), ("--group", groups)])  # fmt: skip
    split = split or split_column([name for name in source.columns if name != label])
    columns = _describe(source, kinds)
    mark_path_leaks(source, columns)
    coded = {
        name: column.coded for name, column in columns.items() if column.coded is not None and name != split
    }
    pairs = _measure(list(coded.values()), source.rows)
    _set_copies_aside(source, columns, pairs)
    table = Table(_ordered(pairs))
    conditional = _conditionals(coded, columns, table, given, source.rows, label)
    advice = advise(columns, table, label=label, split=split, keep=keep, forget=forget)
    splits = None
    if split is not None and (of_split := columns[split].coded) is not None:
        splits = cover_splits(of_split, columns, train, groups)
    return Audit(source.name, source.rows, columns, table, conditional, advice, splits, label)


def _refuse_absent(source: Source, asked: Iterable[tuple[str, Iterable[str]]]) -> None:
    listed = f"Columns: {', '.join(source.columns[:20])}"
    problems = [
        Problem(option, f"there is no column {name!r} in {source.name}", listed)
        for option, names in asked
        for name in names
        if name not in source.columns
    ]
    if problems:
        raise InputProblemsError(problems)


def _describe(source: Source, kinds: DeclaredKinds) -> dict[str, Column]:
    def describe(name: str) -> Column:
        if name in source.path_columns:
            return describe_paths(source, name)
        return describe_column(source, name, kinds)

    with ThreadPoolExecutor(_workers(source.rows)) as pool:
        return dict(zip(source.columns, pool.map(describe, source.columns), strict=True))


def _measure(coded: Sequence[Coded], rows: int) -> dict[tuple[str, str], Pair]:
    couples = list(combinations(coded, 2))
    with ThreadPoolExecutor(_workers(rows)) as pool:
        pairs = pool.map(lambda couple: measure_pair(*couple), couples)
        return {(x.name, y.name): pair for (x, y), pair in zip(couples, pairs, strict=True)}


def _workers(rows: int) -> int:
    """Threads: counting and sorting leave Python's lock; short columns gain nothing."""
    return min(os.cpu_count() or 1, 2) if rows > 50_000 else 1


def _ordered(pairs: Mapping[tuple[str, str], Pair]) -> dict[tuple[str, str], Dependence]:
    both = {}
    for (x, y), pair in pairs.items():
        both[x, y], both[y, x] = pair.forward, pair.backward
    names = list(dict.fromkeys(name for couple in pairs for name in couple))
    return {(x, y): both[x, y] for x in names for y in names if x != y}


def _set_copies_aside(
    source: Source, columns: Mapping[str, Column], pairs: Mapping[tuple[str, str], Pair]
) -> None:
    """The second of two columns whose values correspond one to one says nothing new."""
    for (x, y), pair in pairs.items():
        if not pair.one_to_one or pair.forward.interval[0] < _COPY or columns[x].set_aside is not None:
            continue
        if columns[y].set_aside is None and _same_values(source, columns[x], columns[y]):
            columns[y].set_aside = f"is a copy of {x} under other names"


def _same_values(source: Source, x: Column, y: Column) -> bool:
    """One-to-one bins are no proof: numbers must rise together."""
    if x.kind == y.kind == "discrete":
        return True
    if "discrete" in (x.kind, y.kind):
        return False
    one, other = (source.column(column.name).rank("dense").to_numpy() for column in (x, y))
    known = ~(np.isnan(one.astype(float)) | np.isnan(other.astype(float)))
    return bool(np.array_equal(one[known], other[known]))


def _conditionals(
    coded: Mapping[str, Coded],
    columns: Mapping[str, Column],
    table: Table,
    given: Sequence[tuple[str, str, str]],
    rows: int,
    label: str | None,
) -> list[Conditional]:
    """The triples that were asked for, and those where Z may stand between X and Y."""
    wanted = [triple for triple in given if all(name in coded for name in triple) and len(set(triple)) == 3]
    limit = _CONDITIONALS_OF_MANY if rows > _MANY_ROWS else _CONDITIONALS
    found = [triple for triple in _mediated(columns, table, label) if triple not in wanted]
    return [
        Conditional(
            measure_given([coded[x], coded[z]], coded[y]),
            table.u(y, x),
            table.u(y, z),
            asked=number < len(wanted),
        )
        for number, (x, z, y) in enumerate([*wanted, *found[:limit]])
    ]


def _mediated(columns: Mapping[str, Column], table: Table, label: str | None) -> list[tuple[str, str, str]]:
    """(X, Z, Y): X holds Y, X tells at least half of Z, and Z something of Y; the strongest X -> Y first.

    Z never tells all of X (then it is X) and the label explains nothing that may be acted upon.
    """
    names = [
        name
        for name in dict.fromkeys(x for x, _ in table.pairs)
        if columns[name].set_aside is None and name != label
    ]
    strong = sorted(
        (pair for (x, y), pair in table.pairs.items() if x in names and y in names and holds(pair)),
        key=lambda pair: -pair.bits,
    )
    return [
        (pair.given[0], z, pair.of)
        for pair in strong
        for z in names
        if z not in (pair.given[0], pair.of)
        and table.u(z, pair.given[0]).u_adjusted >= _MEDIATOR
        and table.u(pair.of, z).is_clear
        and table.u(pair.given[0], z).u_adjusted < 1 - HOLDS
    ]
