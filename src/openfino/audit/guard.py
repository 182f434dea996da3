"""Before a run: no spurious factor may take an informative one along (FINO, App. A.3)."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import polars as pl

from openfino.audit.advice import Table, anchor_of, determines, holds
from openfino.audit.coding import Coded, code_column, join
from openfino.audit.dependence import measure_pair
from openfino.audit.describe import describe_column
from openfino.audit.source import open_source
from openfino.audit.words import names_a_condition
from openfino.errors import Problem
from openfino.factors.spec import FactorSpec

GO_ON = "or write entangled: record to go on and have it recorded"


def entangled_problems(
    table: pl.DataFrame, specs: Mapping[str, FactorSpec], ignored: Collection[str] = ()
) -> list[Problem]:
    """One problem for each spurious factor that determines an informative one, or has no anchor.

    A factor needs an anchor if it holds something worth keeping: an informative or watched factor, or, where the recipe
    keeps nothing at all, any column of the table that does not name a condition of acquisition. Its anchor is an
    informative factor that it holds, or that holds it.

    Args:
        table: the rows that train.
        specs: the factors by name.
        ignored: columns that are no factors: image paths, the label, the split, the group.
    """
    spurious = [name for name, spec in specs.items() if spec.role == "spurious"]
    if not spurious or table.is_empty():
        return []
    kept = {name: _code(table, spec) for name, spec in specs.items() if spec.role == "informative"}
    others = kept | {
        name: coded
        for name, spec in specs.items()
        if spec.role == "watched" and not _is_condition(coded := _code(table, spec))
    }
    if not kept:
        used = {column for spec in specs.values() for column in spec.columns}
        others |= _contents(table, {*ignored, *used})
    problems = []
    for name in spurious:
        factor = _code(table, specs[name])
        if problem := _problem(factor, kept, others):
            problems.append(problem)
    return problems


def _problem(factor: Coded, kept: Mapping[str, Coded], others: Mapping[str, Coded]) -> Problem | None:
    where = f"factors.{factor.name}"
    pairs = {name: measure_pair(factor, other) for name, other in others.items()}
    settled = [pairs[name].forward for name in kept if determines(pairs[name].forward)]
    if settled:
        what = f"is spurious but determines {settled[0].of}, which is informative: {settled[0]}"
        return Problem(where, what, f"Make it informative or watched, {GO_ON}")
    if any(holds(pairs[name].forward) or holds(pairs[name].backward) for name in kept):
        return None
    held = Table({("", name): pair.forward for name, pair in pairs.items() if holds(pair.forward)}).among(
        "", others
    )
    if not held:
        return None
    lost = anchor_of(held) or held[0].of
    row = next(pair for pair in held if pair.of == lost)
    what = f"is spurious without an anchor: forgetting it would erase part of {lost}: {row}"
    beside = f"Make {lost} informative beside it, or" if not determines(row) else "Make"
    return Problem(where, what, f"{beside} {factor.name} watched, {GO_ON}")


def _code(table: pl.DataFrame, spec: FactorSpec) -> Coded:
    """The factor's values as codes under its own name; several columns are taken together."""
    kind = "continuous" if spec.kind == "vector" else spec.kind
    coded = [code_column(table[column], kind, spec.period) for column in spec.columns]
    return replace(coded[0] if len(coded) == 1 else join(coded), name=spec.name)


def _is_condition(coded: Coded) -> bool:
    return coded.is_time or names_a_condition(coded.name)


def _contents(table: pl.DataFrame, without: Collection[str]) -> dict[str, Coded]:
    """Columns that may say what an image shows, as the audit describes them."""
    source = open_source(table.select(column for column in table.columns if column not in without))
    described = [
        describe_column(source, name, {}) for name in source.columns if name not in source.path_columns
    ]
    return {
        column.name: column.coded
        for column in described
        if column.coded is not None and not _is_condition(column.coded)
    }
