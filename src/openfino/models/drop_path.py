"""Stochastic depth whose draws are given from outside.

The layers of Hugging Face draw from the global generator, so that two processes with half the batch each would
drop other samples than one process with the whole batch. Here the draws of a step are made for the *global*
batch from a key, and every process takes the rows that it owns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DINOv3ViTModel

from openfino.distributed import to_device

BRANCHES = 2  # attention and feed-forward: one module serves both, in this order


class DropPath(nn.Module):
    """Multiplies a residual branch [rows, tokens, D] by 0 or 1 / (1 - rate), sample by sample."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None  # [BRANCHES, rows, 1, 1]
        self.branch = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """The branch scaled by this step's draws; identity in evaluation."""
        if not self.training or self.keep is None:
            return hidden
        keep = self.keep[self.branch]
        self.branch = (self.branch + 1) % BRANCHES
        return hidden * keep.to(hidden.dtype)

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        return f"rate={self.rate}"


def install_drop_path(model: DINOv3ViTModel, rate: float) -> None:
    """Give every block of ``model`` a :class:`DropPath`; a constant rate over depth, as DINOv3 does."""
    for layer in model.model.layer:
        layer.drop_path = DropPath(rate) if rate > 0 else nn.Identity()


def draw_drop_path(model: DINOv3ViTModel, seed: int, rows: Tensor, total_rows: int) -> None:
    """Set the draws of one forward pass.

    Args:
        model: a model with :func:`install_drop_path` applied.
        seed: key of this forward pass, equal on all ranks.
        rows: which rows of the global batch this pass holds, in order, int64 [n].
        total_rows: rows of the global batch.
    """
    modules = _modules(model)
    if not modules:
        return
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(modules), BRANCHES, total_rows, generator=generator)[:, :, rows.cpu()]
    rates = torch.tensor([module.rate for module in modules])[:, None, None]
    keep = (uniform >= rates).float() / (1 - rates)
    # One copy for all blocks.
    keep = to_device(keep[..., None, None], model.embeddings.cls_token.device)
    for module, own in zip(modules, keep, strict=True):
        module.keep = own
        module.branch = 0


class Recomputed:
    """The forward pass of a block that keeps its input only and computes itself again in the backward pass.

    A step runs the model twice (global and local crops) before its backward pass, so the draws belong to what is
    kept: by then the block's :class:`DropPath` holds those of the second pass.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.inner: Callable[..., Any] = layer.forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The block's output."""
        if not self.layer.training:
            return self.inner(*inputs, **options)
        drop_path = self.layer.drop_path
        keep = drop_path.keep if isinstance(drop_path, DropPath) else None
        return checkpoint(self._with_draws, keep, *inputs, use_reentrant=False, **options)

    def _with_draws(self, keep: Tensor | None, *inputs: Any, **options: Any) -> Any:
        drop_path = self.layer.drop_path
        if isinstance(drop_path, DropPath):
            drop_path.keep, drop_path.branch = keep, 0
        return self.inner(*inputs, **options)


def _modules(model: DINOv3ViTModel) -> list[DropPath]:
    return [layer.drop_path for layer in model.model.layer if isinstance(layer.drop_path, DropPath)]
