"""Optimisation and the two-stage schedule."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.section import Count, Fraction, FromTo, Positive, Section, Weight


class TrainSettings(Section):
    """Optimisation and the two-stage schedule (fino.md section 3)."""

    steps: Positive = 25_000
    batch_size: Positive = 96
    """Images per step over all processes."""
    accumulate: Positive = 1
    """Split each process's share of the batch into this many pieces to save memory.

    Teacher targets see the whole batch all the same; what compares images sees one piece (of every process) at a time:
    KoLeo, SIGReg, Gram with ``per_image: false``, and balancing.
    """
    lr: Annotated[float, Field(gt=0)] = 5e-5
    lr_scaling: Literal["sqrt_1024", "sqrt_1024_x4", "none"] = "sqrt_1024"
    """``sqrt_1024``: lr (and final_lr) times sqrt(batch_size / 1024); ``sqrt_1024_x4``: four times that."""
    schedule: Literal["constant", "cosine", "classical_cosine"] = "constant"
    """What the rate does after its warm-up.

    ``cosine`` arrives at final_lr at the last step. ``classical_cosine`` (DINO, DINOv2, DINOv3's ViT-L on ImageNet-1k)
    warms up from exactly 0, reaches lr at the last warm-up step and would arrive one step after the last; the cosines
    of weight decay and teacher momentum and the warm-up of the teacher temperature then do the same.
    """
    final_lr: Weight = 0.0
    """Where a cosine of the rate ends."""
    cosine_steps: Positive | None = None
    """With ``cosine``: the rate falls for so many steps, then stays; to the last step when not given."""
    cosine_stretch: Weight = 0.0
    """With ``classical_cosine``: draw each wave (1 + this) times as long, cut it off at the last step and scale it."""
    warmup_steps: Count = 3_000
    warmup_from_zero: bool = False
    """Step i of the warm-up has i / warmup_steps of the rate, so that the first moves nothing; else (i + 1)."""
    freeze_steps: Count = 10_000
    """Stage 1: the backbone is frozen except its patch embedding."""
    unfreeze_ramp_steps: Count = 1_000
    """Stage 2 begins with a linear learning-rate ramp of the backbone."""
    ramp_decay: bool = False
    """The ramp scales the backbone's weight decay too: what is decayed in a step, rate x decay, ramps quadratically."""
    freeze_patch_embedding: bool = False
    """The patch embedding belongs to what stage 1 freezes and the ramp scales."""
    trainable_blocks: Count | None = None
    """Of the blocks, only the last N ever unfreeze, and no token; everything when not given."""
    trainable_blocks_alone: bool = False
    """With trainable_blocks: the patch embedding and the final norm never train either."""
    last_layer_freeze_steps: Count = 450
    weight_decay: FromTo = (0.04, 0.04)
    """A number, or from, to (cosine over the run)."""
    decay_tokens: bool = False
    """Weight decay pulls the CLS, register and mask tokens towards 0 too."""
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
    def _fits_together(self) -> Self:
        wrong = [*self._without_effect(), *self._out_of_reach()]
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    def _without_effect(self) -> list[str]:
        wrong = []
        for key, schedules in (
            ("final_lr", ("cosine", "classical_cosine")),
            ("cosine_steps", ("cosine",)),
            ("cosine_stretch", ("classical_cosine",)),
        ):
            if getattr(self, key) and self.schedule not in schedules:
                wrong.append(
                    f"{key} has no effect with schedule {self.schedule}; write schedule: {schedules[0]}, or drop {key}"
                )
        return wrong

    def _out_of_reach(self) -> list[str]:
        """What would not come to its end in so few steps, as one sentence with a remedy for all."""
        freeze, warmup, ramp = self.freeze_steps, self.warmup_steps, self.unfreeze_ramp_steps
        reasons, write = [], []
        if freeze >= self.steps:
            reasons.append(f"with freeze_steps {freeze} the backbone would never train")
            freeze = self.steps // 10
            write.append(f"freeze_steps: {freeze}")
        # A plain warm-up has the whole rate at its last step; a cosine begins after it.
        falls = self.schedule != "constant"
        if warmup >= self.steps + (not falls and not self.warmup_from_zero):
            aim = "final_lr" if falls else "the learning rate"
            reasons.append(f"with warmup_steps {warmup} {aim} would never be reached")
            warmup = self.steps // 20
            write.append(f"warmup_steps: {warmup}")
        if freeze + ramp > self.steps:
            reasons.append(
                f"with unfreeze_ramp_steps {ramp} the backbone would never reach its learning rate"
            )
            write.append(f"unfreeze_ramp_steps: {(self.steps - freeze) // 10}")
        if self.schedule == "cosine" and warmup + (self.cosine_steps or 0) > self.steps:
            reasons.append(
                f"with cosine_steps {self.cosine_steps} after the warm-up final_lr would never be reached"
            )
            write.append(f"cosine_steps: {self.steps - warmup}")
        if not reasons:
            return []
        return [
            f"steps ({self.steps}) are too few: {', '.join(reasons)}; write {', '.join(write)}, or more steps"
        ]
