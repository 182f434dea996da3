"""Optimisation and the two-stage schedule."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.section import Count, Fraction, Positive, Section, Weight


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
