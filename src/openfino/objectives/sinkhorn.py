"""Sinkhorn-Knopp targets of the teacher (dinov3.md 2.2): soft assignments that use every prototype alike."""

import torch
from torch import Tensor

from openfino.distributed import max_over_ranks, sum_over_ranks


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assignment probabilities of the samples of all ranks; no gradient.

    Alternately scales the matrix ``exp(logits / temperature)`` so that every prototype receives the same mass
    from all samples of all ranks, and every sample gives mass one. The first pass works on logarithms, so no
    exponential overflows and no sample vanishes, however large its logits; after it every sample has mass one
    and the remaining passes are safe in plain arithmetic.

    Args:
        logits: teacher-head outputs of this rank's samples [n, K]; n may differ between ranks and may be 0.
        temperature: teacher temperature, above 0.
        iterations: number of passes, at least 1. The constants of the textbook form (1/K, 1/n) cancel.

    Returns:
        float32 [n, K]; every row sums to one.

    Raises:
        ValueError: if ``iterations`` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    scores = logits.float() / temperature
    scores -= _log_mass_of_prototypes(scores)
    probs = scores.softmax(dim=1)
    for _ in range(iterations - 1):
        probs /= sum_over_ranks(probs.sum(dim=0))
        probs /= probs.sum(dim=1, keepdim=True)
    return probs


def _log_mass_of_prototypes(scores: Tensor) -> Tensor:
    """Log of the sum of exp(scores) [n, K] over the samples of all ranks -> [K]."""
    own = scores.logsumexp(dim=0)  # minus infinity on a rank without samples
    largest = max_over_ranks(own)
    return largest + sum_over_ranks((own - largest).exp()).log()
