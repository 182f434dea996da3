"""What the jobs left, and the weighing of it: means over seeds, intervals over images and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openfino.compare.arms import ERASED, Trained
from openfino.compare.setup import Setup
from openfino.compare.working import CLS, SCORES_FILE, reading_of
from openfino.errors import OpenfinoError
from openfino.evaluation.scores import Bootstrap
from openfino.evaluation.tasks import Predictions

UNBOUNDED = ("r2",)  # metrics that do not lie from 0 to 1

Scores = NDArray[np.float32]
Named = dict[str, list[Predictions]]
"""Predictions of an arm or of one of its probes, by seed."""


@dataclass(frozen=True)
class Readings:
    """What the jobs left.

    Attributes:
        setup: what all arms share.
        records: of every job.
    """

    setup: Setup
    records: dict[Trained, dict[str, Any]]

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Test rows that every arm could read."""
        usable = np.ones(len(self.setup.tested), dtype=bool)
        for trained in self.records:
            for name, scores in self._arrays[trained].items():
                if not name.startswith(f"{CLS}|"):
                    usable &= np.isfinite(scores).all(axis=1)
        return usable

    def predictions(self, arm: str, name: str, *, fraction: float = 1.0) -> list[Predictions] | None:
        """Of a probe of an arm for the test rows that count, by seed; None where a seed has none.

        Args:
            arm: of the table.
            name: of the probe, or a share of the labels.
            fraction: share that a supervised arm was trained on.
        """
        found = []
        for seed in self.setup.seeds:
            trained = Trained(ERASED.get(arm, arm), seed, fraction)
            scores = self._arrays.get(trained, {}).get(f"{arm}|{name}")
            if scores is None:
                return None
            found.append(self.setup.task.predict_scores(scores[self.kept]))
        return found

    def cls(self, arm: str) -> Scores | None:
        """CLS of :attr:`Setup.shown` of the first seed, NaN where there is no image."""
        return self._arrays.get(Trained(ERASED.get(arm, arm), self.setup.base.seed), {}).get(f"{CLS}|{arm}")

    @cached_property
    def _arrays(self) -> dict[Trained, dict[str, Scores]]:
        arrays = {}
        for trained in self.records:
            with np.load(self.setup.place(trained) / SCORES_FILE) as stored:
                arrays[trained] = {name: stored[name] for name in stored.files}
        return arrays


def collect(setup: Setup) -> Readings:
    """What the finished jobs left.

    Raises:
        OpenfinoError: if one is not finished.
    """
    records = {}
    for trained in setup.trained():
        record = reading_of(setup.place(trained))
        if record is None:
            raise OpenfinoError(f"the arm {trained.title} is not finished")
        records[trained] = record
    return Readings(setup, records)


def weigh(
    readings: Readings, split: str, named: Named, metrics: Sequence[str] | None = None
) -> Bootstrap | None:
    """Of one split; None where there is nothing to weigh."""
    setup = readings.setup
    if not named:
        return None
    inside, rows = tested_rows(readings, split)
    clusters, groups = setup.codes(setup.cluster), setup.codes(setup.base.probe.group)
    own = None if groups is None else groups[rows]
    return Bootstrap(
        setup.task,
        {key: [said.at(inside) for said in every] for key, every in named.items()},
        setup.targets.at(rows),
        clusters=None if clusters is None else clusters[rows],
        groups=own if own is not None and (own >= 0).any() else None,
        draws=setup.base.compare.draws,
        seed=setup.base.seed,
        metrics=metrics,
    )


def tested_rows(readings: Readings, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions among the test rows that count, and the rows, of one split."""
    setup, start = readings.setup, 0
    for name, rows in setup.tests.items():
        if name == split:
            break
        start += len(rows)
    mask = np.zeros(len(setup.tested), dtype=bool)
    mask[start : start + len(setup.tests[split])] = True
    inside = np.flatnonzero(mask[readings.kept]).astype(np.int64)
    return inside, setup.tested[readings.kept][inside]


def values_of(weighed: Bootstrap | None, key: str) -> dict[str, Any]:
    """``mean``, ``low``, ``high`` and ``seeds`` of every metric."""
    return (
        {}
        if weighed is None
        else {metric: value_of(weighed, key, metric) for metric in weighed.estimates[key]}
    )


def value_of(weighed: Bootstrap, key: str, metric: str) -> dict[str, Any]:
    """``mean``, ``low``, ``high`` and ``seeds`` of one metric."""
    low, high = weighed.interval(key, metric)
    if metric not in UNBOUNDED:
        low, high = max(low, 0.0), min(high, 1.0)
    return {
        "mean": weighed.mean(key, metric),
        "low": low,
        "high": high,
        "seeds": weighed.estimates[key][metric].tolist(),
    }


def difference_of(weighed: Bootstrap, arm: str, than: str, metric: str) -> dict[str, Any]:
    """``arm`` less ``than``, paired image by image and seed by seed."""
    found = weighed.difference(arm, than, metric)
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "beyond_noise": found.beyond_noise,
    }
