"""DINOv3 vision transformers: transformers' ``DINOv3ViTModel``, with the variants of :mod:`openfino.models.vit`."""

from torch import Tensor
from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone, Tokens


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

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        return self.tokens_of(self.model(pixel_values=pixels, bool_masked_pos=masks, local=local))
