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

from openfino.distributed import to_device


class DropPath(nn.Module):
    """Multiplies a residual branch [rows, ...] by 0 or 1 / (1 - rate), sample by sample.

    Args:
        rate: probability of dropping a branch.
        branches: how many branches of a block it serves, one after the other (attention, then feed-forward).
    """

    def __init__(self, rate: float, branches: int = 2) -> None:
        super().__init__()
        self.rate = rate
        self.branches = branches
        self.keep: Tensor | None = None  # [branches, rows, 1, 1]
        self.branch = 0

    def forward(self, hidden: Tensor) -> Tensor:
        """The branch scaled by this step's draws; identity in evaluation."""
        if not self.training or self.keep is None:
            return hidden
        keep = self.keep[self.branch].view(-1, *(1 for _ in hidden.shape[1:]))
        self.branch = (self.branch + 1) % self.branches
        return hidden * keep.to(hidden.dtype)

    def extra_repr(self) -> str:
        """Shown when a model is printed."""
        return f"rate={self.rate}"


def draw_drop_path(
    blocks: nn.ModuleList, seed: int, rows: Tensor, total_rows: int, device: torch.device
) -> None:
    """Set the draws of one forward pass.

    Args:
        blocks: of a backbone with drop path installed.
        seed: key of this forward pass, equal on all ranks.
        rows: which rows of the global batch this pass holds, in order, int64 [n].
        total_rows: rows of the global batch.
        device: of the model.
    """
    modules = [block.drop_path for block in blocks if isinstance(block.drop_path, DropPath)]
    if not modules:
        return
    generator = torch.Generator().manual_seed(seed)
    branches = modules[0].branches
    uniform = torch.rand(len(modules), branches, total_rows, generator=generator)[:, :, rows.cpu()]
    rates = torch.tensor([module.rate for module in modules])[:, None, None]
    keep = (uniform >= rates).float() / (1 - rates)
    # One copy for all blocks.
    keep = to_device(keep[..., None, None], device)
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
