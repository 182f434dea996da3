"""Reading a model: the same probes, grid and choice for every arm; the test rows come last, and only once.

What is written of a test row is what the probe says of it. Its label is not looked at here.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from openfino.baselines.predict import predict_baseline
from openfino.compare.arms import KINDS
from openfino.compare.setup import Setup
from openfino.distributed import choose_device
from openfino.evaluation.cache import CachedFeatures, cached_features
from openfino.evaluation.erased_source import ErasedSource, erase_source, plain_features
from openfino.evaluation.grid import Fitted, Grid, fit_grid, untrained_head
from openfino.evaluation.heads import HeadKind
from openfino.evaluation.leakage import known_values, read_all
from openfino.evaluation.neighbours import knn_predictions
from openfino.evaluation.results import METHODS
from openfino.evaluation.sources import FeatureSource
from openfino.models.store import LoadedModel

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

HEADLINE, UNTRAINED = "attentive", "untrained"
OWN_HEAD, REFITTED = "own_head", "refitted"  # of a supervised arm
BATCH = 64
SHOWN_ARMS = ("frozen", "ssl", "fino")


@dataclass
class Reading:
    """What was read of one model.

    Attributes:
        scores: of every test row, in the order of :attr:`Setup.tested`, float32 [n, t], NaN where there is no image;
            by ``arm|probe`` or ``arm|fraction``.
        facts: what else there is to record, as JSON takes it.
        cls: CLS of the rows that pictures show, by arm, float32 [n, D]: of the tests, then of those that train; NaN
            where there is no image. Of the first seed alone.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=lambda: {"chosen": {}, "leakage": {}, "unreadable": []})
    cls: dict[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Reads one model for one arm, and for the arm that erases from it.

    Attributes:
        setup: what all arms share.
        model: frozen.
        seed: of heads and order.
        cache: folder of the features.
        console: for progress.
        fraction: share of the labelled training rows that heads may know.
    """

    setup: Setup
    model: LoadedModel
    seed: int
    cache: Path
    console: Console
    fraction: float = 1.0

    def read(self, arm: str, *, erased: str | None = None, whole: bool = True) -> Reading:
        """Fit on train, choose on val, then read the tests.

        Args:
            arm: whose features these are.
            erased: the arm that erases from them, if it is asked for.
            whole: whether the other probes, the fractions of the labels and the leakage are read too.
        """
        reading = Reading()
        source = self._features(np.concatenate([self._labelled(), self.setup.rows["val"]]))
        reading.facts["unreadable"] = source.unreadable
        heads = self._fit(arm, source, reading, whole=whole)
        without: dict[str, Fitted] = {}
        eraser: ErasedSource | None = None
        if erased is not None and self.setup.erased is not None:
            known = known_values(
                self.setup.manifest.table, self.setup.factors[self._erased_factor()], source.rows
            )
            eraser = erase_source(source, known, self._positions(source, self._labelled()))
            without = self._fit(erased, eraser, reading, whole=True)
        # Everything is chosen. Only now are the images of the tests opened.
        tests = self._features(self.setup.tested)
        reading.facts["unreadable"] = [*source.unreadable, *tests.unreadable]
        self._predict(arm, heads, source, tests, reading, whole=whole)
        if eraser is not None and erased is not None:
            self._predict(erased, without, eraser, eraser.of(tests), reading, whole=True)
        return reading

    def _erased_factor(self) -> str:
        """The name under which the erased factor or column is read."""
        name = self.setup.erased
        return next(key for key, spec in self.setup.factors.items() if name in (key, *spec.columns))

    def _labelled(self) -> Rows:
        """Training rows whose label the heads may know."""
        return self.setup.labelled(self.fraction, self.seed)

    def _features(self, rows: Rows) -> CachedFeatures:
        settings = self.setup.base.compare
        return cached_features(
            self.model,
            self.setup.manifest,
            rows,
            folder=self.cache,
            patches=True,
            layers=settings.layers,
            windows=settings.windows,
            batch_size=BATCH,
            device=choose_device(self.setup.base.train.device),
            workers=self.setup.base.train.workers,
        )

    @staticmethod
    def _positions(source: FeatureSource, rows: Rows) -> Rows:
        return np.flatnonzero(np.isin(source.rows, rows)).astype(np.int64)

    def _fit(self, arm: str, source: FeatureSource, reading: Reading, *, whole: bool) -> dict[str, Fitted]:
        """The probes of an arm by name, and what can be told from train and val alone."""
        setup, train = self.setup, self._positions(source, self._labelled())
        fitted: dict[str, Fitted] = {HEADLINE: self._grid("attentive", source, train)}
        if whole:
            fitted["linear"] = self._grid("linear", source, train)
            reading.facts["leakage"][arm] = self._leakage(arm, source, train)
        if whole and KINDS.get(arm) != "supervised" and setup.reads_fractions(arm):
            for share in setup.fractions:
                labelled = setup.labelled(share, self.seed)
                own = train[np.isin(source.rows[train], labelled)]
                fitted[f"{share:g}"] = self._grid("attentive", source, own)
        for name, found in fitted.items():
            self.console.print(
                f"{arm}, {name}: lr {found.lr:g}, val {max(found.val_scores):.3f}", highlight=False
            )
        reading.facts["chosen"][arm] = {name: found.choice() for name, found in fitted.items()}
        if KINDS.get(arm) in ("reference", "post hoc"):
            head = setup.base.compare.head
            # Nothing but the head is trained: what it was at first is what the arm is held against.
            untrained = untrained_head(
                "attentive", source, setup.task, seed=self.seed, width=head.width, heads=head.heads
            )
            fitted[UNTRAINED] = dataclasses.replace(fitted[HEADLINE], head=untrained)
        return fitted

    def _grid(self, kind: HeadKind, source: FeatureSource, train: Rows) -> Fitted:
        setup, settings = self.setup, self.setup.base.compare
        groups = setup.codes(setup.base.probe.group)
        return fit_grid(
            kind,
            source,
            setup.targets.at(source.rows),
            train,
            self._positions(source, setup.rows["val"]),
            setup.task,
            Grid(
                tuple(settings.grid.lrs if kind == "attentive" else settings.grid.linear_lrs),
                tuple(settings.grid.weight_decays),
            ),
            metric=setup.metric,
            steps=settings.grid.steps,
            batch_size=settings.grid.batch_size,
            seed=self.seed,
            device=choose_device(setup.base.train.device),
            groups=None if groups is None else groups[source.rows],
            width=settings.head.width,
            heads=settings.head.heads,
        )

    def _leakage(self, arm: str, source: FeatureSource, train: Rows) -> dict[str, Any]:
        """How well every factor can be told from the features of the rows that train."""
        setup = self.setup
        erased, features = None, source
        if isinstance(source, ErasedSource):
            # Erased anew on one half of the rows, and read on the other: as honest as the reading itself.
            erased, features = setup.factors[self._erased_factor()], source.source
        readings = read_all(
            plain_features(features, train),
            setup.manifest.table,
            setup.factors,
            k=setup.base.probe.k,
            seed=setup.base.seed,
            device="cpu",
            methods=METHODS,
            erased=erased,
        )
        return {name: dataclasses.asdict(reading) for name, reading in readings.items()}

    def _predict(
        self,
        arm: str,
        fitted: dict[str, Fitted],
        source: FeatureSource,
        tests: FeatureSource,
        reading: Reading,
        *,
        whole: bool,
    ) -> None:
        """What the probes say of the test rows."""
        every = np.arange(len(tests.rows), dtype=np.int64)
        for name, probe in fitted.items():
            scores = self.setup.task.predict(probe.logits(every, tests)).scores
            reading.scores[f"{arm}|{name}"] = self._in_place(tests.rows, scores)
        if not whole:
            return
        train = self._positions(source, self._labelled())
        queries, known = tests.cls(), self.setup.targets.at(source.rows[train])
        ks = self.setup.base.compare.neighbours
        for k, said in knn_predictions(self.setup.task, source.cls()[train], known, queries, ks).items():
            reading.scores[f"{arm}|knn{k}"] = self._in_place(tests.rows, said.scores)
        if self.seed == self.setup.base.seed and arm in SHOWN_ARMS:
            parts = zip(self.setup.shown, (tests, source), strict=True)
            reading.cls[arm] = np.concatenate([in_place(rows, own.rows, own.cls()) for rows, own in parts])

    def _in_place(self, rows: Rows, values: Scores) -> Scores:
        return in_place(self.setup.tested, rows, values)


def in_place(asked: Rows, rows: Rows, values: Scores) -> Scores:
    """``values`` of ``rows`` in the order of ``asked``; NaN for those that are not among them."""
    place = {int(row): number for number, row in enumerate(rows)}
    whole = np.full((len(asked), values.shape[1]), np.nan, dtype=np.float32)
    found = [(number, place[int(row)]) for number, row in enumerate(asked) if int(row) in place]
    if found:
        own, theirs = np.array(found).T
        whole[own] = values[theirs]
    return whole


def read_head(setup: Setup, out: Path, *, untrained: bool = False) -> Scores:
    """What a supervised arm's own head says of the test rows."""
    device = choose_device(setup.base.train.device)
    logits, rows = predict_baseline(
        out,
        setup.manifest,
        setup.tested,
        batch_size=BATCH,
        device=device,
        workers=setup.base.train.workers,
        untrained=untrained,
    )
    return in_place(setup.tested, rows, setup.task.predict(torch.from_numpy(logits)).scores)
