"""What every backbone is: images in, named tokens out, and the places that training must find.

One file per family (``dinov3.py`` ...) says where its transformers model keeps them; :mod:`openfino.models.families`
lists the families and :mod:`openfino.models.loading` opens weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from openfino.errors import OpenfinoError
from openfino.models.drop_path import DropPath, Recomputed
from openfino.recipe import Normalization, RopeSettings


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

    A family gives the places below, ``tokens_of`` and ``forward``; parameter names start with ``model.``, as the
    transformers model has them. What a family adds to that model (a mask token) is a parameter beside it.
    """

    family: str
    """As in ``model_type`` of the configuration."""
    can_mask = True
    """Whether hidden patches really stay unseen (a convolution looks past its own patch)."""
    uniform = True
    """Whether every block has the width and the grid of the last one, so that :meth:`read_out` can read it."""
    branches = 2
    """Residual branches of a block that its drop path serves, in the order in which they run."""
    description = "vision transformer"
    """What it is, in words."""
    processor = "DINOv3ViTImageProcessorFast"
    """The image processor of transformers; the released DINOv3 carry this name, which all versions since 4.56 know."""
    normalization: Normalization = "imagenet"
    """What the released weights were trained with."""
    blocks_name: str
    """Where the blocks are, as a dotted name below ``model``."""
    patch_embedding_name: str
    """Where the layer is that reads the pixels, as a dotted name below ``model``."""
    embeddings_name: str
    """Everything below this dotted name, and below ``model``, comes before the first block."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """Refuse a configuration that cannot be trained here; set in it what training needs.

        Raises:
            OpenfinoError: saying which key, and why.
        """

    @classmethod
    def patch_size_of(cls, config: PreTrainedConfig) -> int:
        """Side in pixels of what one patch token stands for."""
        height, width = sides(config.patch_size)
        if height != width:
            raise OpenfinoError(f"patch_size: patches of {height} x {width} pixels are not square")
        return height

    @classmethod
    def depth_of(cls, config: PreTrainedConfig) -> int:
        """L, the number of blocks."""
        return int(config.num_hidden_layers)

    @classmethod
    def image_size_of(cls, config: PreTrainedConfig) -> tuple[int, int]:
        """Height and width in pixels that the configuration names."""
        return sides(config.image_size)

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
        return int(self.filters.shape[1])

    @property
    def patch_size(self) -> int:
        """As :meth:`patch_size_of`."""
        return self.patch_size_of(self.config)

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
    def filters(self) -> Tensor:
        """The weights that read the pixels, [width, C, p, p]."""
        weight: Tensor = self._convolution().weight
        return weight

    def set_filters(self, filters: Tensor) -> None:
        """Replace :attr:`filters` by others, of any channel count; the configuration follows."""
        old = self._convolution()
        new = nn.Conv2d(filters.shape[1], old.out_channels, old.kernel_size, old.stride)  # type: ignore[arg-type]
        new.weight.data, new.bias = filters, old.bias
        self.model.set_submodule(self.patch_embedding_name, new)
        self.config.num_channels = filters.shape[1]

    def _convolution(self) -> nn.Conv2d:
        convolution = self.model.get_submodule(self.patch_embedding_name)
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def is_patch_embedding(self, name: str) -> bool:
        """Whether ``name`` (of a parameter of this module) belongs to the patch embedding."""
        return name.startswith(f"model.{self.patch_embedding_name}.")

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 before the blocks, i + 1 in block i, L + 1 after them (norm, pooling head)."""
        if not name.startswith("model."):
            return 0  # a token of our own
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

    def set_rope(self, settings: RopeSettings) -> None:
        """Change how the positions are rotated, as far as ``settings`` say.

        Raises:
            OpenfinoError: if they say anything and the model has no such positions.
        """
        if given := settings.model_dump(exclude_none=True):
            raise OpenfinoError(
                f"model.rope.{next(iter(given))}: only a DINOv3 vision transformer has rotary positions; this is "
                f"a model of type {self.config.model_type!r}. Leave it out"
            )

    def own_state(self) -> dict[str, Tensor]:
        """Parameters that the transformers model knows nothing of, by name."""
        return {
            name: value.detach() for name, value in self.named_parameters() if not name.startswith("model.")
        }

    def inputs_of(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the transformers model is called with for images [B, C, H, W]."""
        return {"pixel_values": pixels}

    def tokens_of(self, output: Any) -> Tokens:
        """The tokens in an output of the transformers model: CLS, registers, patches, in this order."""
        hidden = output.last_hidden_state
        first_patch = 1 + self.registers
        return Tokens(hidden[:, 0], hidden[:, 1:first_patch], hidden[:, first_patch:])

    def read_out(self, hidden: Tensor) -> Tokens:
        """The tokens of a block's output [B, 1 + R + P, D]: what :meth:`forward` does behind the last block."""
        return self.tokens_of(BaseModelOutput(last_hidden_state=self._normed(hidden)))

    def _normed(self, hidden: Tensor) -> Tensor:
        """The final norm of a block's output."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """Tokens of an image.

        Args:
            pixels: [B, C, H, W], H and W multiples of the patch size.
            masks: bool [B, P]; patches where it is True become the mask token.
            local: whether these are local crops, for which some models keep a norm of their own in training.
        """
        raise NotImplementedError


def sides(size: int | Iterable[int]) -> tuple[int, int]:
    """Height and width of a size in a configuration: one number, or both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def refuse_uneven_heads(config: PreTrainedConfig) -> None:
    """Attention heads share the width.

    Raises:
        OpenfinoError: if the heads do not divide ``hidden_size``.
    """
    if config.hidden_size % config.num_attention_heads:
        raise OpenfinoError(
            f"hidden_size {config.hidden_size} is not divisible by {config.num_attention_heads} attention heads"
        )
