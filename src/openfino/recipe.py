"""The recipe of a run: every setting, its default and its meaning.

Defaults are the paper's (FINO, arXiv 2606.05107; DINOv3, arXiv 2508.10104). A preset (``preset: small``) is a
layer under the user's own keys. The same dotted keys work in YAML, on the command line (``train.steps=100``)
and in Python. Unknown keys are refused with a suggestion; all problems are reported at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.settings_layers import load_preset, make_paths_absolute, merge, parse_override
from openfino.settings_problems import problems_of


def _as_size(value: Any) -> Any:
    """``224`` means ``(224, 224)``."""
    return (value, value) if isinstance(value, int) else value


Size = Annotated[tuple[int, int], BeforeValidator(_as_size), Field(description="height, width in pixels")]
Range = tuple[float, float]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
FactorKind = Literal["discrete", "continuous", "cyclic", "vector"]
FactorRole = Literal["informative", "spurious", "watched"]


class Section(BaseModel):
    """A part of the recipe: frozen, and no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The backbone to start from: a hub name, a folder, or a configuration with random weights."""

    source: str | None = None
    """Hugging Face hub name or a folder (an export, or a run)."""
    config: dict[str, Any] | None = None
    """``DINOv3ViTConfig`` keys for a randomly initialised backbone."""
    allow_partial: bool = False
    """Go on when under 99 % of the parameters of the source matched."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError(
                "give exactly one of 'source' (hub name or folder) and 'config' (random weights)"
            )
        return self


class GivenNormalization(Section):
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


Normalization = Literal["imagenet", "zscore"] | GivenNormalization


class ImageSettings(Section):
    """How a row of the manifest becomes an array of C channels."""

    path_columns: list[str] | None = None
    """Columns that hold image paths, one per channel (or group of channels); inferred when not given."""
    channels: list[str] | None = None
    """Names of the channels; ``channel_0`` ... when not given."""
    normalization: Normalization = "imagenet"
    """``imagenet`` (3 channels), ``zscore`` (per image and channel), or given mean and std."""


class ViewSettings(Section):
    """Crops and photometric operations (fino.md section 3 and 4)."""

    preset: Literal["natural", "fluorescence", "overhead"] = "natural"
    global_size: Size = (224, 224)
    local_size: Size = (96, 96)
    local_count: Count = 8
    global_scale: Range = (0.4, 1.0)
    local_scale: Range = (0.05, 0.4)
    aspect: Range = (3 / 4, 4 / 3)
    protein_channel: str | None = None
    """For ``fluorescence``: the channel that is never dropped and whose contrast varies."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("global_scale", "local_scale", "aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, not {(low, high)}")
        return self


class FactorSettings(Section):
    """What one metadata column (or group of columns) means."""

    role: FactorRole
    kind: FactorKind | None = None
    """Inferred from the column when not given."""
    columns: list[str] | None = None
    """The columns of a ``vector`` factor; for other kinds one column, by default the factor's own name."""
    period: Literal["hour", "weekday", "month", "day_of_year"] | float | None = None
    """For ``cyclic``: part of a timestamp, or the length of the cycle in the column's units (360 for degrees)."""
    weight: Weight = 0.03
    output: Literal["sigmoid", "tanh", "identity"] | None = None
    """Output of the regressor; tanh for cyclic, sigmoid otherwise. ``identity`` is refused for spurious."""

    @model_validator(mode="after")
    def _bounded_when_spurious(self) -> Self:
        if self.role == "spurious" and self.output == "identity":
            raise ValueError(
                "a spurious factor needs a bounded output: with 'identity' the reversed gradient diverges "
                "(paper section 3); use 'sigmoid' or 'tanh'"
            )
        return self


class HeadSettings(Section):
    """Projection head: MLP, L2-normalised bottleneck, prototypes (dinov3.md 2.1)."""

    prototypes: Positive = 65_536
    hidden: Positive = 2048
    bottleneck: Positive = 256
    layers: Positive = 3
    unit_norm_prototypes: bool = False
    """Keep every prototype on the unit sphere: learns from the first step at small budgets."""


class TemperatureSettings(Section):
    """Teacher temperature: linear from ``start`` to ``end``, then constant."""

    start: Annotated[float, Field(gt=0)] = 0.04
    end: Annotated[float, Field(gt=0)] = 0.07
    warmup_steps: Count | None = None
    """30 % of the steps when not given."""


