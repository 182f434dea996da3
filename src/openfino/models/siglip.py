"""The vision towers of SigLIP and SigLIP 2 (arXiv 2502.14786): transformers' ``SiglipVisionModel``, and NaFlex.

A checkpoint of fixed resolution has ``model_type: siglip``, also of SigLIP 2; those called NaFlex have ``siglip2``.
Of a checkpoint with a text tower only the vision tower is loaded.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone, Tokens, refuse_uneven_heads, sides
from openfino.models.positions import refuse_oblong_positions, resize_positions
from openfino.recipe import GivenNormalization


class SiglipBackbone(Backbone):
    """A tower of fixed resolution.

    There is no CLS token: ``cls`` is the output of the attention-pooling head, with which these models compare an
    image to a text; where there is no head (``vision_use_head: false``), the mean of the patch tokens. There are no
    registers. These models never saw a mask, so they get a mask token here, zero at first, beside the transformers
    model. Position embeddings are resized to the crop as transformers does on request (bicubic).

    Attributes:
        mask_token: [D].
    """

    family = "siglip_vision_model"
    processor = "SiglipImageProcessor"
    resizing: Literal["bicubic", "bilinear"] = "bicubic"
    antialias = False
    normalization = GivenNormalization(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    blocks_name = "encoder.layers"
    patch_embedding_name = "embeddings.patch_embedding"
    embeddings_name = "embeddings"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.mask_token = nn.Parameter(torch.zeros(self.embed_dim))
        for block in self.blocks:
            block.drop_path = nn.Identity()
            for name in ("self_attn", "mlp"):  # in the order in which they run
                block.get_submodule(name).register_forward_hook(_DropBranch(block))

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """See :meth:`Backbone.settle`."""
        refuse_oblong_positions(config)
        refuse_uneven_heads(config)
        # transformers computes with these.
        config.image_size, config.patch_size = sides(config.image_size)[0], cls.patch_size_of(config)

    def inputs_of(self, pixels: Tensor) -> dict[str, Any]:
        """See :meth:`Backbone.inputs_of`."""
        return {"pixel_values": pixels, "interpolate_pos_encoding": True}

    def tokens_of(self, output: Any) -> Tokens:
        """See :meth:`Backbone.tokens_of`."""
        patches = output.last_hidden_state
        cls = patches.mean(dim=1) if output.pooler_output is None else output.pooler_output
        return Tokens(cls, patches[:, :0], patches)

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`."""
        # transformers' own forward takes no mask: the same parts, one by one.
        model: Any = self.model
        patches = self._read(pixels)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        hidden = patches + self._positions(*pixels.shape[-2:])
        return self.read_out(model.encoder(inputs_embeds=hidden).last_hidden_state)

    def read_out(self, hidden: Tensor) -> Tokens:
        """See :meth:`Backbone.read_out`; there is no CLS token in ``hidden``, [B, P, D]."""
        model: Any = self.model
        hidden = model.post_layernorm(hidden)
        cls = model.head(hidden) if model.use_head else hidden.mean(dim=1)
        return Tokens(cls, hidden[:, :0], hidden)

    def _read(self, pixels: Tensor) -> Tensor:
        """Embedded patches [B, P, D] of images [B, C, H, W]."""
        convolution = self._convolution()
        embedded: Tensor = convolution(pixels.to(convolution.weight.dtype))
        return embedded.flatten(2).transpose(1, 2)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings [P, D] of images of ``height`` x ``width`` pixels."""
        stored: Any = self.model.get_submodule("embeddings.position_embedding").weight
        grid = (height // self.patch_size, width // self.patch_size)
        return resize_positions(stored, grid, self.resizing, antialias=self.antialias)


class NaflexBackbone(SiglipBackbone):
    """A SigLIP 2 tower of native aspect ratio (NaFlex), on images of one size.

    Differs in what reads the pixels, a linear layer on patches of channels-last pixels, and in how the positions are
    resized (bilinear, antialiased).
    """

    family = "siglip2_vision_model"
    processor = "Siglip2ImageProcessor"
    resizing = "bilinear"
    antialias = True

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """See :meth:`Backbone.settle`."""
        refuse_uneven_heads(config)
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise OpenfinoError(f"num_patches {config.num_patches} is no square number")
        config.patch_size = cls.patch_size_of(config)

    @classmethod
    def image_size_of(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """The size at which the stored positions are taken as they are."""
        side = math.isqrt(config.num_patches) * cls.patch_size_of(config)
        return side, side

    @property
    def filters(self) -> Tensor:
        """See :attr:`Backbone.filters`."""
        size = self.patch_size
        return self._linear().weight.unflatten(1, (size, size, -1)).permute(0, 3, 1, 2)

    def set_filters(self, filters: Tensor) -> None:
        """See :meth:`Backbone.set_filters`."""
        linear = self._linear()
        linear.weight = nn.Parameter(filters.permute(0, 2, 3, 1).flatten(1).contiguous())
        linear.in_features = linear.weight.shape[1]
        self.config.num_channels = filters.shape[1]

    def inputs_of(self, pixels: Tensor) -> dict[str, Any]:
        """See :meth:`Backbone.inputs_of`."""
        patches = self._patchify(pixels)
        grid = [side // self.patch_size for side in pixels.shape[-2:]]
        return {
            "pixel_values": patches,
            "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.int64),
            "spatial_shapes": torch.tensor([grid]).expand(len(patches), -1),
        }

    def _linear(self) -> nn.Linear:
        linear = self.model.get_submodule(self.patch_embedding_name)
        assert isinstance(linear, nn.Linear)
        return linear

    def _patchify(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, P, p * p * C]."""
        size = self.patch_size
        grid = pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B, C, rows, p, columns, p]
        return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _read(self, pixels: Tensor) -> Tensor:
        linear = self._linear()
        embedded: Tensor = linear(self._patchify(pixels).to(linear.weight.dtype))
        return embedded


class _DropBranch:
    """Passes the output of a branch (attention gives a tuple) through the drop path of its block.

    An object and no closure, so that a copy of the block brings its own.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """The output that goes on."""
        drop_path: Any = self.block.drop_path
        return (drop_path(output[0]), *output[1:]) if isinstance(output, tuple) else drop_path(output)
