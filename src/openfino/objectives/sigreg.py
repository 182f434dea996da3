"""SIGReg: makes random projections of the bottleneck normally distributed (paper eq. 6)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.distributed import gather_rows, to_device
from openfino.keyed import Purpose, keyed_seed
from openfino.objectives.base import Term, Views


def random_directions(dimension: int, count: int, seed: int, step: int) -> Tensor:
    """Unit columns [dimension, count], float32, drawn on the CPU: the same on every rank and device."""
    generator = torch.Generator().manual_seed(keyed_seed(seed, Purpose.DIRECTIONS, step))
    return F.normalize(torch.randn(dimension, count, generator=generator), dim=0)


def sigreg(samples: Tensor, directions: Tensor, knots: int = 17, limit: float = 5.0) -> Tensor:
    """Distance of the projected samples' characteristic function from the standard normal's.

    The mean over directions a of the integral over w of |mean_n exp(i w a.z_n) - exp(-w^2/2)|^2 exp(-w^2/2)
    by the trapezoid rule on equidistant knots in [-limit, limit]. The integrand is even in w and zero at 0,
    so only the positive knots are computed. The mean over samples is over all ranks, with gradient.

    Args:
        samples: [n, b], the same n on every rank.
        directions: unit columns [b, S], the same on every rank.
        knots: number of knots, at least 3.
        limit: end of the integration range.

    Returns:
        A scalar, equal on all ranks.
    """
    with torch.autocast(samples.device.type, enabled=False):
        step = 2 * limit / (knots - 1)
        grid = torch.linspace(-limit, limit, knots, dtype=samples.dtype, device=samples.device)
        frequencies = grid[(knots + 1) // 2 :]
        normal = (-(frequencies**2) / 2).exp()
        weights = 2 * step * normal
        weights[-1] /= 2
        angles = (samples @ directions)[:, :, None] * frequencies
        moments = torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)])
        real, imaginary = gather_rows(moments[None]).mean(dim=0)
        return (((real - normal) ** 2 + imaginary**2) @ weights).mean()


class SigregTerm(Term):
    """SIGReg of the DINO head's bottleneck before its normalisation, mean over the global crops.

    Args:
        weight: of the term.
        directions: how many, drawn anew at every step.
        knots: as in :func:`sigreg`.
        limit: as in :func:`sigreg`.
        seed: of the directions.
        sum_crops: sum over the crops instead of their mean.
    """

    name = "sigreg"

    def __init__(
        self,
        weight: float = 0.05,
        *,
        directions: int = 1024,
        knots: int = 17,
        limit: float = 5.0,
        seed: int = 0,
        sum_crops: bool = False,
    ) -> None:
        super().__init__(weight)
        self.directions = directions
        self.knots = knots
        self.limit = limit
        self.seed = seed
        self.sum_crops = sum_crops
        self._drawn: tuple[int, Tensor] | None = None

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar, equal on all ranks; both crops share the directions."""
        samples = views.bottleneck.float()
        directions = self.directions_at(views.step, samples)
        crops = torch.stack([sigreg(crop, directions, self.knots, self.limit) for crop in samples])
        return crops.sum() if self.sum_crops else crops.mean()

    def directions_at(self, step: int, samples: Tensor) -> Tensor:
        """The directions of ``step`` on the device of ``samples`` [..., b]: drawn once for all pieces of a batch."""
        if self._drawn is None or self._drawn[0] != step:
            drawn = random_directions(samples.shape[-1], self.directions, self.seed, step)
            self._drawn = step, to_device(drawn, samples.device)
        return self._drawn[1]
