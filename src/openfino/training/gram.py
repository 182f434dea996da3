"""The Gram teacher: whose patch similarities the student keeps, and when it is renewed (dinov3.md section 2.6)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from openfino.models.backbone import Backbone
from openfino.models.ema import make_teacher
from openfino.recipe import GramSettings, Normalization


class GramTeacher:
    """A frozen backbone, or the run's averaged teacher itself.

    Args:
        settings: of the recipe.
        backbone: copied frozen, in evaluation mode; None when the averaged teacher is used directly.
        device: where the copy goes.
        normalization: of the crops that are cut for it, until it is refreshed; the run's when not given.
    """

    def __init__(
        self,
        settings: GramSettings,
        backbone: Backbone | None,
        device: torch.device | str = "cpu",
        normalization: Normalization | None = None,
    ) -> None:
        self.settings = settings
        self.normalization = normalization
        self.backbone = None if backbone is None else make_teacher(backbone).to(device)
        self._compiled = False

    def weight(self, step: int) -> float:
        """The weight of the term at ``step``; where it is 0 nobody asks for patches."""
        return self.settings.weight_at(step)

    @torch.no_grad()
    def patches(
        self, averaged: Backbone, averaged_patches: Tensor, global_views: Tensor, gram_views: Tensor | None
    ) -> Tensor:
        """Patch tokens for the student's global crops, resized to the student's grid where they have another.

        Args:
            averaged: the averaged teacher, whose patches are of the student's size.
            averaged_patches: what it said of the global crops [V, B, P, D].
            global_views: [V, B, C, H, W], normalised.
            gram_views: the same regions at the Gram teacher's own size, if it has one.

        Returns:
            [V, B, P, D'] float32 with the D' of the Gram teacher.
        """
        if self.backbone is None and gram_views is None:
            return averaged_patches.float()
        backbone = averaged if self.backbone is None else self.backbone
        views = global_views if gram_views is None else gram_views
        found = backbone(views.flatten(0, 1)).patches.float()
        resized = resize_patches(
            found, _grid(views, backbone.patch_size), _grid(global_views, averaged.patch_size)
        )
        return resized.unflatten(0, views.shape[:2])

    def after_step(self, step: int, averaged: Backbone) -> bool:
        """Become a copy of ``averaged`` if a refresh is due after ``step``; returns whether it was."""
        if self.settings.refreshes(step + 1) == self.settings.refreshes(step):
            return False
        self._copy(averaged)
        return True

    def compile_blocks(self) -> None:
        """Compile the blocks, also those of later copies."""
        self._compiled = True
        if self.backbone is not None:
            self.backbone.compile_blocks()

    def state_dict(self) -> dict[str, Tensor]:
        """Its own weights; none when the averaged teacher is used directly."""
        return {} if self.backbone is None else self.backbone.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor], step: int, averaged: Backbone) -> None:
        """Put back what :meth:`state_dict` gave when ``step`` was the next step to run.

        After a refresh the weights are of a model like ``averaged``, whatever the first Gram teacher was.
        """
        if self.settings.refreshes(step):
            self._copy(averaged)
        if self.backbone is not None:
            self.backbone.load_state_dict(tensors)

    def _copy(self, averaged: Backbone) -> None:
        self.backbone = make_teacher(averaged)  # a copy is not compiled
        self.normalization = None
        if self._compiled:
            self.backbone.compile_blocks()


def resize_patches(patches: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize feature maps, bicubic without antialiasing: [crops, P, D] of ``grid`` -> [crops, P', D] of ``target``.

    Grids are (rows, columns); the same grid is left as it is.
    """
    if grid == target:
        return patches
    maps = patches.mT.unflatten(2, grid)
    with torch.autocast(patches.device.type, enabled=False):
        resized = F.interpolate(maps, target, mode="bicubic", align_corners=False, antialias=False)
    return resized.flatten(2).mT


def _grid(views: Tensor, patch_size: int) -> tuple[int, int]:
    return views.shape[-2] // patch_size, views.shape[-1] // patch_size
