"""Heads for every learning rate and weight decay at once, in one pass over the features; the best on validation rows.

The heads of a grid start from the same weights and see the same batches in the same order, so that a batch is read
once for all. Their parameters are stacked, their products batched, and none sees another: a point of the grid gives
what it would give alone.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.evaluation.choice import Choice
from openfino.evaluation.features import Progress
from openfino.evaluation.heads import HEADS, WIDTH, AttentiveHead, HeadKind, LinearHead, new_head
from openfino.evaluation.metrics import Codes
from openfino.evaluation.scores import LOWER_IS_BETTER, METRICS, score_task
from openfino.evaluation.sources import FeatureSource, Part, Rows
from openfino.evaluation.splits import probe_generator
from openfino.evaluation.tasks import Targets, Task
from openfino.keyed import Purpose, keyed_seed
from openfino.training.schedules import half_cosine

PARTS: Mapping[HeadKind, Part] = {"linear": "linear", "attentive": "patches"}
EPOCHS = 20.0
BATCH_SIZE = 256
BETAS = (0.9, 0.999)
EPSILON = 1e-8
ACTIVATIONS = 1 << 30  # bytes of the activations of the heads that are trained at once
KEPT_LOGITS = 1 << 28  # bytes of the validation logits held at once

Head = LinearHead | AttentiveHead
Losses = Callable[[Tensor, Tensor], Tensor]
"""Logits [g, N, t] and what they should be -> the loss of every row [g, N]."""


@dataclass(frozen=True)
class Grid:
    """Learning rates and weight decays, every one with every other.

    Raises:
        OpenfinoError: if there is none of one of them, or one is negative or no number.
    """

    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    weight_decays: tuple[float, ...] = (1e-2, 1e-1)

    def __post_init__(self) -> None:
        for name, values in (("lrs", self.lrs), ("weight_decays", self.weight_decays)):
            if not values or not all(math.isfinite(value) and value >= 0 for value in values):
                raise OpenfinoError(f"grid: {name} {list(values)}: give one or more numbers of 0 or above")

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """(learning rate, weight decay) of every point."""
        return tuple((lr, decay) for lr in self.lrs for decay in self.weight_decays)


class Stack:
    """Heads that are trained together: parameters with a leading dimension g, and AdamW for them.

    Args:
        head: whose weights all of them start from.
        points: (peak learning rate, weight decay) of each.
        device: where they are trained.
    """

    def __init__(self, head: Head, points: Sequence[tuple[float, float]], device: torch.device | str) -> None:
        self.logits_of = type(head).logits_of
        self.points = tuple(points)
        self.parameters = {
            name: value.detach().to(device).expand(len(points), *value.shape).clone().requires_grad_()
            for name, value in head.named_parameters()
        }
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.lrs, self.decays = torch.tensor(points, dtype=torch.float64).T
        self.steps = 0

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits of every head [g, B, t] for inputs that all of them share."""
        return self.logits_of(self.parameters, inputs)

    def train(self, inputs: Tensor, values: Tensor, losses: Losses, share: float) -> None:
        """One step of AdamW at ``share`` of the peak learning rates."""
        # The sum over heads: each gets the gradient of its own mean.
        losses(self.logits(inputs), values).mean(dim=1).sum().backward()
        self._step(share)

    @torch.no_grad()
    def _step(self, share: float) -> None:
        """AdamW (Loshchilov & Hutter 2019, Alg. 2), weight decay times the learning rate on all parameters.

        The order of the operations is that of ``torch.optim.AdamW``.
        """
        self.steps += 1
        first_share, second_share = 1 - BETAS[0] ** self.steps, 1 - BETAS[1] ** self.steps
        for name, value in self.parameters.items():
            gradient = value.grad
            assert gradient is not None
            one_each = (-1, *[1] * (value.dim() - 1))
            rate = (self.lrs * share).reshape(one_each)
            first, second = self.first[name], self.second[name]
            value.mul_((1 - rate * self.decays.reshape(one_each)).to(value))
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            root = (second.sqrt() / math.sqrt(second_share)).add_(EPSILON)
            value.sub_((first / root).mul_((rate / first_share).to(value)))
            value.grad = None


