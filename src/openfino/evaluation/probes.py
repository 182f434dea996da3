"""Probes: how good frozen features are for a label, and how well a factor can still be read from them.

A probe never touches the backbone. It is fitted on the train split alone, and every draw is keyed, so that
two backbones are compared on the same rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.evaluation.classifiers import (
    LinearProbe,
    fit_linear,
    knn_predict,
)
from openfino.evaluation.features import Features, Progress, Rows, extract_features
from openfino.evaluation.leakage import erase as erase_factor
from openfino.evaluation.leakage import known_values, read_all
from openfino.evaluation.metrics import Codes, score
from openfino.evaluation.results import METHODS, ErasedReport, Method, ProbeReport, ProbeResult, SplitScores
from openfino.evaluation.splits import (
    SplitRows,
    at_most,
    check_probe,
    encode_column,
    plan_splits,
    probe_generator,
    rows_of_split,
)
from openfino.factors.spec import FactorSpec
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel
from openfino.recipe import ProbeSettings

SHOWN_CAUSES = 5


def run_probe(
    features: Features,
    table: pl.DataFrame,
    settings: ProbeSettings,
    *,
    seed: int = 0,
    methods: Sequence[Method] = METHODS,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Fit and score probes of ``settings.label`` on features that are already there.

    Args:
        features: of the rows that :func:`openfino.evaluation.splits.plan_splits` names; a row without is
            counted.
        table: the manifest's table.
        settings: label, splits, group and k.
        seed: of the draws.
        methods: ``knn`` (on CLS) and ``linear`` (on CLS and mean, standardised).
        device: where the kNN probe multiplies.

    Raises:
        OpenfinoError: if ``settings`` names no label, a split is left without rows, or the train rows hold
            fewer than two labels.
    """
    if settings.label is None:
        raise OpenfinoError("probe.label: name the column that holds the labels")
    train, tests = plan_splits(table, settings, settings.label, seed)
    position = np.full(len(table), -1, dtype=np.int64)
    position[features.rows] = np.arange(len(features))
    codes = encode_column(table[settings.label])
    fitted = train.rows[position[train.rows] >= 0]
    scored = {name: split.rows[position[split.rows] >= 0] for name, split in tests.items()}
    _require_rows(settings.label, codes[fitted], scored)
    tested = np.concatenate(list(scored.values()))
    predicted: dict[str, Codes] = {}
    linear: LinearProbe | None = None
    if "knn" in methods:
        bank, queries = features.cls[position[fitted]], features.cls[position[tested]]
        predicted["knn"] = knn_predict(bank, codes[fitted], queries, k=settings.k, device=device)
    if "linear" in methods:
        generator = probe_generator(seed, "penalty")
        linear = fit_linear(features.side_by_side(position[fitted]), codes[fitted], generator)
        predicted["linear"] = linear.predict(features.side_by_side(position[tested]))
    groups = encode_column(table[settings.group]) if settings.group is not None else None
    splits, start = {}, 0
    for name, rows in scored.items():
        own = {method: every[start : start + len(rows)] for method, every in predicted.items()}
        splits[name] = _score_split(tests[name], rows, codes, np.unique(codes[fitted]), own, groups)
        start += len(rows)
    return ProbeResult(
        label=settings.label,
        k=settings.k,
        classes=len(np.unique(codes[fitted])),
        train_rows=len(fitted),
        train_missing_label=train.missing_label,
        train_without_features=len(train.rows) - len(fitted),
        penalty=linear.penalty if linear else None,
        converged=linear.converged if linear else None,
        splits=splits,
    )


def _require_rows(label: str, fitted: Codes, scored: Mapping[str, Rows]) -> None:
    classes = len(np.unique(fitted))
    if classes < 2:
        raise OpenfinoError(
            f"probe of {label!r}: {classes} different labels among the {len(fitted)} usable rows to fit on; "
            "two or more are needed"
        )
    empty = [name for name, rows in scored.items() if len(rows) == 0]
    if empty:
        raise OpenfinoError(f"probe of {label!r}: no usable row to score in split {', '.join(empty)}")


def _score_split(
    plan: SplitRows,
    rows: Rows,
    codes: Codes,
    classes: Codes,
    predicted: Mapping[str, Codes],
    groups: Codes | None,
) -> SplitScores:
    """Scores of every method on ``rows``, and the rows that could not or can only wrongly be told."""
    own_groups = groups[rows] if groups is not None else None
    return SplitScores(
        rows=len(rows),
        missing_label=plan.missing_label,
        without_features=len(plan.rows) - len(rows),
        unseen_label=int((~np.isin(codes[rows], classes)).sum()),
        missing_group=int((own_groups < 0).sum()) if own_groups is not None else 0,
        scores={method: score(codes[rows], answer, own_groups) for method, answer in predicted.items()},
    )


