"""The families of backbones, by ``model_type`` of their configuration."""

from dataclasses import dataclass
from typing import Any

from transformers import DINOv3ViTModel, PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone
from openfino.models.dinov3 import Dinov3Backbone


@dataclass(frozen=True)
class Family:
    """A transformers model and the :class:`Backbone` around it."""

    model_class: Any
    backbone: type[Backbone]


FAMILIES = {"dinov3_vit": Family(DINOv3ViTModel, Dinov3Backbone)}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a configuration.

    Raises:
        OpenfinoError: for a model that is none of ours.
    """
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise OpenfinoError(
            f"a model of type {kind!r} cannot be a backbone here; the families are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind]
