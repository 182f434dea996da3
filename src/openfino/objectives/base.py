"""What a term sees (:class:`Views`) and what a term is (:class:`Term`).

Shapes: V = 2 global crops, N local crops, B images of this rank's piece of the batch (the whole of it, unless
gradients are accumulated), P patches of a global crop, D embedding, K DINO prototypes, J iBOT prototypes, b head
bottleneck, M masked patches of the piece in row-major (crop, image, patch) order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from openfino.distributed import current_world
from openfino.factors.batch import FactorBatch as FactorBatch


@dataclass
class Views:
    """Student outputs, teacher targets and factors of one piece of a batch on one rank."""

    step: int
    global_cls: Tensor  # student CLS of the global crops, before the head [V, B, D]
    global_patches: Tensor  # student patch tokens of the masked global crops [V, B, P, D]
    global_logits: Tensor  # student DINO-head outputs [V, B, K]
    bottleneck: Tensor  # student DINO-head bottleneck before its L2 normalisation [V, B, b]
    local_logits: Tensor  # [N, B, K]
    masked_logits: Tensor  # student iBOT-head outputs of the masked patches [M, J]
    masks: Tensor  # bool [V, B, P], True = replaced by the mask token
    teacher_probs: Tensor  # targets [V, B, K], rows sum to one
    teacher_masked_probs: Tensor  # targets of the masked patches [M, J]
    teacher_cls: Tensor  # teacher CLS of the global crops [V, B, D], no gradient
    slots: Tensor  # place of each image in the global batch, int64 [B]
    batch_size: int  # images of the global batch
    factors: Mapping[str, FactorBatch] = field(default_factory=dict)
    valid_counts: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # images of the global batch with a value
    # the Gram teacher's patch tokens on the student's grid [V, B, P, its D], no gradient; None at steps without it
    gram_patches: Tensor | None = None

    @property
    def share(self) -> float:
        """Images of this piece over all images of this rank: its weight in a mean over pieces."""
        return self.slots.shape[0] * current_world().size / self.batch_size


class Term(nn.Module):
    """One addend of the total loss.

    A subclass gives ``name`` and ``forward(views) -> scalar``, unweighted. The mean of the returned values over
    the pieces of a batch, weighted by their images, and over ranks is the value of the global batch (see
    :mod:`openfino.distributed`) - except for terms that compare images (KoLeo, SIGReg, Gram across crops), which
    see one piece of every rank at a time.
    """

    name: str

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.base_weight = weight
        self._metrics: dict[str, Tensor] = {}

    def weight(self, step: int) -> float:
        """The factor of this term in the total loss at ``step``; constant unless overridden.

        At a step where it is 0 the term is not computed.
        """
        return self.base_weight

    def begin(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Called once per batch, before the forward passes of its pieces.

        Args:
            teacher_cls: teacher CLS of the global crops of all images of this rank [V, B of the rank, D].
            factors: their values.
        """
        self._metrics = {}

    def record(self, views: Views, name: str, value: Tensor) -> None:
        """Add a piece's ``value`` to the batch's mean of metric ``name``."""
        self._metrics[name] = self._metrics.get(name, 0.0) + views.share * value.detach()

    def metrics(self) -> dict[str, Tensor]:
        """Scalars worth logging beside the loss, of all pieces since :meth:`begin`; means over ranks are global."""
        return dict(self._metrics)

    def forward(self, views: Views) -> Tensor:
        """The unweighted value, a scalar with gradient to the student."""
        raise NotImplementedError
