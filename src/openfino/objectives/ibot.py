"""iBOT: the student predicts the teacher's assignment of the patches it cannot see (dinov3.md 2.4)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.objectives.base import Term, Views


def weighted_patch_cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, weights: Tensor, images: int, temperature: float
) -> Tensor:
    """Weighted sum of the cross-entropies of single patches, over the number of images.

    Args:
        student_logits: [M, J].
        teacher_probs: their targets [M, J].
        weights: of each patch [M].
        images: what the sum is divided by.
        temperature: student temperature.

    Returns:
        A scalar; a zero that keeps the graph when M = 0.
    """
    losses = -(teacher_probs * F.log_softmax(student_logits / temperature, dim=-1)).sum(dim=-1)
    return (losses * weights).sum() / images


def masked_patch_cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, masks: Tensor, temperature: float
) -> Tensor:
    """Mean cross-entropy of each crop's masked patches, averaged over **all** crops, masked or not.

    Args:
        student_logits: of the masked patches in row-major (crop, patch) order [M, J].
        teacher_probs: their targets [M, J].
        masks: bool [crops, P], True M times.
        temperature: student temperature.

    Returns:
        A scalar; a zero that keeps the graph when M = 0.
    """
    counts = masks.sum(dim=-1)
    shares = counts.clamp(min=1).to(student_logits.dtype).reciprocal()
    # The known output size spares the device a wait for the counts.
    weights = torch.repeat_interleave(shares, counts, output_size=student_logits.shape[0])
    return weighted_patch_cross_entropy(student_logits, teacher_probs, weights, masks.shape[0], temperature)


class IbotTerm(Term):
    """Cross-entropy at the masked patches of the global crops."""

    name = "ibot"

    def __init__(self, weight: float = 1.0, temperature: float = 0.1) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar."""
        masks = views.masks.flatten(0, 1)
        targets = views.teacher_masked_probs.float()
        return masked_patch_cross_entropy(views.masked_logits.float(), targets, masks, self.temperature)
