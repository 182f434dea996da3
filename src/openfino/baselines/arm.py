"""An arm: everything that its trials share, checked before the first step."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openfino.baselines.data import Domains
from openfino.baselines.losses import FEWEST
from openfino.baselines.methods import OF_DOMAINS, MethodName, strengths_of
from openfino.distributed import choose_device, current_world
from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.evaluation.splits import Rows
from openfino.evaluation.tasks import Targets, Task
from openfino.images.preprocess import Preprocessing
from openfino.preflight import Preflight
from openfino.recipe import Recipe
from openfino.recipe.baselines import BaselineSettings


@dataclass(frozen=True)
class Trial:
    """One point of an arm's grid."""

    number: int
    lr: float
    strength: float | None


@dataclass(frozen=True)
class Arm:
    """A baseline on given rows.

    Attributes:
        targets: of every row of the manifest.
        train_rows: labelled rows that train. val_rows: labelled rows that everything is chosen on.
        unlabelled: training rows without a label, left out.
        groups: of every row of the manifest for worst-group accuracy, -1 where unknown.
        steps: of every trial. head_steps: of these, the first, in which only the head trains.
    """

    recipe: Recipe
    method: MethodName
    task: Task
    targets: Targets
    settings: BaselineSettings
    ready: Preflight
    train_rows: Rows
    val_rows: Rows
    unlabelled: int
    domains: Domains
    groups: NDArray[np.int64] | None
    metric: str
    seed: int
    steps: int
    head_steps: int
    batch_size: int
    out: Path
    device: torch.device

    @property
    def trials(self) -> list[Trial]:
        """The grid: every learning rate with every strength."""
        lrs = (self.settings.scratch_lrs if self.method == "scratch" else None) or self.settings.lrs
        points = [(lr, own) for lr in lrs for own in strengths_of(self.method, self.settings)]
        return [Trial(number, *point) for number, point in enumerate(points)]

    @property
    def preprocessing(self) -> Preprocessing:
        """How whole images are read."""
        recipe = self.recipe
        return Preprocessing(
            size=recipe.views.global_size,
            normalization=recipe.images.normalization,
            channels=self.ready.channels,
        )

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return round(self.settings.warmup * self.steps)

    @property
    def runs(self) -> tuple[NDArray[np.int64], int] | None:
        """Groups and lengths of runs in an epoch, for CORAL."""
        if self.method != "coral":
            return None
        length = max(self.batch_size // self.settings.domains_per_batch, FEWEST)
        return self.domains.codes[self.train_rows], length

    def fingerprint(self) -> str:
        """What a finished trial depends on, as a hash."""
        read = {"missing", "model", "images", "views", "train"}
        free = {"train": {"workers", "threads", "keep_checkpoints", "checkpoint_every"}}
        parts: dict[str, Any] = {
            "recipe": self.recipe.model_dump(mode="json", include=read, exclude=free),
            "head": self.recipe.compare.head.model_dump(mode="json"),
            "layers": self.recipe.compare.layers,
            "settings": self.settings.model_dump(mode="json"),
            "method": self.method,
            "label": self.task.label,
            "metric": self.metric,
            "seed": self.seed,
            "steps": self.steps,
            "domain": self.domains.column,
            "classes": list(self.task.names),
        }
        found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        learned, chosen = self.train_rows, self.val_rows
        groups = self.domains.codes[chosen] if self.groups is None else self.groups[chosen]
        values = self.targets.values
        for rows in (learned, chosen, values[learned], values[chosen], self.domains.codes[learned], groups):
            found.update(np.ascontiguousarray(rows).tobytes())
        return found.hexdigest()


def plan_arm(
    recipe: Recipe,
    method: MethodName,
    *,
    task: Task,
    targets: Targets,
    train_rows: Rows,
    val_rows: Rows,
    out: Path,
    seed: int,
    settings: BaselineSettings,
    ready: Preflight,
    domain: str | None,
    metric: str | None,
    groups: NDArray[np.int64] | None,
    full_rows: int | None,
) -> Arm:
    """Check an arm and resolve what is not given.

    Raises:
        InputProblemsError: with every problem found.
        OpenfinoError: under several processes.
    """
    if current_world().size > 1:
        raise OpenfinoError("a baseline trains in one process; run the arms beside each other instead")
    train, val = np.asarray(train_rows, dtype=np.int64), np.asarray(val_rows, dtype=np.int64)
    problems = _row_problems(targets, train, val, len(ready.manifest))
    domains = Domains.none(len(ready.manifest))
    if method in OF_DOMAINS and not problems:
        problems, domains = _domains(ready, method, domain, train)
    if problems:
        raise InputProblemsError(problems)
    labelled = train[targets.valid[train]]
    batch_size = settings.batch_size or recipe.train.batch_size
    whole = settings.steps or recipe.train.steps
    share = len(labelled) / full_rows if full_rows else 1.0
    steps = max(round(whole * min(share, 1.0)), math.ceil(whole * settings.fewest_steps), 1)
    return Arm(
        recipe=recipe,
        method=method,
        task=task,
        targets=targets,
        settings=settings,
        ready=ready,
        train_rows=labelled,
        val_rows=val[targets.valid[val]],
        unlabelled=len(train) - len(labelled),
        domains=domains,
        groups=groups,
        metric=metric
        or recipe.compare.metric
        or ("r2" if task.kind == "regression" else recipe.probe.metric),
        seed=seed,
        steps=steps,
        head_steps=_head_steps(recipe, method, settings, steps, len(labelled) / batch_size),
        batch_size=batch_size,
        out=Path(out),
        device=choose_device(recipe.train.device),
    )


def _head_steps(
    recipe: Recipe, method: MethodName, settings: BaselineSettings, steps: int, steps_per_epoch: float
) -> int:
    """0 where the backbone starts from random weights: standing still it would teach the head nothing."""
    if method == "scratch" or recipe.model.source is None:
        return 0
    return min(round(settings.head_epochs * steps_per_epoch), int(settings.head_share * steps))


def _row_problems(targets: Targets, train: Rows, val: Rows, rows: int) -> list[Problem]:
    if len(targets) != rows:
        raise ValueError(f"{len(targets)} targets for a manifest of {rows} rows")
    problems = []
    shared = np.intersect1d(train, val)
    if len(shared):
        what = f"{len(shared)} rows both train and validate (row {shared[0] + 1} first)"
        problems.append(Problem("splits", what, "Give every image to one split"))
    for name, own in (("training", train), ("validation", val)):
        if not targets.valid[own].any():
            what = f"none of the {len(own)} {name} rows has a label"
            problems.append(Problem("splits", what, "Fill the label, or name another split"))
    return problems


def _domains(
    ready: Preflight, method: MethodName, column: str | None, train: Rows
) -> tuple[list[Problem], Domains]:
    none = Domains.none(len(ready.manifest))
    if column is None:
        return [Problem("compare.domain", f"{method} needs a domain", "Name a column")], none
    if column not in ready.manifest.table.columns:
        return [ready.manifest.absent(column, "compare.domain")], none
    domains = Domains.of(ready.manifest.table, column, train)
    counts = np.bincount(domains.codes[train][domains.codes[train] >= 0], minlength=2)
    if (counts >= FEWEST).sum() < 2:
        what = f"under two values of {column!r} have {FEWEST} training rows or more"
        return [Problem("compare.domain", what, "Name a column whose values come several times")], none
    return [], domains
