"""Settings that a recipe gives although, beside its other settings, they change nothing.

What a preset says counts as not given: its keys need not all fit what the user lays over it.
"""

import json
from collections.abc import Sequence
from functools import reduce
from typing import Any

from openfino.errors import Problem
from openfino.recipe.run import Recipe, build_recipe

CLASSIFIERS = ("classifier", "binary_classifier")
# Keys, and with which values of which other key they have no effect.
IDLE: Sequence[tuple[Sequence[str], str, Sequence[Any]]] = (
    (("train.warmup_from_zero",), "train.schedule", ("classical_cosine",)),
    (("train.trainable_blocks_alone",), "train.trainable_blocks", (None,)),
    (("objective.sinkhorn_iterations",), "objective.centering", ("softmax",)),
    (("objective.center_momentum",), "objective.centering", ("sinkhorn",)),
    (
        tuple(f"objective.guidance.{key}" for key in ("bank", "temperature", "momentum")),
        "objective.guidance.discrete_head",
        CLASSIFIERS,
    ),
    (
        tuple(f"objective.guidance.{key}" for key in ("balance_momentum", "balance_weighted_losses")),
        "objective.guidance.balance",
        (False,),
    ),
)


def settings_without_effect(recipe: Recipe) -> list[Problem]:
    """One problem for each key that says something else than the preset, and says it in vain."""
    preset, problems = _preset_alone(recipe), []
    for keys, other, values in IDLE:
        if _value(recipe, other) not in values:
            continue
        for key in keys:
            given, anyway = _value(recipe, key), _value(preset, key)
            if given != anyway:
                what = f"{_written(given)} has no effect with {other}: {_written(_value(recipe, other))}"
                remedy = f"Leave it out (it is {_written(anyway)} then), or change {other}"
                problems.append(Problem(key, what, remedy))
    return problems + _temperature_problems(recipe)


def rope_beyond_preset(recipe: Recipe) -> list[str]:
    """The keys of ``model.rope`` that are given and say something else than the preset."""
    known = _preset_alone(recipe).model.rope
    given = recipe.model.rope.model_dump(exclude_none=True)
    return [key for key, value in given.items() if value != getattr(known, key)]


def _preset_alone(recipe: Recipe) -> Recipe:
    return build_recipe({"preset": recipe.preset, "manifest": ".", "out": ".", "model": {"config": {}}})


def _temperature_problems(recipe: Recipe) -> list[Problem]:
    """The teacher's last temperature must be reached."""
    temperature, steps = recipe.objective.teacher_temperature, recipe.train.steps
    warmup = temperature.warmup_steps or 0
    if warmup <= steps or temperature.start == temperature.end:
        return []
    what = f"with warmup_steps {warmup} the temperature {temperature.end} would never be reached in {steps} steps"
    remedy = f"Write warmup_steps: {round(0.3 * steps)}, or more steps"
    return [Problem("objective.teacher_temperature.warmup_steps", what, remedy)]


def _value(recipe: Recipe, key: str) -> Any:
    return reduce(getattr, key.split("."), recipe)


def _written(value: Any) -> str:
    """As in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
