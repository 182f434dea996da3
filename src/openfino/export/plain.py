"""What other libraries' DINOv3 classes have no place for."""

import copy
import dataclasses
from typing import Any

import torch

from openfino.models.backbone import Backbone
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.families import family_of
from openfino.models.variants import Variants

LOCAL_NORM = "local_cls_norm"
NO_LOCAL_NORM = f"the norm of local crops' CLS ({LOCAL_NORM}), which only training uses, is left out"


def foreign_variants(backbone: Backbone) -> list[str]:
    """Traits of a model by which the DINOv3 classes of transformers and timm would compute something else."""
    if not isinstance(backbone, Dinov3Backbone):
        return []
    variants, plain = Variants.of(backbone.config), Variants()
    problems = []
    if variants.rope_dtype != plain.rope_dtype:
        problems.append(
            f"rotary positions computed in {variants.rope_dtype}, there in float32. To accept the difference, remove "
            "rope_dtype from the section openfino of the model's config.json"
        )
    if (variants.rope_coords, variants.rope_periods) != (plain.rope_coords, plain.rope_periods):
        problems.append("rotary coordinates or periods that the released models do not have")
    if variants.norm != plain.norm:
        problems.append(f"{variants.norm} in place of {plain.norm}")
    if variants.cls_norm:
        problems.append("a last norm of their own for CLS and registers (cls_norm)")
    return problems


def has_local_norm(backbone: Backbone) -> bool:
    """Whether CLS tokens of local crops have a norm of their own in training."""
    return isinstance(backbone, Dinov3Backbone) and Variants.of(backbone.config).local_cls_norm


def without_local_norm(backbone: Backbone) -> Backbone:
    """The same parameters less that norm, in a model that can be saved (its positions are not computed)."""
    config = copy.deepcopy(backbone.config)
    dataclasses.replace(Variants.of(config), local_cls_norm=False).store(config)
    with torch.device("meta"):
        model: Any = family_of(config).model_class(config)
    state = backbone.model.state_dict().items()
    kept = {name: value for name, value in state if not name.startswith(f"{LOCAL_NORM}.")}
    model.load_state_dict(kept, assign=True)
    return type(backbone)(model)
