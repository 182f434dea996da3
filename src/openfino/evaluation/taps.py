"""What the last blocks of a backbone say about images: the input of linear and attentive probes (fino.md section 7)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openfino.models.backbone import Backbone

LAYERS = 4


@dataclass(frozen=True)
class Taps:
    """Tokens of the last L blocks, each after the final norm, from the earlier block to the later.

    Attributes:
        cls: CLS of each block, [B, L, D].
        patches: patch tokens of the blocks side by side, [B, P, L * D].
        mean: mean patch token of the last block, [B, D].
    """

    cls: Tensor
    patches: Tensor
    mean: Tensor

    @property
    def linear(self) -> Tensor:
        """CLS of every block, then the mean: the input of a linear probe, [B, L * D + D]."""
        return torch.cat([self.cls.flatten(1), self.mean], dim=1)


def tap_layers(backbone: Backbone, layers: int = LAYERS) -> int:
    """L: ``layers``, or all blocks where there are fewer; 1 where blocks differ in width and grid (ConvNeXt).

    Raises:
        ValueError: if ``layers`` is below 1.
    """
    if layers < 1:
        raise ValueError(f"layers must be 1 or more, not {layers}")
    return min(layers, len(backbone.blocks)) if backbone.uniform else 1


def tapped_tokens(backbone: Backbone, pixels: Tensor, layers: int = LAYERS) -> Taps:
    """CLS and patch tokens of the last :func:`tap_layers` blocks, each after the model's final norm.

    As ``get_intermediate_layers(norm=True)`` of DINOv2 and DINOv3. Where a family has no CLS token (SigLIP), its
    pooling head reads each block. The backbone stays in its mode, on its device, and gradients flow unless the caller
    forbids them.

    Args:
        backbone: any of the families; its blocks may be compiled or recomputed.
        pixels: [B, C, H, W] as the backbone takes them.
        layers: how many blocks, at most.

    Raises:
        ValueError: if ``layers`` is below 1.
    """
    count = tap_layers(backbone, layers)
    blocks = list(backbone.blocks)
    with _outputs_of(blocks[len(blocks) - count : -1]) as outputs:
        last = backbone(pixels)
    tokens = [*map(backbone.read_out, outputs), last]
    return Taps(
        torch.stack([each.cls for each in tokens], dim=1),
        torch.cat([each.patches for each in tokens], dim=2),
        last.patches.mean(dim=1),
    )


@contextmanager
def _outputs_of(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of ``blocks`` in a forward pass, in the order in which they run."""
    found: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    # A compiled block knows only the hooks that it had when it was compiled: these run as they are, once.
    compiled = [(block, block._compiled_call_impl) for block in blocks]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        for block in blocks:
            block._compiled_call_impl = None
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for block, call in compiled:
            block._compiled_call_impl = call
