"""What every backbone is: images in, named tokens out, and the places that training must find.

One file per family (``dinov3.py`` ...) says where its transformers model keeps them; :mod:`openfino.models.families`
lists the families and :mod:`openfino.models.loading` opens weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from openfino.models.drop_path import DropPath, Recomputed


@dataclass(frozen=True)
class Tokens:
    """Output tokens after the final norm.

    Attributes:
        cls: [B, D]. registers: [B, R, D]. patches: [B, P, D], row by row.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Backbone(nn.Module):
    """A vision model that takes [B, C, H, W] images and, in training, a mask of patches.

    A family gives the four places below and ``forward``; parameter names start with ``model.``, as the transformers
    model has them.
    """

    family: str
    """As in ``model_type`` of the configuration."""
    can_mask = True
    """Whether hidden patches really stay unseen (a convolution looks past its own patch)."""
    branches = 2
    """Residual branches of a block that its drop path serves, in the order in which they run."""
    blocks_name: str
    """Where the blocks are, as a dotted name below ``model``."""
    patch_embedding_name: str
    """Where the convolution is that reads the pixels, as a dotted name below ``model``."""
    embeddings_name: str
    """Everything below this dotted name, and below ``model``, comes before the first block."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> PreTrainedConfig:
        """The Hugging Face configuration."""
        return self.model.config

    @property
    def embed_dim(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.patch_embedding.in_channels)

    @property
    def patch_size(self) -> int:
        """Side in pixels of what one patch token stands for."""
        return int(self.config.patch_size)

    @property
    def registers(self) -> int:
        """R, the number of register tokens."""
        return int(getattr(self.config, "num_register_tokens", 0))

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual blocks, first to last."""
        blocks = self.model.get_submodule(self.blocks_name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def patch_embedding(self) -> nn.Conv2d:
        """The convolution that reads the pixels."""
        convolution = self.model.get_submodule(self.patch_embedding_name)
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def replace_patch_embedding(self, convolution: nn.Conv2d) -> None:
        """Put another convolution in its place, and its channel count into the configuration."""
        self.model.set_submodule(self.patch_embedding_name, convolution)
        self.config.num_channels = convolution.in_channels

    def is_patch_embedding(self, name: str) -> bool:
        """Whether ``name`` (of a parameter of this module) belongs to the patch embedding."""
        return name.startswith(f"model.{self.patch_embedding_name}.")

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 before the blocks, i + 1 in block i, L + 1 after them."""
        blocks = f"model.{self.blocks_name}."
        if name.startswith(blocks):
            return int(name.removeprefix(blocks).split(".")[0]) + 1
        return 0 if name.startswith(f"model.{self.embeddings_name}.") else len(self.blocks) + 1

    def install_drop_path(self, rate: float) -> None:
        """Give every block a :class:`DropPath`; a constant rate over depth, as DINOv3 does."""
        for block in self.blocks:
            block.drop_path = DropPath(rate, self.branches) if rate > 0 else nn.Identity()

    def checkpoint_activations(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for block in self.blocks:
            block.forward = Recomputed(block)

    def compile_blocks(self) -> None:
        """Compile each block, within its recomputation if it has one: that cannot be traced."""
        for block in self.blocks:
            if isinstance(block.forward, Recomputed):
                block.forward.inner = torch.compile(block.forward.inner)
            else:
                block.compile()

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """Tokens of an image.

        Args:
            pixels: [B, C, H, W], H and W multiples of the patch size.
            masks: bool [B, P]; patches where it is True become the mask token.
            local: whether these are local crops, for which some models keep a norm of their own in training.
        """
        raise NotImplementedError
