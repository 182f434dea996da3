"""The five methods as losses of one batch: what the label asks, and what the domain adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from openfino.baselines.losses import (
    Discriminator,
    GroupWeights,
    adversarial_loss,
    coral_gap,
    members_of,
)
from openfino.objectives.guidance.reversal import ramp
from openfino.recipe.baselines import BaselineSettings

MethodName = Literal["finetune", "scratch", "dann", "coral", "groupdro"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
OF_DOMAINS: tuple[MethodName, ...] = ("dann", "coral", "groupdro")

LabelLosses = Callable[[Tensor, Tensor], Tensor]
"""The loss of every image, [n], from logits [n, t] and labels."""


@dataclass(frozen=True)
class Seen:
    """What a network makes of one batch, and what is known of it.

    Attributes:
        pooled: what the last linear layer reads, [B, d]. logits: [B, t].
        labels: as the task has them, [B] or [B, t], on the device of the logits.
        domains: int64 [B], on the CPU, -1 where unknown.
    """

    pooled: Tensor
    logits: Tensor
    labels: Tensor
    domains: Tensor


class Method(nn.Module):
    """Supervised training, and what the others start from.

    Args:
        label_losses: of the task, with its label smoothing.
    """

    def __init__(self, label_losses: LabelLosses) -> None:
        super().__init__()
        self.label_losses = label_losses

    def label_loss(self, seen: Seen) -> Tensor:
        """The mean over the images."""
        return self.label_losses(seen.logits, seen.labels).mean()

    def forward(self, seen: Seen, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and its parts by name.

        Args:
            seen: a batch.
            step: steps since the backbone trains; below 0 before.
            steps: number of steps with a trainable backbone.
        """
        loss = self.label_loss(seen)
        return loss, {"label": loss}


class Dann(Method):
    """Domain-adversarial training (Ganin et al. 2016); the ramp counts from when the backbone trains."""

    def __init__(
        self, label_losses: LabelLosses, strength: float, width: int, domains: int, hidden: int
    ) -> None:
        super().__init__(label_losses)
        self.strength = strength
        self.discriminator = Discriminator(width, domains, hidden)

    def forward(self, seen: Seen, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Method`."""
        strength = self.strength * ramp("dann", step, steps)
        label = self.label_loss(seen)
        domain = adversarial_loss(seen.pooled, seen.domains, self.discriminator, strength)
        return label + domain, {"label": label, "domain": domain}


class Coral(Method):
    """Deep CORAL between all pairs of domains of a batch (Sun & Saenko 2016)."""

    def __init__(self, label_losses: LabelLosses, strength: float) -> None:
        super().__init__(label_losses)
        self.strength = strength

    def forward(self, seen: Seen, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Method`."""
        label = self.label_loss(seen)
        gap = coral_gap(seen.pooled, seen.domains)
        return label + self.strength * gap, {"label": label, "gap": gap}


class GroupDro(Method):
    """Group distributionally robust optimisation (Sagawa et al. 2020); the groups are the domains.

    Images of unknown domain count with their mean loss and their share of the batch.
    """

    def __init__(self, label_losses: LabelLosses, strength: float, domains: int) -> None:
        super().__init__(label_losses)
        self.groups = GroupWeights(domains, strength)

    def forward(self, seen: Seen, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Method`; the weights of the groups move first, as in the paper."""
        losses = self.label_losses(seen.logits, seen.labels)
        known = seen.domains >= 0
        share = float(known.float().mean())
        parts = {"label": losses.mean()}
        total = losses.sum() * 0.0
        if share > 0:
            members = members_of(seen.domains)
            present, means = torch.tensor(list(members)), [losses[own].mean() for own in members.values()]
            if self.training:
                self.groups.update(present, torch.stack(means))
            total = total + share * self.groups.weighted(present, torch.stack(means))
            parts["worst_group"] = torch.stack(means).max()
        if share < 1:
            total = total + (1 - share) * losses[~known].mean()
        return total, parts


def strengths_of(name: MethodName, settings: BaselineSettings) -> list[float | None]:
    """The grid of a method's own strength; one None where it has none."""
    grids = {"dann": settings.dann, "coral": settings.coral, "groupdro": settings.groupdro}
    return list(grids.get(name, [])) or [None]


def build_method(
    name: MethodName,
    label_losses: LabelLosses,
    settings: BaselineSettings,
    *,
    strength: float | None,
    width: int,
    domains: int,
) -> Method:
    """The method of one trial; the discriminator's weights come from the global generator.

    Args:
        name: of the method.
        label_losses: of the task.
        settings: for the discriminator's size.
        strength: of this trial.
        width: d, of the pooled features.
        domains: G, of the training rows.
    """
    if name == "dann":
        return Dann(label_losses, strength or 0.0, width, domains, settings.discriminator_width)
    if name == "coral":
        return Coral(label_losses, strength or 0.0)
    if name == "groupdro":
        return GroupDro(label_losses, strength or 0.0, domains)
    return Method(label_losses)
