"""The prototype bank of the authors' released code, which differs from the paper's (official-code A, B4, B14)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.keyed import Purpose, keyed_generator
from openfino.objectives.guidance.prototypes import Bank, Groups


def concentration_logits(
    features: Tensor, centroids: Tensor, concentration: Tensor, minimum: float
) -> Tensor:
    """Cosine similarities over a temperature of each value's own.

    Args:
        features: [..., D], normalised here.
        centroids: [M, D], normalised here.
        concentration: phi [M].
        minimum: below which no phi is used.

    Returns:
        [..., M] in the dtype of ``features``.
    """
    # The columns of the product are scaled, not the rows of the bank: no second copy of a million centroids.
    lengths = torch.linalg.vector_norm(centroids, dim=-1).clamp(min=1e-12)
    with torch.autocast(features.device.type, enabled=False):
        cosines = F.linear(F.normalize(features, dim=-1), centroids)
    return cosines / (lengths * concentration.clamp(min=minimum))


class ConcentrationBank(Bank):
    """Centroids that are never re-projected, each with a temperature that follows the spread of its images.

    A value that no image has held yet is a random unit vector, which the others are pushed away from; its first
    batch replaces it by the plain mean. Later batches move it as c = alpha c + (1 - alpha) mean, and phi, which
    begins at the temperature, as phi = alpha phi + (1 - alpha) r, where r is the root-mean-square distance of the
    value's embeddings to its old centroid on the unit sphere; with two or more images of the value only. The crops
    move the bank one after the other, so that a step moves it twice.

    The random vectors are drawn by key (seed, ``index``): a value's depends neither on the rank nor on how many
    values follow it.

    Attributes:
        centroids: float32 [M, D].
        concentration: float32 [M], phi.
        counts: int64 [M]; embeddings (two per image and step) committed per value.
    """

    centroids: Tensor
    concentration: Tensor
    counts: Tensor

    def __init__(
        self,
        size: int,
        embed_dim: int,
        temperature: float = 0.07 / 3,
        momentum: float = 0.999,
        minimum: float = 0.01,
        *,
        seed: int = 0,
        index: int = 0,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.minimum = minimum
        # One stream, row after row: a grown vocabulary appends rows and keeps the others.
        draws = keyed_generator(seed, Purpose.INIT, index).standard_normal((size, embed_dim), dtype="float32")
        self.register_buffer("centroids", F.normalize(torch.from_numpy(draws), dim=-1))
        self.register_buffer("concentration", torch.full((size,), temperature))
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))

    def embed(self, teacher_cls: Tensor) -> Tensor:
        """Normalised teacher CLS of every crop [B, V, D]."""
        return F.normalize(teacher_cls.detach().to(self.centroids.dtype), dim=-1).transpose(0, 1)

    def logits(self, features: Tensor) -> Tensor:
        """Cosines over each value's own phi [V, B, M]."""
        features = features.to(self.centroids.dtype)
        return concentration_logits(features, self.centroids, self.concentration, self.minimum)

    @torch.no_grad()
    def update(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        """Move centroids and phi of the batch's values, crop by crop of ``embeddings`` [n, V, D].

        Only rows of values in the batch are read or written.
        """
        for crop in embeddings.unbind(dim=1):
            self._update_crop(crop, values, valid)

    def _update_crop(self, embeddings: Tensor, values: Tensor, valid: Tensor) -> None:
        groups = Groups(embeddings, values, valid)
        old, phi = self.centroids[values], self.concentration[values]
        seen = self.counts[values] > 0
        means = groups.mean(groups.embeddings)
        squares = (groups.embeddings - F.normalize(old, dim=-1)).square().sum(dim=-1, keepdim=True)
        spread = groups.mean(squares).squeeze(1).sqrt()
        moved = torch.where(seen[:, None], self.momentum * old + (1 - self.momentum) * means, means)
        spreads = seen & (groups.counts >= 2)
        groups.write(self.centroids, moved)
        groups.write(
            self.concentration,
            torch.where(spreads, self.momentum * phi + (1 - self.momentum) * spread, phi),
        )
        self.counts.index_add_(0, values, groups.chosen.long())
