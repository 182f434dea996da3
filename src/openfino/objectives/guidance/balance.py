"""Balancing of several factors (paper Alg. A.3): each pulls at the embedding with the same strength."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openfino.distributed import current_world, sum_over_ranks


def escaped(name: str) -> str:
    """``name`` as a key of a module or buffer: those may hold no dot and no name of an attribute."""
    return "factor:" + name.replace("%", "%25").replace(".", "%2E")


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norms of the gradients of the global losses, from each rank's gradients of its own -> [T].

    The losses of the ranks have the global loss as their mean, so each rank holds W times its rows of the
    global gradient.
    """
    squares = torch.stack([gradient.float().square().sum() for gradient in gradients])
    return sum_over_ranks(squares).sqrt() / current_world().size


class GradientBalance(nn.Module):
    """Smoothed gradient norms per factor, and the scales that make them equal.

    A factor with norm zero (no valid value in the batch) is left out: its scale is 1 and its state stays. So is one
    of two or more of which only one is left.

    Args:
        names: of the factors; each has a scalar buffer (0 until first measured), so that a resumed run finds
            its state by name.
        momentum: mu of the moving average; the first norm is taken whole. 0: the norms of the step alone.
        threshold: norms up to this one count as zero.
        epsilon: added to the smoothed norms that are divided by.
    """

    def __init__(
        self, names: Sequence[str], momentum: float = 0.99, *, threshold: float = 0.0, epsilon: float = 0.0
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.momentum = momentum
        self.threshold = threshold
        self.epsilon = epsilon
        for name in names:
            self.register_buffer(escaped(name), torch.zeros(()))

    @property
    def smoothed(self) -> Tensor:
        """Smoothed norms in the order of ``names`` [T]."""
        return torch.stack([self.get_buffer(escaped(name)) for name in self.names])

    @torch.no_grad()
    def smooth(self, norms: Tensor) -> Tensor:
        """The smoothed norms [T] after one more step with ``norms`` [T]; stores nothing."""
        before = self.smoothed
        after = torch.where(before > 0, self.momentum * before + (1 - self.momentum) * norms, norms)
        return torch.where(norms > self.threshold, after, before)

    @torch.no_grad()
    def target(self, norms: Tensor) -> Tensor:
        """Geometric mean of the smoothed norms that are not left out, a scalar; 1 if all are."""
        active = norms > self.threshold
        smoothed = torch.where(active, self.smooth(norms), 1.0)
        return (smoothed.log().sum() / active.sum().clamp(min=1)).exp()

    @torch.no_grad()
    def scales(self, norms: Tensor) -> Tensor:
        """:meth:`target` over each factor's own smoothed norm [T]; 1 for those left out."""
        active = norms > self.threshold
        smoothed = torch.where(active, self.smooth(norms), 1.0)
        return torch.where(active & (active.sum() > 1), self.target(norms) / (smoothed + self.epsilon), 1.0)

    @torch.no_grad()
    def commit(self, norms: Tensor) -> None:
        """Store the smoothed norms of an accepted step."""
        for name, value in zip(self.names, self.smooth(norms), strict=True):
            self.get_buffer(escaped(name)).copy_(value)
