"""Regressors for continuous, cyclic and vector factors (paper eq. 3)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from openfino.objectives.guidance.mlp import KeyedMlp
from openfino.recipe import FactorKind

Output = Literal["sigmoid", "tanh", "identity"]


class TargetMap(NamedTuple):
    """The linear map from encoded values to the range of the regressor's output."""

    scale: float
    offset: float

    def __call__(self, values: Tensor) -> Tensor:
        """Encoded values [..., n] -> targets [..., n]."""
        return self.scale * values + self.offset

    def decode(self, outputs: Tensor) -> Tensor:
        """Outputs of a regressor [..., n] -> encoded values [..., n]."""
        return (outputs - self.offset) / self.scale


def target_map(kind: FactorKind, output: Output) -> TargetMap:
    """Continuous and vector factors are encoded in [0, 1], cyclic ones as (sin, cos) in [-1, 1].

    A sigmoid gives [0, 1], a tanh [-1, 1]; with ``identity`` the encoding is kept.
    """
    if kind == "cyclic":
        return TargetMap(0.5, 0.5) if output == "sigmoid" else TargetMap(1.0, 0.0)
    return TargetMap(2.0, -1.0) if output == "tanh" else TargetMap(1.0, 0.0)


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the n dimensions of the squared error (paper eq. 3): [V, B, n], [B, n] -> [V, B]."""
    return (outputs - targets).square().mean(dim=-1)


class Regressor(KeyedMlp):
    """A :class:`KeyedMlp` with bounded outputs.

    Args:
        embed_dim: D.
        outputs: n.
        hidden: widths of the hidden layers.
        dropout: probability, in training mode only.
        output: range of the outputs; ``identity`` is unbounded.
        seed: of the run.
        index: a number of the factor; keeps the draws of several regressors apart.
    """

    def __init__(
        self,
        embed_dim: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (512, 512, 256),
        dropout: float = 0.5,
        output: Output = "sigmoid",
        seed: int = 0,
        index: int = 0,
    ) -> None:
        super().__init__(embed_dim, outputs, hidden=hidden, dropout=dropout, seed=seed, index=index)
        self.output = output

    def forward(self, features: Tensor, step: int, slots: Tensor, batch_size: int) -> Tensor:
        """The bounded outputs [V, B, n]; arguments as of :meth:`KeyedMlp.forward`."""
        outputs = super().forward(features, step, slots, batch_size)
        if self.output == "identity":
            return outputs
        return outputs.sigmoid() if self.output == "sigmoid" else outputs.tanh()
