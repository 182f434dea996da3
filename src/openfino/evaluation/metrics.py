"""Scores of predicted classes, as FINO reports them (fino.md section 7)."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

Codes = NDArray[np.int64]


def accuracy(truth: Codes, predicted: Codes) -> float:
    """Share of rows whose predicted class is the true one."""
    return float(accuracy_score(truth, predicted))


def macro_f1(truth: Codes, predicted: Codes) -> float:
    """Unweighted mean of the F1 of every class that occurs in ``truth``.

    A test split often lacks classes that the probe was fitted on. Such a class has no F1 there: it is left
    out of the mean (predicting it still costs the true class recall). A class that occurs in ``truth`` and is
    never predicted, for instance because the probe never saw it, counts as 0.
    """
    return float(f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0.0))


def worst_group_accuracy(truth: Codes, predicted: Codes, groups: Codes) -> float:
    """The lowest accuracy of any group, whatever its size; rows without a group (-1) count for no group.

    Raises:
        ValueError: if no row has a group.
    """
    known = groups >= 0
    if not known.any():
        raise ValueError("no row has a group")
    _, members = np.unique(groups[known], return_inverse=True)
    correct = (truth[known] == predicted[known]).astype(np.float64)
    return float((np.bincount(members, weights=correct) / np.bincount(members)).min())


def score(truth: Codes, predicted: Codes, groups: Codes | None = None) -> dict[str, float]:
    """All metrics by name; ``worst_group_accuracy`` only where at least one row has a group."""
    scores = {"accuracy": accuracy(truth, predicted), "macro_f1": macro_f1(truth, predicted)}
    if groups is not None and (groups >= 0).any():
        scores["worst_group_accuracy"] = worst_group_accuracy(truth, predicted, groups)
    return scores
