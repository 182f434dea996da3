"""The supervised baselines of ``openfino compare`` (fino.md section 7)."""

from typing import Annotated

from pydantic import Field

from openfino.recipe.section import Fraction, Positive, Section, Weight

Rate = Annotated[float, Field(gt=0)]
Rates = Annotated[list[Rate], Field(min_length=1)]


class BaselineSettings(Section):
    """Supervised fine-tuning, from scratch, DANN, CORAL and Group-DRO: one budget, one head, each its own grid.

    Every combination of a learning rate and a strength is a trial; the validation rows choose among them. Precision,
    drop path, clipping, betas and what of the backbone may train are those of ``train``.
    """

    lrs: Rates = [5e-5]
    """Peak learning rates, as they are: ``train.lr_scaling`` does not apply."""
    scratch_lrs: Rates | None = None
    """Those of training from scratch; ``lrs`` when not given."""
    fresh_lr_factor: Rate = 1.0
    """On the rate of what starts from random weights beside the backbone: head and discriminator."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Weight = 0.04
    warmup: Fraction = 0.05
    """Share of the steps in which the rate rises to its peak; a half cosine to 0 follows."""
    steps: Positive | None = None
    """Of every trial on the whole training set; ``train.steps`` when not given: as many images as adaptation sees."""
    batch_size: Positive | None = None
    """``train.batch_size`` when not given."""
    fewest_steps: Fraction = 0.25
    """Fewer training rows have fewer steps, for as many epochs, but at least this share of the steps."""
    head_epochs: Weight = 5.0
    """At first only the head trains, for so many epochs, except from scratch."""
    head_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """But for at most this share of the steps."""
    validations: Positive = 10
    """How often a trial is scored on the validation rows; the best of these states is kept."""
    dann: Rates = [0.1, 1.0]
    """Strength of DANN's reversed gradient at the end of its ramp."""
    coral: Rates = [0.01, 0.1, 1.0]
    """Weight of CORAL's gap between covariances."""
    domains_per_batch: Positive = 4
    """CORAL's batches hold runs of images of one domain, about so many runs; else a batch of many domains has a single
    image of most, and no covariance."""
    groupdro: Rates = [0.01, 0.1, 1.0]
    """Step size of Group-DRO's group weights."""
    discriminator_width: Positive = 1024
