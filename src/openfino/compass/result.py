"""What a compass found."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openfino.compass.arms import summary_of
from openfino.compass.plan import CONTROL, ROLES, Arm, Job, Role
from openfino.compass.validation import PARTS, WORDS, Part, Validation
from openfino.compass.verdict import (
    Change,
    Quadrant,
    Spread,
    change_of,
    helping_roles,
    quadrant_of,
    spread_of,
)
from openfino.errors import OpenfinoError
from openfino.recipe import ProbeSettings

Scores = dict[str, dict[str, list[float]]]  # arm -> split -> of every seed

RULE = (
    "Noise: what chance alone makes of a change in fewer than one of twenty compasses (t quantile, Sidak over all "
    "arms) at the spread that control and arms show from seed to seed, beyond what a seed does to all of them alike. "
    "A role helps or hurts where its mean change is larger. 'Always harmful': it helps in neither role and hurts in "
    "at least one."
)


@dataclass(frozen=True)
class FactorResult:
    """One factor on the compass.

    Attributes:
        changes: by role and part of the validation.
        warnings: what the dependence of the columns says against a role.
    """

    changes: dict[Role, dict[Part, Change]]
    warnings: list[str]

    def quadrant(self, part: Part) -> Quadrant:
        """Where it stands on one part of the validation."""
        return quadrant_of(self.on(part))

    def on(self, part: Part) -> dict[Role, Change]:
        """Its changes on one part, by role."""
        return {role: changes[part] for role, changes in self.changes.items()}


@dataclass(frozen=True)
class Recommendation:
    """The roles that the compass advises.

    Attributes:
        arm: the roles, and the runs that have them.
        why: how it was chosen, a sentence.
        validation: its change on each part of the validation, which it was chosen on.
        tests: its change on each split that it was not chosen on.
    """

    arm: Arm
    why: str
    validation: dict[Part, Change]
    tests: dict[str, Change]


@dataclass(frozen=True)
class Compass:
    """Everything that a compass found.

    Attributes:
        out: its folder.
        recipe: name of the recipe's file.
        measure: the metric and the probe.
        label: the column that was probed.
        steps: of every arm.
        seeds: of every arm.
        validation: the splits.
        scores: of every arm, split and seed, the combination among them; ``start`` is the model before training.
        spreads: between seeds, by part.
        factors: by name.
        recommendation: what to run.
    """

    out: Path
    recipe: str
    measure: tuple[str, str]
    label: str
    steps: int
    seeds: list[int]
    validation: Validation
    scores: Scores
    spreads: dict[Part, Spread]
    factors: dict[str, FactorResult]
    recommendation: Recommendation

    @property
    def deciding(self) -> Part:
        """The part that roles were chosen on."""
        return self.validation.deciding

    @property
    def comparisons(self) -> int:
        """Arms that are held against the control."""
        return len(ROLES) * len(self.factors)

    def level(self, arm: str, part: Part) -> float:
        """Mean score of an arm over the seeds."""
        return statistics.fmean(self.scores[arm][self.validation.parts[part]])

    @property
    def warnings(self) -> list[str]:
        """What weakens the result."""
        part = self.deciding
        before, after = self.level(START, part), self.level(CONTROL.name, part)
        if after > before:
            return self.validation.warnings
        return [
            *self.validation.warnings,
            f"Without guidance {self.steps} steps taught the model nothing {WORDS[part]} ({self.measure[0]} "
            f"{before:.3f} before, {after:.3f} after), so that the changes say little: give every arm more steps.",
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of ``compass.json``."""
        metric, method = self.measure
        chosen = self.recommendation
        return {
            "recipe": self.recipe,
            "label": self.label,
            "metric": metric,
            "method": method,
            "steps": self.steps,
            "seeds": self.seeds,
            "validation": {
                "how": self.validation.how,
                "decides": self.deciding,
                "splits": {
                    part: {"split": split, "rows": self.validation.rows[part]}
                    for part, split in self.validation.parts.items()
                },
            },
            "rule": RULE,
            "noise": {
                part: {
                    "noise": spread.noise(self.comparisons),
                    "spread": spread.deviation,
                    "degrees_of_freedom": spread.freedom,
                }
                for part, spread in self.spreads.items()
            },
            "factors": {name: self._factor(factor) for name, factor in self.factors.items()},
            "recommendation": {
                "factors": dict(chosen.arm.roles),
                "arm": chosen.arm.name,
                "why": chosen.why,
                "recipe": str(self.out / RECIPE_FILE),
                "validation": {part: change.to_json() for part, change in chosen.validation.items()},
                "tests": {split: change.to_json() for split, change in chosen.tests.items()},
            },
            "scores": self.scores,
            "warnings": self.warnings,
        }

    def _factor(self, factor: FactorResult) -> dict[str, Any]:
        changes: dict[str, Any] = {
            role: {part: change.to_json() for part, change in parts.items()}
            for role, parts in factor.changes.items()
        }
        quadrants = {part: factor.quadrant(part) for part in self.spreads}
        return {
            "quadrant": quadrants[self.deciding],
            "quadrants": quadrants,
            **changes,
            "warnings": factor.warnings,
        }


