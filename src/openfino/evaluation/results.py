"""What probes measured, as data and as text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from openfino.errors import OpenfinoError
from openfino.evaluation.comparison import aligned, erasure_table

if TYPE_CHECKING:
    from openfino.evaluation.full_results import FullResult

Method = Literal["knn", "linear"]
METHODS: tuple[Method, ...] = ("knn", "linear")
# What a factor's reading is worth: a discrete factor has the first, every other kind the second.
READINGS = ("knn_accuracy", "knn_r2")
# Everything that a reading may hold, with what reading without features would score in between.
MEASURES = (
    "knn_accuracy",
    "linear_accuracy",
    "majority",
    "knn_balanced",
    "linear_balanced",
    "chance",
    "knn_r2",
    "linear_r2",
    "knn_cosine",
    "linear_cosine",
    "constant_cosine",
)


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
    """How well a factor's value can be told from frozen features, on rows that the readers were not fitted on.

    Attributes:
        rows: tested rows; 0 when too few rows have a value (discrete: when no value occurs in two rows).
        values: different values that took part.
        left_out: rows without a value; discrete: also those with a value that no other row shares.
        knn_accuracy: discrete: share of the tested rows that their neighbours tell right; None without tested rows.
        majority: discrete: accuracy of always answering the most common value; None without tested rows.
        chance: discrete: accuracy of guessing, 1 / values; None without tested rows.
        knn_r2: continuous, cyclic and vector: R^2 of the predicted target (cyclic: sine and cosine). 1 is read
            exactly; about 0, or a little under, is nothing. None for discrete, and where the tested rows do
            not differ.
        knn_balanced: discrete: mean over the values of the share that was told right.
        knn_cosine: cyclic: mean cosine of the angle between prediction and truth, from -1 to 1.
        constant_cosine: cyclic: the same of always answering the mean direction.
        linear_accuracy, linear_balanced, linear_r2, linear_cosine: the same by a linear reader
            (:mod:`openfino.evaluation.linear_readers`); None where it was not asked for.
        errors: measure -> its standard error over tested rows.
    """

    rows: int
    values: int
    left_out: int
    knn_accuracy: float | None
    majority: float | None
    chance: float | None
    knn_r2: float | None = None
    knn_balanced: float | None = None
    knn_cosine: float | None = None
    constant_cosine: float | None = None
    linear_accuracy: float | None = None
    linear_balanced: float | None = None
    linear_r2: float | None = None
    linear_cosine: float | None = None
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ErasedReport:
    """What can be read once a factor is erased from the features by LEACE (:mod:`openfino.evaluation.erasure`).

    Attributes:
        dimensions: directions that the erasure takes out of CLS.
        of: the dimensions of CLS.
        label: the probes of the label; None when no label is named.
        leakage: the reading of each factor asked for.
    """

    dimensions: int
    of: int
    label: "ProbeResult | FullResult | None"
    leakage: dict[str, FactorReading]


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
    erased: dict[str, ErasedReport] = field(default_factory=dict)

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
            parts.append(leakage_table(self.leakage, before.get("leakage") or {}))
        if self.erased:
            parts.append(erasure_table(self.to_json()))
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
    return f"{title}\n{aligned(lines)}"


def leakage_table(readings: Mapping[str, FactorReading], before: Mapping[str, Any]) -> str:
    """The reading of each factor, that of ``before`` in brackets."""
    shown = [
        measure
        for measure in MEASURES
        if any(getattr(reading, measure) is not None for reading in readings.values())
    ]
    lines = [["read from features", "rows", "values", *shown]]
    for name, reading in readings.items():
        old = before.get(name, {})
        values = [
            _beside(getattr(reading, measure), old.get(measure) if measure.startswith(METHODS) else None)
            for measure in shown
        ]
        lines.append([name, str(reading.rows), str(reading.values), *values])
    return aligned(lines)


def _beside(value: float | None, before: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if before is None else f"{value:.3f} ({before:.3f})"
