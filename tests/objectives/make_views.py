"""Random views for the tests of the terms."""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.sinkhorn import sinkhorn

EMBED, PROTOTYPES, PATCH_PROTOTYPES, BOTTLENECK, PATCHES = 6, 10, 7, 5, 9


def make_views(
    *, images: int = 4, local_crops: int = 3, step: int = 0, seed: int = 0, masks: Tensor | None = None
) -> Views:
    """Views whose student outputs are leaves with a gradient; half of the global crops are masked."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    if masks is None:
        masks = torch.rand(2, images, PATCHES, generator=generator) < 0.4
        masks[:, ::2] = False
    masked = int(masks.sum())
    return Views(
        step=step,
        global_cls=draw(2, images, EMBED),
        global_patches=draw(2, images, PATCHES, EMBED),
        global_logits=draw(2, images, PROTOTYPES),
        bottleneck=draw(2, images, BOTTLENECK),
        local_logits=draw(local_crops, images, PROTOTYPES),
        masked_logits=draw(masked, PATCH_PROTOTYPES),
        masks=masks,
        teacher_probs=sinkhorn(draw(2 * images, PROTOTYPES), 0.1).view(2, images, PROTOTYPES),
        teacher_masked_probs=sinkhorn(draw(masked, PATCH_PROTOTYPES), 0.1),
        teacher_cls=draw(2, images, EMBED).detach(),
        slots=torch.arange(images),
        batch_size=images,
    )


def take_images(views: Views, images: Tensor) -> Views:
    """The piece of a batch that holds some images only, in the given order, with new leaves."""
    chosen = {
        field.name: value[:, images].detach().requires_grad_(value.requires_grad)
        for field in fields(views)
        if isinstance(value := getattr(views, field.name), Tensor) and value.dim() > 2
    }
    place = torch.full(views.masks.shape, -1)
    place[views.masks] = torch.arange(int(views.masks.sum()))
    patches = place[:, images]
    patches = patches[patches >= 0]
    factors = {
        name: FactorBatch(factor.values[images], factor.valid[images])
        for name, factor in views.factors.items()
    }
    return replace(
        views,
        **chosen,
        masked_logits=views.masked_logits[patches].detach().requires_grad_(),
        teacher_masked_probs=views.teacher_masked_probs[patches],
        slots=views.slots[images],
        factors=factors,
    )


def as_batch(piece: Views) -> Views:
    """The images of ``piece`` as a whole batch."""
    images = len(piece.slots)
    return with_factors(replace(piece, slots=torch.arange(images), batch_size=images), piece.factors)


def with_factors(views: Views, factors: Mapping[str, FactorBatch]) -> Views:
    counts = {name: factor.valid.sum() for name, factor in factors.items()}
    return replace(views, factors=factors, valid_counts=counts)
