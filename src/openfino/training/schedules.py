"""What changes with the step: learning rate, momentum, teacher temperature (fino.md section 3)."""

import math

from openfino.recipe import TemperatureSettings, TrainSettings


def cosine(start: float, end: float, step: int, total: int) -> float:
    """From ``start`` at step 0 to ``end`` at the last step (total - 1), half a cosine wave; then ``end``."""
    progress = min(step / max(total - 1, 1), 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def linear_ramp(step: int, length: int) -> float:
    """0 at step 0, 1 from step ``length`` on; 1 everywhere when ``length`` is 0."""
    return 1.0 if length == 0 else min(step / length, 1.0)


class Schedules:
    """All schedules of a run as functions of the step."""

    def __init__(self, train: TrainSettings, temperature: TemperatureSettings) -> None:
        self.train = train
        self.temperature = temperature
        scale = math.sqrt(train.batch_size / 1024) if train.lr_scaling == "sqrt_1024" else 1.0
        self.peak_lr = train.lr * scale
        warmup = temperature.warmup_steps
        self.temperature_warmup = round(0.3 * train.steps) if warmup is None else warmup

    def lr(self, step: int) -> float:
        """Linear warm-up (never exactly 0: a first step should move), then constant or cosine to 0."""
        warmup = self.train.warmup_steps
        if step < warmup:
            return self.peak_lr * (step + 1) / warmup
        if self.train.schedule == "constant":
            return self.peak_lr
        return cosine(self.peak_lr, 0.0, step - warmup, self.train.steps - warmup)

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

    def momentum(self, step: int) -> float:
        """Momentum of the teacher."""
        start, end = self.train.teacher_momentum
        return cosine(start, end, step, self.train.steps)

    def teacher_temperature(self, step: int) -> float:
        """Linear from start to end over the warm-up, then constant."""
        start, end = self.temperature.start, self.temperature.end
        return start + (end - start) * linear_ramp(step, self.temperature_warmup)
