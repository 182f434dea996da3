"""The arms: what each is, which of them a recipe allows, and the recipe of each that is self-supervised."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from openfino.baselines.methods import OF_DOMAINS, MethodName
from openfino.models.loading import read_config
from openfino.models.store import model_folder, quiet_transformers
from openfino.recipe import Recipe, build_recipe
from openfino.recipe.compare import ArmName
from openfino.settings_layers import load_preset, merge

Kind = Literal["reference", "ssl", "guided", "supervised", "post hoc"]

EVERY: tuple[ArmName, ...] = get_args(ArmName)
METHODS: tuple[MethodName, ...] = get_args(MethodName)
ADAPTED = ("ssl", "ssl_sigreg", "fino", "fino_koleo", "fino_scratch", "fino_mlp")
ERASED: Mapping[str, str] = {"frozen_erased": "frozen", "fino_erased": "fino"}
"""Arms that are another one's features with a factor taken out."""
RANDOM = "random"
"""Not an arm: the start with random weights, which the frozen start and training from scratch are held against."""
TITLES: Mapping[str, str] = {
    "frozen": "Frozen start",
    "ssl": "SSL (KoLeo)",
    "ssl_sigreg": "SSL (SIGReg), no metadata",
    "fino": "FINO",
    "fino_koleo": "FINO with KoLeo",
    "fino_scratch": "FINO, no pretraining",
    "fino_mlp": "FINO, MLP classifier",
    "finetune": "Supervised fine-tuning",
    "scratch": "Supervised from scratch",
    "dann": "DANN",
    "coral": "CORAL",
    "groupdro": "Group-DRO",
}
KINDS: Mapping[str, Kind] = {
    "frozen": "reference",
    "ssl": "ssl",
    "ssl_sigreg": "ssl",
    "fino": "guided",
    "fino_koleo": "guided",
    "fino_scratch": "guided",
    "fino_mlp": "guided",
    **dict.fromkeys(("finetune", "scratch", "dann", "coral", "groupdro"), "supervised"),
    "frozen_erased": "post hoc",
    "fino_erased": "post hoc",
}
KOLEO, SIGREG = 0.1, 0.05  # the paper's weights where the recipe gives none
_NOT_ARCHITECTURE = (
    "architectures",
    "dtype",
    "num_channels",
    "out_features",
    "out_indices",
    "transformers_version",
)
_BANK = ("bank", "temperature", "momentum")  # of prototypes: without effect with a classifier


@dataclass(frozen=True)
class Trained:
    """What one job trains and reads: an arm with a seed, at a share of the labels.

    Attributes:
        arm: of those that are trained, or ``frozen`` or ``random``.
        seed: of the run, the head and the order of the images.
        fraction: share of the labelled rows that a supervised arm trains on.
    """

    arm: str
    seed: int
    fraction: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder."""
        share = "" if self.fraction == 1 else f"-{self.fraction:g}"
        return f"{self.arm}{share}-seed{self.seed}"

    @property
    def title(self) -> str:
        """For the reader."""
        share = "" if self.fraction == 1 else f", {100 * self.fraction:g} % of the labels"
        return f"{TITLES.get(self.arm, 'random weights, as a reference')}{share}, seed {self.seed}"


def title_of(arm: str, erased: str | None) -> str:
    """For the reader."""
    if arm not in ERASED:
        return TITLES[arm]
    return f"{TITLES[ERASED[arm]]}, {erased or 'factor'} erased"


def uses_labels(arm: str) -> bool:
    """Whether the task label trains the backbone."""
    return KINDS[arm] == "supervised"


def uses_metadata(arm: str) -> bool:
    """Whether columns beside the label shape the features."""
    return KINDS[arm] in ("guided", "post hoc") or arm in OF_DOMAINS


def why_not(arm: str, recipe: Recipe, *, domain: str | None, erased: str | None) -> str | None:
    """Why the recipe does not allow an arm; None where it does.

    Args:
        arm: one of :data:`EVERY`.
        recipe: as the user gave it.
        domain: the column of the domains, if there is one.
        erased: the factor or column to erase, if there is one.
    """
    if arm.startswith("fino") and not recipe.guided:
        return "the recipe has no informative or spurious factor"
    if arm in ("fino_scratch", "scratch") and recipe.model.source is None:
        whole = "fino" if arm == "fino_scratch" else "finetune"
        return f"the recipe starts from random weights already: the arm {whole} is this one"
    if arm == "fino_mlp":
        guiding = [factor for factor in recipe.factors.values() if factor.role != "watched"]
        if not any(factor.kind in ("discrete", None) for factor in guiding):
            return "no discrete factor guides, so that there are no prototypes to replace"
        if recipe.objective.guidance.discrete_head != "prototypes":
            return "the recipe guides by a classifier already"
    if arm in OF_DOMAINS and domain is None:
        return "there is no domain: name a column with compare.domain"
    if arm in ERASED and erased is None:
        return "there is no spurious factor and no domain to erase: name a column with compare.erase"
    return None


def recipe_of(arm: str, base: Recipe) -> Recipe:
    """The recipe of a self-supervised arm; seed and folder are the job's to set.

    All of them have the budget, the views and the schedules of ``base``. They differ in the factors that guide, in
    the regulariser (KoLeo or SIGReg) and in the starting weights, and in nothing else.
    """
    settings = base.model_dump(mode="json")
    koleo, sigreg = base.objective.koleo.weight or KOLEO, base.objective.sigreg.weight or SIGREG
    weights = {
        "ssl": (koleo, 0.0),
        "ssl_sigreg": (0.0, sigreg),
        "fino_koleo": (koleo, 0.0),
    }.get(arm, (base.koleo_weight, base.sigreg_weight))
    changes: dict[str, Any] = {
        "objective": {"koleo": {"weight": weights[0]}, "sigreg": {"weight": weights[1]}}
    }
    if arm.startswith("ssl"):
        changes["factors"] = {name: {"role": "watched"} for name in settings["factors"]}
    if arm == "fino_scratch":
        changes["model"] = {"config": random_config(base)}
        if base.compare.scratch_lr is not None:
            changes["train"] = {"lr": base.compare.scratch_lr}
        settings["model"] = {
            "source": None,
            **{key: settings["model"][key] for key in ("keep_grey_response", "rope")},
        }
    if arm == "fino_mlp":
        preset = load_preset(base.preset).get("objective", {}).get("guidance", {})
        for key in _BANK:
            settings["objective"]["guidance"].pop(key, None)
            if key in preset:
                settings["objective"]["guidance"][key] = preset[key]
        changes["objective"]["guidance"] = {"discrete_head": "classifier"}
    return build_recipe(merge(settings, changes))


def random_config(recipe: Recipe) -> dict[str, Any]:
    """``model.config`` of the recipe's architecture, for random weights."""
    if recipe.model.config is not None:
        return recipe.model.config
    source = str(recipe.model.source)
    with quiet_transformers():
        config = read_config(str(model_folder(source) or source))
    known = {field.name for field in dataclasses.fields(config) if not field.name.startswith("_")}
    own = config.to_diff_dict()
    kept = {key: value for key, value in own.items() if key in known and key not in _NOT_ARCHITECTURE}
    return {"model_type": config.model_type, **kept}
