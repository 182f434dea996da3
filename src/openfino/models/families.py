"""The families of backbones, by ``model_type`` of their configuration."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ConvNextModel,
    PreTrainedConfig,
    Siglip2VisionModel,
    SiglipVisionModel,
)

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone
from openfino.models.convnext import ConvNextBackbone
from openfino.models.dinov2 import Dinov2Backbone, Dinov2RegistersBackbone
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.siglip import NaflexBackbone, SiglipBackbone
from openfino.models.vit import DINOv3ViTModel


@dataclass(frozen=True)
class Family:
    """A transformers model and the :class:`Backbone` around it."""

    model_class: Any
    backbone: type[Backbone]


FAMILIES = {
    family.backbone.family: family
    for family in (
        Family(DINOv3ViTModel, Dinov3Backbone),
        Family(DINOv3ConvNextModel, ConvNextBackbone),
        Family(Dinov2Model, Dinov2Backbone),
        Family(Dinov2WithRegistersModel, Dinov2RegistersBackbone),
        Family(SiglipVisionModel, SiglipBackbone),
        Family(Siglip2VisionModel, NaflexBackbone),
    )
}
DEFAULT = Dinov3Backbone.family
# Models of an image and a text tower -> the family of the former.
TOWERS = {"siglip": SiglipBackbone.family, "siglip2": NaflexBackbone.family}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration.

    Raises:
        OpenfinoError: for a model that is none of ours.
    """
    return _family_named(getattr(config, "model_type", None))


def vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the image tower, of a model that has two; else ``config``, settled for training.

    Raises:
        OpenfinoError: for a model that is none of ours, or of sizes that we cannot train.
    """
    if config.model_type in TOWERS:
        config = config.vision_config
    family_of(config).backbone.settle(config)
    return config


def backbone_config(settings: Mapping[str, Any], channels: int) -> PreTrainedConfig:
    """A configuration for random weights: ``model_type`` (DINOv3 ViT when not given) and that type's own keys.

    Raises:
        OpenfinoError: for an unknown family, a key that its configuration does not know, or sizes that do not fit.
    """
    settings = dict(settings)
    family = _family_named(settings.pop("model_type", DEFAULT))
    config_class = family.model_class.config_class
    known = {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise OpenfinoError(f"model.config: {config_class.__name__} does not know {', '.join(unknown)}")
    try:
        config: PreTrainedConfig = config_class(**{**settings, "num_channels": channels})
        family.backbone.settle(config)
    except OpenfinoError as error:
        raise OpenfinoError(f"model.config: {error}") from None
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise OpenfinoError(f"model.config: {config_class.__name__} refuses it: {error}") from None
    return config


def _family_named(kind: Any) -> Family:
    kind = TOWERS.get(kind, kind)
    if kind not in FAMILIES:
        names = ", ".join(sorted({*FAMILIES, *TOWERS}))
        raise OpenfinoError(f"a model of type {kind!r} cannot be a backbone here; the families are {names}")
    return FAMILIES[kind]
