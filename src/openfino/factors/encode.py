"""Factors as tensors, and the vocabularies that tie tensors to names (DESIGN decisions 2 and 3).

A vocabulary is fitted once, stored with the run and never re-bound: a value keeps its row in the prototype bank
however the table changes. A missing value is not valid and trains nothing; it is never some default.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.factors.batch import FactorBatch
from openfino.factors.numbers import Period, Reading
from openfino.factors.spec import FactorSpec, read_factor_column
from openfino.recipe import FactorKind
from openfino.tables import value_keys

_FORMAT = 1


@dataclass(frozen=True)
class Vocabulary:
    """What a factor's tensors mean, by name.

    Attributes:
        kind: kind of the factor.
        values: discrete: the name of each row of the prototype bank.
        counts: discrete: rows of the table with each value.
        minimum: continuous and vector: of each dimension; seconds since 1970-01-01 UTC for timestamps.
        maximum: of each dimension.
        is_time: all but discrete: whether each column holds timestamps.
        period: cyclic.
        count: rows of the table with a value.
        n_missing: rows without one, or with one that cannot be read.
    """

    kind: FactorKind
    values: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    minimum: list[float] = field(default_factory=list)
    maximum: list[float] = field(default_factory=list)
    is_time: list[bool] = field(default_factory=list)
    period: Period | None = None
    count: int = 0
    n_missing: int = 0

    @property
    def size(self) -> int:
        """Discrete: rows of the prototype bank; otherwise dimensions of the target."""
        return {"discrete": len(self.values), "cyclic": 2}.get(self.kind, len(self.minimum))

    def extended(self, table: pl.DataFrame, spec: FactorSpec) -> "Vocabulary":
        """This vocabulary for a changed ``table``: known values keep their rows, new ones are appended.

        Counts become those of ``table``. Ranges stay: targets would be re-scaled under a trained regressor.

        Raises:
            OpenfinoError: if ``spec`` is of another kind, size or period than this vocabulary.
        """
        self.check(spec)
        if self.kind != "discrete":
            count = int(_read_dimensions(table, spec, self.is_time)[1].sum())
            return replace(self, count=count, n_missing=len(table) - count)
        counted = _count_values(table[spec.columns[0]])
        values = [*self.values, *sorted(counted.keys() - set(self.values))]
        counts = [counted.get(value, 0) for value in values]
        return replace(
            self, values=values, counts=counts, count=sum(counts), n_missing=len(table) - sum(counts)
        )

    def check(self, spec: FactorSpec) -> None:
        """Refuse a factor that this vocabulary was not made for.

        Raises:
            OpenfinoError: if kind, number of columns or period differ.
        """
        columns = 1 if self.kind in ("discrete", "cyclic") else len(self.minimum)
        stored, asked = (self.kind, columns, self.period), (spec.kind, len(spec.columns), spec.period)
        if stored != asked:
            raise OpenfinoError(
                f"factors.{spec.name}: the stored vocabulary has (kind, columns, period) {stored}, the recipe "
                f"asks for {asked}; put the factor back, or give it a new name"
            )


@dataclass(frozen=True)
class EncodedFactor:
    """One factor of N rows as tensors.

    Attributes:
        spec: the factor.
        vocabulary: what the values mean.
        values: discrete: row of the vocabulary, int64 [N]; continuous and vector: float32 [N, n] in [0, 1];
            cyclic: (sin, cos), float32 [N, 2]. Finite and in range, but meaningless, where not valid.
        valid: bool [N]; False where the table holds no value that the vocabulary knows.
        unseen: rows that hold a value which the vocabulary does not know or the kind cannot read.
        clamped: rows with a number outside the range of the vocabulary, moved to its end.
    """

    spec: FactorSpec
    vocabulary: Vocabulary
    values: Tensor
    valid: Tensor
    unseen: int
    clamped: int = 0

    @property
    def target_size(self) -> int:
        """Discrete: rows of the prototype bank; otherwise dimensions of the target."""
        return self.vocabulary.size

    def batch(self, rows: Tensor) -> FactorBatch:
        """The values of ``rows``, int64 [B], on the device of this factor's tensors."""
        return FactorBatch(values=self.values[rows], valid=self.valid[rows])


def fit_vocabulary(table: pl.DataFrame, spec: FactorSpec) -> Vocabulary:
    """The vocabulary of the N rows of ``table``; values are sorted by name.

    Raises:
        OpenfinoError: if the rows hold no value or one only.
    """
    if spec.kind == "discrete":
        counted = _count_values(table[spec.columns[0]])
        values = sorted(counted)
        counts = [counted[value] for value in values]
        _refuse_constant(spec, len(values) < 2)
        return Vocabulary("discrete", values, counts, count=sum(counts), n_missing=len(table) - sum(counts))
    numbers, valid, readings = _read_dimensions(table, spec)
    known, is_time = numbers[valid], [reading.is_time for reading in readings]
    _refuse_constant(spec, len(known) == 0)
    count, n_missing = len(known), len(table) - len(known)
    minimum, maximum = known.min(axis=0).tolist(), known.max(axis=0).tolist()
    _refuse_constant(spec, any(low == high for low, high in zip(minimum, maximum, strict=True)))
    if spec.kind == "cyclic":
        return Vocabulary("cyclic", is_time=is_time, period=spec.period, count=count, n_missing=n_missing)
    return Vocabulary(
        spec.kind, minimum=minimum, maximum=maximum, is_time=is_time, count=count, n_missing=n_missing
    )