def probe_model(
    model: LoadedModel,
    manifest: Manifest,
    settings: ProbeSettings,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    factors: Mapping[str, FactorSpec] | None = None,
    erase: Mapping[str, FactorSpec] | None = None,
    seed: int = 0,
    methods: Sequence[Method] = METHODS,
    leakage_methods: Sequence[Method] = METHODS,
    workers: int = 0,
    progress: Progress | None = None,
) -> ProbeReport:
    """Extract features once and run every probe on them.

    Args:
        model: left in the mode it was in, and on ``device``.
        manifest: the table.
        settings: label, splits, group, k, rows per split. Without a label only ``factors`` are read.
        batch_size: images per forward pass.
        device: where the backbone runs.
        factors: factors by name, resolved on this manifest, to read from the features of the train split
            (labelled or not); of all rows when there is no split column.
        erase: factors by name, resolved on this manifest: all is measured once more without each of them.
        seed: of the draws.
        methods: of the label: ``knn`` and ``linear``.
        leakage_methods: of the factors.
        workers: threads that read images ahead.
        progress: called with (rows done, rows in all).

    Raises:
        InputProblemsError: with everything in ``settings`` that the table does not hold, before images are
            read.
        OpenfinoError: if there is nothing to probe, or the usable images do not suffice.
    """
    table = manifest.table
    factors = dict(factors or {}) | {
        name: spec for name, spec in (erase or {}).items() if name not in (factors or {})
    }
    problems = check_probe(manifest, settings, factors)
    if problems:
        raise InputProblemsError(problems)
    if settings.label is None and not factors:
        raise OpenfinoError("nothing to probe: name a column with probe.label, or factors to read")
    held_in = np.zeros(0, dtype=np.int64)
    if factors:
        held_in = at_most(rows_of_split(table, settings, settings.train), settings, seed, "leakage")
    features = extract_features(
        model,
        manifest,
        np.union1d(held_in, _labelled_rows(table, settings, seed)),
        batch_size=batch_size,
        device=device,
        workers=workers,
        progress=progress,
    )
    result = None
    if settings.label is not None:
        result = run_probe(features, table, settings, seed=seed, methods=methods, device=device)
    inside = features.at(held_in)
    leakage = read_all(
        inside, table, factors, k=settings.k, seed=seed, device=device, methods=leakage_methods
    )
    without = {
        name: _without(
            features, manifest, settings, spec, factors, held_in, seed=seed, methods=methods, device=device
        )
        for name, spec in (erase or {}).items()
    }
    causes = features.causes[:SHOWN_CAUSES]
    return ProbeReport(model.name, result, leakage, len(features.unreadable), causes, erased=without)


def _without(
    features: Features,
    manifest: Manifest,
    settings: ProbeSettings,
    erased: FactorSpec,
    factors: Mapping[str, FactorSpec],
    held_in: Rows,
    *,
    seed: int,
    methods: Sequence[Method],
    device: torch.device | str,
) -> ErasedReport:
    """Every measurement once more, on features from which a factor is erased; erasures are fitted where probes are."""
    table = manifest.table
    inside = features.at(held_in)
    result = None
    if settings.label is not None:
        fitted = np.flatnonzero(
            np.isin(features.rows, plan_splits(table, settings, settings.label, seed)[0].rows)
        )
        changed, _ = erase_factor(features, known_values(table, erased, features.rows), fitted)
        result = run_probe(changed, table, settings, seed=seed, methods=methods, device=device)
    everywhere = np.arange(len(inside), dtype=np.int64)
    _, dimensions = erase_factor(inside, known_values(table, erased, inside.rows), everywhere)
    leakage = read_all(
        inside, table, factors, k=settings.k, seed=seed, device=device, methods=METHODS, erased=erased
    )
    return ErasedReport(dimensions, features.cls.shape[1], result, leakage)


def _labelled_rows(table: pl.DataFrame, settings: ProbeSettings, seed: int) -> Rows:
    """Every row that the probes of the label use."""
    if settings.label is None:
        return np.zeros(0, dtype=np.int64)
    train, tests = plan_splits(table, settings, settings.label, seed)
    return np.concatenate([split.rows for split in (train, *tests.values())])
