"""What each column is: its kind, how many values, how complete, and whether it is to be set aside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from openfino.audit.coding import Coded, code_column, number_text, time_text
from openfino.audit.source import Source
from openfino.audit.words import names_a_condition, names_an_identifier
from openfino.factors.numbers import Period
from openfino.recipe import FactorKind

DeclaredKinds = Mapping[str, tuple[FactorKind, Period | None]]

IDENTIFIER_SHARE = 0.9
_FEW_ROWS = 20
_SAMPLE = 2000
_WORDS, _LENGTH, _TEXTS = 4.0, 60.0, 0.3
_COUNTED_EXACTLY = 1_000_000
_IN_PATH = 0.95
_FILE_NAMES = "holds names of files"
_FILE = r"(?i)\.(tiff?|png|jpe?g|bmp|webp|gif|npy|dcm)\s*$"
_SEPARATORS = re.compile(r"[\\/_.\s-]+")


@dataclass
class Column:
    """One column as the audit describes it.

    Attributes:
        name: of the column.
        kind: discrete, continuous, cyclic or vector; ``path`` for image paths.
        reason: why it has this kind.
        rows: rows of the table.
        values: distinct values, exactly up to a million rows of numbers, closely beyond.
        missing: rows without a value, or with one that cannot be read.
        singletons: discrete: values that stand in one row only.
        imbalance: share of the commonest value (or bin) among the known rows.
        entropy: of the values (or bins), bits.
        range: smallest and largest number or moment.
        examples: common values with their rows, commonest first; a few numbers for the other kinds.
        bins: continuous and cyclic: the ranges of the quantile bins.
        set_aside: why it takes no part in the dependence table; None if it does.
        in_path: whether its value stands in the image's path.
        period: cyclic: as declared.
        coded: its codes; None where there are none to count.
    """

    name: str
    kind: str
    reason: str
    rows: int
    values: int = 0
    missing: int = 0
    singletons: int | None = None
    imbalance: float = 0.0
    entropy: float = 0.0
    range: tuple[str, str] | None = None
    examples: list[str] = field(default_factory=list)
    bins: list[str] | None = None
    set_aside: str | None = None
    in_path: bool = False
    period: Period | None = None
    coded: Coded | None = None

    @property
    def known(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    def to_json(self) -> dict[str, Any]:
        """Everything but the codes."""
        shown = {
            key: value for key, value in vars(self).items() if key not in ("coded", "name", "rows", "period")
        }
        return shown | {"missing_share": self.missing / self.rows}


def describe_column(source: Source, name: str, declared: DeclaredKinds) -> Column:
    """Read, encode and describe one column that holds no image paths."""
    series = source.column(name)
    column = Column(name, "discrete", "", source.rows, missing=series.null_count())
    dtype = series.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        column.reason = f"{dtype} values"
        column.set_aside = f"holds {dtype}, not one value per row"
        return column
    kind, period = declared.get(name, (None, None))
    if kind is None and _is_named_label(series, name):
        kind = "discrete"
        coded = code_column(series, kind)
        reason = f"whole numbers in a column called {name} are names, not quantities"
    else:
        coded = code_column(series, kind, period)
        reason = coded.reason
    column.kind, column.reason, column.coded, column.period = coded.kind, reason, coded, period
    _count(column, series, coded)
    column.set_aside = _why_aside(column, series, coded)
    if column.set_aside is not None:
        column.coded = None
    return column


def describe_paths(source: Source, name: str) -> Column:
    """An image path column, of which only a few rows are read."""
    shown = source.some_rows([name])[name].drop_nulls().cast(pl.String)
    text = "image paths"
    column = Column(name, "path", text, source.rows, set_aside=text)
    column.examples = shown.head(3).to_list()
    column.values = source.rows
    return column


def mark_path_leaks(source: Source, columns: Mapping[str, Column]) -> None:
    """Set aside columns that are the file's name, and mark those whose value stands in the path."""
    names = [name for name, column in columns.items() if column.kind == "discrete" and column.values > 1]
    if not source.path_columns or not names:
        return
    rows = source.some_rows([*source.path_columns, *names])
    paths = [" ".join(map(str, row)) for row in rows.select(source.path_columns).rows()]
    tokens = [set(_SEPARATORS.split(path)) for path in paths]
    for name in names:
        values = [
            (None if value is None else str(value).strip()) for value in rows[name].cast(pl.String).to_list()
        ]
        known = [place for place, value in enumerate(values) if value and len(value) > 1]
        inside = sum(values[place] in tokens[place] or f"/{values[place]}" in paths[place] for place in known)
        if not known or inside < _IN_PATH * len(known):
            continue
        column = columns[name]
        column.in_path = True
        is_unique = column.values >= IDENTIFIER_SHARE * column.known >= IDENTIFIER_SHARE * _FEW_ROWS
        if is_unique and column.set_aside != _FILE_NAMES:
            _aside(column, "is part of the file name: it names the image, it does not describe it")


