"""The order of an epoch in which images of one group come in runs."""

import numpy as np
from numpy.typing import NDArray


def in_runs(
    order: NDArray[np.int64], groups: NDArray[np.int64], length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``order`` rearranged: every group is cut into runs of ``length``, and the runs are shuffled.

    So a batch that is a multiple of ``length`` holds several images of each of its groups, and an epoch still holds
    every image once. What is left of a group is a shorter run.

    Args:
        order: a permutation of the n images.
        groups: of every image, int64 [n].
        length: images of a whole run.
        rng: shuffles the runs.
    """
    by_group = order[np.argsort(groups[order], kind="stable")]
    own = groups[by_group]
    first = np.concatenate([[True], own[1:] != own[:-1]])
    place = np.arange(len(own)) - np.maximum.accumulate(np.where(first, np.arange(len(own)), 0))
    starts = np.flatnonzero(place % length == 0)
    ends = np.append(starts[1:], len(own))
    # Runs of whole length first: short ones between them would shift the others across the borders of batches.
    whole = ends - starts == length
    shuffled = rng.permutation(len(starts))
    runs = [*shuffled[whole[shuffled]], *shuffled[~whole[shuffled]]]
    return np.concatenate([by_group[starts[run] : ends[run]] for run in runs])
