"""What a label asks of a head: one class, any number of labels, or a number; loss and prediction for each.

Logits may have leading dimensions: heads of a whole grid are trained together (:mod:`openfino.evaluation.grid`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openfino.errors import InputProblemsError, Problem
from openfino.evaluation.splits import Rows
from openfino.manifest import Manifest
from openfino.tables import value_keys

Kind = Literal["single", "multi", "regression"]

SEPARATORS = ("|", ";")


@dataclass(frozen=True)
class Targets:
    """The label of n rows.

    Attributes:
        values: single: number of the class, int64 [n], -1 where not valid; multi: 0 and 1 of each label, float32
            [n, t]; regression: the number itself, float32 [n, 1]. 0 where not valid, but for classes.
        valid: bool [n]; False where the table holds no label, or none that the task knows.
    """

    values: NDArray[np.int64] | NDArray[np.float32]
    valid: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.valid)

    def at(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> "Targets":
        """The targets of some of the rows."""
        return Targets(self.values[positions], self.valid[positions])


@dataclass(frozen=True)
class Predictions:
    """What a head says of n rows.

    Attributes:
        scores: probability of each class or label, or the number itself, float32 [n, t].
        chosen: single: the most probable class, int64 [n]; multi: 1 where the probability is above one half, else 0,
            int64 [n, t]; regression: the same as ``scores``.
    """

    scores: NDArray[np.float32]
    chosen: NDArray[np.int64] | NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, positions: NDArray[np.int64] | NDArray[np.bool_]) -> "Predictions":
        """The predictions for some of the rows."""
        return Predictions(self.scores[positions], self.chosen[positions])


@dataclass(frozen=True)
class Task:
    """A label as a task.

    Attributes:
        kind: ``single``: one class per image; ``multi``: any number of labels; ``regression``: a number.
        label: the column.
        names: classes or labels in the order of the outputs, sorted as text; the column itself for a number.
        separator: multi: what separates labels in text; empty for a column of lists.
        centre: regression: mean of the numbers that train. scale: their standard deviation. Heads predict
            (number - centre) / scale, so that one grid of learning rates serves any unit.
    """

    kind: Kind
    label: str
    names: tuple[str, ...]
    separator: str = ""
    centre: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """Outputs of a head."""
        return len(self.names)

    def targets(self, table: pl.DataFrame, rows: Rows) -> Targets:
        """The label of ``rows`` of ``table``, which may be another table than the task was made from."""
        column = table[self.label].gather(rows)
        if self.kind == "regression":
            return _numbers(column)
        if self.kind == "multi":
            return self._label_sets(column)
        codes = value_keys(column).cast(pl.Enum(self.names), strict=False).to_physical().cast(pl.Int64)
        values: NDArray[np.int64] = codes.fill_null(-1).to_numpy().astype(np.int64)
        return Targets(values, values >= 0)

    def losses(self, logits: Tensor, values: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of every row.

        Args:
            logits: [..., n, t].
            values: as in :class:`Targets`, valid rows only, on the device of ``logits``.
            smoothing: s of label smoothing. single: the target is (1 - s) of the class and s / t of each; multi: a 1
                becomes 1 - s / 2 and a 0 becomes s / 2; a number stays as it is.

        Returns:
            Cross-entropy, binary cross-entropy averaged over the labels, or squared error of the standardised number,
            [..., n].
        """
        if self.kind == "single":
            logs = F.log_softmax(logits, dim=-1)
            own = logs.gather(-1, values.expand(logits.shape[:-1])[..., None])[..., 0]
            return -(1 - smoothing) * own - smoothing * logs.mean(dim=-1) if smoothing else -own
        if self.kind == "multi":
            soft = values.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, soft.expand_as(logits), reduction="none").mean(
                dim=-1
            )
        standard = (values.to(logits.dtype) - self.centre) / self.scale
        return ((logits - standard) ** 2).mean(dim=-1)

    def loss(self, logits: Tensor, values: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean of :meth:`losses`, a scalar."""
        return self.losses(logits, values, smoothing).mean()

    def predict(self, logits: Tensor) -> Predictions:
        """What logits [n, t] say."""
        numbers = logits.detach().float().cpu()
        if self.kind == "regression":
            scores = (numbers * self.scale + self.centre).numpy()
            return Predictions(scores, scores)
        if self.kind == "multi":
            return self.predict_scores(torch.sigmoid(numbers).numpy())
        return self.predict_scores(torch.softmax(numbers, dim=-1).numpy())

    def predict_scores(self, scores: NDArray[np.float32]) -> Predictions:
        """What probabilities, or numbers in the unit of the table, say: float32 [n, t]."""
        if self.kind == "regression":
            return Predictions(scores, scores)
        if self.kind == "multi":
            return Predictions(scores, (scores > 0.5).astype(np.int64))
        return Predictions(scores, scores.argmax(axis=1).astype(np.int64))

    def _label_sets(self, column: pl.Series) -> Targets:
        rows, names = _label_pairs(column, self.separator)
        codes = names.cast(pl.Enum(self.names), strict=False).to_physical()
        known = codes.is_not_null().to_numpy()
        values = np.zeros((len(column), self.outputs), dtype=np.float32)
        values[rows[known], codes.drop_nulls().to_numpy()] = 1.0
        return Targets(values, column.is_not_null().to_numpy())


def resolve_task(
    manifest: Manifest, label: str, kind: Kind | None = None, *, rows: Rows | None = None
) -> Task:
    """The task of a column.

    When ``kind`` is not given, a column of lists is ``multi``, and so is text with ``|`` (or, where no value has that,
    ``;``) in it, which separates labels; numbers that are not all whole are ``regression``; everything else, whole
    numbers too, is ``single``. In a ``multi`` column an empty list says "none of the labels", a missing value "not
    known".

    Args:
        manifest: the table; classes and labels are those of all its rows.
        label: the column.
        kind: what to take it for.
        rows: regression: those whose mean and standard deviation scale the number, which should be the rows that train;
            all rows when not given.

    Raises:
        InputProblemsError: if there is no such column, or it holds nothing to learn of this kind.
    """
    if label not in manifest.table.columns:
        raise InputProblemsError([manifest.absent(label, "label")])
    column = manifest.table[label]
    kind = kind or kind_of(column)
    if kind == "regression":
        return _regression(manifest, column, rows)
    if kind == "multi":
        separator = "" if _is_list(column) else _separator(column)
        if separator and not column.dtype.is_numeric() and column.dtype != pl.String:
            _refuse(label, f"it holds {column.dtype}, neither lists nor text", "Write labels separated by |")
        found = _label_pairs(column, separator)[1]
        needed = 1
    else:
        if column.dtype.is_nested():
            _refuse(label, f"it holds {column.dtype}, not one class", "Take it for several labels: multi")
        found, needed = value_keys(column).drop_nulls(), 2
        separator = ""
    names = tuple(found.unique().sort().to_list())
    if len(names) < needed:
        what = f"it holds {len(names)} different labels; {needed} or more are needed"
        _refuse(label, what, "Name another column, or fill it")
    return Task(kind, label, names, separator)


def label_problems(
    task: Task, targets: Targets, rows: Mapping[str, Rows], names: Mapping[str, str]
) -> list[Problem]:
    """Why a probe of the label cannot be fitted on, chosen by or scored on these rows.

    Args:
        task: of the label.
        targets: of every row of the table.
        rows: labelled rows of each split; those of ``train`` train.
        names: what the table calls each of them.
    """
    where = {key: f"column {task.label}, split {names[key]}" for key in rows}
    empty = [
        Problem(where[key], "no row has a label", "Fill it, or name another split")
        for key, own in rows.items()
        if len(own) == 0
    ]
    if empty or task.kind != "single":
        return empty
    known = np.unique(targets.values[rows["train"]])
    if len(known) < 2:
        what = f"all {len(rows['train'])} labelled rows have one label"
        return [Problem(where["train"], what, "Name another label or split")]
    return [
        Problem(
            where[key],
            "none of its labels occurs among the rows that train",
            "Name another split, or see that both are written alike",
        )
        for key, own in rows.items()
        if not np.isin(targets.values[own], known).any()
    ]


def kind_of(column: pl.Series) -> Kind:
    """What a column is taken for (:func:`resolve_task`)."""
    if _is_list(column):
        return "multi"
    if column.dtype == pl.String:
        marked = any(column.str.contains(mark, literal=True).any() for mark in SEPARATORS)
        return "multi" if marked else "single"
    if column.dtype.is_float() or column.dtype.is_decimal():
        numbers = column.cast(pl.Float64).drop_nulls()
        return "single" if (numbers == numbers.round(0)).all() else "regression"
    return "single"


def _is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List | pl.Array)


def _separator(column: pl.Series) -> str:
    """The first of the separators that any value holds; the first of all where none does."""
    text = column.cast(pl.String) if not column.dtype.is_nested() else pl.Series([], dtype=pl.String)
    return next((mark for mark in SEPARATORS if text.str.contains(mark, literal=True).any()), SEPARATORS[0])


def _label_pairs(column: pl.Series, separator: str) -> tuple[Rows, pl.Series]:
    """Every label that a row has: the row, int64 [p], and the label as text."""
    lists = value_keys(column).str.split(separator) if separator else column
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    counts = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(column)), counts)
    names = value_keys(lists.filter(pl.Series(counts > 0)).explode()).str.strip_chars()
    named = (names != "").fill_null(False)
    return rows[named.to_numpy()], names.filter(named)


def _regression(manifest: Manifest, column: pl.Series, rows: Rows | None) -> Task:
    if not (column.dtype.is_numeric() or column.dtype.is_decimal()):
        _refuse(column.name, f"it holds {column.dtype}, not numbers", "Take it for a class: single")
    found = _numbers(column if rows is None else column.gather(rows))
    numbers = found.values[found.valid].astype(np.float64)
    if len(np.unique(numbers)) < 2:
        what = f"its {len(numbers)} numbers in the rows that train are all the same"
        _refuse(column.name, what, "Name another column, or fill it")
    return Task(
        "regression", column.name, (column.name,), centre=float(numbers.mean()), scale=float(numbers.std())
    )


def _numbers(column: pl.Series) -> Targets:
    numbers = column.cast(pl.Float64).to_numpy().astype(np.float64)
    valid = np.isfinite(numbers)
    return Targets(np.where(valid, numbers, 0.0).astype(np.float32)[:, None], valid)


def _refuse(label: str, what: str, remedy: str) -> None:
    raise InputProblemsError([Problem(f"column {label}", what, remedy)])
