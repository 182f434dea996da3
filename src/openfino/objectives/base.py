"""What a term sees (:class:`Views`) and what a term is (:class:`Term`).

Shapes: V = 2 global crops, N local crops, B images of this rank, P patches of a global crop, D embedding,
K DINO prototypes, J iBOT prototypes, b head bottleneck, M masked patches of this rank in row-major
(crop, image, patch) order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from openfino.factors.batch import FactorBatch as FactorBatch


@dataclass
class Views:
    """Student outputs, teacher targets and factors of one batch on one rank."""

    step: int
    global_cls: Tensor  # student CLS of the global crops, before the head [V, B, D]
    global_patches: Tensor  # student patch tokens of the masked global crops [V, B, P, D]
    global_logits: Tensor  # student DINO-head outputs [V, B, K]
    bottleneck: Tensor  # student DINO-head bottleneck before its L2 normalisation [V, B, b]
    local_logits: Tensor  # [N, B, K]
    masked_logits: Tensor  # student iBOT-head outputs of the masked patches [M, J]
    masks: Tensor  # bool [V, B, P], True = replaced by the mask token
    teacher_probs: Tensor  # Sinkhorn targets [V, B, K], rows sum to one
    teacher_masked_probs: Tensor  # Sinkhorn targets of the masked patches [M, J]
    teacher_cls: Tensor  # teacher CLS of the global crops [V, B, D], no gradient
    factors: Mapping[str, FactorBatch] = field(default_factory=dict)


class Term(nn.Module):
    """One addend of the total loss.

    A subclass gives ``name`` and ``forward(views) -> scalar``, unweighted. On several ranks the mean of the
    returned values over ranks is the value of the global batch (see :mod:`openfino.distributed`).
    """

    name: str

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.base_weight = weight

    def weight(self, step: int) -> float:
        """The factor of this term in the total loss at ``step``; constant unless overridden."""
        return self.base_weight

    def metrics(self) -> dict[str, Tensor]:
        """Scalars of the last forward pass worth logging beside the loss."""
        return {}

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a scalar with gradient to the student."""
        raise NotImplementedError
