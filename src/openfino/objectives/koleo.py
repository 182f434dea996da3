"""KoLeo: spreads the embeddings by the distance of each to its nearest neighbour (dinov3.md 2.5)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.distributed import gather_rows
from openfino.objectives.base import Term, Views

_EPSILON = 1e-8


def koleo(embeddings: Tensor, group_size: int | None = None) -> Tensor:
    """Minus the mean log distance of each embedding, on the unit sphere, to its nearest neighbour.

    The choice of the neighbour has no gradient; the distance has one to both ends.

    Args:
        embeddings: [n, D], normalised here.
        group_size: look for neighbours among this many consecutive rows; a last incomplete group is joined to
            the one before it. All rows when not given.

    Returns:
        A scalar; a zero that keeps the graph when a row has no neighbour (one row, or groups of one).
    """
    count = embeddings.shape[0]
    group_size = count if group_size is None else min(group_size, count)
    if group_size < 2:
        return embeddings.sum() * 0.0
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings, dim=-1)
        neighbours = _nearest(points.detach(), group_size)
        distances = F.pairwise_distance(points, points[neighbours], eps=_EPSILON)
        return -(distances + _EPSILON).log().mean()


def _nearest(points: Tensor, group_size: int) -> Tensor:
    """Index of the most similar other row of the same group -> int64 [n]."""
    rows = torch.arange(points.shape[0], device=points.device)
    group = (rows // group_size).clamp(max=points.shape[0] // group_size - 1)
    apart = (group[:, None] != group[None, :]) | (rows[:, None] == rows[None, :])
    return (points @ points.T).masked_fill(apart, -torch.inf).argmax(dim=1)


class KoleoTerm(Term):
    """KoLeo of the student CLS of each global crop over the global batch, summed over the crops."""

    name = "koleo"

    def __init__(self, weight: float = 0.1, group_size: int | None = None) -> None:
        super().__init__(weight)
        self.group_size = group_size

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar, equal on all ranks."""
        crops = [koleo(gather_rows(crop.float()), self.group_size) for crop in views.global_cls]
        return torch.stack(crops).sum()
