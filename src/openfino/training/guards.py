"""What watches a run: non-finite steps and collapse (demand.md row 3)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openfino.distributed import gather_rows, sum_over_ranks
from openfino.errors import OpenfinoError

MAX_CONSECUTIVE = 3
UNEXPLAINED = "the loss is finite but its gradient is not: lower train.lr, or train in float32"
DIVERGED = 1e6  # no weight of a sound network comes near


class NonFiniteGuard:
    """Decides before the optimizer step whether the step may be taken, the same on all ranks."""

    def __init__(self, skipped: int = 0, consecutive: int = 0) -> None:
        self.skipped = skipped
        self.consecutive = consecutive

    def accepts(self, loss: Tensor, gradient_norm: Tensor) -> bool:
        """Whether loss and gradients are finite on every rank; counts the step as skipped if not."""
        bad = ~(torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm))
        if sum_over_ranks(bad.float().reshape(())).item() == 0:
            self.consecutive = 0
            return True
        self.skipped += 1
        self.consecutive += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether so many steps in a row were skipped that the run must stop."""
        return self.consecutive >= MAX_CONSECUTIVE


def explain_non_finite(
    terms: Mapping[str, Tensor], views: Mapping[str, Tensor], rows: Tensor, weights: Mapping[str, Tensor]
) -> str:
    """The first plain cause found, looking at images, weights and terms in this order.

    Args:
        terms: unweighted value per term.
        views: crops per kind, [crops, images, ...].
        rows: manifest row of each image, [B].
        weights: parameters by name.
    """
    for kind, crops in views.items():
        finite = torch.isfinite(crops).flatten(2).all(dim=2).all(dim=0)
        if not bool(finite.all()):
            bad = rows[~finite.cpu()].tolist()
            return f"{kind} crops of manifest rows {bad[:10]} (counted from 0) hold NaN or infinite pixels"
    broken = [name for name, weight in weights.items() if not bool((weight.abs() < DIVERGED).all())]
    if broken:
        return (
            f"weights are over {DIVERGED:g} or not finite ({broken[0]} and {len(broken) - 1} more): the run diverged, "
            "lower train.lr"
        )
    bad_terms = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
    if bad_terms:
        return f"the term {', '.join(bad_terms)} is not finite on these images"
    return UNEXPLAINED


def agreed_cause(causes: Sequence[str]) -> str:
    """Of what the ranks found, the first that names something: a rank whose own share is sound can only guess."""
    return next((cause for cause in causes if cause != UNEXPLAINED), UNEXPLAINED)


def write_replay(path: Path, content: Mapping[str, Any]) -> None:
    """Save a failing batch (tensors and plain values, loadable with ``weights_only=True``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), path)


def stop_non_finite(step: int, cause: str, replay: Path) -> OpenfinoError:
    """The error that ends a run after too many skipped steps."""
    return OpenfinoError(
        f"{MAX_CONSECUTIVE} steps in a row (the last is {step}) gave a loss or gradient that is not finite, so no "
        f"step was taken. Cause: {cause}. The batch is saved in {replay}; the last checkpoint is intact"
    )


@torch.no_grad()
def feature_rank(features: Tensor) -> Tensor:
    """RankMe of ``features`` [n, D]: exp of the entropy of the normalised singular values, in [1, min(n, D)].

    NaN if a feature is not finite.
    """
    if not bool(torch.isfinite(features).all()):
        return torch.tensor(math.nan)
    centred = features.float() - features.float().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    shares = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(shares * (shares + 1e-12).log()).sum())


@torch.no_grad()
def collapse_metrics(teacher_cls: Tensor, teacher_probs: Tensor) -> dict[str, Tensor]:
    """Feature rank of the teacher's CLS [V, B, D] and relative entropy of its targets [V, B, K] (1 = uniform)."""
    cls = gather_rows(teacher_cls.flatten(0, 1))
    entropy = -(teacher_probs * (teacher_probs + 1e-12).log()).sum(dim=-1).mean()
    entropy = sum_over_ranks(entropy) / max(cls.shape[0] // teacher_cls.flatten(0, 1).shape[0], 1)
    return {
        "watch/feature_rank": feature_rank(cls),
        "watch/target_entropy": entropy / math.log(max(teacher_probs.shape[-1], 2)),
    }


class CollapseWatch:
    """Warns once when features or targets stay collapsed for several looks in a row."""

    MIN_RANK = 2.0
    UNIFORM = 0.995
    PATIENCE = 5

    def __init__(self) -> None:
        self.looks = {"rank": 0, "uniform": 0}
        self.warned: set[str] = set()

    def look(self, metrics: Mapping[str, float], *, after_warmup: bool) -> str | None:
        """A warning that says what to change, or None."""
        if not after_warmup:
            return None
        states = {
            "rank": metrics["watch/feature_rank"] < self.MIN_RANK,
            "uniform": metrics["watch/target_entropy"] > self.UNIFORM,
        }
        for name, collapsed in states.items():
            self.looks[name] = self.looks[name] + 1 if collapsed else 0
            if self.looks[name] == self.PATIENCE and name not in self.warned:
                self.warned.add(name)
                return self._advice(name, metrics)
        return None

    def _advice(self, name: str, metrics: Mapping[str, float]) -> str:
        if name == "rank":
            return (
                f"the features are collapsing: their effective rank is {metrics['watch/feature_rank']:.1f}. "
                "Lower train.lr, or raise objective.koleo.weight or objective.sigreg.weight"
            )
        return (
            "the teacher's targets stay uniform, so nothing is learned (the loss sits at ln K). Use preset: small, or "
            "fewer prototypes with unit_norm_prototypes: true and a lower objective.teacher_temperature"
        )
