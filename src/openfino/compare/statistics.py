"""Means over seeds, intervals over test images and seeds, and which differences are within noise.

Rows (whole clusters where a column names them) are drawn with replacement, the same for all arms, so that arms are
compared on the same draws. Seeds are few: three that happen to agree would make a lucky arm look certain. The spread
between seeds is therefore that of the arm or, where that is larger, the one pooled over all arms (after what a seed
does to all of them alike), and it is added to each draw by Student's t:

    draw = mean over seeds of the metric on the drawn rows + t(freedom) * deviation / sqrt(seeds)

The interval is the middle 95 % of the draws. With one seed it knows of the images alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openfino.compass.verdict import spread_of
from openfino.evaluation.scores import Bootstrap
from openfino.evaluation.splits import probe_generator
from openfino.evaluation.tasks import Predictions, Targets, Task

Doubles = NDArray[np.float64]
Codes = NDArray[np.int64]

TAIL = 0.025


@dataclass(frozen=True)
class Weighed:
    """The metrics of many arms on one split, and how far they could be off.

    Attributes:
        found: their values on all rows and in every draw of rows.
        pooled: metric -> deviation between seeds over all arms, and its degrees of freedom; empty with one seed.
        noise: t-distributed numbers for every draw, by degrees of freedom.
    """

    found: Bootstrap
    pooled: dict[str, tuple[float, int]]

    def metrics(self, arm: str) -> list[str]:
        """What is defined for an arm."""
        return list(self.found.estimates[arm])

    def value(self, arm: str, metric: str) -> dict[str, Any]:
        """``mean``, ``low``, ``high`` and ``seeds``."""
        seeds = self.found.estimates[arm][metric]
        draws = self._drawn(self.found.values[arm][metric], seeds, metric, 1.0)
        return {"mean": float(seeds.mean()), **_interval(draws), "seeds": [float(seed) for seed in seeds]}

    def difference(self, arm: str, than: str, metric: str) -> dict[str, Any]:
        """``difference``, ``low``, ``high`` and ``beyond_noise``; rows and seeds are paired."""
        first, second = self.found.estimates[arm][metric], self.found.estimates[than][metric]
        values = self.found.values[arm][metric] - self.found.values[than][metric]
        interval = _interval(self._drawn(values, first - second, metric, math.sqrt(2)))
        beyond = interval["low"] > 0 or interval["high"] < 0
        return {"difference": float((first - second).mean()), **interval, "beyond_noise": beyond}

    def _drawn(self, values: Doubles, seeds: Doubles, metric: str, arms: float) -> Doubles:
        """Draws of a mean over seeds; ``arms``: how much the pooled deviation grows where several arms take part."""
        middle: Doubles = values.mean(axis=0)
        if len(seeds) == 1 or metric not in self.pooled:
            return middle
        pooled, freedom = self.pooled[metric]
        deviation = max(float(seeds.std(ddof=1)), arms * pooled)
        generator = probe_generator(self.found.seed, f"compare seeds {metric}")
        drawn: Doubles = middle + generator.standard_t(freedom, len(middle)) * deviation / math.sqrt(
            len(seeds)
        )
        return drawn


def weigh(
    task: Task,
    arms: Mapping[str, Sequence[Predictions]],
    targets: Targets,
    *,
    clusters: Codes | None,
    groups: Codes | None,
    draws: int,
    seed: int,
    metrics: Collection[str] | None = None,
) -> Weighed:
    """Score every arm on the same rows and draws.

    Args:
        task: of the label.
        arms: predictions of every arm for the same n rows, one for each seed.
        targets: of these rows.
        clusters: what is drawn together, -1 for a row on its own.
        groups: for worst-group accuracy, -1 where there is none.
        draws: of the bootstrap.
        seed: of the draws.
        metrics: names; all when not given.
    """
    found = Bootstrap(
        task, arms, targets, clusters=clusters, groups=groups, draws=draws, seed=seed, metrics=metrics
    )
    return Weighed(found, _pooled(found))


def _pooled(found: Bootstrap) -> dict[str, tuple[float, int]]:
    """The spread between seeds of each metric, over the arms that have it for every seed."""
    pooled = {}
    names = dict.fromkeys(name for by_metric in found.estimates.values() for name in by_metric)
    for name in names:
        own = [by_metric[name] for by_metric in found.estimates.values() if name in by_metric]
        most = max(len(each) for each in own)
        table = np.array([each for each in own if len(each) == most])
        if most < 2:
            continue
        if len(table) < 2:
            pooled[name] = (float(table.std(ddof=1)), most - 1)
            continue
        spread = spread_of(table)
        pooled[name] = (spread.deviation, spread.freedom)
    return pooled


def _interval(draws: Doubles) -> dict[str, float]:
    """The middle 95 % of the draws in which the metric is defined."""
    low, high = np.nanquantile(draws, [TAIL, 1 - TAIL])
    return {"low": float(low), "high": float(high)}
