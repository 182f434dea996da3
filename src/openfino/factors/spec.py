"""What each factor of the recipe is, checked against the table before any image is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from openfino.errors import InputProblemsError, Problem
from openfino.factors.infer import infer_kind
from openfino.factors.numbers import Period, Reading, period_length, read_numbers, read_phases
from openfino.factors.timestamps import ACCEPTED, NAMED_PERIODS
from openfino.manifest import Manifest
from openfino.recipe import FactorKind, FactorRole, FactorSettings
from openfino.tables import value_keys

Output = Literal["sigmoid", "tanh", "identity"]

_IDENTIFIER_SHARE = 0.9
_IDENTIFIER_ROWS = 20


@dataclass(frozen=True)
class FactorSpec:
    """One factor, resolved.

    Attributes:
        name: its key in the recipe.
        columns: one column of the table; two or more for ``vector``.
        kind: discrete, continuous, cyclic or vector.
        role: informative, spurious or watched (measured only).
        period: cyclic only: ``hour``, ``weekday``, ``month``, ``day_of_year``, or a length in the units of the
            column.
        output: activation of the regressor; None for discrete.
        weight: of the factor's term in the total loss (eq. 4).
    """

    name: str
    columns: tuple[str, ...]
    kind: FactorKind
    role: FactorRole
    period: Period | None = None
    output: Output | None = None
    weight: float = 0.03


def resolve_specs(
    manifest: Manifest, settings: Mapping[str, FactorSettings]
) -> tuple[dict[str, FactorSpec], dict[str, str]]:
    """Resolve every factor against the whole table.

    Returns:
        The factors by name, and for each a sentence that says where its kind comes from, with a warning where
        one is due.

    Raises:
        InputProblemsError: with every problem of every factor: absent columns, contradictory settings, values
            that the kind cannot read (with their rows), constant or empty columns.
    """
    specs, reasons = {}, {}
    problems: list[Problem] = []
    for name, given in settings.items():
        found = _check_columns(manifest, name, given)
        if not found:
            spec, reason, found = _resolve(manifest, name, given)
            specs[name], reasons[name] = spec, reason
        problems += found
    if problems:
        raise InputProblemsError(problems)
    return specs, reasons


def _check_columns(manifest: Manifest, name: str, given: FactorSettings) -> list[Problem]:
    """Problems of the columns themselves: absent, paths, empty, no single values."""
    where = f"factors.{name}"
    columns = [name] if given.columns is None else given.columns
    problems = []
    if not columns or len(set(columns)) < len(columns):
        problems.append(
            Problem(f"{where}.columns", f"{columns} does not name each column once", "Correct the list")
        )
    for column in dict.fromkeys(columns):
        place = f"{manifest.name}, column {column}"
        if column not in manifest.table.columns:
            problems.append(manifest.absent(column, where))
        elif column in manifest.path_columns:
            what = f"column {column!r} holds the image paths, so it is different for every image"
            problems.append(Problem(where, what, "Choose a column with metadata"))
        elif manifest.table[column].null_count() == len(manifest):
            problems.append(
                Problem(place, "every value is missing", f"Fill the column in, or remove {where}")
            )
        elif manifest.table[column].dtype.is_nested() or manifest.table[column].dtype in (
            pl.Binary,
            pl.Object,
        ):
            what = f"holds {manifest.table[column].dtype}, not one value per row"
            problems.append(Problem(place, what, "Give every value its own column"))
    return problems


def _resolve(manifest: Manifest, name: str, given: FactorSettings) -> tuple[FactorSpec, str, list[Problem]]:
    columns = tuple(given.columns or [name])
    problems = []
    if given.kind is not None:
        kind, reason = given.kind, "Kind as declared"
    elif len(columns) > 1:
        kind, reason = "vector", f"Kind from its {len(columns)} columns"
    elif given.period is not None:
        kind, reason = "cyclic", "Kind from its period"
    else:
        inference = infer_kind(manifest.table[columns[0]])
        kind, reason = inference.kind, f"Kind inferred: {inference.reason}"
        if inference.doubtful is not None:
            problems.append(_doubtful(manifest, name, columns[0], inference.doubtful))
    output: Output | None = given.output
    if output is None and kind != "discrete":
        output = "tanh" if kind == "cyclic" else "sigmoid"
    spec = FactorSpec(name, columns, kind, given.role, given.period, output, given.weight)
    problems += _check_settings(spec, given)
    if not problems:
        problems = _check_values(manifest, spec)
    warning = _identifier_warning(manifest, spec) if not problems else ""
    return spec, f"{reason}.{warning}", problems


def _check_settings(spec: FactorSpec, given: FactorSettings) -> list[Problem]:
    """Settings that contradict the kind."""
    where = f"factors.{spec.name}"
    problems = []
    if spec.kind == "vector" and len(spec.columns) < 2:
        what = f"a vector needs at least two columns, not {len(spec.columns)}"
        problems.append(
            Problem(where, what, f"Write {where}.columns: [latitude, longitude], or another kind")
        )
    if spec.kind != "vector" and len(spec.columns) > 1:
        what = f"a {spec.kind} factor has one column, not {len(spec.columns)}"
        problems.append(Problem(where, what, "Write kind: vector, or one factor per column"))
    if spec.kind == "cyclic" and spec.period is None:
        named = ", ".join(NAMED_PERIODS)
        remedy = f"Write period: {named}, or the length of the cycle such as 360 for degrees"
        problems.append(Problem(where, "a cyclic factor needs a period", remedy))
    if spec.kind != "cyclic" and spec.period is not None:
        what = f"period has no meaning for a {spec.kind} factor"
        problems.append(Problem(where, what, "Write kind: cyclic, or remove period"))
    if spec.period is not None and not 0 < period_length(spec.period) < math.inf:
        problems.append(Problem(f"{where}.period", f"{spec.period} is no length", "Write a number above 0"))
    if spec.kind == "discrete" and given.output is not None:
        what = "output has no meaning for a discrete factor, which has prototypes and no regressor"
        problems.append(Problem(where, what, "Remove output, or write kind: continuous"))
    return problems


def _check_values(manifest: Manifest, spec: FactorSpec) -> list[Problem]:
    """Values that the kind cannot read, and columns that hold one value only."""
    problems = []
    complete = np.ones(len(manifest), dtype=bool)
    for name in spec.columns:
        column = manifest.table[name]
        if spec.kind == "discrete":
            constant = value_keys(column.drop_nulls()).n_unique() == 1
        else:
            reading = read_factor_column(column, spec)
            if reading.unreadable.any():
                problems.append(_unreadable(manifest, spec, name, reading))
                continue
            complete &= reading.numbers.is_not_null().to_numpy()
            constant = _is_constant(reading.numbers.drop_nulls(), spec.kind)
        if constant:
            value = column.drop_nulls()[0]
            what = f"holds one value only, {value!r}: there is nothing to keep or to forget"
            remedy = f"Remove factors.{spec.name}, or add images with other values"
            problems.append(Problem(f"{manifest.name}, column {name}", what, remedy))
    if not problems and not complete.any():
        what = f"no row has a value in each of {', '.join(spec.columns)}"
        problems.append(Problem(f"factors.{spec.name}", what, "Fill the columns in, or remove the factor"))
    return problems


def read_factor_column(column: pl.Series, spec: FactorSpec, is_time: bool | None = None) -> Reading:
    """Read one column of a continuous, cyclic or vector factor; cyclic: fractions of a turn."""
    if spec.period is not None:
        return read_phases(column, spec.period, is_time)
    return read_numbers(column, is_time)


def _is_constant(numbers: pl.Series, kind: FactorKind) -> bool:
    if kind != "cyclic":
        return numbers.min() == numbers.max()
    # The end of a turn is its beginning; a millionth of a turn is no difference.
    return np.unique(np.round(numbers.to_numpy(), 6) % 1.0).size == 1


def _unreadable(manifest: Manifest, spec: FactorSpec, column: str, reading: Reading) -> Problem:
    wanted = "neither a number nor a timestamp"
    if isinstance(spec.period, str):
        top = math.ceil(period_length(spec.period))
        wanted = f"neither a timestamp nor a number from 0 to {top} (period: {spec.period})"
    count = int(reading.unreadable.sum())
    what = f"{count:,} {'value is' if count == 1 else 'values are'} {wanted}"
    return _bad_values(manifest, spec.name, column, reading, what)


def _doubtful(manifest: Manifest, name: str, column: str, reading: Reading) -> Problem:
    count = int(reading.unreadable.sum())
    kind = "timestamps" if reading.is_time else "numbers"
    what = f"holds {kind} except in {count:,} {'row' if count == 1 else 'rows'}"
    return _bad_values(manifest, name, column, reading, what)


def _bad_values(manifest: Manifest, name: str, column: str, reading: Reading, what: str) -> Problem:
    rows = reading.unreadable.arg_true().to_numpy()
    values = manifest.table[column].gather(rows[:5]).to_list()
    remedy = (
        f"Correct them, list tokens without a value under 'missing', or write factors.{name}.kind: discrete. "
        f"Timestamps: {ACCEPTED}"
    )
    listed = f"{what}: {manifest.list_rows(rows, values)}"
    return Problem(f"{manifest.name}, column {column}", listed, remedy)


def _identifier_warning(manifest: Manifest, spec: FactorSpec) -> str:
    if spec.kind != "discrete":
        return ""
    keys = value_keys(manifest.table[spec.columns[0]]).drop_nulls()
    distinct = keys.n_unique()
    if len(keys) < _IDENTIFIER_ROWS or distinct <= _IDENTIFIER_SHARE * len(keys):
        return ""
    return (
        f" Warning: {distinct:,} distinct values in {len(keys):,} rows look like an identifier; "
        "with hardly two images per value there is nothing to learn from it."
    )