@dataclass(frozen=True)
class Fitted(Choice):
    """The head of a grid that is best on the validation rows.

    Attributes:
        lr: its peak learning rate. weight_decay: its weight decay.
        head: with its weights, on the CPU.
        points: (learning rate, weight decay) of every point of the grid.
        val_scores: of every point; NaN where training diverged.
        val_losses: of every point.
        steps: optimizer steps. batch_size: rows in each. read_size: rows that are read at once otherwise.
    """

    lr: float
    weight_decay: float
    head: Head
    points: tuple[tuple[float, float], ...]
    val_scores: tuple[float, ...]
    val_losses: tuple[float, ...]
    steps: int
    batch_size: int
    read_size: int
    source: FeatureSource = field(repr=False)
    part: Part
    device: torch.device | str

    def logits(self, positions: Rows, source: FeatureSource | None = None) -> Tensor:
        """Logits [m, t] for positions of the features it was fitted on, or of others; on the CPU."""
        return head_logits(
            self.head,
            source or self.source,
            positions,
            self.part,
            batch_size=self.read_size,
            device=self.device,
        )


def fit_grid(
    kind: HeadKind,
    source: FeatureSource,
    targets: Targets,
    train: Rows,
    val: Rows,
    task: Task,
    grid: Grid | None = None,
    *,
    metric: str,
    steps: int | None = None,
    epochs: float = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    groups: Codes | None = None,
    smoothing: float = 0.0,
    width: int = WIDTH,
    heads: int = HEADS,
    progress: Progress | None = None,
) -> Fitted:
    """Train a head for every point of ``grid`` and keep the one that is best on ``val``.

    AdamW with betas (0.9, 0.999), learning rate from its peak to 0 along half a cosine, no warm-up. The features
    of a batch are read while the batch before it trains; memory grows with the batch and the grid, not with the rows.

    Args:
        kind: ``linear`` (on CLS and mean) or ``attentive`` (on patch tokens).
        source: features of n rows.
        targets: of these n rows.
        train: positions in ``source`` to train on; those without a valid target are left out.
        val: positions to choose by, none of them in ``train``.
        task: what the targets are.
        grid: learning rates and weight decays.
        metric: which is best, one of :data:`openfino.evaluation.measures.METRICS`; at equal scores the lower loss
            on ``val``, then the earlier point.
        steps: of the optimizer; when not given, as many as ``epochs`` passes over ``train`` need.
        epochs: passes.
        batch_size: rows of a step; all of ``train`` where that holds fewer.
        seed: of the first weights and the order of the rows.
        device: where heads are trained.
        groups: of the n rows, -1 where there is none: for metric ``worst_group_accuracy``.
        smoothing: label smoothing (:meth:`openfino.evaluation.tasks.Task.losses`).
        width: of an attentive head. heads: of its attention.
        progress: called with (steps done, steps in all).

    Raises:
        OpenfinoError: if ``train`` and ``val`` share an image, one of them is left without rows, the metric is not one
            to choose by or not defined on ``val``, or every point diverged.
    """
    _check_metric(metric, task, groups)
    train, val = _usable(source, targets, np.asarray(train), np.asarray(val))
    grid = grid or Grid()
    part = PARTS[kind]
    read_size, batch_size = batch_size, min(batch_size, len(train))
    steps = max(1, math.ceil(epochs * len(train) / batch_size)) if steps is None else steps
    head = untrained_head(kind, source, task, seed=seed, width=width, heads=heads)
    values = torch.from_numpy(targets.values)
    tokens = source.take(train[:1], part)[0].numel() // _input_size(head)
    stacks = stacks_of(head, grid.points, device, rows=read_size * tokens, kept=len(val) * task.outputs)
    batches = (
        (features.to(device), values[rows].to(device))
        for rows, features in read_ahead(source, part, row_order(train, batch_size, steps, seed))
    )
    train_stacks(
        stacks,
        batches,
        lambda logits, truth: task.losses(logits, truth, smoothing),
        steps=steps,
        progress=progress,
    )
    scores, losses = _on_validation(stacks, source, part, val, targets, task, metric, groups, read_size)
    best = best_point(scores, losses, metric)
    lr, decay = grid.points[best]
    return Fitted(
        lr,
        decay,
        head_of(stacks, best, head),
        grid.points,
        tuple(scores),
        tuple(losses),
        steps,
        batch_size,
        read_size,
        source,
        part,
        device,
    )


