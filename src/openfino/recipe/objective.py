"""The terms of the loss and their heads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.section import Count, Fraction, Positive, Section, Weight


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
    same_crop_pairs: bool = False
    """Also compare each global crop with the teacher's view of the same crop."""
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
    neighbours: Positive = 1
    """Nearest neighbours of each sample whose log distances are averaged."""
    first_crop_only: bool = False
    """Spread the first global crop only (DINOv3, appendix C) instead of the sum over the global crops."""


class SigregSettings(Section):
    """SIGReg term (eq. 6)."""

    weight: Weight | None = None
    """0.05 when a factor guides the run, else 0."""
    sum_crops: bool = False
    """Sum over the global crops instead of their mean."""
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
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"
    """How the teacher's logits become targets: balanced within each batch, or after subtracting a running mean."""
    sinkhorn_iterations: Positive = 3
    center_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the running mean of ``centering: softmax``."""
