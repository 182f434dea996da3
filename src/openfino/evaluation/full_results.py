"""What a full probe measured, as data and as text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openfino.evaluation.clustering import Clustering
from openfino.evaluation.comparison import aligned, erasure_table
from openfino.evaluation.mask_probe import SegmentationResult
from openfino.evaluation.results import ErasedReport, FactorReading, SplitScores, leakage_table
from openfino.evaluation.scores import Interval
from openfino.evaluation.tasks import Kind


@dataclass(frozen=True)
class FullScores(SplitScores):
    """What the probes scored on one split, and how far that could be off.

    Attributes:
        intervals: probe -> metric -> low and high of a 95 % interval over images.
    """

    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class FullResult:
    """Probes of one label, chosen on validation rows.

    Attributes:
        label: the column.
        kind: what it was taken for.
        classes: different classes or labels in the table; 1 for a number.
        metric: by which heads were chosen.
        chosen_on: on which rows.
        cluster: column whose rows are drawn together for the intervals; None for images by themselves.
        train_rows: rows that the probes were fitted on.
        train_missing_label: rows of the training split left out because they have no label.
        train_without_features: labelled rows to fit on left out because their image gave no features.
        val_rows: rows that heads were chosen on.
        chosen: head -> see :meth:`openfino.evaluation.choice.Choice.choice`.
        splits: scores by name of the split.
    """

    label: str
    kind: Kind
    classes: int
    metric: str
    chosen_on: str
    cluster: str | None
    train_rows: int
    train_missing_label: int
    train_without_features: int
    val_rows: int
    chosen: dict[str, dict[str, Any]]
    splits: dict[str, FullScores]


@dataclass(frozen=True)
class ClusterResult:
    """k-means on features averaged over a column, compared with the label.

    Attributes:
        by: the column.
        label: the column of the label.
        splits: agreement on each split that is scored, and on all rows together.
        left_out: splits without enough groups, and why.
    """

    by: str
    label: str
    splits: dict[str, Clustering]
    left_out: dict[str, str]


@dataclass(frozen=True)
class FullReport:
    """Everything that one full probing of a model found.

    Attributes:
        model: where the model came from.
        label: the probes of the label; None when no label is named.
        leakage: the reading of each factor asked for.
        unreadable: images left out.
        causes: why, for the first few of them.
        erased: everything of the label and of ``leakage`` once more without each of these factors.
        clustering: None when it was not asked for.
        segmentation: None when it was not asked for.
    """

    model: str
    label: FullResult | None
    leakage: dict[str, FactorReading]
    unreadable: int
    causes: list[str]
    erased: dict[str, ErasedReport]
    clustering: ClusterResult | None
    segmentation: SegmentationResult | None

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers; the keys of a quick probe and more."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """For the terminal."""
        parts = [] if self.label is None else [_label_table(self.label)]
        if self.clustering is not None:
            parts.append(_cluster_table(self.clustering))
        if self.segmentation is not None:
            parts.append(_segmentation_table(self.segmentation))
        if self.leakage:
            parts.append(leakage_table(self.leakage, {}))
        if self.erased:
            parts.append(erasure_table(self.to_json()))
        if self.unreadable:
            parts.append(f"{self.unreadable} images were left out, such as: " + "; ".join(self.causes))
        return "\n\n".join(parts)


def _label_table(result: FullResult) -> str:
    what = {
        "single": f"{result.classes} classes",
        "multi": f"{result.classes} labels",
        "regression": "a number",
    }
    title = f"{result.label}: {what[result.kind]}, fitted on {result.train_rows:,} rows"
    if result.train_missing_label:
        title += f" ({result.train_missing_label:,} without a label left out)"
    probes = list(dict.fromkeys(name for split in result.splits.values() for name in split.scores))
    lines = [["split", "rows", "", *probes]]
    for name, split in result.splits.items():
        for metric in dict.fromkeys(metric for scores in split.scores.values() for metric in scores):
            values = [_with_interval(split, probe, metric) for probe in probes]
            lines.append([name, f"{split.rows:,}", metric, *values])
    unseen = {name: split.unseen_label for name, split in result.splits.items() if split.unseen_label}
    own = f"whole values of {result.cluster}" if result.cluster is not None else "images"
    notes = [f"In brackets: 95 % intervals over {own}."]
    notes += [
        f"{name}: {count} rows have a label that no training row has." for name, count in unseen.items()
    ]
    if result.chosen:
        notes.append(f"Chosen by {result.metric} on {result.val_rows:,} rows ({result.chosen_on}):")
        notes += [f"  {name}: {_chosen(choice)}" for name, choice in result.chosen.items()]
    return "\n".join([title, aligned(lines), *notes])


def _with_interval(split: FullScores, probe: str, metric: str) -> str:
    value = split.scores[probe].get(metric)
    if value is None:
        return "-"
    return _value(value, split.intervals[probe][metric])


def _value(value: float, interval: Interval) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _chosen(choice: Mapping[str, Any]) -> str:
    text = (
        f"learning rate {choice['lr']:g}, weight decay {choice['weight_decay']:g} ({choice['val']:.3f} there)"
    )
    return f"{text}; at the edge of the grid" if choice["at_the_edge"] else text


def _cluster_table(result: ClusterResult) -> str:
    title = f"k-means on features averaged over {result.by}, compared with {result.label}"
    lines = [["split", result.by, "clusters", "ARI", "V-measure"]]
    lines += [
        [name, f"{found.units:,}", str(found.clusters), f"{found.ari:.3f}", f"{found.v_measure:.3f}"]
        for name, found in result.splits.items()
    ]
    notes = [f"{name} left out: {reason}" for name, reason in result.left_out.items()]
    notes += [
        f"{name}: {found.mixed} values of {result.by} have several labels, and count with their commonest."
        for name, found in result.splits.items()
        if found.mixed
    ]
    return "\n".join([title, aligned(lines), *notes])


def _segmentation_table(result: SegmentationResult) -> str:
    title = (
        f"linear segmentation, masks of {result.masks}: fitted on {result.train_images:,} images, chosen on "
        f"{result.val_images:,}"
    )
    classes = [str(number) for number in result.classes]
    shown = classes if len(classes) <= 8 else []
    lines = [
        ["split", "images", "mIoU of patches", "mIoU of pixels", *(f"IoU of {number}" for number in shown)]
    ]
    for name, split in result.splits.items():
        ious = [f"{split.ious[number]:.3f}" if number in split.ious else "-" for number in shown]
        patches = _value(split.patch_miou, split.intervals["patch_miou"])
        lines.append([name, f"{split.images:,}", patches, _value(split.miou, split.intervals["miou"]), *ious])
    return "\n".join([title, aligned(lines), f"  linear layer: {_chosen(result.chosen)}"])
