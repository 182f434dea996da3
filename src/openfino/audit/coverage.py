"""Whether the splits are what they should be: unseen values, factors that separate them, groups on both sides."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openfino.audit.coding import Coded
from openfino.audit.contingency import Contingency, count_pair
from openfino.audit.dependence import measure_pair
from openfino.audit.describe import Column
from openfino.audit.words import names_a_group

_SEPARATES = 0.5
_EXAMPLES = 3


@dataclass(frozen=True)
class Unseen:
    """Values of one column in one split: never seen in training, or shared with it.

    Attributes:
        values: how many.
        rows: images of the split that have one of them.
        examples: some of them, those with most images first.
    """

    values: int
    rows: int
    examples: list[str]


@dataclass(frozen=True)
class SplitCoverage:
    """One split beside training.

    Attributes:
        rows: images in it.
        unseen: by column, discrete values that no training image has.
        shared: by group column (patient, plate, ...), values with images both here and in training.
    """

    rows: int
    unseen: dict[str, Unseen] = field(default_factory=dict)
    shared: dict[str, Unseen] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """The splits of a table.

    Attributes:
        column: that names the split of each row.
        train: the value that stands for training.
        train_rows: images in it.
        splits: every other split.
        separating: columns that tell the split, with the corrected U(split | column).
    """

    column: str
    train: str
    train_rows: int
    splits: dict[str, SplitCoverage]
    separating: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        splits = {
            name: {
                "rows": split.rows,
                "unseen": {key: vars(value) for key, value in split.unseen.items()},
                "shared": {key: vars(value) for key, value in split.shared.items()},
            }
            for name, split in self.splits.items()
        }
        return {
            "column": self.column,
            "train": self.train,
            "train_rows": self.train_rows,
            "splits": splits,
            "separating": self.separating,
        }

    def sentences(self) -> list[str]:
        """What is worth saying, one finding each."""
        said = [
            f"{column} tells the split (corrected U {u:.2f}): scores across splits compare different {column} values"
            for column, u in self.separating.items()
        ]
        for name, split in self.splits.items():
            for column, unseen in split.unseen.items():
                said.append(
                    f"{name}: {_values(unseen)} of {column} never seen in {self.train} "
                    f"({unseen.rows:,} of {split.rows:,} images), such as {', '.join(unseen.examples)}"
                )
            for column, shared in split.shared.items():
                said.append(
                    f"{name}: {_values(shared)} of {column} with images in {self.train} too "
                    f"({shared.rows:,} of {split.rows:,} images), such as {', '.join(shared.examples)}"
                )
        return said


def _values(found: Unseen) -> str:
    return "1 value" if found.values == 1 else f"{found.values:,} values"


def cover_splits(
    split: Coded, columns: Mapping[str, Column], train: str | None, groups: Collection[str]
) -> Coverage | None:
    """Compare every split with training; None if there is one split only.

    Args:
        split: the split of each row.
        columns: those to look at.
        train: the value that stands for training; when not given, one that starts with ``train``, else the largest.
        groups: columns whose values belong on one side, besides those whose names say so.
    """
    if split.size < 2:
        return None
    labels = list(split.labels)
    code = _train_code(split, train)
    result = {
        name: SplitCoverage(int(split.counts[place])) for place, name in enumerate(labels) if place != code
    }
    separating = {}
    for name, column in columns.items():
        if column.coded is None or name == split.name:
            continue
        told = measure_pair(column.coded, split).forward
        if told.is_clear and told.u_adjusted >= _SEPARATES:
            separating[name] = round(told.u_adjusted, 4)
        if column.kind != "discrete":
            continue
        table = count_pair(split, column.coded)
        trained = np.zeros(column.coded.size, dtype=bool)
        trained[table.y[table.x == code]] = True
        for place, label in enumerate(labels):
            if place == code:
                continue
            if unseen := _found(table, place, column.coded, ~trained):
                result[label].unseen[name] = unseen
            is_group = name in groups or names_a_group(name)
            if is_group and (shared := _found(table, place, column.coded, trained)):
                result[label].shared[name] = shared
    return Coverage(split.name, labels[code], int(split.counts[code]), result, separating)


def _train_code(split: Coded, train: str | None) -> int:
    labels = list(split.labels)
    if train is not None and train in labels:
        return labels.index(train)
    named = [place for place, label in enumerate(labels) if label.lower().startswith("train")]
    return named[0] if named else int(np.argmax(split.counts))


def _found(table: Contingency, split: int, column: Coded, wanted: np.ndarray) -> Unseen | None:
    cells = (table.x == split) & wanted[table.y]
    if not cells.any():
        return None
    values, rows = table.y[cells], table.counts[cells]
    first = np.argsort(-rows, kind="stable")[:_EXAMPLES]
    return Unseen(len(values), int(rows.sum()), [str(column.labels[value]) for value in values[first]])
