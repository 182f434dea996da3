"""What changes with the step: learning rate, weight decay, momentum, teacher temperature (fino.md section 3)."""

import math
from dataclasses import dataclass

from openfino.recipe import TemperatureSettings, TrainSettings

LR_FACTORS = {"sqrt_1024": 1.0, "sqrt_1024_x4": 4.0}


def half_cosine(progress: float) -> float:
    """Half a cosine wave, from 1 at progress 0 to 0 at progress 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine(
    step: int,
    *,
    start: float = 0.0,
    peak: float,
    end: float,
    warmup: int = 0,
    total: int,
    cosine_steps: int | None = None,
) -> float:
    """Line from ``start`` to ``peak``, half a cosine wave to ``end``, then ``end`` (dinov3.md section 3.1, "v2").

    Step 0 has ``start`` and step ``warmup`` has ``peak``, where the cosine begins; it takes ``cosine_steps`` steps (all
    up to ``total`` when not given), the first of which has ``peak`` and the last ``end``.
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    since, length = step - warmup, total - warmup if cosine_steps is None else cosine_steps
    if since >= length:
        return end
    return end + (peak - end) * half_cosine(since / max(length - 1, 1))


def classical_cosine(
    step: int,
    *,
    start: float = 0.0,
    peak: float,
    end: float,
    warmup: int = 0,
    total: int,
    stretch: float = 0.0,
) -> float:
    """The same three parts as DINO and DINOv2 had them (dinov3.md section 3.1, "v1").

    The line reaches ``peak`` at the last warm-up step already. The cosine has ``peak`` at step ``warmup`` and ``end``
    at step ``total``, which is one past the last. With ``stretch`` it is drawn ``1 + stretch`` times as long and cut
    off at the last step, and what is left is scaled to end at ``end`` there: a wave without its flat tail.
    """
    if step < warmup:
        return start + (peak - start) * step / max(warmup - 1, 1)
    since, length = step - warmup, total - warmup
    if since >= length:
        return end
    whole = int((1.0 + stretch) * length) - 1
    if stretch == 0.0 or length == 1:
        return end + (peak - end) * half_cosine(since / length)
    cut = half_cosine((length - 1) / whole)
    return end + (peak - end) * (half_cosine(since / whole) - cut) / (1.0 - cut)


def linear_ramp(step: int, length: int) -> float:
    """0 at step 0, 1 from step ``length`` on; 1 everywhere when ``length`` is 0."""
    return 1.0 if length == 0 else min(step / length, 1.0)


@dataclass(frozen=True)
class Rates:
    """What the optimizer is told at one step.

    Attributes:
        lr: learning rate of a group with multiplier 1.
        weight_decay: of the groups that decay.
        backbone: multiplier of the backbone's rate. backbone_decay: multiplier of its weight decay.
        last_layer_frozen: whether the prototypes of the heads stand still.
    """

    lr: float
    weight_decay: float
    backbone: float = 1.0
    backbone_decay: float = 1.0
    last_layer_frozen: bool = False


class Schedules:
    """All schedules of a run as functions of the step."""

    def __init__(self, train: TrainSettings, temperature: TemperatureSettings) -> None:
        self.train = train
        self.temperature = temperature
        factor = LR_FACTORS.get(train.lr_scaling)
        self.lr_factor = 1.0 if factor is None else factor * math.sqrt(train.batch_size / 1024)
        self.peak_lr = train.lr * self.lr_factor
        self.classical = train.schedule == "classical_cosine"
        warmup = temperature.warmup_steps
        self.temperature_warmup = round(0.3 * train.steps) if warmup is None else warmup

    def lr(self, step: int) -> float:
        """Linear warm-up, then constant or cosine to the final rate."""
        train, peak, warmup = self.train, self.peak_lr, self.train.warmup_steps
        end = peak if train.schedule == "constant" else train.final_lr * self.lr_factor
        if self.classical:
            return self._cosine(step, peak, end, warmup)
        if step < warmup and not train.warmup_from_zero:
            return peak * (step + 1) / warmup  # a first step should move
        length = train.cosine_steps
        return warmup_cosine(step, peak=peak, end=end, warmup=warmup, total=train.steps, cosine_steps=length)

    def weight_decay(self, step: int) -> float:
        """Cosine from start to end."""
        return self._cosine(step, *self.train.weight_decay)

    def backbone_factor(self, step: int) -> float:
        """Multiplier of the backbone's rate: 0 in stage 1, then a linear ramp (two-stage schedule)."""
        since = step - self.train.freeze_steps
        return 0.0 if since < 0 else linear_ramp(since + 1, self.train.unfreeze_ramp_steps)

    def backbone_frozen(self, step: int) -> bool:
        """Whether ``step`` belongs to stage 1."""
        return step < self.train.freeze_steps

    def last_layer_frozen(self, step: int) -> bool:
        """Whether the prototypes of the heads stand still."""
        return step < self.train.last_layer_freeze_steps

    def rates(self, step: int) -> Rates:
        """Everything that the optimizer needs."""
        backbone = self.backbone_factor(step)
        return Rates(
            lr=self.lr(step),
            weight_decay=self.weight_decay(step),
            backbone=backbone,
            backbone_decay=backbone if self.train.ramp_decay else 1.0,
            last_layer_frozen=self.last_layer_frozen(step),
        )

    def momentum(self, step: int) -> float:
        """Momentum of the teacher."""
        return self._cosine(step, *self.train.teacher_momentum)

    def teacher_temperature(self, step: int) -> float:
        """Linear from start to end over the warm-up, then constant."""
        start, end, warmup = self.temperature.start, self.temperature.end, self.temperature_warmup
        line = classical_cosine if self.classical else warmup_cosine
        return line(step, start=start, peak=end, end=end, warmup=warmup, total=self.train.steps)

    def _cosine(self, step: int, peak: float, end: float, warmup: int = 0) -> float:
        total = self.train.steps
        if self.classical:
            stretch = self.train.cosine_stretch
            return classical_cosine(step, peak=peak, end=end, warmup=warmup, total=total, stretch=stretch)
        return warmup_cosine(step, peak=peak, end=end, warmup=warmup, total=total)
