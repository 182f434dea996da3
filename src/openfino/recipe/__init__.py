"""The recipe of a run: every setting, its default and its meaning.

Defaults are the paper's (FINO, arXiv 2606.05107; DINOv3, arXiv 2508.10104). A preset (``preset: small``) is a
layer under the user's own keys. The same dotted keys work in YAML, on the command line (``train.steps=100``)
and in Python. Unknown keys are refused with a suggestion; all problems are reported at once.
"""

from openfino.recipe.baselines import BaselineSettings
from openfino.recipe.compare import ArmName, AttentiveSettings, CompareSettings, ProbeGridSettings
from openfino.recipe.factors import FactorSettings
from openfino.recipe.gram import GramSettings
from openfino.recipe.images import GivenNormalization, ImageSettings, Normalization, ViewSettings
from openfino.recipe.model import ModelSettings, RopeSettings
from openfino.recipe.objective import (
    DinoSettings,
    GuidanceSettings,
    HeadSettings,
    IbotSettings,
    KoleoSettings,
    ObjectiveSettings,
    SigregSettings,
    TemperatureSettings,
)
from openfino.recipe.probe import ProbeSettings
from openfino.recipe.run import Recipe, build_recipe, dump_recipe, load_recipe, load_settings
from openfino.recipe.section import FactorKind, FactorRole, Section, Size
from openfino.recipe.train import TrainSettings

__all__ = [
    "ArmName",
    "AttentiveSettings",
    "BaselineSettings",
    "CompareSettings",
    "DinoSettings",
    "FactorKind",
    "FactorRole",
    "FactorSettings",
    "GivenNormalization",
    "GramSettings",
    "GuidanceSettings",
    "HeadSettings",
    "IbotSettings",
    "ImageSettings",
    "KoleoSettings",
    "ModelSettings",
    "Normalization",
    "ObjectiveSettings",
    "ProbeGridSettings",
    "ProbeSettings",
    "Recipe",
    "RopeSettings",
    "Section",
    "SigregSettings",
    "Size",
    "TemperatureSettings",
    "TrainSettings",
    "ViewSettings",
    "build_recipe",
    "dump_recipe",
    "load_recipe",
    "load_settings",
]
