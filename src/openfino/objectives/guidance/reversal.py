"""What turns an informative factor into a spurious one: the sign of the gradient that reaches the encoder."""

import math
from typing import Any, Literal

import torch
from torch import Tensor


def scale_gradient(features: Tensor, factor: float) -> Tensor:
    """``features`` unchanged; the gradient that flows back through them is multiplied by ``factor``."""
    scaled: Tensor = _ScaleGradient.apply(features, factor)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def ramp(kind: Literal["dann", "linear", "constant"], step: int, length: int) -> float:
    """The ramp gamma of the encoder's guidance gradient (paper section 3), in [0, 1].

    Args:
        kind: ``dann``: 2 / (1 + exp(-10 step / length)) - 1; ``linear``: step / length; ``constant``: 1.
        step: steps since the backbone unfroze; 0 is returned while it is frozen (below 0).
        length: number of steps with a trainable backbone; past it the ramp stays at its end.
    """
    if step < 0:
        return 0.0
    progress = min(step / length, 1.0)
    if kind == "dann":
        return 2 / (1 + math.exp(-10 * progress)) - 1
    return progress if kind == "linear" else 1.0
