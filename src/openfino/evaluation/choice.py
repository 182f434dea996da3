"""What validation chose from a grid, and among what."""

import math
from typing import Any


class Choice:
    """What fitted heads of every kind have in common.

    Attributes:
        lr: peak learning rate of the best point. weight_decay: its weight decay.
        points: (learning rate, weight decay) of every point of the grid.
        val_scores: of every point; NaN where training diverged.
        steps: optimizer steps of every point.
    """

    lr: float
    weight_decay: float
    points: tuple[tuple[float, float], ...]
    val_scores: tuple[float, ...]
    steps: int

    @property
    def at_the_edge(self) -> bool:
        """Whether the learning rate is the lowest or highest of several: a wider grid might do better."""
        rates = {lr for lr, _ in self.points}
        return len(rates) > 1 and self.lr in (min(rates), max(rates))

    def choice(self) -> dict[str, Any]:
        """As JSON takes it; a score is None where training diverged."""
        scores = [None if math.isnan(score) else float(score) for score in self.val_scores]
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "val": max(score for score in scores if score is not None),
            "at_the_edge": self.at_the_edge,
            "steps": self.steps,
            "points": [
                {"lr": lr, "weight_decay": decay, "val": score}
                for (lr, decay), score in zip(self.points, scores, strict=True)
            ],
        }
