"""DINOv2 vision transformers, with and without registers: transformers' ``Dinov2Model`` and its sibling.

The position embeddings are absolute: a square grid, resized to the crop's grid of patches (bicubic; antialiased in the
sibling alone, as transformers does).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from openfino.models.backbone import Backbone, Tokens, refuse_uneven_heads
from openfino.models.positions import refuse_oblong_positions, resize_positions


class Dinov2Backbone(Backbone):
    """DINOv2 ViT S to g.

    A checkpoint without a mask token (``use_mask_token: false``) gets one: zeros, which the load reports as missing.
    """

    family = "dinov2"
    processor = "BitImageProcessor"
    blocks_name = "encoder.layer"
    patch_embedding_name = "embeddings.patch_embeddings.projection"
    embeddings_name = "embeddings"
    antialias = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        embeddings: Any = model.get_submodule("embeddings")
        embeddings.interpolate_pos_encoding = _Positions(embeddings, antialias=self.antialias)

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

    def _normed(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.model.get_submodule("layernorm")(hidden)
        return normed

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        return self.tokens_of(self.model(pixel_values=pixels, bool_masked_pos=masks))


class Dinov2RegistersBackbone(Dinov2Backbone):
    """DINOv2 with register tokens."""

    family = "dinov2_with_registers"
    antialias = True


class _Positions:
    """Takes the place of ``interpolate_pos_encoding``, for which see :func:`resize_positions`.

    An object and no closure, so that a copy of the embeddings brings its own.
    """

    def __init__(self, embeddings: nn.Module, *, antialias: bool) -> None:
        self.embeddings = embeddings
        self.antialias = antialias

    def __call__(self, _tokens: Tensor, height: int, width: int) -> Tensor:
        """[1, 1 + P, D] for images of ``height`` x ``width`` pixels."""
        embeddings: Any = self.embeddings
        stored = embeddings.position_embeddings[0]
        rows, columns = embeddings.patch_embeddings.patch_size
        grid = (height // rows, width // columns)
        resized = resize_positions(stored[1:], grid, "bicubic", antialias=self.antialias)
        return torch.cat([stored[:1], resized])[None]
