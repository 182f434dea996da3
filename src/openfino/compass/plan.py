"""The arms of a compass: a control without guidance, and every factor alone in either role."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openfino.compass.validation import COLUMN, Validation
from openfino.errors import Problem
from openfino.jobs.folder import ARMS_FOLDER
from openfino.recipe import Recipe, build_recipe
from openfino.settings_layers import merge

Role = Literal["informative", "spurious"]
ROLES: tuple[Role, ...] = ("informative", "spurious")
CHECKPOINTS = 4  # in a run: what a kill can cost at most is a quarter of an arm
# What shrinks with the budget. A value of 0 stays; what may not be 0 becomes 1 at least.
PACED = (
    ("train", "warmup_steps", 0),
    ("train", "freeze_steps", 0),
    ("train", "unfreeze_ramp_steps", 0),
    ("train", "last_layer_freeze_steps", 0),
    ("train", "cosine_steps", 1),
    ("objective.teacher_temperature", "warmup_steps", 0),
    ("objective.gram", "start_step", 0),
    ("objective.gram", "ramp_steps", 0),
    ("objective.gram", "refresh_every", 1),
    ("objective.gram", "first_refresh", 1),
)


@dataclass(frozen=True)
class Arm:
    """One way to guide a run.

    Attributes:
        name: of its folder.
        roles: of the factors that guide; all others are only watched.
    """

    name: str
    roles: Mapping[str, Role]

    @property
    def title(self) -> str:
        """For the reader."""
        return ", ".join(f"{name} {role}" for name, role in self.roles.items()) or "control (no guidance)"


CONTROL = Arm("control", {})


@dataclass(frozen=True)
class Job:
    """One arm with one seed: a run like any other."""

    arm: Arm
    seed: int
    recipe: Recipe

    @property
    def title(self) -> str:
        """For the reader."""
        return f"{self.arm.title}, seed {self.seed}"


def single_arms(factors: Sequence[str], every: Sequence[str]) -> list[Arm]:
    """The arms of ``factors``; their names depend on the place of a factor among ``every`` one of the recipe."""
    return [
        Arm(f"{every.index(name) + 1:02d}-{_plain(name)}-{role}", {name: role})
        for name in factors
        for role in ROLES
    ]


def arm_of(roles: Mapping[str, Role], arms: Sequence[Arm]) -> Arm:
    """The arm with these roles: one of ``arms``, or a combination of its own."""
    for arm in arms:
        if dict(arm.roles) == dict(roles):
            return arm
    key = zlib.crc32("\n".join(f"{role} {name}" for name, role in sorted(roles.items())).encode())
    return Arm(f"combined-{key:08x}", dict(roles))


def paced(recipe: Recipe, steps: int | None) -> Recipe:
    """The recipe with ``steps`` steps, the lengths of its stages and warm-ups shrunk or stretched in proportion."""
    if steps is None or steps == recipe.train.steps:
        return recipe
    share, settings = steps / recipe.train.steps, recipe.model_dump(mode="json")
    settings["train"]["steps"] = steps
    for section, key, least in PACED:
        place = settings
        for part in section.split("."):
            place = place[part]
        if place[key]:
            place[key] = max(round(share * place[key]), least)
    return build_recipe(settings)


def watched(recipe: Recipe) -> Recipe:
    """The recipe as its checks must see it: no roles yet, nothing to refuse for them."""
    return build_recipe(_with_roles(recipe.model_dump(mode="json"), {}))


def role_problems(recipe: Recipe, factors: Sequence[str]) -> list[Problem]:
    """Factors that cannot take both roles."""
    return [
        Problem(
            f"factors.{name}.output",
            "'identity' is refused for a spurious factor, and a compass tries both roles",
            "Write sigmoid or tanh, or leave the factor out with --factors",
        )
        for name in factors
        if recipe.factors[name].output == "identity"
    ]


def jobs_of(
    arms: Sequence[Arm], seeds: Sequence[int], recipe: Recipe, validation: Validation, out: Path, table: Path
) -> list[Job]:
    """Every arm with every seed, one seed after the other.

    All arms read ``table``, start from the same model with the same seeds and have the same budget. All have the
    regularisers that the recipe, or the paper, gives a guided run, so that an arm differs from the control in its
    guidance alone.
    """
    return [
        Job(arm, seed, _recipe_of(arm, seed, recipe, validation, out, table))
        for seed in seeds
        for arm in arms
    ]


def _recipe_of(arm: Arm, seed: int, recipe: Recipe, validation: Validation, out: Path, table: Path) -> Recipe:
    steps = recipe.train.steps
    changes: dict[str, Any] = {
        "manifest": str(table),
        "out": str(out / ARMS_FOLDER / f"{arm.name}-seed{seed}"),
        "seed": seed,
        "train_split": validation.train,
        "train": {
            "checkpoint_every": min(recipe.train.checkpoint_every, max(steps // CHECKPOINTS, 1)),
            "keep_checkpoints": 1,
        },
        "objective": regularisers(recipe),
        "probe": {
            "split": COLUMN,
            "train": validation.probe_train,
            "val": None,
            "tests": [*validation.parts.values(), *validation.tests],
            "every": None,
            "erase": [],
            "pictures": 0,
        },
    }
    settings = _with_roles(recipe.model_dump(mode="json"), arm.roles)
    return build_recipe(merge(settings, changes))


def regularisers(recipe: Recipe) -> dict[str, Any]:
    """The weights of KoLeo and SIGReg of a guided run."""
    koleo, sigreg = recipe.objective.koleo.weight, recipe.objective.sigreg.weight
    return {
        "koleo": {"weight": 0.0 if koleo is None else koleo},
        "sigreg": {"weight": 0.05 if sigreg is None else sigreg},
    }


def _with_roles(settings: dict[str, Any], roles: Mapping[str, Role]) -> dict[str, Any]:
    factors = {
        name: {**factor, "role": roles.get(name, "watched")} for name, factor in settings["factors"].items()
    }
    return {**settings, "entangled": "record", "factors": factors}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name)[:40]
