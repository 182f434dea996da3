"""Prototype banks for discrete factors (paper eq. 1 and 2): one vector per value of the vocabulary."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.objectives.guidance.classification import class_cross_entropy


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


class Bank(nn.Module):
    """Vectors of one factor's values, what they make of a batch, and how the teacher moves them.

    All state is in buffers, equal on all ranks: every rank gathers the embeddings (:meth:`embed`) of all images and
    makes the same update.
    """

    def embed(self, teacher_cls: Tensor) -> Tensor:
        """What this rank's teacher CLS [V, B, D] say to the bank -> [B, ...], one row per image.

        Raises:
            NotImplementedError: in a subclass that forgot it.
        """
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """Logits [V, B, M] of student CLS [V, B, D].

        Raises:
            NotImplementedError: in a subclass that forgot it.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the bank, and whether the largest logit is the image's own.

        Args:
            features: student CLS [V, B, D]; gradients flow here, the bank has none.
            values: int64 [B]; every valid one must have been admitted.
            valid: bool [B].

        Returns:
            losses [V, B] in the precision of the bank and correct bool [V, B]; 0 and False where not valid.
        """
        logits = self.logits(features)
        return class_cross_entropy(logits, values, valid), valid & (logits.argmax(dim=-1) == values)

    def admit(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Before the loss: make room for values that the batch is the first to hold. Idempotent.

        Args:
            embeddings: of the images of **all** ranks [n, ...] (see :meth:`embed`).
            values: int64 [n].
            valid: bool [n].
        """

    def update(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """After an accepted step: move the rows of the batch's values. Arguments as in :meth:`admit`.

        Raises:
            NotImplementedError: in a subclass that forgot it.
        """
        raise NotImplementedError


class Groups:
    """The images of a batch by their value. No step waits for the device.

    An image that is not valid, or whose embedding is broken, belongs to no group.

    Args:
        embeddings: [n, D].
        values: int64 [n].
        valid: bool [n].

    Attributes:
        embeddings: [n, D]; zero where not chosen.
        chosen: bool [n]; the images that count.
        counts: int64 [n]; how many chosen images hold the value of each image.
    """

    def __init__(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        # An image with broken pixels must not break the prototype of its value for the rest of the run.
        self.chosen = valid & embeddings.isfinite().all(dim=-1)
        self.embeddings = torch.where(self.chosen[:, None], embeddings, 0.0)
        self._values = values
        self._alike = (values[:, None] == values[None, :]) & self.chosen[None, :]
        self.counts = self._alike.sum(dim=1)

    def mean(self, rows: Tensor) -> Tensor:
        """Mean of ``rows`` [n, k] over the group of each image [n, k]; 0 where that is empty."""
        with torch.autocast(rows.device.type, enabled=False):
            return self._alike.to(rows.dtype) @ rows / self.counts.clamp(min=1)[:, None]

    def write(self, buffer: Tensor, rows: Tensor) -> None:
        """Put ``rows`` [n, ...], equal within a group, into the rows of ``buffer`` [M, ...] that the groups stand for.

        Several images may hold one value, so each lets the first of its value speak for it; images that are
        not chosen repeat the first chosen one. So all writes to a row agree.
        """
        speaker = torch.where(self.chosen, self._alike.int().argmax(dim=1), self.chosen.int().argmax())
        old = buffer[self._values]
        kept = self.chosen.view(-1, *[1] * (rows.dim() - 1))
        buffer.index_copy_(0, self._values[speaker], torch.where(kept, rows, old)[speaker])


class PrototypeBank(Bank):
    """The prototypes of one factor's values on the unit sphere: the paper's rule.

    A value has no prototype until its first image arrives (:meth:`admit`); until then it is no negative for
    the others.

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

    def embed(self, teacher_cls: Tensor) -> Tensor:
        """Normalised teacher CLS, mean over crops [B, D]."""
        return F.normalize(teacher_cls.detach().to(self.prototypes.dtype), dim=-1).mean(dim=0)

    def logits(self, features: Tensor) -> Tensor:
        """Cosines over the temperature, minus infinity for values without a prototype [V, B, M]."""
        features = features.to(self.prototypes.dtype)
        return prototype_logits(features, self.prototypes, self.seen, self.temperature)

    @torch.no_grad()
    def admit(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Give values without a prototype the mean of their embeddings [n, D], projected onto the unit sphere.

        A value that has a prototype keeps it.
        """
        self._move(embeddings, values, valid & ~self.seen[values], momentum=0.0)

    @torch.no_grad()
    def update(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Move the prototypes of the batch's values towards the mean of their embeddings, and re-project.

        p = normalise(alpha p + (1 - alpha) mean). Only rows of values in the batch are read or written; a
        value without a prototype takes its mean whole.
        """
        self._move(embeddings, values, valid, momentum=self.momentum)
        self.counts.index_add_(0, values, valid.long())

    def _move(self, embeddings: Tensor, values: Tensor, chosen: Tensor, momentum: float) -> None:
        groups = Groups(embeddings, values, chosen)
        means = groups.mean(groups.embeddings)
        moved = F.normalize(momentum * self.prototypes[values] + (1 - momentum) * means, dim=-1)
        groups.write(self.prototypes, moved)
        groups.write(self.seen, groups.chosen | self.seen[values])
