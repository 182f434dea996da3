"""DINOv3 ConvNeXt: transformers' ``DINOv3ConvNextModel``."""

from torch import Tensor, nn
from transformers import PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone, Tokens

STEM = 4  # pixels that the first layer takes together; every further stage halves the map


class ConvNextBackbone(Backbone):
    """DINOv3 ConvNeXt T to L.

    ``cls`` is the norm of the mean of the last map, ``patches`` are its positions, each of 32 x 32 pixels with four
    stages. Every position sees far past its own patch, so none can be hidden from the student: no iBOT. Layers count
    through all stages; what halves the map belongs to the block behind it.
    """

    family = "dinov3_convnext"
    can_mask = False
    uniform = False
    branches = 1
    description = "convolutional network"
    patch_embedding_name = "model.stages.0.downsample_layers.0"
    embeddings_name = "model.stages.0.downsample_layers"

    @classmethod
    def settle(cls, config: PreTrainedConfig) -> None:
        """See :meth:`Backbone.settle`."""
        if len(config.depths) != len(config.hidden_sizes) or min(config.depths, default=0) < 1:
            raise OpenfinoError(
                f"depths {config.depths} and hidden_sizes {config.hidden_sizes} must name the same stages, each "
                "with a block"
            )

    @classmethod
    def patch_size_of(cls, config: PreTrainedConfig) -> int:
        """Side in pixels of one position of the last map."""
        return STEM * 2 ** (len(config.depths) - 1)

    @classmethod
    def depth_of(cls, config: PreTrainedConfig) -> int:
        """L, over all stages."""
        return sum(config.depths)

    @property
    def embed_dim(self) -> int:
        """D, the width of the last stage."""
        return int(self.config.hidden_sizes[-1])

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of all stages, first to last."""
        stages = self.model.get_submodule("model.stages")
        return nn.ModuleList(
            block for stage in stages.children() for block in stage.get_submodule("layers").children()
        )

    def layer_of(self, name: str) -> int:
        """See :meth:`Backbone.layer_of`."""
        prefix = "model.model.stages."
        if not name.startswith(prefix):
            return len(self.blocks) + 1
        stage, kind, number = name.removeprefix(prefix).split(".")[:3]
        before = sum(self.config.depths[: int(stage)])
        if kind == "downsample_layers":
            return before + 1 if before else 0
        return before + int(number) + 1

    def forward(self, pixels: Tensor, masks: Tensor | None = None, *, local: bool = False) -> Tokens:
        """See :meth:`Backbone.forward`.

        Raises:
            ValueError: if ``masks`` are given.
        """
        if masks is not None:
            raise ValueError("patches of a convolutional network cannot be masked")
        return self.tokens_of(self.model(pixel_values=pixels))