def encode(table: pl.DataFrame, spec: FactorSpec, vocabulary: Vocabulary) -> EncodedFactor:
    """Encode the N rows of ``table`` with a vocabulary made for this factor.

    Discrete values become rows of the vocabulary. Numbers are mapped linearly from (minimum, maximum) to
    [0, 1] in float64, and only then rounded to float32. A fraction t of a turn becomes (sin, cos) of 2 pi t.

    Raises:
        OpenfinoError: if ``vocabulary`` was made for another kind, size or period.
    """
    vocabulary.check(spec)
    if vocabulary.kind == "discrete":
        return _encode_discrete(table, spec, vocabulary)
    numbers, valid, readings = _read_dimensions(table, spec, vocabulary.is_time)
    unseen = int(np.any([reading.unreadable.to_numpy() for reading in readings], axis=0).sum())
    numbers[~valid] = 0.0
    clamped = 0
    if vocabulary.kind == "cyclic":
        angle = 2 * math.pi * numbers
        encoded = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    else:
        encoded, outside = _to_unit(numbers, vocabulary)
        clamped = int((valid & outside).sum())
    values = torch.from_numpy(encoded.astype(np.float32))
    return EncodedFactor(spec, vocabulary, values, torch.from_numpy(valid), unseen, clamped)


def save_vocabularies(path: Path, vocabularies: Mapping[str, Vocabulary]) -> None:
    """Write vocabularies by factor name as JSON, whole or not at all."""
    content = {"format": _FORMAT, "factors": {name: asdict(value) for name, value in vocabularies.items()}}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(part, path)


def load_vocabularies(path: Path) -> dict[str, Vocabulary]:
    """Read what :func:`save_vocabularies` wrote.

    Raises:
        OpenfinoError: if the file is absent, damaged or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise OpenfinoError(
                f"{path} has format {content['format']}, this version reads {_FORMAT}; use the version of "
                "openfino that wrote it"
            )
        return {name: Vocabulary(**fields) for name, fields in content["factors"].items()}
    except OSError as error:
        raise OpenfinoError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenfinoError(
            f"{path} holds no vocabularies ({error}); restore it from a copy of the run"
        ) from None


def _count_values(column: pl.Series) -> dict[str, int]:
    counted = value_keys(column).drop_nulls().alias("value").value_counts()
    return dict(zip(counted["value"].to_list(), counted["count"].to_list(), strict=True))


def _read_dimensions(
    table: pl.DataFrame, spec: FactorSpec, is_time: Sequence[bool] | None = None
) -> tuple[np.ndarray, np.ndarray, list[Reading]]:
    """Numbers float64 [N, n], NaN where null; valid bool [N] where no dimension is; the columns' readings."""
    asked: Sequence[bool | None] = is_time or [None] * len(spec.columns)
    readings = [
        read_factor_column(table[name], spec, flag) for name, flag in zip(spec.columns, asked, strict=True)
    ]
    numbers = np.stack([reading.numbers.to_numpy() for reading in readings], axis=1)
    return numbers, ~np.isnan(numbers).any(axis=1), readings


def _to_unit(numbers: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Map [N, n] from the vocabulary's range to [0, 1]; also which rows lay outside it, bool [N]."""
    low, high = np.array(vocabulary.minimum), np.array(vocabulary.maximum)
    inside = np.clip(numbers, low, high)
    with np.errstate(over="ignore"):
        scale = np.where(np.isfinite(high - low), 1.0, 0.5)
    return (inside * scale - low * scale) / (high * scale - low * scale), (inside != numbers).any(axis=1)


def _encode_discrete(table: pl.DataFrame, spec: FactorSpec, vocabulary: Vocabulary) -> EncodedFactor:
    keys = value_keys(table[spec.columns[0]])
    rows = keys.cast(pl.Enum(vocabulary.values), strict=False).to_physical()
    valid = rows.is_not_null().to_numpy()
    unseen = int(keys.is_not_null().sum() - valid.sum())
    values = torch.from_numpy(rows.fill_null(0).to_numpy().astype(np.int64))
    return EncodedFactor(spec, vocabulary, values, torch.from_numpy(valid), unseen)


def _refuse_constant(spec: FactorSpec, is_constant: bool) -> None:
    if is_constant:
        raise OpenfinoError(
            f"factors.{spec.name}: the rows that train hold fewer than two values of {', '.join(spec.columns)}; "
            "there is nothing to keep or to forget: remove the factor, or train on other rows too"
        )
