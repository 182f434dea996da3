"""``openfino compass``: from a recipe to the recipe that it should be."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import openfino
from openfino.compass.arms import run_jobs
from openfino.compass.dependence import cautions
from openfino.compass.drawing import png_bytes
from openfino.compass.page import page_html
from openfino.compass.plan import (
    CONTROL,
    Arm,
    arm_of,
    jobs_of,
    paced,
    regularisers,
    role_problems,
    single_arms,
    watched,
)
from openfino.compass.plot import plot_pixels
from openfino.compass.result import (
    RECIPE_FILE,
    Compass,
    Scores,
    helping,
    read_scores,
    recommend,
    spreads_of,
    weigh_factors,
)
from openfino.compass.terminal import sentences
from openfino.compass.validation import Asked, Part, Validation, check_asked, plan_validation
from openfino.errors import InputProblemsError, Problem
from openfino.jobs.folder import Workplace, with_absolute_paths, write_bytes
from openfino.jobs.running import Say
from openfino.preflight import Preflight, preflight, with_source_normalization
from openfino.recipe import Recipe, build_recipe, load_settings
from openfino.settings_layers import Settings, expand_short_forms

JSON_FILE, PLOT_FILE, PAGE_FILE = "compass.json", "compass.png", "compass.html"
SEEDS = 3
# Keys that neither change what an arm learns nor belong to its recipe alone.
_FREE = ("out", "manifest", "seed", "entangled", "train_split", "compare")
_FREE_TRAIN = ("workers", "threads", "log_every", "checkpoint_every", "keep_checkpoints", "device")
_FREE_PROBE = ("every", "erase", "pictures")


@dataclass(frozen=True)
class _Task:
    """What all arms share."""

    base: Recipe
    validation: Validation
    out: Path
    table: Path
    seeds: list[int]
    say: Say

    def train(self, arms: Sequence[Arm]) -> Scores:
        """The scores of ``arms``, trained where they are not yet."""
        jobs = jobs_of(arms, self.seeds, self.base, self.validation, self.out, self.table)
        run_jobs(jobs, self.say)
        splits = [*self.validation.parts.values(), *self.validation.tests]
        return read_scores(jobs, splits, self.base.probe)


def run_compass(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    factors: Sequence[str] = (),
    seeds: int = SEEDS,
    steps: int | None = None,
    group: str | None = None,
    val_in: str | None = None,
    val_out: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Compass:
    """Try every factor alone in either role, and recommend a recipe.

    The same call on the same folder goes on where another was stopped, or joins one that is at work.

    Args:
        recipe: with the model, the label and the factors; their roles in it do not matter.
        overrides: ``key=value``, laid over it.
        out: folder of the arms and the result; the recipe's ``out`` with ``-compass`` when not given.
        factors: those to try; all of the recipe when not given.
        seeds: of every arm, from the recipe's seed on; two or more.
        steps: of every arm, with the lengths of stages and warm-ups in proportion; the recipe's when not given.
        group: column whose values come as a whole, such as the plate: makes an out-of-distribution validation.
        val_in: split to choose on in distribution.
        val_out: split to choose on out of distribution.
        overwrite: forget what an earlier compass left in ``out``.
        console: for progress.

    Raises:
        InputProblemsError: with everything that is wrong, before anything is written.
        OpenfinoError: if the folder holds something else, or an arm fails.
    """
    say = _sayer(console or Console())
    settings = load_settings(recipe, overrides)
    given = with_source_normalization(build_recipe(settings))
    names = list(dict.fromkeys(factors)) or list(given.factors)
    split_names: dict[Part, str | None] = {"in": val_in, "out": val_out}
    asked = Asked(group, {part: name for part, name in split_names.items() if name is not None})
    base, ready, validation = _checked(given, names, seeds, steps, asked)

    out = (out or given.out.with_name(f"{given.out.name}-compass")).absolute()
    place = Workplace(out, "compass")
    place.refuse_inside(given.manifest)
    rows = with_absolute_paths(ready.manifest).with_columns(validation.column)
    table = place.claim(_plan(base, validation), rows, overwrite=overwrite)
    task = _Task(base, validation, out, table, list(range(given.seed, given.seed + seeds)), say)
    arms = single_arms(names, list(given.factors))
    for warning in validation.warnings:
        say(f"! {warning}")
    say(f"control and {len(arms)} arms, {seeds} seeds, {base.train.steps} steps each, in {out}")
    scores = task.train([CONTROL, *arms])
    spreads = spreads_of(scores, [CONTROL, *arms], validation.parts)
    warnings = {arm.name: cautions(ready, base, arm.roles) for arm in arms}
    found = weigh_factors(scores, arms, spreads, validation, warnings)
    roles = helping(found, validation.deciding)
    candidates = [arm_of({name: role}, arms) for name, role in roles.items()]
    if len(roles) > 1:
        combination = arm_of(roles, arms)
        say(f"what helps, together: {combination.title}")
        scores |= task.train([combination])
        candidates.append(combination)
    chosen = recommend(scores, candidates, arms, spreads, validation)
    compass = Compass(
        out=out,
        recipe=Path(recipe).name,
        measure=(base.probe.metric, base.probe.method),
        label=str(base.probe.label),
        steps=base.train.steps,
        seeds=task.seeds,
        validation=validation,
        scores=scores,
        spreads=spreads,
        factors=found,
        recommendation=chosen,
    )
    entangled = bool(cautions(ready, base, chosen.arm.roles))
    _write(compass, recommended(compass, settings, given, entangled))
    return compass


def recommended(compass: Compass, settings: Settings, given: Recipe, entangled: bool) -> str:
    """The recipe with the recommended roles, as text.

    Args:
        compass: what was found.
        settings: the user's own, their paths absolute.
        given: the recipe that they make.
        entangled: whether a run with these roles must be told to go on in spite of the columns' dependence.
    """
    roles = compass.recommendation.arm.roles
    own = expand_short_forms(settings)
    own["factors"] = {
        name: {**factor, "role": roles.get(name, "watched")} for name, factor in own["factors"].items()
    }
    own.pop("entangled", None)
    if entangled:
        own["entangled"] = "record"
    if not roles:
        # Without guidance the paper has KoLeo; the control was measured with a guided run's regularisers.
        objective = dict(own.get("objective") or {})
        for key, value in regularisers(given).items():
            objective[key] = {**(objective.get(key) or {}), **value}
        own["objective"] = objective
    head = [
        f"Written by openfino compass from {compass.recipe}: {compass.steps} steps, {len(compass.seeds)} seeds."
    ]
    comment = "".join(f"# {line}\n" for text in [*head, *sentences(compass)] for line in _wrapped(text))
    return comment + yaml.safe_dump(own, sort_keys=False, allow_unicode=True)


def _checked(
    given: Recipe, names: Sequence[str], seeds: int, steps: int | None, asked: Asked
) -> tuple[Recipe, Preflight, Validation]:
    """The recipe of the arms, still without roles and splits; what it resolves to; the splits.

    Raises:
        InputProblemsError: with everything that is wrong.
    """
    problems = _asked_problems(given, names, seeds)
    base, ready = given, None
    try:
        base = watched(paced(given, steps))
        ready = preflight(base)
        problems += check_asked(ready.manifest, base, asked)
    except InputProblemsError as error:
        problems += error.problems
    validation = None
    if ready is not None and not problems:
        validation, problems = plan_validation(ready.manifest, base, asked)
    if problems or ready is None or validation is None:
        raise InputProblemsError(list(dict.fromkeys(problems)))
    # Inferred from the names of columns or not: the arms' table has them where the manifest has.
    images = base.images.model_copy(update={"path_columns": list(ready.manifest.path_columns)})
    return base.model_copy(update={"images": images}), ready, validation


def _asked_problems(given: Recipe, names: Sequence[str], seeds: int) -> list[Problem]:
    problems = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = "a compass was started by torchrun, and trains every arm in one process"
        remedy = "Start it without, once for each device: processes that share a folder share the arms"
        problems.append(Problem("torchrun", what, remedy))
    if given.probe.label is None:
        what = "the recipe names no column with the task label, and a compass scores every arm on one"
        problems.append(Problem("probe.label", what, "Write probe: {label: COLUMN}"))
    if not given.factors:
        what = "the recipe names no factor, so that there is nothing to try"
        problems.append(
            Problem("factors", what, "Name the columns to try; openfino audit tells which there are")
        )
    for name in names:
        if name not in given.factors:
            known = ", ".join(given.factors) or "none"
            problems.append(Problem("--factors", f"there is no factor {name!r}", f"The recipe has: {known}"))
    if seeds < 2:
        what = f"{seeds} seed shows no spread, so that nothing could be told from noise"
        problems.append(Problem("--seeds", what, "Write --seeds 2 or more"))
    return problems + role_problems(given, [name for name in names if name in given.factors])


def _plan(base: Recipe, validation: Validation) -> dict[str, Any]:
    """What all processes on one folder, and a call that goes on, must agree on. Seeds and factors may be added."""
    plan = base.model_dump(mode="json")
    for section, keys in ((plan, _FREE), (plan["train"], _FREE_TRAIN), (plan["probe"], _FREE_PROBE)):
        for key in keys:
            del section[key]
    for factor in plan["factors"].values():
        del factor["role"]
    validated = {"parts": validation.parts, "train": validation.train, "tests": validation.tests}
    return {"openfino": openfino.__version__, "recipe": plan, "validation": validated}


def _write(compass: Compass, recipe: str) -> None:
    out = compass.out
    write_bytes(out / RECIPE_FILE, recipe.encode())
    write_bytes(out / PLOT_FILE, png_bytes(plot_pixels(compass)))
    write_bytes(out / PAGE_FILE, page_html(compass, recipe).encode())
    write_bytes(out / JSON_FILE, json.dumps(compass.to_json(), indent=1).encode())


def _wrapped(text: str, width: int = 108) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]


def _sayer(console: Console) -> Say:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
