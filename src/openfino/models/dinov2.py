"""DINOv2 vision transformers, with and without registers: transformers' ``Dinov2Model`` and its sibling.

The position embeddings are absolute: a square grid, resized to the crop's grid of patches by transformers itself
(bicubic, float32; antialiased in the sibling alone). A crop whose grid is the stored one takes them as they are.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone, Tokens, sides


class Dinov2Backbone(Backbone):
    """DINOv2 ViT S to g.

    A checkpoint without a mask token (``use_mask_token: false``) gets one: zeros, which the load reports as missing.
    """

    family = "dinov2"
    processor = "BitImageProcessor"
    blocks_name = "encoder.layer"
    patch_embedding_name = "embeddings.patch_embeddings.projection"
    embeddings_name = "embeddings"

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """See :meth:`Backbone.settle`."""
        refuse_oblong_positions(config)
        refuse_uneven_heads(config)
        cls.patch_size_of(config)
        if hasattr(config, "use_mask_token"):
            config.use_mask_token = True

    def set_filters(self, filters: Tensor) -> None:
        """See :meth:`Backbone.set_filters`."""
        super().set_filters(filters)
        # It compares the images with this.
        embeddings: Any = self.model.get_submodule("embeddings.patch_embeddings")
        embeddings.num_channels = filters.shape[1]

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        return self.tokens_of(self.model(pixel_values=pixels, bool_masked_pos=masks))


class Dinov2RegistersBackbone(Dinov2Backbone):
    """DINOv2 with register tokens."""

    family = "dinov2_with_registers"


def refuse_oblong_positions(config: PreTrainedConfig) -> None:
    """Absolute positions are stored as a square grid; transformers would misread any other.

    Raises:
        OpenfinoError: if ``image_size`` is not square.
    """
    height, width = sides(config.image_size)
    if height != width:
        raise OpenfinoError(
            f"image_size {height} x {width}: the position embeddings of a {config.model_type} model must be a "
            "square grid (crops may have any shape). Give one number"
        )


def refuse_uneven_heads(config: PreTrainedConfig) -> None:
    """Attention heads share the width.

    Raises:
        OpenfinoError: if the heads do not divide ``hidden_size``.
    """
    if config.hidden_size % config.num_attention_heads:
        raise OpenfinoError(
            f"hidden_size {config.hidden_size} is not divisible by {config.num_attention_heads} attention heads"
        )
