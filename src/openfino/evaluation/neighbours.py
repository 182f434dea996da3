"""Nearest neighbours for every kind of label, several k from one search."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from openfino.evaluation.classifiers import Matrix, weighted_neighbours
from openfino.evaluation.tasks import Predictions, Targets, Task


def knn_predictions(
    task: Task,
    bank: Matrix,
    targets: Targets,
    queries: Matrix,
    ks: Sequence[int],
    *,
    device: torch.device | str = "cpu",
) -> dict[int, Predictions]:
    """What the k nearest neighbours say, for every k: each counts with exp(cosine similarity / 0.07).

    The score of a class or label is the share of the weights of the neighbours that have it, a number is their
    weighted mean; the class of :func:`openfino.evaluation.classifiers.knn_predict` is the one with the largest share.

    Args:
        task: what the targets are.
        bank: features with known labels [n, D].
        targets: their labels; rows without a valid one are left out of the bank.
        queries: features to predict for [m, D].
        ks: numbers of neighbours; all of the bank where it has fewer.
        device: where the products are computed.

    Raises:
        ValueError: if no row of the bank has a valid label, or a k is below 1.
    """
    known = np.flatnonzero(targets.valid)
    if len(known) == 0 or min(ks) < 1:
        raise ValueError(f"{len(known)} rows of the bank have a label; k = {list(ks)}")
    values = torch.from_numpy(targets.values[known]).to(device)
    scores: dict[int, list[NDArray[np.float32]]] = {k: [] for k in ks}
    for weight, index in weighted_neighbours(bank[known], queries, max(ks), device):
        own = values[index]
        for k in ks:
            share = weight[:, :k] / weight[:, :k].sum(dim=1, keepdim=True)
            if task.kind == "single":
                found = torch.zeros(len(share), task.outputs, device=device)
                found.scatter_add_(1, own[:, :k], share)
            else:
                found = (share[:, :, None] * own[:, :k]).sum(dim=1)
            scores[k].append(found.cpu().numpy())
    nothing = np.zeros((0, task.outputs), dtype=np.float32)
    return {k: task.predict_scores(np.concatenate([nothing, *parts])) for k, parts in scores.items()}
