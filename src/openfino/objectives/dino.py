"""DINO: a student crop predicts the teacher's assignment of another crop of its image (dinov3.md 2.3)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.objectives.base import Term, Views


def cross_entropy(
    student_logits: Tensor, teacher_probs: Tensor, temperature: float, *, skip_same_crop: bool = False
) -> Tensor:
    """Mean cross-entropy over pairs of a student and a teacher crop, and over images.

    Args:
        student_logits: [S, B, K].
        teacher_probs: targets [T, B, K].
        temperature: student temperature.
        skip_same_crop: leave out the pairs with equal crop index (the same crop on both sides).

    Returns:
        A scalar in the dtype of ``student_logits``.
    """
    log_probs = F.log_softmax(student_logits / temperature, dim=-1)
    with torch.autocast(student_logits.device.type, enabled=False):
        pairs = -torch.einsum("sbk,tbk->st", log_probs, teacher_probs)
    student_crops, teacher_crops = pairs.shape
    count = student_crops * teacher_crops
    total = pairs.sum()
    if skip_same_crop:
        count -= min(student_crops, teacher_crops)
        total = total - pairs.diagonal().sum()
    return total / (count * student_logits.shape[1])


class DinoTerm(Term):
    """Cross-entropy of global and local student crops against the teacher's global crops.

    The two means are weighted by their numbers of pairs: V (V - 1) of global crops (a crop is not compared
    with itself, else V V) and V N of local with global crops; ``local_weight`` multiplies the local part.
    Without local crops only the global part is left.

    Args:
        weight: of the term.
        temperature: of the student.
        local_weight: of the local part.
        same_crop_pairs: compare a global crop with the teacher's view of itself too.
    """

    name = "dino"

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.1,
        local_weight: float = 1.0,
        *,
        same_crop_pairs: bool = False,
    ) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.local_weight = local_weight
        self.same_crop_pairs = same_crop_pairs

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar; its two means are the metrics ``dino/global`` and ``dino/local``."""
        targets = views.teacher_probs.float()
        global_crops, local_crops = views.global_logits.shape[0], views.local_logits.shape[0]
        loss = cross_entropy(
            views.global_logits.float(), targets, self.temperature, skip_same_crop=not self.same_crop_pairs
        )
        self.record(views, "dino/global", loss)
        if local_crops == 0:
            return loss
        local = cross_entropy(views.local_logits.float(), targets, self.temperature)
        self.record(views, "dino/local", local)
        others = global_crops if self.same_crop_pairs else global_crops - 1
        global_pairs, local_pairs = global_crops * others, global_crops * local_crops
        share = global_pairs / (global_pairs + local_pairs)
        return share * loss + (1 - share) * self.local_weight * local
