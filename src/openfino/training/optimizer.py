"""AdamW with layer-wise decay (dinov3.md section 3.1), stage freezing, and clipping over everything that trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openfino.models.backbone import Backbone
from openfino.models.head import ProjectionHead
from openfino.recipe import TrainSettings
from openfino.training.schedules import Rates

# The positions of DINOv2 and SigLIP and the query of SigLIP's pooling head are tokens too: learned, not computed.
TOKENS = (
    "cls_token",
    "register_tokens",
    "mask_token",
    "position_embeddings",
    "position_embedding.weight",
    "head.probe",
)


@dataclass(frozen=True)
class GroupKey:
    """What the parameters of one optimizer group have in common.

    Attributes:
        lr_multiplier: on the learning rate.
        decays: whether weight decay applies.
        backbone: whether it stands still in stage 1 and then ramps up.
        last_layer: whether it is the prototypes of a head.
    """

    lr_multiplier: float
    decays: bool
    backbone: bool
    last_layer: bool = False


def decays(name: str, parameter: Tensor, train: TrainSettings) -> bool:
    """Whether weight decay applies: not to biases, norms, layer scale, nor tokens and positions.

    The released code decays the tokens although its comment says otherwise (official-code.md B10);
    ``train.decay_tokens`` does so too.
    """
    return parameter.ndim > 1 and (train.decay_tokens or not name.endswith(TOKENS))


def backbone_groups(backbone: Backbone, train: TrainSettings) -> Mapping[str, GroupKey]:
    """Group of every parameter: decay^(L + 1 - id), id 0 for embeddings, i + 1 for block i, L + 1 for the norm."""
    depth = len(backbone.blocks)
    groups = {}
    for name, parameter in backbone.named_parameters():
        multiplier = train.layer_decay ** (depth + 1 - backbone.layer_of(name))
        reads_pixels = backbone.is_patch_embedding(name)
        if reads_pixels:
            multiplier *= train.patch_embedding_lr
        still = train.freeze_patch_embedding or not reads_pixels
        groups[name] = GroupKey(multiplier, decays(name, parameter, train), backbone=still)
    return groups


def build_optimizer(modules: Mapping[str, nn.Module], train: TrainSettings) -> torch.optim.AdamW:
    """One AdamW over all modules; each group remembers its multiplier and kind for :func:`set_rates`.

    Args:
        modules: named roots; a :class:`Backbone` gets layer-wise decay, all else multiplier 1.
        train: the optimisation settings.
    """
    members: dict[GroupKey, list[nn.Parameter]] = {}
    for module in modules.values():
        keys = backbone_groups(module, train) if isinstance(module, Backbone) else {}
        for name, parameter in module.named_parameters():
            # Exactly: a factor may be called last_layer, and its head's parameters bear its name.
            is_prototypes = isinstance(module, ProjectionHead) and name == "last_layer.weight"
            key = keys.get(name) or GroupKey(1.0, decays(name, parameter, train), False, is_prototypes)
            members.setdefault(key, []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr_multiplier": key.lr_multiplier,
            "decays": key.decays,
            "backbone": key.backbone,
            "last_layer": key.last_layer,
        }
        for key, parameters in members.items()
    ]
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])  # type: ignore[attr-defined]
    return torch.optim.AdamW(
        groups, lr=0.0, weight_decay=0.0, betas=train.betas, fused=True if on_gpu else None
    )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Set this step's learning rate and weight decay of every group.

    The ramp of the backbone scales the rate only; decoupled decay follows the rate, so it ramps linearly too
    (the released code scales both and its decay ramps quadratically, official-code.md B11: ``train.ramp_decay``).
    """
    for group in optimizer.param_groups:
        rate = rates.lr * group["lr_multiplier"]
        decay = rates.weight_decay if group["decays"] else 0.0
        if group["backbone"]:
            rate *= rates.backbone
            decay *= rates.backbone_decay
        if group["last_layer"] and rates.last_layer_frozen:
            rate = 0.0
        group["lr"], group["weight_decay"] = rate, decay


def freeze_for_stage(backbone: Backbone, train: TrainSettings, *, stage_one: bool) -> None:
    """Set which backbone parameters take gradients.

    Stage 1: the patch embedding only, or nothing (``freeze_patch_embedding``). Stage 2: everything, or the patch
    embedding, the last ``trainable_blocks`` blocks and the final norm, or these blocks alone.
    """
    depth = len(backbone.blocks)
    first = 0 if train.trainable_blocks is None else depth - train.trainable_blocks
    alone = train.trainable_blocks is not None and train.trainable_blocks_alone
    for name, parameter in backbone.named_parameters():
        layer = backbone.layer_of(name)
        if backbone.is_patch_embedding(name):
            trains = not alone and not (stage_one and train.freeze_patch_embedding)
        elif stage_one:
            trains = False
        elif layer == 0:
            trains = train.trainable_blocks is None
        else:
            trains = first < layer <= (depth if alone else depth + 1)
        parameter.requires_grad_(trains)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients together; NaN or infinite if any of them is."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients)
