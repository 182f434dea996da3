"""The backbone to start from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.section import Section


class RopeSettings(Section):
    """Rotary positions of a DINOv3 ViT (dinov3.md 1.3). What is not given stays as the starting model has it."""

    coords: Literal["separate", "min", "max"] | None = None
    """Rows and columns are divided each by its own number of patches (the released models), or both by the smaller, or
    both by the larger one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of tables and rotation. The released models are used with float32; the authors train with bfloat16."""
    shift: Annotated[float, Field(ge=0)] | None = None
    """In training, move all positions by up to this much (half an image is 1), per axis; 0 for none (released)."""
    jitter: Annotated[float, Field(ge=1)] | None = None
    """In training, stretch by a factor in [1 / jitter, jitter], per axis; 1 for none (released)."""
    rescale: Annotated[float, Field(ge=1)] | None = None
    """In training, stretch by a factor in [1 / rescale, rescale], both axes alike; 2 in the released models."""


class ModelSettings(Section):
    """The backbone to start from: ``tiny``, a hub name, a folder, a file, or a configuration with random weights."""

    source: str | None = None
    """``tiny``, the backbone that comes with openfino (a folder of that name is ``./tiny``), a Hugging Face or timm hub
    name (``timm/...``), a folder (an export, a run, a timm model), or a file of DINOv3 weights (``.pth`` of Meta,
    ``.safetensors`` of timm)."""
    config: dict[str, Any] | None = None
    """For random weights: keys of the configuration in transformers of the family that ``model_type`` names
    (``dinov3_vit`` when not given; ``dinov3_convnext``, ``dinov2``, ``dinov2_with_registers``, ``siglip_vision_model``,
    ``siglip2_vision_model``)."""
    allow_partial: bool = False
    """Go on when under 99 % of the parameters of the source matched."""
    keep_grey_response: bool = True
    """For more channels than the source has, scale the filters so that an image whose channels are all equal gives what
    it gave before; else the old channels keep their filters as they are."""
    layer_norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of the norms in a ``.pth`` file of Meta, which does not hold it: 1e-5 in the released models and when not
    given, 1e-6 in models trained with ``norm_layer: layernorm`` (the ImageNet-1k recipe). A Gram teacher in such a file
    is opened with it, too."""
    rope: RopeSettings = RopeSettings()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError(
                "give exactly one of 'source' (tiny, hub name, folder or file) and 'config' (random weights)"
            )
        if self.config is not None and self.layer_norm_eps is not None:
            raise ValueError("'layer_norm_eps' is for weights files; write it into 'config'")
        return self
