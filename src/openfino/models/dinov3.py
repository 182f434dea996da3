"""DINOv3 vision transformers: transformers' ``DINOv3ViTModel``."""

from torch import Tensor

from openfino.models.backbone import Backbone, Tokens


class Dinov3Backbone(Backbone):
    """DINOv3 ViT S to 7B."""

    family = "dinov3_vit"
    blocks_name = "model.layer"
    patch_embedding_name = "embeddings.patch_embeddings"
    embeddings_name = "embeddings"

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        hidden = self.model(pixel_values=pixels, bool_masked_pos=masks).last_hidden_state
        first_patch = 1 + self.registers
        return Tokens(hidden[:, 0], hidden[:, 1:first_patch], hidden[:, first_patch:])
