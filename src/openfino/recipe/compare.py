"""The table of ``openfino compare``: which arms, on what they are chosen, how they are read."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.baselines import BaselineSettings
from openfino.recipe.section import Positive, Section, Weight

ArmName = Literal[
    "frozen",
    "ssl",
    "ssl_sigreg",
    "fino",
    "fino_koleo",
    "fino_scratch",
    "fino_mlp",
    "finetune",
    "scratch",
    "dann",
    "coral",
    "groupdro",
    "frozen_erased",
    "fino_erased",
]
Metric = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "worst_group_accuracy", "macro_auroc", "map", "r2"
]
Share = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(gt=0)]


class AttentiveSettings(Section):
    """The attentive head that all arms share (fino.md section 7)."""

    width: Positive = 512
    heads: Positive = 8

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class ProbeGridSettings(Section):
    """How the probes of frozen features are fitted; all points of the grid train together in one pass."""

    lrs: Annotated[list[Rate], Field(min_length=1)] = [1e-4, 3e-4, 1e-3, 3e-3]
    """Learning rates of the attentive probe."""
    linear_lrs: Annotated[list[Rate], Field(min_length=1)] = [1e-3, 3e-3, 1e-2, 3e-2]
    """Learning rates of the linear probe."""
    weight_decays: Annotated[list[Weight], Field(min_length=1)] = [1e-4, 1e-2]
    steps: Positive = 2_000
    """Of every point of the grid, however many labels there are."""
    batch_size: Positive = 128


class CompareSettings(Section):
    """``openfino compare``: every arm with the same start, splits, head, grid and choice."""

    arms: list[ArmName] | None = None
    """All that this recipe allows when not given."""
    seeds: Positive = 3
    """Of every arm, from the recipe's seed on."""
    fractions: list[Share] = [0.01, 0.02, 0.05, 0.1, 0.5, 1.0]
    """Shares of the labelled training rows (stratified, each within the next) at which ``fraction_arms`` are read;
    ``[]`` for none."""
    fraction_arms: list[Literal["frozen", "ssl", "fino", "finetune"]] = ["frozen", "ssl", "fino", "finetune"]
    metric: Metric | None = None
    """By which grids are chosen (on validation) and which the table shows; when not given, ``r2`` for a label of
    numbers and ``probe.metric`` for classes."""
    task: Literal["single", "multi", "regression"] | None = None
    """What the label is; told from its column when not given."""
    domain: str | None = None
    """Column of the domains of DANN, CORAL and Group-DRO; when not given, that of the first spurious discrete factor,
    else ``probe.group``."""
    erase: str | None = None
    """Factor or column that the erased arms take out (LEACE); when not given, the first spurious factor, else the
    domain."""
    cluster: str | None = None
    """Column whose rows are drawn together where intervals are bootstrapped; ``probe.group`` when not given."""
    scratch_lr: Rate | None = None
    """``train.lr`` of guidance without pretraining, which random weights want higher; the same when not given."""
    layers: Positive = 4
    """Last blocks whose tokens the heads read."""
    windows: Positive | None = None
    """Read an image that is larger than the crop as up to this many overlapping windows a side; resized as a whole when
    not given."""
    neighbours: Annotated[list[Positive], Field(min_length=1)] = [10, 20]
    """The k of the kNN probes."""
    head: AttentiveSettings = AttentiveSettings()
    grid: ProbeGridSettings = ProbeGridSettings()
    baselines: BaselineSettings = BaselineSettings()
    draws: Positive = 1_000
    """Of the bootstrap behind every interval."""
    umap: bool = True
    """Draw UMAP in the report, which takes tens of seconds; needs umap-learn (``openfino[report]``)."""
    keep_features: bool = False
    """Keep the cached features of every arm, which are large, in place of making them again if need be."""

    @model_validator(mode="after")
    def _rising_fractions(self) -> Self:
        if sorted(set(self.fractions)) != self.fractions:
            raise ValueError("fractions must rise, each written once")
        return self
