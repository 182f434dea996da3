"""Compasses made of given scores, without a run."""

from pathlib import Path

import polars as pl

from openfino.compass.plan import CONTROL, arm_of, single_arms
from openfino.compass.result import START, Compass, helping, recommend, spreads_of, weigh_factors
from openfino.compass.validation import Validation

# Means on (in, out, test): antibody helps as informative, plate as spurious, operator does nothing, dose hurts.
MEANS = {
    "antibody": {"informative": (0.12, 0.10, 0.09), "spurious": (-0.05, -0.08, -0.06)},
    "plate": {"informative": (0.05, -0.01, 0.0), "spurious": (0.02, 0.06, 0.05)},
    "operator": {"informative": (0.0, 0.004, 0.0), "spurious": (0.01, -0.003, 0.0)},
    "dose": {"informative": (-0.02, -0.05, -0.03), "spurious": (-0.04, -0.06, -0.02)},
}
SPLITS = {"in": "compass_in", "out": "compass_out"}
JITTER = (0.004, -0.006, 0.002)


def validation(parts=("in", "out"), tests=("test",)):
    return Validation(
        column=pl.Series("compass_split", ["train"]),
        parts={part: SPLITS[part] for part in parts},
        rows=dict.fromkeys(parts, 144),
        train=["train"],
        probe_train="train",
        tests=list(tests),
        how="the rows of split 'val'",
        warnings=[],
    )


def rising(level, shift):
    """Three scores about ``level``."""
    return [level + (1 + shift) * jitter for jitter in JITTER]


def fake_compass(means=MEANS, combined=(0.15, 0.14, 0.13), out=Path("compass"), own=None, start=0.2):
    own = own or validation()
    arms = single_arms(list(means), list(means))
    splits = [*own.parts.values(), *own.tests]
    places = {"compass_in": 0, "compass_out": 1, "test": 2}
    levels = {START: start, CONTROL.name: 0.3}
    scores = {name: {split: rising(level, 0) for split in splits} for name, level in levels.items()}
    for number, arm in enumerate(arms):
        ((name, role),) = arm.roles.items()
        scores[arm.name] = {
            split: rising(0.3 + means[name][role][places[split]], (-1) ** number) for split in splits
        }
    spreads = spreads_of(scores, [CONTROL, *arms], own.parts)
    factors = weigh_factors(scores, arms, spreads, own, {})
    roles = helping(factors, own.deciding)
    candidates = [arm_of({name: role}, arms) for name, role in roles.items()]
    if len(roles) > 1:
        combination = arm_of(roles, arms)
        scores[combination.name] = {split: rising(0.3 + combined[places[split]], 0) for split in splits}
        candidates.append(combination)
    return Compass(
        out=out,
        recipe="recipe.yaml",
        measure=("macro_f1", "knn"),
        label="localization",
        steps=60,
        seeds=[0, 1, 2],
        validation=own,
        scores=scores,
        spreads=spreads,
        factors=factors,
        recommendation=recommend(scores, candidates, arms, spreads, own),
    )
