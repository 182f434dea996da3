"""The network of regressors and classifiers, with weights and dropout drawn by key."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.keyed import Purpose, keyed_seed


class KeyedMlp(nn.Module):
    """MLP from the embedding to n outputs: (Linear, GELU, Dropout) per hidden layer, then Linear.

    The embedding is not normalised. Weights are PyTorch's default initialisation, drawn by key (seed,
    ``index``). Dropout masks are drawn by key (seed, step, ``index``, layer) for the global batch, and each
    image takes those of its slot: so neither ranks, nor pieces, nor a resume changes them. They are drawn on the
    device of the features.

    Args:
        embed_dim: D.
        outputs: n.
        hidden: widths of the hidden layers.
        dropout: probability, in training mode only.
        seed: of the run.
        index: a number of the factor; keeps the draws of several networks apart.
    """

    def __init__(
        self,
        embed_dim: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (512, 512, 256),
        dropout: float = 0.5,
        seed: int = 0,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.seed = seed
        self.index = index
        widths = [embed_dim, *hidden, outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, Purpose.INIT, index))
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, features: Tensor, step: int, slots: Tensor, batch_size: int) -> Tensor:
        """Outputs [V, B, n] in the precision of the weights.

        Args:
            features: embeddings [V, B, D].
            step: of the run.
            slots: places [B] of the images in the global batch.
            batch_size: images of the global batch.
        """
        with torch.autocast(features.device.type, enabled=False):
            hidden = features.to(next(self.parameters()).dtype)
            for layer, linear in enumerate(self.layers[:-1]):
                hidden = F.gelu(linear(hidden))
                if self.training and self.dropout > 0:
                    hidden = hidden * self._dropout_scale(hidden, step, layer, slots, batch_size)
            outputs: Tensor = self.layers[-1](hidden)
        return outputs

    def _dropout_scale(self, hidden: Tensor, step: int, layer: int, slots: Tensor, batch_size: int) -> Tensor:
        """0 where a unit of ``hidden`` [V, B, H] is dropped, else 1 / (1 - dropout)."""
        crops, _, width = hidden.shape
        generator = torch.Generator(hidden.device)
        generator.manual_seed(keyed_seed(self.seed, Purpose.DROPOUT, step, self.index, layer))
        draws = torch.rand((crops, batch_size, width), generator=generator, device=hidden.device)
        return (draws[:, slots] >= self.dropout).to(hidden.dtype) / (1 - self.dropout)
