"""What makes targets of the teacher's logits, so that they neither favour one prototype nor become uniform.

Sinkhorn-Knopp balances every batch (dinov3.md 2.2) and is the default; softmax centring subtracts a running mean from
the logits, as in DINO (arXiv 2104.14294, section 3.1) and DINOv2. Both see the whole batch of all ranks.
"""

import torch
from torch import Tensor, nn

from openfino.distributed import sum_over_ranks
from openfino.objectives.sinkhorn import sinkhorn
from openfino.recipe import ObjectiveSettings


class Centering(nn.Module):
    """Targets of one head."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets of the samples of this rank's whole batch [n, K] -> [n, K], rows sum to one; no gradient."""
        raise NotImplementedError

    def commit(self) -> None:
        """Move the state, if there is any, by the last batch; called after an accepted optimizer step only."""


class SinkhornCentering(Centering):
    """Sinkhorn-Knopp over the samples of all ranks; without state."""

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """See :func:`openfino.objectives.sinkhorn.sinkhorn`."""
        return sinkhorn(logits, temperature, self.iterations)


class SoftmaxCentering(Centering):
    """``softmax((logits - center) / temperature)``, the centre being a running mean of the logits.

    A batch is seen with the centre as it was before it; :meth:`commit` then takes its mean in:
    ``center <- momentum * center + (1 - momentum) * mean``. The mean is over the samples of all ranks, each with the
    same weight however unequally they are spread, so the number of ranks changes nothing.

    Args:
        prototypes: K.
        momentum: share of the old centre, in [0, 1).
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(prototypes))
        self._mean: Tensor | None = None

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Targets in the precision of the centre (float32); n may differ between ranks and may be 0."""
        logits = logits.to(self.center.dtype)
        total = torch.cat([logits.sum(dim=0), logits.new_full((1,), logits.shape[0])])
        total = sum_over_ranks(total)
        # Without any sample (no patch is masked) there is nothing to learn of: the centre stays.
        self._mean = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), self.center)
        return ((logits - self.center) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def commit(self) -> None:
        """Take the last batch's mean in, once."""
        if self._mean is not None:
            self.center.lerp_(self._mean, 1 - self.momentum)
            self._mean = None


def build_centering(settings: ObjectiveSettings) -> nn.ModuleDict:
    """A :class:`Centering` for each head of the teacher: ``dino`` and, if iBOT has a weight, ``ibot``."""

    def build(prototypes: int) -> Centering:
        if settings.centering == "softmax":
            return SoftmaxCentering(prototypes, settings.center_momentum)
        return SinkhornCentering(settings.sinkhorn_iterations)

    heads = {"dino": build(settings.dino.head.prototypes)}
    if settings.ibot.weight > 0:
        heads["ibot"] = build(settings.ibot.head.prototypes)
    return nn.ModuleDict(heads)
