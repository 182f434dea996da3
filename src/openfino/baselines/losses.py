"""What the domain-generalisation classics add to the label loss, as functions of one batch.

d is the width of the features, B the images, G the domains. Domains are int64 [B], on the CPU, -1 where unknown: such
an image takes part in nothing here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.objectives.guidance.reversal import scale_gradient

FEWEST = 2  # images of a domain that have a covariance


def members_of(domains: Tensor, fewest: int = 1) -> dict[int, Tensor]:
    """Positions of the images of every known domain that has ``fewest`` or more in the batch, by domain."""
    found, counts = domains[domains >= 0].unique(return_counts=True)
    kept = found[counts >= fewest].tolist()
    return {domain: (domains == domain).nonzero().squeeze(1) for domain in kept}


def covariance(features: Tensor) -> Tensor:
    """Covariance of ``features`` [n, d] with n - 1 in the denominator, [d, d]."""
    centred = features - features.mean(dim=0)
    return centred.T @ centred / (features.shape[0] - 1)


def coral_gap(features: Tensor, domains: Tensor) -> Tensor:
    """Deep CORAL (Sun & Saenko 2016, eq. 1): the sum over pairs of domains of |C_i - C_j|^2 / (4 d^2).

    C_i is the covariance of the images of domain i in the batch, | | the Frobenius norm. Domains with a single image
    have none. The sum over the k (k - 1) / 2 pairs is computed as k times the sum of the squared distances from the
    mean.

    Args:
        features: [B, d].
        domains: int64 [B], -1 where unknown.

    Returns:
        A scalar; 0, with a gradient of 0, where fewer than two domains have two images.
    """
    members = members_of(domains, FEWEST)
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        if len(members) < 2:
            return 0.0 * features.sum()
        covariances = torch.stack([covariance(features[own]) for own in members.values()])
        gaps = (covariances - covariances.mean(dim=0)).square().sum()
        return len(members) * gaps / (4 * features.shape[1] ** 2)


class Discriminator(nn.Module):
    """Reads the domain from features [B, d]: one hidden layer of ``width``, ReLU (a two-layer MLP)."""

    def __init__(self, dimension: int, domains: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dimension, width)
        self.readout = nn.Linear(width, domains)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the domains, [B, G]."""
        logits: Tensor = self.readout(F.relu(self.hidden(features)))
        return logits


def adversarial_loss(features: Tensor, domains: Tensor, discriminator: nn.Module, strength: float) -> Tensor:
    """DANN (Ganin et al. 2016, eq. 9): cross-entropy of the discriminator, whose gradient is reversed below it.

    The discriminator descends this loss; what made the features climbs ``strength`` times it.

    Args:
        features: [B, d].
        domains: int64 [B], -1 where unknown.
        discriminator: [n, d] -> [n, G].
        strength: lambda, of this step.

    Returns:
        A scalar, the mean over the images of known domain; 0, with a gradient of 0, where there is none.
    """
    known = (domains >= 0).nonzero().squeeze(1)
    if not len(known):
        return 0.0 * features.sum()
    logits = discriminator(scale_gradient(features[known], -strength))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, domains[known].to(logits.device))


class GroupWeights(nn.Module):
    """The weights q of Group-DRO (Sagawa et al. 2020, algorithm 1), as logarithms [G]; they start equal.

    Args:
        groups: G.
        step_size: eta.
    """

    logarithms: Tensor

    def __init__(self, groups: int, step_size: float) -> None:
        super().__init__()
        self.step_size = step_size
        start = torch.zeros(groups).log_softmax(dim=0)
        self.register_buffer("logarithms", start)

    @property
    def weights(self) -> Tensor:
        """q, [G]; sums to 1."""
        return self.logarithms.exp()

    @torch.no_grad()
    def update(self, groups: Tensor, losses: Tensor) -> None:
        """q_g <- q_g exp(eta L_g) for the groups of a batch, then q is divided by its sum.

        A loss that is not finite leaves its group's weight: the step is skipped anyway.

        Args:
            groups: which, int64 [k].
            losses: mean loss of each, [k].
        """
        losses = losses.detach().to(self.logarithms.dtype)
        moved = torch.where(losses.isfinite(), self.step_size * losses, torch.zeros_like(losses))
        self.logarithms.index_add_(0, groups.to(self.logarithms.device), moved)
        self.logarithms.copy_(self.logarithms.log_softmax(dim=0))

    def weighted(self, groups: Tensor, losses: Tensor) -> Tensor:
        """The sum over the groups of a batch of q_g L_g; q has no gradient."""
        weights = self.weights.to(losses.dtype)[groups.to(self.logarithms.device)]
        return (weights * losses).sum()
