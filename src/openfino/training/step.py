"""One step's forward pass: teacher targets, student views, objective.

Shapes as in :mod:`openfino.objectives.base`: V global crops, N local crops, B images of this rank (or of a piece of
its batch, under gradient accumulation), P patches, K and J prototypes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openfino.distributed import to_device
from openfino.factors.batch import FactorBatch
from openfino.keyed import Purpose, keyed_seed
from openfino.models.backbone import Backbone, Tokens
from openfino.models.drop_path import draw_drop_path
from openfino.models.head import ProjectionHead
from openfino.objectives.base import Views
from openfino.objectives.objective import Objective
from openfino.recipe import ObjectiveSettings
from openfino.training.gram import GramTeacher


class Student(nn.Module):
    """Backbone and projection heads: everything of which the teacher is an average."""

    def __init__(self, backbone: Backbone, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = ProjectionHead(backbone.embed_dim, settings.dino.head)
        self.ibot_head = (
            ProjectionHead(backbone.embed_dim, settings.ibot.head) if settings.ibot.weight > 0 else None
        )

    def masked_logits(self, patches: Tensor, masked: Tensor) -> Tensor:
        """iBOT logits [M, J] of the ``masked`` ones of ``patches`` [V, B, P, D]; [0, 0] without an iBOT head."""
        if self.ibot_head is None:
            return patches.new_zeros(0, 0)
        logits: Tensor = self.ibot_head(patches.flatten(0, 2)[masked])[0]
        return logits


@dataclass(frozen=True)
class Piece:
    """What one forward pass needs: crops ready for the network, masks, factors, and its place in the batch.

    Attributes:
        step: the step of the run.
        global_views: [V, B, C, H, W], normalised. local_views: [N, B, C, h, w], normalised.
        masks: bool [V, B, P]. masked: where masks are True, flattened, int64 [M]; found on the CPU, so that no step
            waits for the GPU to count.
        factors: per factor name.
        slots: place of each image in the global batch, int64 [B], on the CPU. batch_size: images of the global batch.
        valid_counts: per factor, how many images of the global batch have a value, a scalar.
        gram_views: the regions of the global views at the Gram teacher's own size, if it has one [V, B, C, H, W].
    """

    step: int
    global_views: Tensor
    local_views: Tensor
    masks: Tensor
    masked: Tensor
    factors: Mapping[str, FactorBatch]
    slots: Tensor
    batch_size: int
    valid_counts: Mapping[str, Tensor]
    gram_views: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """What the teachers say of one piece, without gradient."""

    probs: Tensor  # [V, B, K]
    masked_probs: Tensor  # [M, J]
    cls: Tensor  # [V, B, D]
    gram_patches: Tensor | None = None  # of the Gram teacher [V, B, P, its D]; None at steps without it


def encode_views(
    backbone: Backbone, views: Tensor, masks: Tensor | None = None, *, local: bool = False
) -> Tokens:
    """Tokens of ``views`` [V, B, C, H, W] with the same two leading dimensions; masks are for who can mask."""
    crops, images = views.shape[:2]
    hidden = masks.flatten(0, 1) if masks is not None and backbone.can_mask else None
    tokens = backbone(views.flatten(0, 1), hidden, local=local)
    return Tokens(
        *(part.unflatten(0, (crops, images)) for part in (tokens.cls, tokens.registers, tokens.patches))
    )


@torch.no_grad()
def teacher_targets(
    teacher: Student,
    pieces: Sequence[Piece],
    temperature: float,
    centering: nn.ModuleDict,
    gram: GramTeacher | None = None,
) -> list[Targets]:
    """Targets of every piece, made by ``centering`` (see :func:`openfino.objectives.centering.build_centering`).

    All pieces of a batch pass the teacher first, so that gradient accumulation does not change the targets.
    """
    cls, logits, masked_logits = [], [], []
    gram_patches: list[Tensor | None] = []
    for piece in pieces:
        tokens = encode_views(teacher.backbone, piece.global_views)
        cls.append(tokens.cls.float())
        logits.append(teacher.dino_head(tokens.cls)[0].float())
        masked_logits.append(teacher.masked_logits(tokens.patches, piece.masked).float())
        gram_patches.append(
            gram.patches(teacher.backbone, tokens.patches, piece.global_views, piece.gram_views)
            if gram is not None and gram.weight(piece.step) > 0
            else None
        )
    crops, counts = logits[0].shape[0], [part.shape[1] for part in logits]
    probs = centering["dino"](torch.cat([part.flatten(0, 1) for part in logits]), temperature)
    masked_counts = [part.shape[0] for part in masked_logits]
    masked = torch.cat(masked_logits)
    if teacher.ibot_head is not None:
        masked = centering["ibot"](masked, temperature)
    probs_of = probs.split([crops * count for count in counts])
    masked_of = masked.split(masked_counts)
    return [
        Targets(own.unflatten(0, (crops, count)), own_masked, own_cls, own_gram)
        for own, own_masked, own_cls, own_gram, count in zip(
            probs_of, masked_of, cls, gram_patches, counts, strict=True
        )
    ]


class TrainableModel(nn.Module):
    """Student and objective as one module, so that one wrapper (DDP) sees every parameter that trains."""

    def __init__(self, student: Student, objective: Objective, seed: int) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.seed = seed

    def forward(self, piece: Piece, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss of ``piece`` and the unweighted value of each term."""
        views = self.student_views(piece, targets)
        total, values = self.objective(views)
        return total, values

    def student_views(self, piece: Piece, targets: Targets) -> Views:
        """Run the student on all crops.

        The global generator is seeded per step for what the backbone draws by itself (position augmentation,
        one draw per forward pass): the same on every rank and for every piece.
        """
        student, step = self.student, piece.step
        torch.manual_seed(keyed_seed(self.seed, Purpose.MODEL, step))
        self._draw_drop_path(piece, piece.global_views.shape[0], group=0)
        tokens = encode_views(student.backbone, piece.global_views, piece.masks)
        logits, bottleneck = student.dino_head(tokens.cls)
        if piece.local_views.shape[0]:
            self._draw_drop_path(piece, piece.local_views.shape[0], group=1)
            local_logits = student.dino_head(
                encode_views(student.backbone, piece.local_views, local=True).cls
            )[0]
        else:
            local_logits = logits[:0]
        return Views(
            step=step,
            global_cls=tokens.cls,
            global_patches=tokens.patches,
            global_logits=logits,
            bottleneck=bottleneck,
            local_logits=local_logits,
            masked_logits=student.masked_logits(tokens.patches, piece.masked),
            masks=piece.masks,
            teacher_probs=targets.probs,
            teacher_masked_probs=targets.masked_probs,
            teacher_cls=targets.cls,
            slots=to_device(piece.slots, tokens.cls.device),
            batch_size=piece.batch_size,
            factors=piece.factors,
            valid_counts=piece.valid_counts,
            gram_patches=targets.gram_patches,
        )

    def _draw_drop_path(self, piece: Piece, crops: int, group: int) -> None:
        rows = torch.arange(crops)[:, None] * piece.batch_size + piece.slots[None]
        seed = keyed_seed(self.seed, Purpose.MODEL, piece.step, 1 + group)
        blocks, device = self.student.backbone.blocks, piece.global_views.device
        draw_drop_path(blocks, seed, rows.flatten(), crops * piece.batch_size, device)
