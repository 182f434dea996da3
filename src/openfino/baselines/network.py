"""The network of a baseline: the recipe's backbone and the attentive head that all arms share (fino.md section 7)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from openfino.adapt import starting_backbone
from openfino.baselines.methods import MethodName
from openfino.evaluation.heads import AttentiveHead, new_head
from openfino.evaluation.taps import tap_layers, tapped_tokens
from openfino.keyed import Purpose, keyed_seed
from openfino.models.backbone import Backbone
from openfino.models.drop_path import draw_drop_path
from openfino.models.families import family_of
from openfino.recipe import Recipe

_BACKBONE, _HEAD, _METHOD = 0, 2, 3  # the last part of the keys of random weights; adapt has 0 and 1


class Network(nn.Module):
    """Backbone and attentive head on the patch tokens of its last blocks."""

    def __init__(self, backbone: Backbone, head: AttentiveHead, layers: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layers = layers

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the last linear layer reads, [B, width], and the logits [B, t] of images [B, C, H, W]; float32."""
        pooled = self.head.pool(tapped_tokens(self.backbone, pixels, self.layers).patches)
        return pooled.float(), self.head.read(pooled).float()

    def draw(self, seed: int, step: int, images: int, device: torch.device) -> None:
        """Draw what the forward pass of ``step`` leaves to chance: drop path, and the positions' augmentation."""
        torch.manual_seed(keyed_seed(seed, Purpose.MODEL, step))
        own = keyed_seed(seed, Purpose.MODEL, step, 1)
        draw_drop_path(self.backbone.blocks, own, torch.arange(images), images, device)


def build_network(
    recipe: Recipe, method: MethodName, *, channels: list[str], outputs: int, seed: int
) -> Network:
    """The network before training, on the CPU; all its random weights depend on ``seed`` alone.

    Args:
        recipe: for the model, and the head's size (``compare.head``, ``compare.layers``).
        method: ``scratch`` has random weights in place of those of the source.
        channels: of the images.
        outputs: t.
        seed: of the arm.

    Raises:
        OpenfinoError: if the weights cannot be loaded.
    """
    backbone, _ = starting_backbone(recipe.model_copy(update={"seed": seed}), channels)
    if method == "scratch" and recipe.model.source is not None:
        backbone = random_like(backbone, seed)
    settings = recipe.compare.head
    head = new_head(
        "attentive",
        tap_layers(backbone, recipe.compare.layers) * backbone.embed_dim,
        outputs,
        seed=keyed_seed(seed, Purpose.INIT, _HEAD),
        width=settings.width,
        heads=settings.heads,
    )
    assert isinstance(head, AttentiveHead)
    return Network(backbone, head, recipe.compare.layers)


def random_like(backbone: Backbone, seed: int) -> Backbone:
    """A backbone of the same architecture, its random weights drawn from ``seed`` as ``model.config`` draws them."""
    config = copy.deepcopy(backbone.config)
    config.name_or_path = ""  # nothing of the weights of that name is left
    family = family_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, Purpose.INIT, _BACKBONE))
        return family.backbone(family.model_class(config).float().eval())


def method_seed(seed: int) -> int:
    """Of a method's own random weights (the discriminator)."""
    return keyed_seed(seed, Purpose.INIT, _METHOD)


def state_of(module: nn.Module) -> dict[str, Any]:
    """A copy on the CPU of everything that ``module`` has learned."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}
