"""Whether an arm learned: every probe of it against the same probe of what the arm began as."""

from typing import Any

from openfino.compare.arms import ADAPTED, METHODS, RANDOM
from openfino.compare.reading import HEADLINE, UNTRAINED
from openfino.compare.readings import Named, Readings, difference_of, values_of, weigh

WITHOUT_PRETRAINING = ("fino_scratch", "scratch")


def learned(readings: Readings, start: str) -> dict[str, Any]:
    """Arm -> split -> probe -> ``before``, ``after`` and their difference with its interval, by the table's metric.

    What adapts the backbone began as the start, or without pretraining as random weights, and every probe of it is held
    against the same probe of those. A supervised arm has a head of its own: the headline is held against the network
    with that head untrained, the other probes against those of its starting backbone. Where nothing but a head is
    trained (the start, erasure), the headline is held against the untrained head.

    Args:
        readings: of all jobs.
        start: the arm that is the starting backbone.
    """
    setup, metric = readings.setup, readings.setup.metric
    pairs = {
        (arm, probe): before
        for arm in setup.arms
        for probe in [HEADLINE, "linear", *(f"knn{k}" for k in setup.base.compare.neighbours)]
        if (before := _before(arm, probe, start)) is not None
    }
    named: Named = {}
    for key in [*pairs, *pairs.values()]:
        said = readings.predictions(*key)
        if said is not None:
            named["|".join(key)] = said
    found: dict[str, Any] = {}
    for split in setup.tests:
        weighed = weigh(readings, split, named, [metric])
        for (arm, probe), before in pairs.items():
            after, first = f"{arm}|{probe}", "|".join(before)
            if weighed is None or not {after, first} <= named.keys():
                continue
            if any(metric not in weighed.estimates[key] for key in (after, first)):
                continue
            found.setdefault(arm, {}).setdefault(split, {})[probe] = {
                "before": weighed.mean(first, metric),
                "after": weighed.mean(after, metric),
                **difference_of(weighed, after, first, metric),
            }
    return found


def _before(arm: str, probe: str, start: str) -> tuple[str, str] | None:
    """Whose predictions, and by which probe, an arm's are held against; None where the arm left the features alone."""
    trains_backbone = arm in ADAPTED or arm in METHODS
    if probe == HEADLINE and arm not in ADAPTED:
        return arm, UNTRAINED
    if not trains_backbone:
        return None
    return (RANDOM if arm in WITHOUT_PRETRAINING else start), probe


def random_weights(readings: Readings) -> dict[str, Any]:
    """Split -> values of the starting architecture with random weights, read as the frozen start is.

    What the start has more than this, pretraining adds.
    """
    said = readings.predictions(RANDOM, HEADLINE)
    if said is None:
        return {}
    splits = readings.setup.tests
    weighed = {split: weigh(readings, split, {RANDOM: said}, [readings.setup.metric]) for split in splits}
    return {split: values_of(own, RANDOM) for split, own in weighed.items()}