RECIPE_FILE = "recommended.yaml"
START = "start"


def read_scores(jobs: Sequence[Job], splits: Sequence[str], probe: ProbeSettings) -> Scores:
    """The scores that the finished runs recorded; of ``start`` too, where the control's runs began.

    Raises:
        OpenfinoError: if a run did not measure one.
    """
    scores: Scores = {}
    for job in jobs:
        summary = summary_of(job)
        if summary is None:
            raise OpenfinoError(f"the arm {job.title} is not finished")
        for split in splits:
            if job.arm == CONTROL:
                before = _score(summary["probes"]["before"], split, probe, job)
                scores.setdefault(START, {}).setdefault(split, []).append(before)
            after = _score(summary["probes"]["after"], split, probe, job)
            scores.setdefault(job.arm.name, {}).setdefault(split, []).append(after)
    return scores


def _score(record: Mapping[str, Any], split: str, probe: ProbeSettings, job: Job) -> float:
    found = record["label"]["splits"][split]["scores"][probe.method].get(probe.metric)
    if found is None:
        raise OpenfinoError(f"the arm {job.title} has no {probe.metric} on split {split!r}")
    return float(found)


def spreads_of(scores: Scores, arms: Sequence[Arm], splits: Mapping[Any, str]) -> dict[Any, Spread]:
    """The spread over seeds on each of ``splits``, pooled over ``arms``."""
    return {
        key: spread_of(np.array([scores[arm.name][split] for arm in arms])) for key, split in splits.items()
    }


def weigh_factors(
    scores: Scores,
    arms: Sequence[Arm],
    spreads: Mapping[Part, Spread],
    validation: Validation,
    warnings: Mapping[str, list[str]],
) -> dict[str, FactorResult]:
    """Every factor's changes against the control.

    Args:
        scores: of the control and ``arms``.
        arms: the single ones.
        spreads: of each part.
        validation: the parts.
        warnings: by arm.
    """
    by_factor: dict[str, dict[Role, Arm]] = {}
    for arm in arms:
        for name, role in arm.roles.items():
            by_factor.setdefault(name, {})[role] = arm
    return {
        name: FactorResult(
            {role: changes_on(scores, arm, spreads, validation, len(arms)) for role, arm in own.items()},
            list(dict.fromkeys(text for arm in own.values() for text in warnings.get(arm.name, []))),
        )
        for name, own in by_factor.items()
    }


def changes_on(
    scores: Scores, arm: Arm, spreads: Mapping[Part, Spread], validation: Validation, comparisons: int
) -> dict[Part, Change]:
    """The change of ``arm`` on each part of the validation."""
    return {
        part: change_of(
            scores[arm.name][validation.parts[part]],
            scores[CONTROL.name][validation.parts[part]],
            spread.noise(comparisons),
        )
        for part, spread in spreads.items()
    }


def helping(factors: Mapping[str, FactorResult], part: Part) -> dict[str, Role]:
    """Factors that clearly help on ``part``, each in its better role."""
    return helping_roles({name: factor.on(part) for name, factor in factors.items()})


def recommend(
    scores: Scores,
    candidates: Sequence[Arm],
    arms: Sequence[Arm],
    spreads: Mapping[Part, Spread],
    validation: Validation,
) -> Recommendation:
    """The best of ``candidates`` where roles are chosen, measured on the tests against the control.

    Args:
        scores: of the control, ``arms`` and ``candidates``.
        candidates: the combination of the roles that help and its parts; empty if none helps.
        arms: the single ones.
        spreads: of each part of the validation.
        validation: the splits.
    """
    part, split = validation.deciding, validation.parts[validation.deciding]
    if not candidates:
        arm = CONTROL
        why = (
            f"No factor clearly helps {WORDS[part]} in either role: train without guidance, or ask again with more "
            "steps or seeds."
        )
    else:
        arm = max(candidates, key=lambda each: float(np.mean(scores[each.name][split])))
        why = f"{arm.title}: the role that clearly helps {WORDS[part]}."
        if len(candidates) > 1:
            combined = len(arm.roles) > 1
            why = (
                f"{arm.title}: the roles that clearly help {WORDS[part]}, together the best there."
                if combined
                else f"{arm.title}: clearly helps {WORDS[part]}, and is better there alone than with what else helps."
            )
    every = [CONTROL, *arms] + [arm for arm in candidates if arm not in arms]
    tests = {}
    for name, spread in spreads_of(scores, every, {name: name for name in validation.tests}).items():
        if arm != CONTROL:
            tests[name] = change_of(scores[arm.name][name], scores[CONTROL.name][name], spread.noise(1))
    own = changes_on(scores, arm, spreads, validation, len(arms)) if arm != CONTROL else {}
    return Recommendation(arm, why, {each: own[each] for each in PARTS if each in own}, tests)
