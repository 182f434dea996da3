"""The whole recipe: read, validated, written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.recipe.compare import CompareSettings
from openfino.recipe.factors import FactorSettings
from openfino.recipe.images import ImageSettings, ViewSettings
from openfino.recipe.model import ModelSettings
from openfino.recipe.objective import ObjectiveSettings
from openfino.recipe.probe import ProbeSettings
from openfino.recipe.section import Count, Section
from openfino.recipe.train import TrainSettings
from openfino.settings_layers import Settings, load_preset, make_paths_absolute, merge, parse_override
from openfino.settings_problems import problems_of


class Recipe(Section):
    """A whole run."""

    manifest: Path
    out: Path
    preset: Literal["paper", "small", "authors"] = "paper"
    seed: Count = 0
    train_split: list[str] | Literal["all"] | None = None
    """Values of ``probe.split`` whose rows train, or ``all`` rows.

    When not given: the rows of ``probe.train`` if ``probe.split`` is named, else all rows. No image of the domain that
    is scored may be seen before (fino.md section 1); training on test images, even without labels, would flatter them.
    """
    missing: list[str] = []
    """Tokens that mean "no value" besides null, NaN and the empty string."""
    model: ModelSettings
    """``model: NAME`` is short for ``model: {source: NAME}``."""
    images: ImageSettings = ImageSettings()
    views: ViewSettings = ViewSettings()
    factors: dict[str, FactorSettings] = {}
    """``factors: {antibody: informative}`` is short for ``factors: {antibody: {role: informative}}``."""
    entangled: Literal["refuse", "record"] = "refuse"
    """A spurious factor that determines an informative one or has no anchor: refuse the run, or record it and go on."""
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    probe: ProbeSettings = ProbeSettings()
    compare: CompareSettings = CompareSettings()
    """Read by ``openfino compare`` alone."""

    @model_validator(mode="after")
    def _train_split_has_a_column(self) -> Self:
        if isinstance(self.train_split, list) and self.probe.split is None:
            raise ValueError("'train_split' needs the split column: name it with 'probe.split'")
        return self

    @model_validator(mode="after")
    def _something_to_probe(self) -> Self:
        probe = self.probe
        if probe.every is not None and not (probe.label or self.factors or probe.pictures):
            raise ValueError(
                "'every' would have no effect without 'label', factors or pictures: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _erased_factors_exist(self) -> Self:
        unknown = [name for name in self.probe.erase or [] if name not in self.factors]
        if unknown:
            raise ValueError(
                f"'probe.erase' names {', '.join(map(repr, unknown))}, which 'factors' does not have; a column that "
                "shall only be measured is a factor with role watched"
            )
        return self

    @property
    def training_splits(self) -> list[str] | None:
        """The values of ``probe.split`` whose rows train; None for all rows."""
        if self.train_split is None:
            return [self.probe.train] if self.probe.split is not None else None
        return None if self.train_split == "all" else self.train_split

    @property
    def guided(self) -> bool:
        """Whether some factor is informative or spurious."""
        return any(factor.role != "watched" for factor in self.factors.values())

    @property
    def koleo_weight(self) -> float:
        """The given KoLeo weight, or the paper's for this kind of run."""
        given = self.objective.koleo.weight
        return given if given is not None else (0.0 if self.guided else 0.1)

    @property
    def sigreg_weight(self) -> float:
        """The given SIGReg weight, or the paper's for this kind of run."""
        given = self.objective.sigreg.weight
        return given if given is not None else (0.05 if self.guided else 0.0)


def build_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Validate settings laid over their preset.

    Raises:
        InputProblemsError: with every invalid, unknown or missing key.
    """
    layered = merge(load_preset(settings.get("preset", "paper")), settings)
    try:
        return Recipe.model_validate(layered)
    except ValidationError as error:
        raise InputProblemsError(problems_of(error, Recipe, layered)) from None


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; paths in it are relative to the file, paths in overrides to the working folder.

    In the recipe they are absolute, so that ``dump_recipe`` of it means the same wherever it is read.

    Raises:
        OpenfinoError: if the file is absent or no YAML mapping.
        InputProblemsError: with every invalid, unknown or missing key.
    """
    return build_recipe(load_settings(path, overrides))


def load_settings(path: Path | str, overrides: Sequence[str] = ()) -> Settings:
    """What a recipe file and the overrides say, with absolute paths; not yet validated.

    Raises:
        OpenfinoError: if the file is absent or no YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise OpenfinoError(f"{path}: there is no such recipe file")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise OpenfinoError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise OpenfinoError(f"{path} must hold keys and values, such as 'manifest: data/manifest.csv'")
    settings = make_paths_absolute(settings, path.parent.absolute())
    for override in overrides:
        settings = merge(settings, make_paths_absolute(parse_override(override), Path.cwd()))
    return settings


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
