"""iBOT's block masks with exact counts (dinov3.md 2.4; BEiT, arXiv 2106.08254, algorithm 1).

The plan of a step gives each of its global crops a count; a crop's mask is then drawn from a key of its own,
so a rank makes only the masks of its own crops.
"""

import math

import numpy as np

from openfino.keyed import Purpose, keyed_generator

_MIN_BLOCK = 4
_MAX_SHARE = 0.5
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10


def mask_plan(
    seed: int, step: int, crops_total: int, patches: int, fraction: float, ratio: tuple[float, float]
) -> np.ndarray:
    """How many patches to mask in each global crop of a step.

    ``n = int(fraction * crops_total)`` crops are masked, the i-th of them (i = 1 .. n) in
    ``int(patches * r_i)`` patches with r = linspace(*ratio, n + 1); which crops they are is shuffled.

    Returns:
        int64 [crops_total].
    """
    masked = int(fraction * crops_total)
    ratios = np.linspace(*ratio, masked + 1)[1:]
    counts = np.zeros(crops_total, dtype=np.int64)
    counts[:masked] = (patches * ratios).astype(np.int64)
    return keyed_generator(seed, Purpose.MASK_PLAN, step).permutation(counts)


def block_mask(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    """A mask of overlapping rectangles that covers exactly ``count`` patches.

    Rectangles have an area uniform in [4, min(remaining, P / 2)] and a log-uniform aspect in [0.3, 1 / 0.3];
    when none fits in ten tries, single random patches fill up to the count.

    Args:
        rng: the mask's own generator.
        grid: rows and columns of patches.
        count: patches to mask, 0 to rows * columns.

    Returns:
        bool [rows, columns], True = masked.

    Raises:
        ValueError: if ``count`` is negative or above the number of patches.
    """
    mask = blocks(rng, grid, count)
    remaining = count - int(np.count_nonzero(mask))
    if remaining > 0:
        free = np.flatnonzero(~mask)
        mask.flat[rng.choice(free, size=remaining, replace=False)] = True
    return mask


def blocks(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    """The rectangles of :func:`block_mask` before single patches fill up: at most ``count`` patches."""
    mask = np.zeros(grid, dtype=bool)
    if not 0 <= count <= mask.size:
        raise ValueError(f"cannot mask {count} of {mask.size} patches")
    remaining = count
    while remaining > 0:
        added = _add_block(rng, mask, min(remaining, _MAX_SHARE * mask.size))
        if added == 0:
            break
        remaining -= added
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, limit: float) -> int:
    """Mask one rectangle that adds at most ``limit`` patches; returns how many it added, 0 if none fitted."""
    rows, columns = mask.shape
    log_low, log_high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for u_area, u_aspect, u_top, u_left in rng.random((_TRIES, 4)).tolist():
        area = _MIN_BLOCK + u_area * (limit - _MIN_BLOCK)
        aspect = math.exp(log_low + u_aspect * (log_high - log_low))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, left = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= limit:
            block[:] = True
            return added
    return 0
