"""Rotary positions of DINOv3 (dinov3.md 1.3), with what the authors' models vary and transformers' module does not.

Rows and columns of the patch grid become angles, half of a head's dimensions each; there is nothing to learn.
"""

import torch
from torch import Tensor

from openfino.errors import OpenfinoError

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
    return low * (high / low) ** torch.linspace(0, 1, count, dtype=dtype, device=device)


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
