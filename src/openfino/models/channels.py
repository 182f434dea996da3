"""Patch embeddings for other channel counts than the pretrained one (fino.md section 4)."""

import torch
from torch import Tensor

from openfino.models.backbone import Backbone


def expand_filters(filters: Tensor, channels: int, *, keep_grey_response: bool = True) -> Tensor:
    """Patch filters [D, C_old, p, p] for ``channels`` inputs [D, channels, p, p].

    Old channels keep their filter and new ones get the mean filter; then everything is scaled by
    C_old / channels, so that the response to a grey image (all channels equal) stays what it was; without
    ``keep_grey_response`` nothing is scaled, so that the response to the old channels stays where the new ones are 0.
    With fewer channels than before no old channel has a claim to its filter: all get the mean.

    Raises:
        ValueError: if ``filters`` is not four-dimensional or ``channels`` is not positive.
    """
    if filters.ndim != 4 or channels < 1:
        raise ValueError(f"cannot expand filters of shape {tuple(filters.shape)} to {channels} channels")
    old = filters.shape[1]
    if channels == old:
        return filters.clone()
    mean = filters.mean(dim=1, keepdim=True)
    kept = filters if channels > old else filters[:, :0]
    added = mean.expand(-1, channels - kept.shape[1], -1, -1)
    expanded = torch.cat([kept, added], dim=1)
    return expanded * (old / channels) if keep_grey_response else expanded


def expand_channels(backbone: Backbone, channels: int, *, keep_grey_response: bool = True) -> None:
    """Replace the patch embedding of ``backbone`` in place by one for ``channels`` inputs."""
    filters = backbone.filters.detach()
    backbone.set_filters(expand_filters(filters, channels, keep_grey_response=keep_grey_response))
