"""KoLeo: spreads the embeddings by the distance of each to its nearest neighbour (dinov3.md 2.5)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.distributed import gather_rows
from openfino.objectives.base import Term, Views

_EPSILON = 1e-8


def koleo(embeddings: Tensor, group_size: int | None = None, neighbours: int = 1) -> Tensor:
    """Minus the mean log distance of each embedding, on the unit sphere, to its nearest neighbours.

    The choice of the neighbours has no gradient; the distance has one to both ends.

    Args:
        embeddings: [n, D], normalised here.
        group_size: look for neighbours among this many consecutive rows; a last incomplete group is joined to
            the one before it. All rows when not given.
        neighbours: of each row; all of its group where that holds fewer.

    Returns:
        A scalar; a zero that keeps the graph when a row has no neighbour (one row, or groups of one).
    """
    count = embeddings.shape[0]
    group_size = count if group_size is None else min(group_size, count)
    if group_size < 2:
        return embeddings.sum() * 0.0
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(embeddings, dim=-1)
        nearest = nearest_rows(points.detach(), group_size, min(neighbours, group_size - 1))
        distances = F.pairwise_distance(points[:, None], points[nearest], eps=_EPSILON)
        return -(distances + _EPSILON).log().mean()


def nearest_rows(points: Tensor, group_size: int, count: int) -> Tensor:
    """The ``count`` most similar other rows of each row's group, the nearest first.

    Args:
        points: unit vectors [n, D].
        group_size: as in :func:`koleo`, at most n.
        count: below ``group_size``.

    Returns:
        Indices int64 [n, count].
    """
    rows = torch.arange(points.shape[0], device=points.device)
    group = (rows // group_size).clamp(max=points.shape[0] // group_size - 1)
    apart = (group[:, None] != group[None, :]) | (rows[:, None] == rows[None, :])
    return (points @ points.T).masked_fill(apart, -torch.inf).topk(count, dim=1).indices


class KoleoTerm(Term):
    """KoLeo of the student CLS over the global batch: of the first global crop, or of the sum over all.

    Groups are consecutive rows of what all ranks hold, in rank order, which is the order of the slots: they do not
    depend on the number of ranks and may reach over two of them. Of a batch in pieces (gradient accumulation) the
    term sees one piece of every rank at a time, so that no group reaches over two pieces; on one rank the groups are
    those of the whole batch if ``group_size`` divides the pieces.

    Args:
        weight: of the term.
        group_size: as in :func:`koleo`; 16 in DINOv3 (sec. 3.1).
        neighbours: as in :func:`koleo`.
        every_crop: sum over the global crops.
    """

    name = "koleo"

    def __init__(
        self,
        weight: float = 0.1,
        group_size: int | None = 16,
        *,
        neighbours: int = 1,
        every_crop: bool = False,
    ) -> None:
        super().__init__(weight)
        self.group_size = group_size
        self.neighbours = neighbours
        self.every_crop = every_crop

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar, equal on all ranks."""
        spread = views.global_cls if self.every_crop else views.global_cls[:1]
        crops = [koleo(gather_rows(crop.float()), self.group_size, self.neighbours) for crop in spread]
        return torch.stack(crops).sum()
