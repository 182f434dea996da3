"""The Gram teacher before the first step: what is checked of it, and how one that the recipe names is opened."""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError, Problem
from openfino.images.normalize import same_normalization
from openfino.models.backbone import Backbone
from openfino.models.families import family_of
from openfino.models.loading import LoadReport, fit_channels, pretrained_backbone, read_config
from openfino.models.store import model_folder, quiet_transformers, source_normalization
from openfino.recipe import Normalization, Recipe

PICKLED = (".pth", ".pt")  # what Meta's weights come in, which do not say what their norms add


@dataclass(frozen=True)
class NamedTeacher:
    """A model that a recipe names as Gram teacher.

    Attributes:
        backbone: with its patch embedding fitted to the channels of the run.
        report: what became of its parameters when it was opened.
        normalization: of the crops that are cut for it.
    """

    backbone: Backbone
    report: LoadReport
    normalization: Normalization


def open_named_teacher(recipe: Recipe, channels: int, step: int = 0) -> NamedTeacher | None:
    """Open the Gram teacher that a recipe names; None where it names none, or no longer needs it.

    Args:
        recipe: with the normalisation of its images settled.
        channels: of the run's images.
        step: the first to run. Once refreshed the Gram teacher is a model like the student, and its weights are in
            the checkpoint.

    Raises:
        OpenfinoError: if it cannot be opened.
    """
    source = recipe.objective.gram.source_at(step)
    if source is None:
        return None
    place = str(model_folder(source) or source)
    pickled = Path(place).is_file() and Path(place).suffix in PICKLED
    try:
        with quiet_transformers():
            backbone, report = pretrained_backbone(
                place, layer_norm_eps=recipe.model.layer_norm_eps if pickled else None
            )
    except OpenfinoError as error:
        raise OpenfinoError(f"objective.gram.teacher: {str(error).removeprefix('model.source: ')}") from None
    normalization = _normalization(recipe, backbone.config, channels)
    keep = recipe.model.keep_grey_response
    return NamedTeacher(
        backbone, fit_channels(backbone, report, channels, keep_grey_response=keep), normalization
    )


def _normalization(recipe: Recipe, config: PreTrainedConfig, channels: int) -> Normalization:
    """As the named teacher knows its images; as the run has them where it never saw as many channels."""
    if config.num_channels != channels:
        return recipe.images.normalization
    return source_normalization(str(recipe.objective.gram.source))


def gram_problems(recipe: Recipe, patch_size: int, channels: int, step: int = 0) -> list[Problem]:
    """What is wrong with Gram anchoring in a run.

    Args:
        recipe: of the run, with a weight for the term.
        patch_size: of the student; 0 where it is not known.
        channels: of the images.
        step: the first to run.
    """
    return _step_problems(recipe) + _teacher_problems(recipe, patch_size, channels, step)


def _step_problems(recipe: Recipe) -> list[Problem]:
    """What Gram anchoring does at some step must happen within the run."""
    gram, steps = recipe.objective.gram, recipe.train.steps
    problems = []
    if gram.first_weighted_step >= steps:
        what = (
            f"the term would first count at step {gram.first_weighted_step}, and the run ends after {steps}"
        )
        problems.append(
            Problem("objective.gram.start_step", what, f"Write start_step: {steps // 2}, or more steps")
        )
    elif gram.start_step + gram.ramp_steps > steps:
        what = f"with ramp_steps {gram.ramp_steps} the weight would never be reached in {steps} steps"
        remedy = f"Write ramp_steps: {(steps - gram.start_step) // 10}, or more steps"
        problems.append(Problem("objective.gram.ramp_steps", what, remedy))
    if gram.refresh_every is not None and gram.refreshes(steps - 1) == 0:
        what = f"the Gram teacher would never be refreshed before the last of {steps} steps"
        remedy = (
            f"Write first_refresh: {max(steps // 2, 1)}, refresh_every: {max(steps // 10, 1)}, or neither"
        )
        problems.append(Problem("objective.gram.refresh_every", what, remedy))
    is_random = recipe.model.config is not None and gram.teacher == "start"
    if is_random and gram.refreshes(gram.first_weighted_step) == 0:
        what = "the starting backbone has random weights, whose patch similarities mean nothing"
        remedy = (
            "Name a model, write teacher: ema, or refresh the Gram teacher before its first step "
            "(start_step, refresh_every, first_refresh)"
        )
        problems.append(Problem("objective.gram.teacher", what, remedy))
    return problems


def _teacher_problems(recipe: Recipe, patch_size: int, channels: int, step: int) -> list[Problem]:
    """The Gram teacher must be there, and see the regions that the student sees, as it knows images."""
    gram = recipe.objective.gram
    source, patches = gram.source_at(step), {patch_size}
    problems: list[Problem] = []
    if source is not None:
        try:
            config = read_config(str(model_folder(source) or source))
            own = family_of(config).backbone.patch_size_of(config)
            known = _normalization(recipe, config, channels)
        except OpenfinoError as error:
            what = str(error).removeprefix("model.source: ")
            remedy = "Write start, ema, tiny, or the hub name, folder or weights file of a model"
            return [Problem("objective.gram.teacher", what, remedy), *_crop_problems(recipe, 0, set())]
        # A refresh makes it a copy of the averaged teacher.
        patches = {own} if gram.refreshes(recipe.train.steps) == 0 else {own, patch_size}
        if gram.crop_size is None and not same_normalization(known, recipe.images.normalization):
            what = "it knows images that were normalised otherwise than the global crops of this run"
            height, width = recipe.views.global_size
            remedy = f"Give it crops of its own: objective.gram.crop_size: [{height}, {width}] or larger"
            problems.append(Problem("objective.gram.teacher", what, remedy))
    return problems + _crop_problems(recipe, patch_size, patches)


def _crop_problems(recipe: Recipe, patch_size: int, patches: set[int]) -> list[Problem]:
    """The Gram teacher, of patches of these sizes, sees whole patches of the student's regions, and no fewer."""
    gram, shape = recipe.objective.gram, recipe.views.global_size
    size, patches = gram.crop_size or shape, patches - {0}
    if min(shape) < 1:
        return []
    height, width = (side // math.gcd(*shape) for side in shape)
    unit, largest = math.lcm(*patches), max(patches, default=0)
    least = -(-shape[0] * largest // (patch_size * unit * height)) if patch_size else 1
    times = max(round(size[0] / (unit * height)), least) * unit
    remedy = f"Write crop_size: [{times * height}, {times * width}]"
    if size[0] * shape[1] != size[1] * shape[0]:
        what = f"{size[0]} x {size[1]} has another shape than the global crops, {shape[0]} x {shape[1]}"
        return [Problem("objective.gram.crop_size", what, remedy)]
    if any(side % unit for side in size) and (gram.crop_size or gram.source):
        named = " and ".join(map(str, sorted(patches)))
        what = f"the Gram teacher has patches of {named} and would see crops of {size[0]} x {size[1]}"
        return [Problem("objective.gram.crop_size", what, remedy)]
    if patch_size and size[0] * patch_size < shape[0] * largest:
        theirs, ours = (
            [side // patch for side in sides] for sides, patch in ((size, largest), (shape, patch_size))
        )
        what = (
            f"the Gram teacher would see {theirs[0]} x {theirs[1]} patches where the student has {ours[0]} x "
            f"{ours[1]}: neighbours would be told to be alike"
        )
        return [Problem("objective.gram.crop_size", what, remedy)]
    return []
