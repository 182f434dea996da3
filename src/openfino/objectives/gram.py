"""Gram anchoring: the student keeps the patch similarities of a teacher whose dense features are clean.

DINOv3 paper section 4.2 and 4.3, dinov3.md 2.6. Only the matrix of similarities between patches is held, so the
features themselves remain free to move and the teacher may have another width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.distributed import gather_rows
from openfino.objectives.base import Term, Views
from openfino.recipe import GramSettings

Negatives = Literal["keep", "drop", "drop_teacher"]


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    normalise: bool = True,
    per_image: bool = True,
    negatives: Negatives = "keep",
) -> Tensor:
    """Mean of the squared differences between the Gram matrices of two sets of patches.

    The paper writes the squared Frobenius norm, the sum; its weight 2 belongs to the mean over the entries of all
    matrices (dinov3.md section 10, item 5), which is what this is. Float32 is kept inside autocast.

    Args:
        student: patch features [crops, P, D], or [M, D] for one matrix over all rows.
        teacher: of the same patches [crops, P, D'] or [M, D']; D' may differ from D.
        normalise: put every patch on the unit sphere, so that the matrices hold cosines.
        per_image: compare patches of the same crop only; else one matrix over the patches of all crops.
        negatives: what becomes of negative similarities. ``keep``: compared like others. ``drop``: zero on both
            sides, so that only the positive part of each is compared. ``drop_teacher``: zero on the teacher's side;
            the student's are kept and pulled to zero. (That is how the authors' option ``remove_only_teacher_neg``
            behaves, although it also means to zero those of the student where both are negative.)

    Returns:
        A scalar with gradient to ``student``.

    Raises:
        ValueError: if the two do not hold the same number of patches.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"Gram: patches {list(student.shape)} and {list(teacher.shape)} do not correspond")
    with torch.autocast(student.device.type, enabled=False):
        own, target = (_gram(side, normalise, per_image) for side in (student, teacher))
        if negatives != "keep":
            target = target.clamp(min=0)
        if negatives == "drop":
            own = own.clamp(min=0)
        return F.mse_loss(own, target)


def _gram(patches: Tensor, normalise: bool, per_image: bool) -> Tensor:
    """[crops, P, D] -> [crops, P, P], or [crops P, crops P] when crops are not kept apart."""
    if normalise:
        patches = F.normalize(patches, dim=-1)
    if not per_image:
        patches = patches.reshape(-1, patches.shape[-1])
    return patches @ patches.mT


class GramTerm(Term):
    """Gram anchoring of the student's global crops, masked as it saw them, to the Gram teacher's, whole."""

    name = "gram"

    def __init__(self, settings: GramSettings) -> None:
        super().__init__(settings.weight)
        self.settings = settings

    def weight(self, step: int) -> float:
        """0 before the first step of the term, then a cosine ramp (see :meth:`GramSettings.weight_at`)."""
        return self.settings.weight_at(step)

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a float32 scalar; equal on all ranks where crops are not kept apart."""
        assert views.gram_patches is not None  # made at every step at which the term has a weight
        student, teacher = views.global_patches.float(), views.gram_patches.float()
        negatives = self.settings.negatives
        if self.settings.per_image:
            return gram_loss(student.flatten(0, 1), teacher.flatten(0, 1), negatives=negatives)
        student, teacher = (gather_rows(side.transpose(0, 1)).flatten(0, 2) for side in (student, teacher))
        chosen = self._chosen(views.masks)
        if chosen is not None:
            student, teacher = student[chosen], teacher[chosen]
            if student.shape[0] == 0:
                return student.sum() * 0.0
        return gram_loss(student, teacher, per_image=False, negatives=negatives)

    def _chosen(self, masks: Tensor) -> Tensor | None:
        """Places of the patches that are compared among those of the global batch, int64 [M]; None for all."""
        if self.settings.tokens == "all":
            return None
        masked = gather_rows(masks.transpose(0, 1).to(torch.uint8)).bool()
        chosen = masked if self.settings.tokens == "masked" else ~masked
        # The host waits for the GPU here, once: their number, over all processes, is the size of the matrices.
        return chosen.flatten().nonzero().squeeze(1)
