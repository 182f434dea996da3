"""From scores to verdicts: changes against the control, what is noise, and which role helps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from openfino.compass.plan import ROLES, Role

Effect = Literal["helps", "hurts", "within noise"]
Quadrant = Literal["always beneficial", "informative only", "spurious only", "always harmful", "within noise"]
QUADRANTS: tuple[Quadrant, ...] = (
    "always beneficial",
    "informative only",
    "spurious only",
    "always harmful",
    "within noise",
)
ERROR_RATE = 0.05


@dataclass(frozen=True)
class Spread:
    """How much the scores on one split differ from seed to seed.

    Attributes:
        deviation: standard deviation of a score between seeds, after what a seed does to all arms alike.
        freedom: degrees of freedom behind it.
        seeds: of every arm.
    """

    deviation: float
    freedom: int
    seeds: int

    def noise(self, comparisons: int) -> float:
        """What chance alone makes of a change, with one exception in twenty among ``comparisons`` of them.

        t(1 - a/2, freedom) * deviation * sqrt(2 / seeds), with 1 - a = 0.95^(1 / comparisons) (Sidak).
        """
        error = 1 - (1 - ERROR_RATE) ** (1 / comparisons)
        quantile = float(stdtrit(self.freedom, 1 - error / 2))
        return quantile * self.deviation * math.sqrt(2 / self.seeds)


def spread_of(scores: NDArray[np.float64]) -> Spread:
    """The spread over seeds, pooled over the control and the arms.

    Args:
        scores: of every arm (the control among them) with every seed, [arms, seeds], two or more of each. The seeds
            are the same for all arms, so that they are blocks: deviation^2 = sum of (x_as - mean_a - mean_s + mean)^2
            over (arms - 1)(seeds - 1) degrees of freedom.
    """
    arms, seeds = scores.shape
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    freedom = (arms - 1) * (seeds - 1)
    return Spread(math.sqrt(float((rest**2).sum()) / freedom), freedom, seeds)


@dataclass(frozen=True)
class Change:
    """What an arm scores beyond the control on one split.

    Attributes:
        per_seed: differences with the same seed.
        noise: a mean difference up to this can be chance.
    """

    per_seed: tuple[float, ...]
    noise: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.per_seed)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.per_seed)

    @property
    def effect(self) -> Effect:
        """Whether the mean is clear of the noise."""
        if abs(self.mean) <= self.noise:
            return "within noise"
        return "helps" if self.mean > 0 else "hurts"

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        return {
            "delta": self.mean,
            "spread": self.deviation,
            "noise": self.noise,
            "effect": self.effect,
            "per_seed": list(self.per_seed),
        }


def change_of(arm: Sequence[float], control: Sequence[float], noise: float) -> Change:
    """The arm's scores minus the control's, seed by seed."""
    return Change(tuple(own - base for own, base in zip(arm, control, strict=True)), noise)


def quadrant_of(changes: Mapping[Role, Change]) -> Quadrant:
    """Where a factor stands, by its change in either role.

    ``always harmful`` is what helps in neither role and clearly hurts in at least one.
    """
    effects = {role: changes[role].effect for role in ROLES}
    helping = [role for role, effect in effects.items() if effect == "helps"]
    if len(helping) == 2:
        return "always beneficial"
    if helping:
        return "informative only" if helping[0] == "informative" else "spurious only"
    return "always harmful" if "hurts" in effects.values() else "within noise"


def helping_roles(factors: Mapping[str, Mapping[Role, Change]]) -> dict[str, Role]:
    """The factors that clearly help, each in the role in which it helps more."""
    roles: dict[str, Role] = {}
    for name, changes in factors.items():
        helping = [role for role in ROLES if changes[role].effect == "helps"]
        if helping:
            roles[name] = max(helping, key=lambda role: changes[role].mean)
    return roles
