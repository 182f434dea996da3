"""DINOv3 vision transformers: transformers' ``DINOv3ViTModel``, with the variants of :mod:`openfino.models.vit`."""

import dataclasses

from torch import Tensor
from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone, Tokens
from openfino.models.variants import Variants
from openfino.models.vit import DINOv3ViTModel
from openfino.recipe import RopeSettings


class Dinov3Backbone(Backbone):
    """DINOv3 ViT S to 7B."""

    family = "dinov3_vit"
    blocks_name = "model.layer"
    patch_embedding_name = "embeddings.patch_embeddings"
    embeddings_name = "embeddings"

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """See :meth:`Backbone.settle`."""
        width, heads = config.hidden_size, config.num_attention_heads
        if width % heads or width // heads % 4:
            raise OpenfinoError(
                f"hidden_size {width} over {heads} attention heads must give a head dimension divisible by 4 "
                "(rotary positions use two axes of pairs)"
            )

    def set_rope(self, settings: RopeSettings) -> None:
        """See :meth:`Backbone.set_rope`."""
        config, model = self.config, self.model
        assert isinstance(model, DINOv3ViTModel)
        given = settings.model_dump(exclude_none=True)
        changed = {f"rope_{key}": given[key] for key in ("coords", "dtype") if key in given}
        dataclasses.replace(Variants.of(config), **changed).store(config)
        for key, none in (("shift", 0), ("jitter", 1), ("rescale", 1)):
            if key in given:
                setattr(config, f"pos_embed_{key}", None if given[key] == none else given[key])
        model.set_rotation()

    def _normed(self, hidden: Tensor) -> Tensor:
        model = self.model
        assert isinstance(model, DINOv3ViTModel)
        return model.normalise(hidden)

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        return self.tokens_of(self.model(pixel_values=pixels, bool_masked_pos=masks, local=local))
