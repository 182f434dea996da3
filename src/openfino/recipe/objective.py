"""The terms of the loss and their heads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.gram import GramSettings
from openfino.recipe.section import Count, Fraction, Positive, Section, Weight


class HeadSettings(Section):
    """Projection head: MLP, L2-normalised bottleneck, prototypes (dinov3.md 2.1)."""

    prototypes: Positive = 65_536
    hidden: Positive = 2048
    bottleneck: Positive = 256
    layers: Positive = 3
    bias: bool = True
    """Biases in the MLP."""
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
    """Share of the global crops that are masked; none where no term looks at the masks (no weight here, and
    ``gram.tokens: all``)."""
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
    group_size: Annotated[int, Field(ge=2)] | None = 16
    """Neighbours are searched in groups of this many consecutive images of the global batch (DINOv3: 16); null: among
    all of it. Images left over join the last group. With ``train.accumulate`` the images of one piece on all processes
    take the place of the batch, and no group reaches over two pieces."""
    neighbours: Positive = 1
    """Nearest neighbours of each sample whose log distances are averaged."""
    every_crop: bool = False
    """Sum over the global crops, as the released code does, instead of the first one only (DINOv3, appendix C)."""


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
    """Heads of the factors, reversal and balancing (eq. 1 to 3, Alg. A.3)."""

    discrete_head: Literal["prototypes", "classifier", "binary_classifier"] = "prototypes"
    """Of discrete factors. ``classifier``: an MLP and softmax cross-entropy; ``binary_classifier``: an MLP and one
    yes-or-no question per value. In the paper's ablation the MLP does worse than prototypes."""
    bank: Literal["spherical", "concentration"] = "spherical"
    """Of prototypes. ``spherical``: unit vectors and one temperature; a value without an image yet is no negative.
    ``concentration`` (the authors' code): never re-projected, each value's temperature follows the spread of its
    images, and a value without an image yet is a random vector."""
    temperature: Annotated[float, Field(gt=0)] = 0.07 / 3
    """Of the cosines; with ``bank: concentration`` where each value's own begins."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the prototypes, per step; with ``bank: concentration`` per global crop, two of which make a step."""
    ramp: Literal["dann", "linear", "constant"] = "dann"
    """How the gradient into the encoder grows to its full strength at the last step."""
    ramp_from: Literal["unfreeze", "start"] = "unfreeze"
    """The ramp's first step: where the backbone unfreezes, or the first of the run (the authors' code)."""
    reversed_weight: Weight = 1.0
    """The weights of spurious factors are multiplied by this (the authors' code: 0.1)."""
    balance: bool = True
    """With two or more factors: their losses are scaled so that, weights aside, all pull alike."""
    balance_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the gradient norms; 0 takes those of the step alone (the authors' code)."""
    balance_weighted_losses: bool = False
    """Scale so that the pulls are alike with their weights: then the factors' weights cancel (the authors' code)."""
    regressor_hidden: list[Positive] = [512, 512, 256]
    """Widths of the hidden layers of regressors and, whatever the key is called, of classifiers."""
    regressor_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of regressors and of classifiers."""


class ObjectiveSettings(Section):
    """The terms of the total loss (eq. 4)."""

    dino: DinoSettings = DinoSettings()
    ibot: IbotSettings = IbotSettings()
    koleo: KoleoSettings = KoleoSettings()
    sigreg: SigregSettings = SigregSettings()
    gram: GramSettings = GramSettings()
    guidance: GuidanceSettings = GuidanceSettings()
    teacher_temperature: TemperatureSettings = TemperatureSettings()
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"
    """How the teacher's logits become targets: balanced within each batch, or after subtracting a running mean."""
    sinkhorn_iterations: Positive = 3
    center_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the running mean of ``centering: softmax``."""

    @property
    def uses_masks(self) -> bool:
        """Whether some term asks which patches were hidden from the student; else it sees all of them."""
        return self.ibot.weight > 0 or self.gram.tokens != "all"