class DinoSettings(Section):
    """DINO term (dinov3.md 2.3)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    local_weight: Weight = 1.0
    head: HeadSettings = HeadSettings()


class IbotSettings(Section):
    """iBOT term and its masks (dinov3.md 2.4)."""

    weight: Weight = 1.0
    student_temperature: Annotated[float, Field(gt=0)] = 0.1
    mask_fraction: Fraction = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: tuple[Fraction, Fraction] = (0.1, 0.5)
    head: HeadSettings = HeadSettings()

    @model_validator(mode="after")
    def _ratios(self) -> Self:
        low, high = self.mask_ratio
        if low > high:
            raise ValueError(f"mask_ratio must be (low, high) with low <= high, not {self.mask_ratio}")
        return self


class KoleoSettings(Section):
    """KoLeo term (dinov3.md 2.5)."""

    weight: Weight | None = None
    """0.1 when no factor guides the run, else 0 (the paper: SIGReg replaces KoLeo in FINO)."""
    group_size: Annotated[int, Field(ge=2)] | None = None
    """Neighbours are searched in groups of this many samples; the whole global batch when not given."""


class SigregSettings(Section):
    """SIGReg term (eq. 6)."""

    weight: Weight | None = None
    """0.05 when a factor guides the run, else 0."""
    directions: Positive = 1024
    knots: Annotated[int, Field(ge=3)] = 17
    range: Annotated[float, Field(gt=0)] = 5.0


class GuidanceSettings(Section):
    """Prototype banks, regressors, reversal and balancing (eq. 1 to 3, Alg. A.3)."""

    temperature: Annotated[float, Field(gt=0)] = 0.07 / 3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    ramp: Literal["dann", "linear", "constant"] = "dann"
    balance: bool = True
    balance_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    regressor_hidden: list[Positive] = [512, 512, 256]
    regressor_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class ObjectiveSettings(Section):
    """The terms of the total loss (eq. 4)."""

    dino: DinoSettings = DinoSettings()
    ibot: IbotSettings = IbotSettings()
    koleo: KoleoSettings = KoleoSettings()
    sigreg: SigregSettings = SigregSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    teacher_temperature: TemperatureSettings = TemperatureSettings()
    sinkhorn_iterations: Positive = 3


class TrainSettings(Section):
    """Optimisation and the two-stage schedule (fino.md section 3)."""

    steps: Positive = 25_000
    batch_size: Positive = 96
    """Images per step over all processes."""
    accumulate: Positive = 1
    """Split each process's share of the batch into this many pieces to save memory.

    Teacher targets see the whole batch all the same; KoLeo, SIGReg and balancing see one piece at a time.
    """
    lr: Annotated[float, Field(gt=0)] = 5e-5
    lr_scaling: Literal["sqrt_1024", "none"] = "sqrt_1024"
    """``sqrt_1024``: lr times sqrt(batch_size / 1024)."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Count = 3_000
    freeze_steps: Count = 10_000
    """Stage 1: the backbone is frozen except its patch embedding."""
    unfreeze_ramp_steps: Count = 1_000
    """Stage 2 begins with a linear learning-rate ramp of the backbone."""
    trainable_blocks: Count | None = None
    """Only the last N blocks ever unfreeze; all when not given."""
    last_layer_freeze_steps: Count = 450
    weight_decay: Weight = 0.04
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    clip_norm: Annotated[float, Field(gt=0)] = 3.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    patch_embedding_lr: Weight = 0.2
    """Multiplier on the learning rate of the patch embedding."""
    teacher_momentum: tuple[Fraction, Fraction] = (0.994, 1.0)
    """From, to (cosine over the run)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast on a GPU, float32 on a CPU. Weights stay float32."""
    device: str = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    workers: Count = 2
    threads: Positive | None = None
    """CPU threads of the process; PyTorch's own choice when not given."""
    log_every: Positive = 10
    checkpoint_every: Positive = 1_000
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        freeze, warmup, ramp = self.freeze_steps, self.warmup_steps, self.unfreeze_ramp_steps
        reasons, write = [], []
        if freeze >= self.steps:
            reasons.append(f"with freeze_steps {freeze} the backbone would never train")
            freeze = self.steps // 10
            write.append(f"freeze_steps: {freeze}")
        if warmup >= self.steps:
            reasons.append(f"with warmup_steps {warmup} the learning rate would never be reached")
            write.append(f"warmup_steps: {self.steps // 20}")
        if freeze + ramp > self.steps:
            reasons.append(
                f"with unfreeze_ramp_steps {ramp} the backbone would never reach its learning rate"
            )
            write.append(f"unfreeze_ramp_steps: {(self.steps - freeze) // 10}")
        if reasons:
            raise ValueError(
                f"steps ({self.steps}) are too few: {', '.join(reasons)}; write {', '.join(write)}, or more steps"
            )
        return self


class ProbeSettings(Section):
    """Probes on frozen features, before, during and after training."""

    label: str | None = None
    """Column with the task label; never used by training."""
    split: str | None = None
    """Column that names the split of each row."""
    train: str = "train"
    """Value of ``split`` on whose rows a probe is fitted."""
    val: str | None = None
    """Value of ``split`` that selects the best checkpoint."""
    tests: list[str] = []
    """Values of ``split`` that are scored."""
    group: str | None = None
    """Column for worst-group accuracy."""
    k: Positive = 20
    every: Positive | None = None
    """Probe every n steps; only at the start and the end when not given."""
    metric: Literal["accuracy", "macro_f1", "worst_group_accuracy"] = "macro_f1"
    """The metric that selects the best checkpoint."""
    method: Literal["knn", "linear"] = "knn"
    """The probe that selects the best checkpoint."""
    max_rows: Positive | None = None
    """Probe on at most this many rows of each split."""

    @model_validator(mode="after")
    def _needs(self) -> Self:
        given = [name for name in ("val", "every", "tests", "group") if getattr(self, name)]
        if given and self.label is None:
            raise ValueError(
                f"{', '.join(map(repr, given))} would have no effect without 'label': name the column of the task "
                "label, or leave them out"
            )
        if (self.val or self.tests) and self.split is None:
            raise ValueError("'val' and 'tests' are values of a split column: name it with 'split'")
        if self.metric == "worst_group_accuracy" and self.group is None:
            raise ValueError("metric worst_group_accuracy needs 'group'")
        return self


class Recipe(Section):
    """A whole run."""

    manifest: Path
    out: Path
    preset: Literal["paper", "small"] = "paper"
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
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    probe: ProbeSettings = ProbeSettings()

    @model_validator(mode="after")
    def _train_split_has_a_column(self) -> Self:
        if isinstance(self.train_split, list) and self.probe.split is None:
            raise ValueError("'train_split' needs the split column: name it with 'probe.split'")
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
    return build_recipe(settings)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
