"""What probes measured, as data and as text."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openfino.errors import OpenfinoError

Method = Literal["knn", "linear"]
METHODS: tuple[Method, ...] = ("knn", "linear")
# What a factor's reading is worth: a discrete factor has the first, every other kind the second.
READINGS = ("knn_accuracy", "knn_r2")


@dataclass(frozen=True)
class SplitScores:
    """What the probes scored on one split.

    Attributes:
        rows: rows that were scored.
        missing_label: rows of the split left out because they have no label.
        without_features: labelled rows left out because their image gave no features.
        unseen_label: scored rows whose label does not occur among the train rows; they can only count as
            wrong.
        missing_group: scored rows without a group; they count for every metric but worst-group accuracy.
        scores: method -> metric -> value.
    """

    rows: int
    missing_label: int
    without_features: int
    unseen_label: int
    missing_group: int
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True)
class ProbeResult:
    """Probes of one label column.

    Attributes:
        label: the column.
        k: neighbours of the kNN probe.
        classes: different labels among the train rows.
        train_rows: rows that the probes were fitted on.
        train_missing_label: train rows left out because they have no label.
        train_without_features: labelled train rows left out because their image gave no features.
        penalty: C of the linear probe, chosen on held-out train rows; None when there is no linear probe.
        converged: whether the linear probe met its tolerance; None when there is no linear probe.
        splits: scores by name of the split.
    """

    label: str
    k: int
    classes: int
    train_rows: int
    train_missing_label: int
    train_without_features: int
    penalty: float | None
    converged: bool | None
    splits: dict[str, SplitScores]


@dataclass(frozen=True)
class FactorReading:
    """How well a factor's value can be told from frozen features by their neighbours.

    Attributes:
        rows: tested rows; 0 when too few rows have a value (discrete: when no value occurs in two rows).
        values: different values that took part.
        left_out: rows without a value; discrete: also those with a value that no other row shares.
        knn_accuracy: discrete: share of the tested rows that were read right; None without tested rows.
        majority: discrete: accuracy of always answering the most common value; None without tested rows.
        chance: discrete: accuracy of guessing, 1 / values; None without tested rows.
        knn_r2: continuous, cyclic and vector: R^2 of the predicted target (cyclic: sine and cosine). 1 is read
            exactly; about 0, or a little under, is nothing. None for discrete, and where the tested rows do
            not differ.
    """

    rows: int
    values: int
    left_out: int
    knn_accuracy: float | None
    majority: float | None
    chance: float | None
    knn_r2: float | None = None


@dataclass(frozen=True)
class ProbeReport:
    """Everything that one probing of a model found.

    Attributes:
        model: where the model came from.
        label: the probes of the label column; None when no label is named.
        leakage: the reading of each factor asked for.
        unreadable: images left out.
        causes: why, for the first few of them.
        before: what the model's own run recorded of its starting backbone (``label`` and ``leakage`` as in
            :meth:`to_json`), as far as it can be compared; None when nothing can.
    """

    model: str
    label: ProbeResult | None
    leakage: dict[str, FactorReading]
    unreadable: int
    causes: list[str]
    before: dict[str, Any] | None = None

    def score(self, split: str, method: Method, metric: str) -> float:
        """One number, such as the one that selects the best checkpoint.

        Raises:
            OpenfinoError: if it was not measured.
        """
        scores = self.label.splits[split].scores if self.label and split in self.label.splits else {}
        value = scores.get(method, {}).get(metric)
        if value is None:
            raise OpenfinoError(f"the probe measured no {metric} of {method} on split {split!r}")
        return value

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers."""
        plain = dataclasses.asdict(self)
        if self.before is None:
            del plain["before"]
        return plain

    def table(self) -> str:
        """For the terminal."""
        before = self.before or {}
        parts = [] if self.label is None else [_label_table(self.label, before.get("label") or {})]
        if self.leakage:
            parts.append(_leakage_table(self.leakage, before.get("leakage") or {}))
        if self.before is not None:
            parts.append("In brackets: the starting backbone, as the model's run recorded it.")
        if self.unreadable:
            parts.append(f"{self.unreadable} images were left out, such as: " + "; ".join(self.causes))
        return "\n\n".join(parts)


def _label_table(result: ProbeResult, before: Mapping[str, Any]) -> str:
    title = f"{result.label}: {result.classes} classes, fitted on {result.train_rows} rows; k = {result.k}"
    if result.train_missing_label:
        title += f"; {result.train_missing_label} rows without a label left out"
    if result.penalty is not None:
        title += f"; linear C = {result.penalty:g}" + ("" if result.converged else " (not converged)")
    every = [scores for split in result.splits.values() for scores in split.scores.values()]
    metrics = list(dict.fromkeys(metric for scores in every for metric in scores))
    lines = [["split", "rows", "unseen labels", "probe", *metrics]]
    for name, split in result.splits.items():
        for method, scores in split.scores.items():
            old = before.get("splits", {}).get(name, {}).get("scores", {}).get(method, {})
            values = [_beside(scores.get(metric), old.get(metric)) for metric in metrics]
            lines.append([name, str(split.rows), str(split.unseen_label), method, *values])
    return f"{title}\n{_aligned(lines)}"


def _leakage_table(readings: Mapping[str, FactorReading], before: Mapping[str, Any]) -> str:
    shown = [
        measure
        for measure in ("knn_accuracy", "majority", "chance", "knn_r2")
        if measure != "knn_r2" or any(reading.knn_r2 is not None for reading in readings.values())
    ]
    lines = [["read from features", "rows", "values", *shown]]
    for name, reading in readings.items():
        old = before.get(name, {})
        values = [
            _beside(getattr(reading, measure), old.get(measure) if measure in READINGS else None)
            for measure in shown
        ]
        lines.append([name, str(reading.rows), str(reading.values), *values])
    return _aligned(lines)


def _beside(value: float | None, before: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if before is None else f"{value:.3f} ({before:.3f})"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(pairs)
        )
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
