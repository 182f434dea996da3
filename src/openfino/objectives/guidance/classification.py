"""Classifiers for discrete factors: what the paper compares its prototypes with (its ablation on HPA)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.objectives.guidance.mlp import KeyedMlp


def class_cross_entropy(logits: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """Softmax cross-entropy of each image against its own value.

    Args:
        logits: [V, B, M].
        values: int64 [B].
        valid: bool [B].

    Returns:
        [V, B]; 0 where not valid.
    """
    targets = torch.where(valid, values, -100).expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return losses.view_as(targets)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the M values of the cross-entropy of "is it this one?": [V, B, M], labels in {0, 1} [B, M] -> [V, B].

    An image may have several ones, or none.
    """
    labels = labels.to(logits.dtype).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)


class Classifier(nn.Module):
    """A :class:`KeyedMlp` with one logit per value of the vocabulary, all of which it sees as negatives.

    Args:
        size: M, values of the vocabulary.
        embed_dim: D.
        hidden: widths of the hidden layers.
        dropout: probability, in training mode only.
        binary: :func:`binary_cross_entropy` against the one-hot value instead of :func:`class_cross_entropy`.
        seed: of the run.
        index: a number of the factor; keeps the draws of several classifiers apart.
    """

    def __init__(
        self,
        size: int,
        embed_dim: int,
        *,
        hidden: Sequence[int] = (512, 512, 256),
        dropout: float = 0.5,
        binary: bool = False,
        seed: int = 0,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.binary = binary
        # Under a name of its own: its last rows grow with the vocabulary, those of a regressor never do.
        self.classifier = KeyedMlp(embed_dim, size, hidden=hidden, dropout=dropout, seed=seed, index=index)

    def forward(self, features: Tensor, step: int, slots: Tensor, batch_size: int) -> Tensor:
        """The logits [V, B, M]; arguments as of :meth:`KeyedMlp.forward`."""
        logits: Tensor = self.classifier(features, step, slots, batch_size)
        return logits

    def judge(self, logits: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [V, B] and whether the largest logit is the image's own, bool [V, B]; 0 and False where not valid."""
        correct = valid & (logits.argmax(dim=-1) == values)
        if not self.binary:
            return class_cross_entropy(logits, values, valid), correct
        losses = binary_cross_entropy(logits, F.one_hot(values, logits.shape[-1]))
        return torch.where(valid, losses, 0.0), correct
