"""Stochastic depth whose draws are given from outside.

The layers of Hugging Face draw from the global generator, so that two processes with half the batch each would
drop other samples than one process with the whole batch. Here the draws of a step are made for the *global*
batch from a key, and every process takes the rows that it owns.
"""

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTModel

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
    modules = [layer.drop_path for layer in model.model.layer if isinstance(layer.drop_path, DropPath)]
    if not modules:
        return
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(modules), BRANCHES, total_rows, generator=generator)[:, :, rows.cpu()]
    device = model.embeddings.cls_token.device
    for module, uniform in zip(modules, draws, strict=True):
        keep = (uniform >= module.rate).float() / (1 - module.rate)
        module.keep = keep[:, :, None, None].to(device, non_blocking=True)
        module.branch = 0
