"""Means over seeds, intervals over test images and seeds, and which differences are within noise.

Rows (whole clusters where a column names them) are drawn with replacement, the same for all arms, so that arms are
compared on the same draws. Seeds are few: three that happen to agree would make a lucky arm look certain. The spread
between seeds is therefore that of the arm or, where that is larger, the one pooled over the arms of its family (those
read by a probe, those with a head of their own; after what a seed does to all of a family alike), and it is added to
each draw by Student's t:

    draw = mean over seeds of the metric on the drawn rows + t(freedom) * deviation / sqrt(seeds)

The interval is the middle 95 % of the draws, and never beyond what the metric can be. With one seed it knows of the
images alone.
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
RANGES = {"r2": (-math.inf, 1.0)}  # of metrics that do not lie from 0 to 1


@dataclass(frozen=True)
class Weighed:
    """The metrics of many arms on one split, and how far they could be off.

    Attributes:
        found: their values on all rows and in every draw of rows.
        families: of every arm.
        pooled: (family, metric) -> deviation between seeds, and its degrees of freedom; empty with one seed.
    """

    found: Bootstrap
    families: Mapping[str, str]
    pooled: dict[tuple[str, str], tuple[float, int]]

    def metrics(self, arm: str) -> list[str]:
        """What is defined for an arm."""
        return list(self.found.estimates[arm])

    def value(self, arm: str, metric: str) -> dict[str, Any]:
        """``mean``, ``low``, ``high`` and ``seeds``."""
        seeds = self.found.estimates[arm][metric]
        draws = self._drawn(self.found.values[arm][metric], seeds, metric, [arm])
        low, high = RANGES.get(metric, (0.0, 1.0))
        bounded = np.clip(draws, low, high)
        return {"mean": float(seeds.mean()), **_interval(bounded), "seeds": [float(seed) for seed in seeds]}

    def difference(self, arm: str, than: str, metric: str) -> dict[str, Any]:
        """``difference``, ``low``, ``high`` and ``beyond_noise``; rows and seeds are paired."""
        first, second = self.found.estimates[arm][metric], self.found.estimates[than][metric]
        values = self.found.values[arm][metric] - self.found.values[than][metric]
        low, high = RANGES.get(metric, (0.0, 1.0))
        draws = np.clip(self._drawn(values, first - second, metric, [arm, than]), low - high, high - low)
        interval = _interval(draws)
        beyond = interval["low"] > 0 or interval["high"] < 0
        return {"difference": float((first - second).mean()), **interval, "beyond_noise": beyond}

    def _drawn(self, values: Doubles, seeds: Doubles, metric: str, arms: Sequence[str]) -> Doubles:
        """Draws of the mean over seeds of what ``arms`` have together."""
        middle: Doubles = values.mean(axis=0)
        pooled = [self.pooled.get((self.families[arm], metric)) for arm in arms]
        known = [each for each in pooled if each is not None]
        if len(seeds) == 1 or not known:
            return middle
        deviation = max(float(seeds.std(ddof=1)), math.sqrt(sum(own**2 for own, _ in known)))
        freedom = min(freedom for _, freedom in known)
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
    families: Mapping[str, str] | None = None,
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
        families: of the arms; one for all when not given.
    """
    found = Bootstrap(
        task, arms, targets, clusters=clusters, groups=groups, draws=draws, seed=seed, metrics=metrics
    )
    families = families or dict.fromkeys(arms, "")
    return Weighed(found, families, _pooled(found, families))


def _pooled(found: Bootstrap, families: Mapping[str, str]) -> dict[tuple[str, str], tuple[float, int]]:
    """The spread between seeds of each metric, over the arms of each family that have it."""
    tables: dict[tuple[str, str], list[Doubles]] = {}
    for arm, by_metric in found.estimates.items():
        for metric, seeds in by_metric.items():
            if len(seeds) > 1:
                tables.setdefault((families[arm], metric), []).append(seeds)
    pooled = {}
    for key, own in tables.items():
        table = np.array(own)
        if len(table) == 1:
            pooled[key] = (float(table.std(ddof=1)), table.shape[1] - 1)
        else:
            spread = spread_of(table)
            pooled[key] = (spread.deviation, spread.freedom)
    return pooled


def _interval(draws: Doubles) -> dict[str, float]:
    """The middle 95 % of the draws in which the metric is defined."""
    low, high = np.nanquantile(draws, [TAIL, 1 - TAIL])
    return {"low": float(low), "high": float(high)}
