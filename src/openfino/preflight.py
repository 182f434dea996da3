"""Everything that is checked before the first step, all problems at once.

Bad input never costs a run: what is wrong with the table, the files, the factors and the sizes is found here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from openfino.audit.guard import entangled_problems
from openfino.distributed import current_world
from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.evaluation.splits import check_probe
from openfino.factors.encode import (
    EncodedFactor,
    Vocabulary,
    encode,
    fit_vocabulary,
)
from openfino.factors.spec import FactorSpec, resolve_specs
from openfino.gram_source import gram_problems
from openfino.images.check import check_manifest
from openfino.images.read import count_channels
from openfino.manifest import Manifest, read_manifest
from openfino.models.backbone import Backbone
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.families import backbone_config, family_of
from openfino.models.loading import read_config
from openfino.models.store import model_folder, source_normalization
from openfino.recipe import GivenNormalization, ObjectiveSettings, Recipe
from openfino.recipe.effects import rope_beyond_preset, settings_without_effect


@dataclass(frozen=True)
class Preflight:
    """What a checked recipe resolves to."""

    manifest: Manifest
    rows: np.ndarray  # the rows that train, int64
    channels: list[str]
    patch_size: int
    specs: dict[str, FactorSpec]
    reasons: dict[str, str]  # why each factor has its kind
    vocabularies: dict[str, Vocabulary]  # fitted on the rows that train
    entangled: list[str] = field(default_factory=list)  # what was let pass by entangled: record


def preflight(
    recipe: Recipe,
    *,
    read_images: Literal["none", "exist", "decode"] = "exist",
    progress: Callable[[int, int], None] | None = None,
    start_step: int = 0,
) -> Preflight:
    """Read and check everything a run stands on.

    Args:
        recipe: of the run.
        read_images: look at no image file, look whether each is there, or decode each.
        progress: called with (files done, files in all).
        start_step: the first step to run, of a run that goes on.

    Raises:
        OpenfinoError: if the manifest cannot be read at all.
        InputProblemsError: with every problem found.
    """
    recipe = with_source_normalization(recipe)
    manifest = read_manifest(recipe.manifest, path_columns=recipe.images.path_columns, missing=recipe.missing)
    problems = check_manifest(
        manifest,
        factors=recipe.factors,
        required_columns=_required_columns(recipe),
        read_images=read_images,
        progress=progress,
    )
    rows = _training_rows(recipe, manifest, problems)
    channels = _channels(recipe, manifest, problems)
    patch_size = _patch_size(recipe, problems)
    problems += _size_problems(recipe, patch_size) + _budget_problems(recipe, len(rows))
    problems += settings_without_effect(recipe) + _koleo_problems(recipe)
    if recipe.objective.gram.weight > 0:
        problems += gram_problems(recipe, patch_size, len(channels), start_step)
    if recipe.probe.label is not None and _required_columns(recipe).keys() <= set(manifest.table.columns):
        problems += check_probe(manifest, recipe.probe)
    try:
        specs, reasons = resolve_specs(manifest, recipe.factors)
    except InputProblemsError:
        specs, reasons = {}, {}  # listed by check_manifest already
    training = _training_table(manifest, rows)
    vocabularies = _vocabularies(training, specs, problems)
    entangled = entangled_problems(training, specs, {*manifest.path_columns, *_required_columns(recipe)})
    if recipe.entangled == "refuse":
        problems += entangled
    if problems:
        raise InputProblemsError(problems)
    recorded = [str(problem) for problem in entangled]
    return Preflight(manifest, rows, channels, patch_size, specs, reasons, vocabularies, recorded)


def with_source_normalization(recipe: Recipe) -> Recipe:
    """The recipe with the normalisation that the starting weights know, unless it names one itself."""
    if recipe.model.source is None or "normalization" in recipe.images.model_fields_set:
        return recipe
    try:
        known = source_normalization(recipe.model.source)
    except OpenfinoError:
        return recipe  # what is wrong with the source is said where the other problems are
    images = recipe.images.model_copy(update={"normalization": known})
    return recipe.model_copy(update={"images": images})


def encode_factors(
    ready: Preflight, stored: Mapping[str, Vocabulary] | None
) -> tuple[dict[str, EncodedFactor], dict[str, Vocabulary]]:
    """Encode every factor for every row; vocabularies come from the training rows.

    With ``stored`` vocabularies (a resumed run) old values keep their place and new ones are appended.
    """
    training = _training_table(ready.manifest, ready.rows)
    vocabularies = dict(ready.vocabularies)
    for name, known in (stored or {}).items():
        if name in ready.specs:
            vocabularies[name] = known.extended(training, ready.specs[name])
    table = ready.manifest.table
    return {name: encode(table, spec, vocabularies[name]) for name, spec in ready.specs.items()}, vocabularies


def _training_table(manifest: Manifest, rows: np.ndarray) -> pl.DataFrame:
    return manifest.table[rows.tolist()] if len(rows) < len(manifest) else manifest.table


def _vocabularies(
    training: pl.DataFrame, specs: Mapping[str, FactorSpec], problems: list[Problem]
) -> dict[str, Vocabulary]:
    """The vocabulary of every factor; one that is constant among the training rows is a problem."""
    vocabularies = {}
    for name, spec in specs.items():
        try:
            vocabularies[name] = fit_vocabulary(training, spec)
        except OpenfinoError as error:
            what = str(error).removeprefix(f"factors.{name}: ")
            problems.append(Problem(f"factors.{name}", what, "Nothing else is wrong with the column"))
    return vocabularies


def _required_columns(recipe: Recipe) -> dict[str, str]:
    probe = recipe.probe
    asked = {"probe.label": probe.label, "probe.split": probe.split, "probe.group": probe.group}
    return {column: key for key, column in asked.items() if column is not None}


def _training_rows(recipe: Recipe, manifest: Manifest, problems: list[Problem]) -> np.ndarray:
    split, wanted = recipe.probe.split, recipe.training_splits
    if wanted is None or split is None or split not in manifest.table.columns:
        return np.arange(len(manifest))
    rows = manifest.rows_where(split, wanted)
    if len(rows) == 0:
        present = sorted(map(str, manifest.table[split].drop_nulls().unique().to_list()))[:10]
        what = f"no row of column {split!r} is one of {wanted}"
        problems.append(Problem("train_split", what, f"Name one of {', '.join(present)}"))
    return rows


def _channels(recipe: Recipe, manifest: Manifest, problems: list[Problem]) -> list[str]:
    """Channel names: the given ones, checked against the first readable image."""
    given = recipe.images.channels
    count = None
    for row in range(min(len(manifest), 20)):
        try:
            count = count_channels(manifest.paths(row))
            break
        except (OpenfinoError, OSError):
            continue  # unreadable files are reported one by one elsewhere
    if count is None:
        if len(manifest):
            problems.append(
                Problem("images", "none of the first 20 images can be read", "See the list above")
            )
        return list(given or [])
    if given is not None and len(given) != count:
        what = f"{len(given)} names are given but the images have {count} channels"
        problems.append(Problem("images.channels", what, "Name every channel once"))
    names = list(given or (f"channel_{index}" for index in range(count)))
    normalization = recipe.images.normalization
    if normalization == "imagenet" and count != 3:
        what = f"'imagenet' is for 3 channels; these images have {count}"
        problems.append(
            Problem("images.normalization", what, "Write normalization: zscore, or give mean and std")
        )
    if isinstance(normalization, GivenNormalization):
        for key in ("mean", "std"):
            if len(getattr(normalization, key)) != count:
                what = f"{len(getattr(normalization, key))} values for {count} channels"
                remedy = "Give one per channel, or write normalization: zscore"
                problems.append(Problem(f"images.normalization.{key}", what, remedy))
    protein = recipe.views.protein_channel
    if protein is not None and protein not in names:
        what = f"there is no channel {protein!r}"
        problems.append(Problem("views.protein_channel", what, f"The channels are {', '.join(names)}"))
    return names


def _patch_size(recipe: Recipe, problems: list[Problem]) -> int:
    try:
        if recipe.model.config is not None:
            config = backbone_config(recipe.model.config, 3)
        else:
            source = str(recipe.model.source)
            config = read_config(str(model_folder(source) or source))
        backbone = family_of(config).backbone
        patch_size = backbone.patch_size_of(config)
    except OpenfinoError as error:
        remedy = "Give tiny, a folder with config.json, a hub name within reach, or model.config"
        problems.append(Problem("model", str(error), remedy))
        return 0
    problems += _mask_problems(recipe.objective, backbone)
    depth, unfrozen = backbone.depth_of(config), recipe.train.trainable_blocks
    if unfrozen is not None and unfrozen > depth:
        what = f"the last {unfrozen} blocks, and the model has {depth}"
        remedy = f"Write trainable_blocks: {depth}, or null to train everything"
        problems.append(Problem("train.trainable_blocks", what, remedy))
    if backbone is not Dinov3Backbone and (given := rope_beyond_preset(recipe)):
        what = f"a {backbone.description} of type {backbone.family} has no rotary positions"
        problems += [Problem(f"model.rope.{key}", what, "Leave it out") for key in given]
    return patch_size


def _mask_problems(objective: ObjectiveSettings, model: type[Backbone]) -> list[Problem]:
    """Terms on masked patches where none is ever masked."""
    ibot, problems = objective.ibot, []
    if ibot.weight > 0 and not model.can_mask:
        what = f"iBOT hides patches from the student, and a {model.description} sees past every patch"
        problems.append(Problem("objective.ibot.weight", what, "Write objective.ibot.weight: 0"))
    zero = [key for key in ("mask_fraction", "mask_ratio") if not np.any(getattr(ibot, key))]
    if objective.gram.tokens == "masked" and (zero or not model.can_mask):
        patches = (
            f"patch of a {model.description}" if not model.can_mask else f"patch, with ibot.{zero[0]} 0,"
        )
        what = f"no {patches} is ever masked"
        problems.append(Problem("objective.gram.tokens", what, "Write objective.gram.tokens: all"))
    return problems


def _size_problems(recipe: Recipe, patch_size: int) -> list[Problem]:
    """Crops, where there are any, must be whole numbers of patches."""
    problems = []
    names = ("global_size", "local_size") if recipe.views.local_count else ("global_size",)
    for name in names if patch_size else ():
        size = getattr(recipe.views, name)
        if any(side % patch_size or side <= 0 for side in size):
            fitting = [max(round(side / patch_size), 1) * patch_size for side in size]
            what = f"{size[0]} x {size[1]} is not divisible by the patch size {patch_size}"
            problems.append(Problem(f"views.{name}", what, f"Write {name}: [{fitting[0]}, {fitting[1]}]"))
    return problems


def _budget_problems(recipe: Recipe, rows: int) -> list[Problem]:
    problems = []
    if rows == 1:
        problems.append(Problem("manifest", "only one image trains", "Self-supervision needs many"))
    if recipe.train.batch_size < 2:
        problems.append(
            Problem("train.batch_size", "1 image per step", "Give at least 2; the terms compare images")
        )
    return problems


def _koleo_problems(recipe: Recipe) -> list[Problem]:
    """KoLeo needs images to compare in every piece of a batch."""
    koleo, train, ranks = recipe.objective.koleo, recipe.train, current_world().size
    own = train.batch_size // ranks
    if recipe.koleo_weight == 0 or train.batch_size < 2 or own == 0:
        return []

    def smallest(size: int) -> int:
        """Images of the last piece on all processes together, of pieces of ``size`` on each."""
        return ranks * (own % size or size)

    size = -(-own // train.accumulate)
    seen = smallest(size)
    if seen < 2:
        what = (
            f"in one process, one of {train.accumulate} pieces of {own} images has a single image, and KoLeo "
            "compares several"
        )
        fitting = next(larger for larger in range(size, own + 1) if smallest(larger) > 1)
        remedy = f"Write accumulate: {-(-own // fitting)}, or objective.koleo.weight: 0"
        return [Problem("train.accumulate", what, remedy)]
    others = min(koleo.group_size or seen, seen) - 1
    if koleo.neighbours > others:
        what = f"{koleo.neighbours} nearest of only {others} other images (batch, group_size, accumulate)"
        return [Problem("objective.koleo.neighbours", what, f"Write neighbours: {others} or less")]
    return []
