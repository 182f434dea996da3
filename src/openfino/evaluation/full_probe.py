"""The full probe: heads by a grid that is chosen on validation rows, every metric with its interval, test rows last."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from openfino.errors import OpenfinoError
from openfino.evaluation.cache import CachedFeatures, cached_features
from openfino.evaluation.clustering import Clustering, cluster_labels
from openfino.evaluation.erased_source import ErasedSource, erase_source, plain_features
from openfino.evaluation.features import Progress
from openfino.evaluation.full_results import ClusterResult, FullReport, FullResult, FullScores
from openfino.evaluation.grid import Fitted, Grid, fit_grid
from openfino.evaluation.heads import HeadKind
from openfino.evaluation.leakage import known_values, read_all
from openfino.evaluation.mask_probe import SegmentationResult, fit_masks, masked_rows, score_masks
from openfino.evaluation.metrics import Codes
from openfino.evaluation.neighbours import knn_predictions
from openfino.evaluation.plan import Plan
from openfino.evaluation.results import METHODS, ErasedReport, FactorReading
from openfino.evaluation.scores import METRICS, Bootstrap
from openfino.evaluation.segmentation import FittedSegmentation
from openfino.evaluation.sources import FeatureSource, Rows
from openfino.evaluation.splits import encode_column, split_rows
from openfino.evaluation.tasks import Predictions, Targets, Task
from openfino.factors.spec import FactorSpec
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel

SHOWN_CAUSES = 5
ALL_ROWS = "all rows"
HEADS: tuple[HeadKind, ...] = ("linear", "attentive")


@dataclass(frozen=True)
class Probes:
    """Probes of the label, fitted and chosen.

    Attributes:
        plan: rows and label. manifest: the table.
        task: of the label. targets: of every row of the table.
        source: features that they were fitted on.
        train: positions there. val: positions there.
        heads: linear and attentive, as far as they were asked for.
        seed: of draws. device: where they compute.
    """

    plan: Plan
    manifest: Manifest
    task: Task
    targets: Targets
    source: FeatureSource
    train: Rows
    val: Rows
    heads: dict[str, Fitted]
    seed: int
    device: torch.device | str

    def score(self, outside: FeatureSource) -> FullResult:
        """Everything of the rows to score.

        Raises:
            OpenfinoError: if a split has no usable image.
        """
        asked, positions = self.plan.asked, np.flatnonzero(self.targets.valid[outside.rows])
        said = self._predictions(outside, positions)
        rows = outside.rows[positions]
        usable = len(self.train)
        return FullResult(
            label=self.task.label,
            kind=self.task.kind,
            classes=self.task.outputs,
            metric=metric_of(self.task),
            chosen_on=self.plan.chosen_on,
            cluster=asked.cluster,
            train_rows=usable,
            train_missing_label=self.plan.missing_label[asked.train],
            train_without_features=int(self.targets.valid[self.plan.train].sum()) - usable,
            val_rows=len(self.val),
            chosen={name: head.choice() for name, head in self.heads.items()},
            splits={name: self._score_split(name, own, rows, said) for name, own in self.plan.tests.items()},
        )

    def _predictions(self, outside: FeatureSource, positions: Rows) -> dict[str, Predictions]:
        """What every probe says, in the order in which they were asked for."""
        said: dict[str, Predictions] = {}
        for probe in self.plan.asked.probes:
            if probe == "knn":
                bank, queries = self.source.cls()[self.train], outside.cls()[positions]
                known = self.targets.at(self.source.rows[self.train])
                ks = self.plan.asked.ks
                found = knn_predictions(self.task, bank, known, queries, ks, device=self.device)
                said |= {f"knn{k}": predictions for k, predictions in found.items()}
            else:
                said[probe] = self.task.predict(self.heads[probe].logits(positions, outside))
        return said

    def _score_split(self, name: str, asked: Rows, rows: Rows, said: Mapping[str, Predictions]) -> FullScores:
        """Scores and intervals on one split; ``rows`` are those that were predicted."""
        kept = np.flatnonzero(np.isin(rows, asked))
        if len(kept) == 0:
            raise OpenfinoError(f"probe of {self.task.label!r}: no usable row to score in split {name}")
        own = rows[kept]
        truth, options = self.targets.at(own), self.plan.asked
        groups, clusters = self._codes(options.group, own), self._codes(options.cluster, own)
        drawn = Bootstrap(
            self.task,
            {probe: [predictions.at(kept)] for probe, predictions in said.items()},
            truth,
            clusters=clusters,
            groups=groups,
            seed=self.seed,
        )
        unseen = 0
        if self.task.kind == "single":
            known = self.targets.values[self.source.rows[self.train]]
            unseen = int((~np.isin(truth.values, known)).sum())
        metrics = METRICS[self.task.kind]
        defined = {probe: [name for name in metrics if name in drawn.estimates[probe]] for probe in said}
        return FullScores(
            rows=len(own),
            missing_label=self.plan.missing_label.get(name, 0),
            without_features=int(self.targets.valid[asked].sum()) - len(own),
            unseen_label=unseen,
            missing_group=int((groups < 0).sum()) if groups is not None else 0,
            scores={
                probe: {name: drawn.mean(probe, name) for name in names} for probe, names in defined.items()
            },
            intervals={
                probe: {name: drawn.interval(probe, name) for name in names}
                for probe, names in defined.items()
            },
        )

    def _codes(self, column: str | None, rows: Rows) -> Codes | None:
        return None if column is None else encode_column(self.manifest.table[column])[rows]


def metric_of(task: Task) -> str:
    """By which heads are chosen."""
    return "r2" if task.kind == "regression" else "macro_f1"


def fit_probes(
    plan: Plan,
    manifest: Manifest,
    source: FeatureSource,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> Probes | None:
    """Fit the heads of every probe that has one and choose them; None where no label is asked for.

    Raises:
        OpenfinoError: if no row to fit on, or to choose on, has a label and features.
    """
    if plan.task is None or plan.targets is None:
        return None
    asked, targets = plan.asked, plan.targets.at(source.rows)
    train, val = (
        np.intersect1d(positions_of(source, rows), np.flatnonzero(targets.valid))
        for rows in (plan.train, plan.val)
    )
    if len(train) == 0:
        raise OpenfinoError(f"probe of {plan.task.label!r}: no usable row to fit on")
    heads: dict[str, Fitted] = {}
    for kind in HEADS:
        if kind not in asked.probes:
            continue
        lrs = asked.grid.lrs if kind == "attentive" else asked.grid.linear_lrs
        heads[kind] = fit_grid(
            kind,
            source,
            targets,
            train,
            val,
            plan.task,
            Grid(tuple(lrs), tuple(asked.grid.weight_decays)),
            metric=metric_of(plan.task),
            steps=asked.grid.steps,
            batch_size=asked.grid.batch_size,
            seed=seed,
            device=device,
            progress=progress,
        )
    return Probes(plan, manifest, plan.task, plan.targets, source, train, val, heads, seed, device)


@dataclass(frozen=True)
class Reader:
    """Reads one model for one plan.

    Attributes:
        model: frozen. manifest: the table of ``plan``.
        plan: what to read.
        factors: whose leakage is read from the features of all rows of the training split.
        erase: factors without which everything of the label, and of ``factors``, is measured once more.
        windows, batch_size, device, workers, progress: see :func:`openfino.evaluation.cache.cached_features`.
        seed: of heads and draws.
    """

    model: LoadedModel
    manifest: Manifest
    plan: Plan
    factors: Mapping[str, FactorSpec]
    erase: Mapping[str, FactorSpec]
    windows: int | None = None
    batch_size: int = 64
    device: torch.device | str = "cpu"
    workers: int = 0
    seed: int = 0
    progress: Progress | None = None

    def read(self, cache: Path | None = None) -> FullReport:
        """Compute the features once, fit and choose every probe, then read the rows to score.

        Args:
            cache: folder of the features; when not given, they are deleted in the end.

        Raises:
            OpenfinoError: if the usable images do not suffice.
        """
        plan, table = self.plan, self.manifest.table
        watched = split_rows(table, plan.asked.split, plan.asked.train) if self.factors else plan.train
        with _folder(cache) as folder:
            inside = self._features(folder, plan.train, plan.val, watched)
            probes = self._fit(inside)
            layer = self._fit_masks(inside)
            erased = {name: self._erase(inside, spec) for name, spec in self.erase.items()}
            # Everything is chosen. Only now are the images of the tests opened.
            outside = self._features(folder, *plan.tests.values())
            causes = dict(zip(inside.unreadable, inside.causes, strict=True))
            causes |= dict(zip(outside.unreadable, outside.causes, strict=True))
            return FullReport(
                model=self.model.name,
                label=probes.score(outside) if probes is not None else None,
                leakage=self._leakage(inside, watched),
                unreadable=len(causes),
                causes=list(causes.values())[:SHOWN_CAUSES],
                erased={
                    name: ErasedReport(
                        source.linear[-2].dimensions,
                        inside.cls().shape[1],
                        own.score(source.of(outside)) if own is not None else None,
                        self._leakage(inside, watched, self.erase[name]),
                    )
                    for name, (source, own) in erased.items()
                },
                clustering=self._cluster(inside, outside),
                segmentation=self._score_masks(layer, inside, outside),
            )

    @property
    def patches(self) -> bool:
        """Whether anything reads patch tokens."""
        attentive = self.plan.task is not None and "attentive" in self.plan.asked.probes
        return attentive or self.plan.masks is not None

    def _features(self, folder: Path, *parts: Rows) -> CachedFeatures:
        return cached_features(
            self.model,
            self.manifest,
            np.unique(np.concatenate(parts)),
            folder=folder,
            patches=self.patches,
            windows=self.windows,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            progress=self.progress,
        )

    def _erase(self, inside: CachedFeatures, spec: FactorSpec) -> tuple[ErasedSource, Probes | None]:
        known = known_values(self.manifest.table, spec, inside.rows)
        fitted = positions_of(inside, self.plan.train)
        source = erase_source(inside, known, fitted, patches=self.patches)
        return source, self._fit(source)

    def _fit(self, source: FeatureSource) -> Probes | None:
        return fit_probes(
            self.plan,
            self.manifest,
            source,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

    def _leakage(
        self, inside: CachedFeatures, rows: Rows, erased: FactorSpec | None = None
    ) -> dict[str, FactorReading]:
        if not self.factors:
            return {}
        return read_all(
            plain_features(inside, positions_of(inside, rows)),
            self.manifest.table,
            self.factors,
            k=self.plan.asked.ks[0],
            seed=self.seed,
            device=self.device,
            methods=METHODS,
            erased=erased,
        )

    def _cluster(self, inside: CachedFeatures, outside: CachedFeatures) -> ClusterResult | None:
        """k-means on the CLS of every split to score, and of all rows."""
        by, targets = self.plan.asked.cluster_by, self.plan.targets
        if by is None or targets is None:
            return None
        rows = np.concatenate([inside.rows, outside.rows])
        features = np.concatenate([inside.cls(), outside.cls()])
        labels, groups = targets.values.astype(np.int64)[rows], encode_column(self.manifest.table[by])[rows]
        found: dict[str, Clustering] = {}
        left_out: dict[str, str] = {}
        for name, own in {**self.plan.tests, ALL_ROWS: rows}.items():
            kept = np.isin(rows, own)
            try:
                found[name] = cluster_labels(features[kept], labels[kept], groups[kept], seed=self.seed)
            except OpenfinoError as error:
                left_out[name] = str(error).removeprefix("clustering: ")
        return ClusterResult(by, str(self.plan.asked.label), found, left_out)

    def _fit_masks(self, inside: CachedFeatures) -> FittedSegmentation | None:
        if self.plan.masks is None:
            return None
        train, val = (positions_of(inside, rows) for rows in (self.plan.train, self.plan.val))
        return fit_masks(
            self.plan.masks,
            self.model,
            inside,
            train,
            val,
            steps=self.plan.asked.grid.steps,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )

    def _score_masks(
        self, layer: FittedSegmentation | None, inside: CachedFeatures, outside: CachedFeatures
    ) -> SegmentationResult | None:
        masks, column = self.plan.masks, self.plan.asked.cluster
        if masks is None or layer is None:
            return None
        clusters = None if column is None else encode_column(self.manifest.table[column])
        given = masked_rows(self.manifest, masks.column)

        def masked(source: FeatureSource, rows: Rows) -> Rows:
            return positions_of(source, rows[given[rows]])

        return SegmentationResult(
            masks.column,
            list(masks.values),
            len(masked(inside, self.plan.train)),
            len(masked(inside, self.plan.val)),
            layer.choice(),
            {
                name: score_masks(
                    masks, self.model, layer, outside, masked(outside, rows), clusters, seed=self.seed
                )
                for name, rows in self.plan.tests.items()
            },
        )


def positions_of(source: FeatureSource, rows: Rows) -> Rows:
    """Where ``rows`` are in ``source``, as far as they have features."""
    return np.flatnonzero(np.isin(source.rows, rows)).astype(np.int64)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="openfino-features-") as folder:
        yield Path(folder)
