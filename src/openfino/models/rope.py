"""Rotary positions of DINOv3 (dinov3.md 1.3), with what the authors' models vary and transformers' module does not.

Rows and columns of the patch grid become angles, half of a head's dimensions each; there is nothing to learn.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from openfino.distributed import to_device
from openfino.errors import OpenfinoError
from openfino.models.backbone import sides
from openfino.models.variants import Coordinates, Variants

PERIOD_TOLERANCE = 2.0**-8  # released files hold periods that were rounded to bfloat16


def rope_periods(
    head_dim: int,
    base: float,
    bounds: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Periods p_k [head_dim / 4] in units of half the image.

    ``base`` ^ (2 k / (head_dim / 2)), or from ``bounds[0]`` to ``bounds[1]`` in equal ratios.
    """
    count = head_dim // 4
    if bounds is None:
        return base ** (2 * torch.arange(count, dtype=dtype, device=device) / (head_dim // 2))
    low, high = bounds
    return low * (high / low) ** (torch.arange(count, dtype=dtype, device=device) / max(count - 1, 1))


def periods_of(periods: Tensor) -> tuple[float, tuple[float, float] | None]:
    """(base, bounds) that give the stored ``periods``; see :func:`rope_periods`.

    Values may have been rounded to bfloat16.

    Raises:
        OpenfinoError: for periods that neither form gives.
    """
    stored = periods.double()
    count = len(stored)
    bases = [100.0]
    if count > 1 and float(stored.min()) > 0:
        bases.append(float(f"{float(stored[-1]) ** (count / (count - 1)):.4g}"))
    for base in bases:
        if _close(rope_periods(4 * count, base, dtype=torch.float64), stored):
            return base, None
    bounds = (float(stored[0]), float(stored[-1]))
    if (
        count > 1
        and min(bounds) > 0
        and _close(rope_periods(4 * count, 100.0, bounds, torch.float64), stored)
    ):
        return 100.0, bounds
    raise OpenfinoError(
        f"rope_embed.periods holds {', '.join(f'{value:.4g}' for value in stored[:8].tolist())}: these are not "
        "the periods of a DINOv3 model, neither powers of a base nor equal ratios between two bounds"
    )


def _close(expected: Tensor, stored: Tensor) -> bool:
    return bool(((stored - expected).abs() <= PERIOD_TOLERANCE * expected.abs()).all())


def patch_coordinates(
    rows: int,
    columns: int,
    divided_by: Coordinates = "separate",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """Centres (y, x) of the patches, row by row, [rows * columns, 2].

    In [-1, 1] along an axis that is divided by its own number of patches; ``min`` and ``max`` divide both axes by the
    smaller or the larger number.
    """
    shortest, longest = torch.sym_min(rows, columns), torch.sym_max(rows, columns)
    over = {"separate": (rows, columns), "min": (shortest, shortest), "max": (longest, longest)}[divided_by]
    axes = [
        (torch.arange(count, dtype=torch.float32, device=device) + 0.5).to(dtype) / divisor
        for count, divisor in zip((rows, columns), over, strict=True)
    ]
    return 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1) - 1.0


def augment_coordinates(
    coordinates: Tensor,
    shift: Tensor | None = None,
    jitter: Tensor | None = None,
    rescale: Tensor | None = None,
) -> Tensor:
    """``coordinates`` [P, 2] plus ``shift`` [2], times ``jitter`` [2], times ``rescale`` [1], in this order."""
    if shift is not None:
        coordinates = coordinates + shift.to(coordinates.dtype)
    for factor in (jitter, rescale):
        if factor is not None:
            coordinates = coordinates * factor.to(coordinates.dtype)
    return coordinates


def draw_augmentation(
    shift: float | None, jitter: float | None, rescale: float | None, device: torch.device
) -> dict[str, Tensor]:
    """Arguments for :func:`augment_coordinates`; None draws nothing.

    ``shift`` is uniform in [-shift, shift] and ``jitter`` log-uniform in [1 / jitter, jitter], per axis; ``rescale``
    is log-uniform, for both axes alike. The draws are made on the CPU by the generator that a step seeds by its key,
    so that every device and every rank gets the same.
    """
    drawn = {}
    if shift is not None:
        drawn["shift"] = torch.empty(2).uniform_(-shift, shift)
    if jitter is not None:
        drawn["jitter"] = torch.empty(2).uniform_(-math.log(jitter), math.log(jitter)).exp()
    if rescale is not None:
        drawn["rescale"] = torch.empty(1).uniform_(-math.log(rescale), math.log(rescale)).exp()
    return {name: to_device(values, device) for name, values in drawn.items()}


def rotary_tables(coordinates: Tensor, periods: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [P, head_dim] of the angles 2 pi c / p, in the dtype of both.

    Per patch the angles of the row, then those of the column, and both once more.
    """
    turns = 2 * math.pi * coordinates[:, :, None]
    # In float32 as transformers does it, to the last bit; in bfloat16, where 1 / p would lose much, as the authors do.
    angles = turns / periods if periods.dtype == torch.bfloat16 else turns * (1 / periods)
    angles = angles.flatten(1, 2).tile(2)
    return angles.cos(), angles.sin()


class RotaryPositions(nn.Module):
    """Takes the place of transformers' ``rope_embeddings``: pixels [B, C, H, W] -> cosine and sine [P, head_dim].

    The same values for a model of the released kind; beyond it, what :class:`Variants` says. It holds no buffers and
    no cache, so that it can be built on the meta device and exported for images of any size.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The tables, in the dtype of the pixels (or in bfloat16, if that is the model's for rotation)."""
        config, variants, device = self.config, Variants.of(self.config), pixel_values.device
        height, width = sides(config.patch_size)
        low = variants.rope_dtype == "bfloat16"
        dtype = torch.bfloat16 if low else torch.promote_types(torch.float32, pixel_values.dtype)
        rows, columns = pixel_values.shape[-2] // height, pixel_values.shape[-1] // width
        coordinates = patch_coordinates(rows, columns, variants.rope_coords, dtype, device)
        if self.training:
            drawn = draw_augmentation(
                config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale, device
            )
            coordinates = augment_coordinates(coordinates, **drawn)
        head = config.hidden_size // config.num_attention_heads
        periods = rope_periods(head, config.rope_theta, variants.rope_periods, dtype, device)
        cosine, sine = rotary_tables(coordinates, periods)
        out = dtype if low else pixel_values.dtype
        return cosine.to(out), sine.to(out)


class LowPrecisionRotation(DINOv3ViTAttention):
    """transformers' attention with queries and keys rotated in the dtype of the tables, as the authors train."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, N, D] -> [B, N, D], and the weights where the implementation gives them."""
        assert position_embeddings is not None
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cosine, sine = position_embeddings
        rotated = apply_rotary_pos_emb(query.to(cosine.dtype), key.to(cosine.dtype), cosine, sine)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            *(part.to(value.dtype) for part in rotated),
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **options,
        )
        return self.o_proj(mixed.flatten(2)), weights
