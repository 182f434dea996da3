"""Regressors for continuous, cyclic and vector factors (paper eq. 3)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.keyed import Purpose, keyed_seed
from openfino.recipe import FactorKind

Output = Literal["sigmoid", "tanh", "identity"]


class TargetMap(NamedTuple):
    """The linear map from encoded values to the range of the regressor's output."""

    scale: float
    offset: float

    def __call__(self, values: Tensor) -> Tensor:
        """Encoded values [..., n] -> targets [..., n]."""
        return self.scale * values + self.offset


def target_map(kind: FactorKind, output: Output) -> TargetMap:
    """Continuous and vector factors are encoded in [0, 1], cyclic ones as (sin, cos) in [-1, 1].

    A sigmoid gives [0, 1], a tanh [-1, 1]; with ``identity`` the encoding is kept.
    """
    if kind == "cyclic":
        return TargetMap(0.5, 0.5) if output == "sigmoid" else TargetMap(1.0, 0.0)
    return TargetMap(2.0, -1.0) if output == "tanh" else TargetMap(1.0, 0.0)


class Regressor(nn.Module):
    """MLP from the embedding to n bounded outputs: (Linear, GELU, Dropout) per hidden layer, Linear, output.

    The embedding is not normalised. Weights are PyTorch's default initialisation, drawn by key (seed,
    ``index``). Dropout masks are drawn by key (seed, step, ``index``, layer) for the global batch, and each
    image takes those of its slot: so neither ranks, nor pieces, nor a resume changes them. They are drawn on the
    device of the features.

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
        super().__init__()
        self.dropout = dropout
        self.output = output
        self.seed = seed
        self.index = index
        widths = [embed_dim, *hidden, outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, Purpose.INIT, index))
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, features: Tensor, step: int, slots: Tensor, batch_size: int) -> Tensor:
        """Embeddings [V, B, D] of the images ``slots`` [B] of the ``batch_size`` at ``step`` -> float32 [V, B, n]."""
        with torch.autocast(features.device.type, enabled=False):
            hidden = features.float()
            for layer, linear in enumerate(self.layers[:-1]):
                hidden = F.gelu(linear(hidden))
                if self.training and self.dropout > 0:
                    hidden = hidden * self._dropout_scale(hidden, step, layer, slots, batch_size)
            outputs: Tensor = self.layers[-1](hidden)
        if self.output == "identity":
            return outputs
        return outputs.sigmoid() if self.output == "sigmoid" else outputs.tanh()

    def _dropout_scale(self, hidden: Tensor, step: int, layer: int, slots: Tensor, batch_size: int) -> Tensor:
        """0 where a unit of ``hidden`` [V, B, H] is dropped, else 1 / (1 - dropout)."""
        crops, _, width = hidden.shape
        generator = torch.Generator(hidden.device)
        generator.manual_seed(keyed_seed(self.seed, Purpose.DROPOUT, step, self.index, layer))
        draws = torch.rand((crops, batch_size, width), generator=generator, device=hidden.device)
        return (draws[:, slots] >= self.dropout).to(hidden.dtype) / (1 - self.dropout)
