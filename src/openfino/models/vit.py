"""transformers' ``DINOv3ViTModel`` with what the authors' models have beyond it."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig
from transformers import DINOv3ViTModel as PlainModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTAttention

from openfino.models.rope import LowPrecisionRotation, RotaryPositions
from openfino.models.variants import Variants

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class DINOv3ViTModel(PlainModel):
    """The model of transformers, built as ``config`` and its :class:`Variants` say.

    It bears the name of its parent, which ``save_pretrained`` writes into config.json: without variants the folder
    is an ordinary one.
    """

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__(config)
        variants = Variants.of(config)
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.add_module("rope_embeddings", RotaryPositions(config))
        if variants.norm == "rmsnorm":
            self.add_module("norm", nn.RMSNorm(width, epsilon))
            for block in self.model.layer:
                block.norm1, block.norm2 = nn.RMSNorm(width, epsilon), nn.RMSNorm(width, epsilon)
        kind = type(self.norm)
        self.cls_norm = kind(width, epsilon) if variants.cls_norm else None
        self.local_cls_norm = kind(width, epsilon) if variants.local_cls_norm else None
        self.set_rotation()

    def set_rotation(self) -> None:
        """Give every block the attention that rotates in the precision that the configuration names."""
        low = Variants.of(self.config).rope_dtype != "float32"
        kind = LowPrecisionRotation if low else DINOv3ViTAttention
        for block in self.model.layer:
            old = block.attention
            if type(old) is kind:
                continue
            with torch.device("meta"):
                block.attention = kind(self.config)
            for name in PROJECTIONS:
                block.attention.set_submodule(name, old.get_submodule(name))
            block.attention.train(old.training)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        *,
        local: bool = False,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """Tokens after the last norm: CLS, registers, patches.

        Args:
            pixel_values: [B, C, H, W].
            bool_masked_pos: bool [B, P]; patches where it is True become the mask token.
            local: whether these are local crops, whose CLS and registers may have a norm of their own in training.
            options: as of the model of transformers.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.weight.dtype)
        hidden = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        positions = self.rope_embeddings(pixel_values)
        encoded = self.model(hidden, position_embeddings=positions, **options)
        tokens = self.normalise(encoded.last_hidden_state, local=local)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 0],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def normalise(self, hidden: Tensor, *, local: bool = False) -> Tensor:
        """The last norm of tokens [B, 1 + R + P, D]: the local one before CLS's own, before that of the patches."""
        norms = [self.local_cls_norm] if local and self.training else []
        chosen = next((norm for norm in (*norms, self.cls_norm) if norm is not None), self.norm)
        if chosen is self.norm and self.local_cls_norm is None:
            normed: Tensor = self.norm(hidden)
            return normed
        prefix = 1 + self.config.num_register_tokens
        parts = [chosen(hidden[:, :prefix]), self.norm(hidden[:, prefix:])]
        if self.training and not local and self.local_cls_norm is not None:
            # Of no token: a run without local crops must not leave parameters out of the graph (DDP).
            parts.append(self.local_cls_norm(hidden[:, :0]))
        return torch.cat(parts, dim=1)
