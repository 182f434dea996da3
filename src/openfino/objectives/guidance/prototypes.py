"""Prototype banks for discrete factors (paper eq. 1 and 2): one unit vector per value of the vocabulary."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def prototype_logits(features: Tensor, prototypes: Tensor, seen: Tensor, temperature: float) -> Tensor:
    """Cosine similarities over the temperature; minus infinity for values without a prototype.

    Args:
        features: [..., D], normalised here.
        prototypes: unit rows [M, D].
        seen: bool [M]; which values have a prototype. If none has, all logits are finite.
        temperature: tau.

    Returns:
        [..., M] in the dtype of ``features``.
    """
    # One product and no further pass over [..., M]: the bank may hold a million rows.
    bias = prototypes.new_zeros(len(seen)).masked_fill(~seen & seen.any(), -torch.inf)
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(F.normalize(features, dim=-1) / temperature, prototypes, bias)


class PrototypeBank(nn.Module):
    """The prototypes of one factor's values, and their loss.

    A value has no prototype until its first image arrives (:meth:`admit`); until then it is no negative for
    the others. All state is in buffers, equal on all ranks:

    Attributes:
        prototypes: float32 [M, D]; unit rows where seen, zero elsewhere.
        seen: bool [M].
        counts: int64 [M]; images committed per value.
    """

    prototypes: Tensor
    seen: Tensor
    counts: Tensor

    def __init__(
        self, size: int, embed_dim: int, temperature: float = 0.07 / 3, momentum: float = 0.99
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        self.register_buffer("prototypes", torch.zeros(size, embed_dim))
        self.register_buffer("seen", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))

    def forward(self, features: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the seen values, and whether the most similar prototype is the image's own.

        Args:
            features: student CLS [V, B, D]; gradients flow here, the prototypes have none.
            values: int64 [B]; every valid one must have been admitted.
            valid: bool [B].

        Returns:
            loss float32 [V, B] and correct bool [V, B]; 0 and False where not valid.
        """
        logits = prototype_logits(features.float(), self.prototypes, self.seen, self.temperature)
        targets = torch.where(valid, values, -100).expand(features.shape[:2])
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return losses.view_as(targets), logits.argmax(dim=-1) == targets

    @torch.no_grad()
    def admit(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Give values without a prototype the mean of their embeddings, projected onto the unit sphere.

        Idempotent: a value that has a prototype keeps it.

        Args:
            embeddings: normalised teacher CLS, mean over crops, of the images of **all** ranks [n, D].
            values: int64 [n].
            valid: bool [n].
        """
        self._move(embeddings, values, valid & ~self.seen[values], momentum=0.0)

    @torch.no_grad()
    def update(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Move the prototypes of the batch's values towards the mean of their embeddings, and re-project.

        p = normalise(alpha p + (1 - alpha) mean). Only rows of values in the batch are read or written; a
        value without a prototype takes its mean whole. Arguments as in :meth:`admit`.
        """
        self._move(embeddings, values, valid, momentum=self.momentum)
        self.counts.index_add_(0, values, valid.long())

    def _move(self, embeddings: Tensor, values: Tensor, chosen: Tensor, momentum: float) -> None:
        """Move the prototypes of the chosen images' values. No step waits for the device.

        Several images may hold one value, so each lets the first of its value speak for it; images that are
        not chosen repeat the first chosen one. So all writes to a row agree.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            alike = (values[:, None] == values[None, :]) & chosen[None, :]
            means = alike.float() @ embeddings.float() / alike.sum(dim=1, keepdim=True).clamp(min=1)
        old = self.prototypes[values]
        moved = F.normalize(momentum * old + (1 - momentum) * means, dim=-1)
        # An image with broken pixels must not break the prototype of its value for the rest of the run.
        chosen = chosen & moved.isfinite().all(dim=-1)
        moved = torch.where(chosen[:, None], moved, old)
        speaker = torch.where(chosen, alike.int().argmax(dim=1), chosen.int().argmax())
        rows = values[speaker]
        self.prototypes.index_copy_(0, rows, moved[speaker])
        self.seen.index_copy_(0, rows, self.seen[rows] | chosen[speaker])