def _aside(column: Column, why: str) -> None:
    column.set_aside, column.coded = why, None


def _is_named_label(series: pl.Series, name: str) -> bool:
    """Whole numbers that name plates or patients are labels, however many there are."""
    return series.dtype.is_integer() and (names_a_condition(name) or names_an_identifier(name))


def _count(column: Column, series: pl.Series, coded: Coded) -> None:
    column.missing = column.rows - coded.known
    if coded.size == 0:
        return
    share = coded.counts / coded.known
    column.entropy = max(0.0, float(-(share * np.log2(share)).sum()))  # in this order: never -0.0
    column.imbalance = float(share.max())
    if coded.kind == "discrete":
        column.values = coded.size
        column.singletons = int(np.count_nonzero(coded.counts == 1))
        commonest = np.argsort(-coded.counts, kind="stable")[:4]
        column.examples = [f"{coded.labels[code]} ({coded.counts[code]:,})" for code in commonest]
        if series.dtype.is_numeric():
            column.range = (_number(series.min()), _number(series.max()))
        return
    column.bins = list(coded.labels)
    if len(series) <= _COUNTED_EXACTLY:
        distinct = series.drop_nulls().unique(maintain_order=True)
        column.values, some = len(distinct), distinct.head(3)
    else:
        column.values = _at_most(series.approx_n_unique(), coded.known)
        some = series.head(3).drop_nulls()
    column.examples = [str(value) for value in some.to_list()]
    if coded.low is not None and coded.high is not None and coded.kind != "cyclic":
        form = time_text if coded.is_time else _number
        column.range = (form(coded.low), form(coded.high))


def _at_most(estimate: Any, limit: int) -> int:
    return min(int(estimate), limit)


def _number(value: Any) -> str:
    return number_text(float(value))


def _why_aside(column: Column, series: pl.Series, coded: Coded) -> str | None:
    """The first reason that applies: empty, constant, file name, free text, identifier."""
    if coded.size == 0:
        return (
            "is empty: every value is missing"
            if series.null_count() == len(series)
            else "holds no value that can be read"
        )
    if (coded.size if coded.kind == "discrete" else column.values) == 1:
        return f"is constant: {column.examples[0]}"
    if coded.size == 1:
        return "is nearly constant: one bin holds all of its numbers"
    if series.dtype == pl.String:
        present = series.drop_nulls()
        sample = present.gather_every(max(1, len(present) // _SAMPLE))
        if _share(sample.str.contains(_FILE)) >= IDENTIFIER_SHARE:
            return _FILE_NAMES
        if coded.kind == "discrete" and _is_prose(sample, column):
            return f"is free text: {column.values:,} different texts in {column.known:,} rows"
    return _identifier(column, series)


def _is_prose(sample: pl.Series, column: Column) -> bool:
    words = _share(sample.str.count_matches(r"\s+")) + 1
    length = _share(sample.str.len_chars())
    return column.values >= _TEXTS * column.known and (words >= _WORDS or length >= _LENGTH)


def _share(values: pl.Series) -> float:
    return float(values.to_numpy().mean())


def _identifier(column: Column, series: pl.Series) -> str | None:
    known = column.known
    if known < _FEW_ROWS or column.values < IDENTIFIER_SHARE * known:
        return None
    found = f"is an identifier: {column.values:,} values in {known:,} rows"
    if column.kind == "discrete":
        return found
    if not series.dtype.is_integer():
        return None
    low, high = column.range or ("0", "0")
    is_dense = float(high) - float(low) < 1.2 * known
    return found if is_dense or names_an_identifier(column.name) else None