def untrained_head(
    kind: HeadKind,
    source: FeatureSource,
    task: Task,
    *,
    seed: int = 0,
    width: int = WIDTH,
    heads: int = HEADS,
) -> Head:
    """The head that every point of the grid of :func:`fit_grid` starts from; see there for the arguments."""
    in_dim = source.take(np.zeros(1, dtype=np.int64), PARTS[kind]).shape[-1]
    init = keyed_seed(seed, Purpose.PROBE, zlib.crc32(b"head"))
    return new_head(kind, in_dim, task.outputs, seed=init, width=width, heads=heads)


def stacks_of(
    head: Head,
    points: Sequence[tuple[float, float]],
    device: torch.device | str,
    *,
    rows: int,
    kept: int,
) -> list[Stack]:
    """The points in stacks small enough that the activations of one, and what is kept of it, fit into memory.

    Args:
        head: whose weights all start from.
        points: the grid.
        device: where they are trained.
        rows: rows, or tokens, of a batch.
        kept: numbers that are held of each head while it is scored.
    """
    wide = len(head.project_bias) if isinstance(head, AttentiveHead) else len(head.bias)
    # The projected tokens, normed, and the gradients of both, in float32.
    at_once = max(1, min(ACTIVATIONS // (16 * rows * wide), KEPT_LOGITS // max(1, 4 * kept)))
    return [Stack(head, points[start : start + at_once], device) for start in range(0, len(points), at_once)]


def train_stacks(
    stacks: Sequence[Stack],
    batches: Iterable[tuple[Tensor, Tensor]],
    losses: Losses,
    *,
    steps: int,
    progress: Progress | None = None,
) -> None:
    """Take ``steps`` batches of inputs and what they should give; every stack sees each of them."""
    for step, (inputs, values) in enumerate(batches):
        for stack in stacks:
            stack.train(inputs, values, losses, half_cosine(step / steps))
        if progress is not None:
            progress(step + 1, steps)


def row_order(train: Rows, batch_size: int, steps: int, seed: int) -> Iterator[Rows]:
    """The rows of every step: one keyed permutation of ``train`` behind another, cut into batches of one size."""
    waiting = np.zeros(0, dtype=np.int64)
    epoch = 0
    for _ in range(steps):
        while len(waiting) < batch_size:
            order = probe_generator(seed, f"grid order {epoch}").permutation(train)
            waiting, epoch = np.concatenate([waiting, order]), epoch + 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def read_ahead(source: FeatureSource, part: Part, batches: Iterable[Rows]) -> Iterator[tuple[Rows, Tensor]]:
    """Every batch of positions with its features; the next one is read while this one is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for rows in batches:
            following = rows, pool.submit(source.take, rows, part)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def in_order(
    source: FeatureSource, part: Part, positions: Rows, batch_size: int
) -> Iterator[tuple[Rows, Tensor]]:
    """``positions`` in batches, each with its features."""
    starts = range(0, len(positions), batch_size)
    return read_ahead(source, part, (positions[start : start + batch_size] for start in starts))


@torch.no_grad()
def head_logits(
    head: Head,
    source: FeatureSource,
    positions: Rows,
    part: Part,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Logits [m, t] of one head for ``positions``, in their order, on the CPU; for an untrained head too."""
    head = head.to(device)
    found = [torch.zeros(0, len(head.bias))]
    found += [
        head(features.to(device)).cpu() for _, features in in_order(source, part, positions, batch_size)
    ]
    head.to("cpu")
    return torch.cat(found)


def head_of(stacks: Sequence[Stack], point: int, empty: Head) -> Head:
    """The head of one point of the grid by itself, on the CPU: ``empty`` is filled."""
    places = [(stack, number) for stack in stacks for number in range(len(stack.points))]
    stack, number = places[point]
    empty.load_state_dict({name: value[number].detach().cpu() for name, value in stack.parameters.items()})
    return empty


def best_point(scores: Sequence[float], losses: Sequence[float], metric: str) -> int:
    """The point with the best score, the lower loss at equal scores, then the first.

    Raises:
        OpenfinoError: if no point has a finite score and loss.
    """
    usable = [
        number
        for number, (score, loss) in enumerate(zip(scores, losses, strict=True))
        if math.isfinite(score) and math.isfinite(loss)
    ]
    if not usable:
        raise OpenfinoError("every point of the grid diverged: give lower learning rates")
    sign = -1.0 if metric not in LOWER_IS_BETTER else 1.0
    return min(usable, key=lambda number: (sign * scores[number], losses[number], number))


def _on_validation(
    stacks: Sequence[Stack],
    source: FeatureSource,
    part: Part,
    val: Rows,
    targets: Targets,
    task: Task,
    metric: str,
    groups: Codes | None,
    batch_size: int,
) -> tuple[list[float], list[float]]:
    """Score and mean loss of every point on ``val``: one pass where the logits of all fit into memory."""
    truth = targets.at(val)
    own = groups[val] if groups is not None else None
    values = torch.from_numpy(truth.values)
    count = sum(len(stack.points) for stack in stacks)
    together = 4 * count * len(val) * task.outputs <= KEPT_LOGITS
    scores, losses = [], []
    for some in [stacks] if together else [[stack] for stack in stacks]:
        for logits in torch.cat(_logits(some, source, part, val, batch_size)):
            losses.append(float(task.loss(logits, values)))
            if not math.isfinite(losses[-1]):
                scores.append(math.nan)
                continue
            found = score_task(task, task.predict(logits), truth, own, metrics=(metric,))
            if metric not in found:
                raise OpenfinoError(
                    f"{metric} of {task.label!r} is not defined on the {len(val)} validation rows: choose by another "
                    "metric, or add rows with other labels"
                )
            scores.append(found[metric])
    return scores, losses


@torch.no_grad()
def _logits(
    stacks: Sequence[Stack], source: FeatureSource, part: Part, positions: Rows, batch_size: int
) -> list[Tensor]:
    """Logits of every stack [g, m, t] on the CPU."""
    device = next(iter(stacks[0].parameters.values())).device
    found: list[list[Tensor]] = [[] for _ in stacks]
    for _, features in in_order(source, part, positions, batch_size):
        inputs = features.to(device)
        for stack, kept in zip(stacks, found, strict=True):
            kept.append(stack.logits(inputs).cpu())
    return [torch.cat(kept, dim=1) for kept in found]


def _input_size(head: Head) -> int:
    """Numbers per row or token."""
    return (head.project_weight if isinstance(head, AttentiveHead) else head.weight).shape[1]


def _check_metric(metric: str, task: Task, groups: Codes | None) -> None:
    known = METRICS[task.kind]
    if metric not in known:
        raise OpenfinoError(
            f"metric {metric}: a {task.kind} label is scored by one of {', '.join(known)}; choose by one of these"
        )
    if metric == "worst_group_accuracy" and groups is None:
        raise OpenfinoError("metric worst_group_accuracy: name the column of the groups")


def _usable(source: FeatureSource, targets: Targets, train: Rows, val: Rows) -> tuple[Rows, Rows]:
    """The positions with a valid target.

    Raises:
        OpenfinoError: if one of them is empty, or they share an image.
    """
    shared = np.intersect1d(source.rows[train], source.rows[val])
    if len(shared):
        raise OpenfinoError(
            f"{len(shared)} images are both trained on and chosen by, such as row {shared[0] + 1} of the table: "
            "name different splits"
        )
    kept = train[targets.valid[train]], val[targets.valid[val]]
    for rows, use in zip(kept, ("train a probe on", "choose a probe by"), strict=True):
        if len(rows) == 0:
            raise OpenfinoError(f"there is no image with a label and with features to {use}")
    return kept
