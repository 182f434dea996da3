"""Curves of the demo's arms, from the ``metrics.jsonl`` and ``probes.jsonl`` that their runs kept."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openfino.prober import PROBES_FILE
from openfino.recipe import Recipe
from openfino.report.svg import Line, Points, figure, level
from openfino.training.logging import METRICS_FILE, read_metrics

ARM_NAMES = {"frozen": "frozen start", "ssl": "SSL", "fino": "FINO"}
METHOD_NAMES = {"knn": "kNN", "linear": "linear"}
TESTS = {"test_ood": "new plates", "test_id": "training plates, other images"}

_LOSSES = {
    "total": ("Total loss", "The arms sum different terms, so their totals do not compare."),
    "dino": ("DINO", "Views of one image should get the same prototypes."),
    "ibot": ("iBOT", "Masked patches should get the teacher's prototypes."),
    "koleo": ("KoLeo", "Pushes the features of a batch apart."),
    "sigreg": ("SIGReg", "How far the features are from an isotropic Gaussian."),
    "guidance": ("Guidance", "Weighted sum over the factors that guide."),
}

Records = Sequence[Mapping[str, Any]]


def curves(out: Path, recipes: Mapping[str, Recipe]) -> str:
    """Every figure for which there are records, under headings; says so when there are none.

    Args:
        out: the demo's folder, with a run folder for each of ``recipes``.
        recipes: of the trained arms, by name.
    """
    probes = {arm: read_metrics(out / arm / PROBES_FILE) for arm in recipes}
    metrics = {
        arm: [record for record in read_metrics(out / arm / METRICS_FILE) if "loss/total" in record]
        for arm in recipes
    }
    groups = {
        "The features": _probe_figures(probes) + _reading_figures(probes) + _health_figures(metrics),
        "Loss terms": _loss_figures(metrics, recipes),
    }
    shown = {title: drawn for title, figures in groups.items() if (drawn := "".join(figures))}
    if not shown:
        return "<p>The runs kept no record to draw.</p>"
    return "".join(f"<h3>{title}</h3>\n<div class='charts'>{drawn}</div>\n" for title, drawn in shown.items())


def series(records: Records, *keys: str) -> Points:
    """(step, value under the nested ``keys``) of every record; None where there is no such value."""
    points = []
    for record in records:
        found: Any = record
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        points.append((float(record["step"]), found))
    return points


def measured(points: Points) -> Points:
    """The points that have a value."""
    return [point for point in points if point[1] is not None]


def _probe_figures(probes: Mapping[str, Records]) -> list[str]:
    figures = []
    for split, meaning in TESTS.items():
        lines = [
            Line(
                f"{ARM_NAMES[arm]} {name}",
                # A probe during training runs the selecting method only: the line of the other spans the gap.
                measured(series(records, "label", "splits", split, "scores", method, "macro_f1")),
                arm,
                dashed=method == "linear",
            )
            for arm, records in probes.items()
            for method, name in METHOD_NAMES.items()
        ]
        note = "Step 0 is the frozen start, the same for both arms."
        title = f"Macro-F1 on {split}: {meaning}"
        figures.append(figure(title, lines, y_label="macro-F1", note=note, from_zero=True))
    return figures


def _reading_figures(probes: Mapping[str, Records]) -> list[str]:
    """How well each factor can be read from the features."""
    factors = dict.fromkeys(
        name for records in probes.values() for record in records for name in record.get("leakage") or {}
    )
    figures = []
    for factor in factors:
        lines = [
            Line(ARM_NAMES[arm], series(records, "leakage", factor, "knn_accuracy"), arm)
            for arm, records in probes.items()
        ]
        unit = "kNN accuracy"
        if not any(line.finite for line in lines):  # a quantity
            unit = "R^2 of kNN"
            lines = [
                Line(ARM_NAMES[arm], series(records, "leakage", factor, "knn_r2"), arm)
                for arm, records in probes.items()
            ]
        majorities = [
            value
            for records in probes.values()
            for _, value in series(records, "leakage", factor, "majority")
            if value is not None
        ]
        lines += [level("commonest value", value, lines) for value in majorities[:1]]
        note = "Told from the nearest neighbours among training images."
        title = f"How well {factor} can be read"
        figures.append(figure(title, lines, y_label=unit, note=note, from_zero=True))
    return figures


def _health_figures(metrics: Mapping[str, Records]) -> list[str]:
    """Accuracy of the prototypes of each guiding factor, and the rank of the features."""
    factors = dict.fromkeys(
        key.removeprefix("guidance/").removesuffix("/accuracy")
        for records in metrics.values()
        for record in records
        for key in record
        if key.startswith("guidance/") and key.endswith("/accuracy")
    )
    figures = []
    for factor in factors:
        lines = _metric_lines(metrics, f"guidance/{factor}/accuracy")
        note = (
            "Of the prototypes that guide, on training crops; at step 0 the batch itself has just made them."
        )
        title = f"Guidance accuracy: {factor}"
        figures.append(figure(title, lines, y_label="accuracy", note=note, from_zero=True))
    lines = _metric_lines(metrics, "watch/feature_rank")
    note = "Effective number of dimensions that the teacher's features use (RankMe); 1 would be collapse."
    figures.append(figure("Feature rank", lines, y_label="rank", note=note, from_zero=True))
    return figures


def _loss_figures(metrics: Mapping[str, Records], recipes: Mapping[str, Recipe]) -> list[str]:
    figures = []
    for term, (title, note) in _LOSSES.items():
        lines = _metric_lines(metrics, f"loss/{term}")
        if term == "dino":
            prototypes = next(iter(recipes.values())).objective.dino.head.prototypes
            lines.append(level("ln K: nothing learned", math.log(prototypes), lines))
        figures.append(figure(title, lines, y_label="loss", note=note))
    return figures


def _metric_lines(metrics: Mapping[str, Records], key: str) -> list[Line]:
    return [Line(ARM_NAMES[arm], series(records, key), arm) for arm, records in metrics.items()]
