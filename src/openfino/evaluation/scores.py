"""Scores of a probe, how far they could be off, and whether two arms differ by more than that.

Rows are drawn with replacement (whole clusters of them where a column names them: the images of a plate resemble each
other) and every metric is taken of each draw. Arms that are compared are scored on the same draws.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from openfino.evaluation.measures import LOWER_IS_BETTER, METRICS, Doubles, measures
from openfino.evaluation.metrics import Codes
from openfino.evaluation.splits import probe_generator
from openfino.evaluation.tasks import Predictions, Targets, Task

__all__ = [
    "LOWER_IS_BETTER",
    "METRICS",
    "Bootstrap",
    "Difference",
    "bootstrap",
    "bootstrap_difference",
    "score_task",
]

LEVEL = 0.95
# A drawn set of rows has a worse worst group, and fits its confidence worse, than new rows would have.
BIASED = frozenset({"worst_group_accuracy", "calibration_error"})
CELLS = 1 << 23  # row counts held at once: 64 MB

Interval = tuple[float, float]


def score_task(
    task: Task,
    predictions: Predictions,
    targets: Targets,
    groups: Codes | None = None,
    *,
    metrics: Collection[str] | None = None,
) -> dict[str, float]:
    """Every metric of the task that is defined on these rows, by name (:data:`openfino.evaluation.measures.METRICS`).

    Args:
        task: the task.
        predictions: of n rows.
        targets: of the same rows; those that are not valid are left out.
        groups: of the same rows, -1 where there is none: for ``worst_group_accuracy``.
        metrics: names; all when not given.

    Raises:
        ValueError: if no row is valid, or the lengths differ.
    """
    kept = _valid(predictions, targets, groups)
    own = groups[kept] if groups is not None else None
    once = np.ones((len(kept), 1))
    prepared = measures(task, predictions.at(kept), targets.at(kept), own, metrics)
    values = {name: float(measure(once)[0]) for name, measure in prepared.items()}
    return {name: values[name] for name in METRICS[task.kind] if not np.isnan(values.get(name, np.nan))}


@dataclass(frozen=True)
class Difference:
    """How much better one arm scores than another: positive where its value is higher.

    Attributes:
        difference: of the metric on all rows. low: of its 95 % interval. high: of its 95 % interval.
    """

    difference: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """The metrics of several arms, each with one or more seeds, in the same draws of rows and seeds.

    Attributes:
        estimates: arm -> metric -> its value on all rows for every seed, float64 [S]; metrics that are not defined
            on all rows are absent.
        values: arm -> metric -> the same in every draw of rows, float64 [S, draws].

    Args:
        task: the task.
        arms: predictions of every arm for the same n rows, one for each seed.
        targets: of these rows; those that are not valid are left out.
        clusters: what is drawn together, -1 for a row on its own; rows by themselves when not given.
        groups: for ``worst_group_accuracy``, -1 where there is none.
        draws: how many.
        seed: of the draws.
        metrics: names; all when not given.

    Raises:
        ValueError: if no row is valid, or the lengths differ.
    """

    def __init__(
        self,
        task: Task,
        arms: Mapping[str, Sequence[Predictions]],
        targets: Targets,
        *,
        clusters: Codes | None = None,
        groups: Codes | None = None,
        draws: int = 1000,
        seed: int,
        metrics: Collection[str] | None = None,
    ) -> None:
        kept = next(_valid(each, targets, groups, clusters) for every in arms.values() for each in every)
        own = groups[kept] if groups is not None else None
        truth = targets.at(kept)
        prepared = {
            (arm, number): measures(task, each.at(kept), truth, own, metrics)
            for arm, every in arms.items()
            for number, each in enumerate(every)
            if len(_valid(each, targets)) == len(kept)
        }
        self.draws, self.seed = draws, seed
        self.estimates: dict[str, dict[str, Doubles]] = {arm: {} for arm in arms}
        self.values: dict[str, dict[str, Doubles]] = {arm: {} for arm in arms}
        once = np.ones((len(kept), 1))
        for (arm, number), by_name in prepared.items():
            for name, measure in by_name.items():
                own_estimates = self.estimates[arm].setdefault(name, np.empty(len(arms[arm])))
                own_estimates[number] = measure(once)[0]
                self.values[arm].setdefault(name, np.empty((len(arms[arm]), draws)))
        start = 0
        for weights in row_draws(len(kept), None if clusters is None else clusters[kept], draws, seed):
            stop = start + weights.shape[1]
            for (arm, number), by_name in prepared.items():
                for name, measure in by_name.items():
                    self.values[arm][name][number, start:stop] = measure(weights)
            start = stop
        for arm, by_metric in self.estimates.items():
            for name in [name for name, values in by_metric.items() if np.isnan(values).any()]:
                del by_metric[name], self.values[arm][name]

    def mean(self, arm: str, metric: str) -> float:
        """The metric on all rows, averaged over the seeds."""
        return float(self.estimates[arm][metric].mean())

    def interval(self, arm: str, metric: str) -> Interval:
        """95 % interval of :meth:`mean` over rows, and over seeds where there are several.

        The middle 95 % of the draws. Draws of the worst group and of the calibration error lie to one side: their
        interval reaches as far to both sides of the mean as the draws do to the farther one.
        """
        low, high = middle_of(self._over_seeds(self.values[arm][metric], arm))
        if metric not in BIASED:
            return low, high
        middle = self.mean(arm, metric)
        reach = max(middle - low, high - middle)
        return max(middle - reach, 0.0), min(middle + reach, 1.0)

    def difference(self, arm: str, than: str, metric: str) -> Difference:
        """:meth:`mean` of ``arm`` minus that of ``than``, with the middle 95 % of the draws: rows and seeds are paired.

        Seeds are paired where both arms have as many, and drawn for each arm by itself where not.
        """
        first, second = self.values[arm][metric], self.values[than][metric]
        if len(first) == len(second):
            drawn = self._over_seeds(first - second, "pairs")
        else:
            drawn = self._over_seeds(first, arm) - self._over_seeds(second, than)
        return Difference(self.mean(arm, metric) - self.mean(than, metric), *middle_of(drawn))

    def _over_seeds(self, values: Doubles, arm: str) -> Doubles:
        """Mean over as many seeds as there are, drawn anew for every draw of rows: [S, draws] -> [draws].

        The mean of S drawn seeds varies (S - 1) / S as much as that of S new seeds would: deviations are stretched.
        Few seeds tell little about their own spread: all is stretched by the ratio of Student's t to the normal
        quantile, with Satterthwaite's degrees of freedom (rows: without limit, seeds: S - 1).
        """
        count = len(values)
        middle: Doubles = values.mean(axis=0)
        if count == 1:
            return middle
        picked = probe_generator(self.seed, f"bootstrap seeds {arm}").integers(0, count, (count, self.draws))
        of_seeds = np.sqrt(count / (count - 1)) * (
            np.take_along_axis(values, picked, axis=0).mean(axis=0) - middle
        )
        spread, seed_spread = np.nanvar(middle + of_seeds), np.nanvar(of_seeds)
        if not seed_spread > 0:
            return middle
        freedom = (count - 1) * max(1.0, float(spread / seed_spread)) ** 2
        quantile = 0.5 + LEVEL / 2
        wider = stdtrit(freedom, quantile) / NormalDist().inv_cdf(quantile)
        centre = np.nanmean(middle)
        stretched: Doubles = centre + wider * (middle + of_seeds - centre)
        return stretched


def bootstrap(
    task: Task,
    predictions: Predictions | Sequence[Predictions],
    targets: Targets,
    *,
    clusters: Codes | None = None,
    groups: Codes | None = None,
    draws: int = 1000,
    seed: int,
    metrics: Collection[str] | None = None,
) -> dict[str, Interval]:
    """95 % interval of every metric of :func:`score_task`; several predictions are seeds, whose mean it is for.

    See :class:`Bootstrap` for the arguments.
    """
    found = Bootstrap(
        task,
        {"": _seeds(predictions)},
        targets,
        clusters=clusters,
        groups=groups,
        draws=draws,
        seed=seed,
        metrics=metrics,
    )
    return {name: found.interval("", name) for name in METRICS[task.kind] if name in found.estimates[""]}


def bootstrap_difference(
    task: Task,
    first: Predictions | Sequence[Predictions],
    second: Predictions | Sequence[Predictions],
    targets: Targets,
    *,
    clusters: Codes | None = None,
    groups: Codes | None = None,
    draws: int = 1000,
    seed: int,
    metrics: Collection[str] | None = None,
) -> dict[str, Difference]:
    """Every metric of ``first`` minus that of ``second`` on the same rows, with 95 % intervals.

    See :class:`Bootstrap` for the arguments.
    """
    found = Bootstrap(
        task,
        {"first": _seeds(first), "second": _seeds(second)},
        targets,
        clusters=clusters,
        groups=groups,
        draws=draws,
        seed=seed,
        metrics=metrics,
    )
    both = found.estimates["first"].keys() & found.estimates["second"].keys()
    return {name: found.difference("first", "second", name) for name in METRICS[task.kind] if name in both}


def _seeds(predictions: Predictions | Sequence[Predictions]) -> Sequence[Predictions]:
    return [predictions] if isinstance(predictions, Predictions) else predictions


def _valid(predictions: Predictions, targets: Targets, *others: Codes | None) -> Codes:
    """The positions whose target is valid.

    Raises:
        ValueError: if there is none, or the lengths differ.
    """
    lengths = {len(predictions), len(targets), *(len(each) for each in others if each is not None)}
    if len(lengths) > 1:
        raise ValueError(
            f"predictions, targets, groups and clusters have different lengths: {sorted(lengths)}"
        )
    kept = np.flatnonzero(targets.valid)
    if len(kept) == 0:
        raise ValueError("no row has a label to be scored by")
    return kept


def row_draws(rows: int, clusters: Codes | None, draws: int, seed: int) -> Iterator[Doubles]:
    """How often each row counts in each draw of a bootstrap, [rows, d] at a time.

    Args:
        rows: how many there are.
        clusters: what is drawn together, int64 [rows], -1 for a row on its own; rows by themselves when not given.
        draws: how many.
        seed: of the draws.
    """
    alone = np.arange(rows)
    if clusters is not None:
        alone = np.where(clusters >= 0, clusters, -1 - alone)
    _, members = np.unique(alone, return_inverse=True)
    count = int(members.max()) + 1
    generator = probe_generator(seed, "bootstrap")
    at_once = max(1, CELLS // rows)
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        drawn = generator.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield np.ascontiguousarray(counts.T, dtype=np.float64)[members]


def middle_of(values: Doubles) -> Interval:
    """The middle 95 % of the draws [d] in which a metric is defined."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
