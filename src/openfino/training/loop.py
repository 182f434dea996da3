"""The training loop, top to bottom.

``train(run)`` takes a :class:`Run` that holds everything already built (see :mod:`openfino.adapt`). One process on
a CPU and many GPUs take the same path; a resumed run enters at its checkpoint's step and draws the same numbers,
because every draw is keyed by the step (DESIGN decision 8).
"""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openfino.distributed import World, barrier, gather_objects, sum_over_ranks, to_device
from openfino.factors.encode import EncodedFactor
from openfino.images.loader import ViewBatch, finish_gram_views, finish_views
from openfino.models.ema import update_teacher
from openfino.recipe import Recipe
from openfino.training import guards
from openfino.training.checkpoint import (
    FOLDER,
    grow_rows,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    strip,
)
from openfino.training.gram import GramTeacher
from openfino.training.logging import RunLog
from openfino.training.optimizer import freeze_for_stage, gradient_norm, set_rates
from openfino.training.schedules import Schedules
from openfino.training.step import Piece, Student, Targets, TrainableModel, teacher_targets

Hook = Callable[[int], Mapping[str, float]]


@dataclass
class Run:
    """A run with all its parts, and the counters that change while it goes."""

    recipe: Recipe
    model: TrainableModel
    teacher: Student
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    device: torch.device
    world: World
    gram: GramTeacher | None = None
    factors: Mapping[str, EncodedFactor] = field(default_factory=dict)
    log: RunLog = field(default_factory=RunLog.silent)
    on_probe: Hook | None = None
    on_checkpoint: Callable[[int], None] | None = None
    step: int = 0
    skipped: int = 0
    consecutive_skips: int = 0
    unreadable: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The run's directory."""
        return self.recipe.out


def train(run: Run, batches: Iterable[ViewBatch]) -> None:
    """Run every batch of ``batches``, which begins at ``run.step``.

    Raises:
        OpenfinoError: after three skipped steps in a row, with a replay file.
    """
    recipe, settings, schedules = run.recipe, run.recipe.train, run.schedules
    student = run.model.student
    guard, watch = guards.NonFiniteGuard(run.skipped, run.consecutive_skips), guards.CollapseWatch()
    wrapped: nn.Module | None = None
    frozen: bool | None = None
    clock = time.perf_counter()

    for batch in batches:
        step = batch.step
        data_wait = time.perf_counter() - clock
        run.unreadable.update(batch.unreadable)

        # Stage: set before the rates and before DDP wraps, which must see what trains from here on.
        if schedules.backbone_frozen(step) != frozen:
            frozen = schedules.backbone_frozen(step)
            freeze_for_stage(student.backbone, settings, stage_one=frozen)
            wrapped = _wrap(run)
        set_rates(run.optimizer, schedules.rates(step))

        # Forward and backward, piece by piece; the teacher first, so that targets see the whole batch.
        pieces = make_pieces(run, batch)
        with _autocast(run):
            temperature = schedules.teacher_temperature(step)
            targets = teacher_targets(
                run.teacher, pieces, temperature, run.model.objective.centering, run.gram
            )
        total, values = _forward_backward(run, wrapped, pieces, targets)

        # Guard, clip, step: in this order, so that a bad gradient touches nothing.
        if schedules.last_layer_frozen(step):
            _drop_last_layer_gradients(student)
        parameters = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        norm = gradient_norm(parameters)
        accepted = guard.accepts(total, norm)
        if accepted:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
            run.optimizer.step()
            update_teacher(run.teacher, student, schedules.momentum(step))
            run.model.objective.commit(torch.cat([own.cls for own in targets], dim=1), _whole_factors(pieces))
        else:
            _report_skip(run, guard, pieces, values, batch.rows)
        if run.gram and run.gram.after_step(step, run.teacher.backbone):
            run.log.say(f"step {step}: the Gram teacher is now a copy of the averaged teacher")
        run.optimizer.zero_grad(set_to_none=True)
        run.step, run.skipped, run.consecutive_skips = step + 1, guard.skipped, guard.consecutive

        # Everything below only looks.
        run.log.advance(run.step)
        last = run.step == settings.steps
        if step % settings.log_every == 0 or last or not accepted:
            elapsed = time.perf_counter() - clock
            metrics = _metrics(run, total, values, norm, targets, data_wait, elapsed)
            run.log.write(step, metrics)
            warning = watch.look(metrics, after_warmup=step > max(settings.warmup_steps, 50))
            if warning:
                run.log.say(f"[yellow]warning at step {step}:[/] {warning}")
        if run.on_probe and recipe.probe.every and run.step % recipe.probe.every == 0 and not last:
            run.log.write(step, run.on_probe(run.step))
        if run.step % settings.checkpoint_every == 0 or last:
            save_run(run)
        clock = time.perf_counter()


def make_pieces(run: Run, batch: ViewBatch) -> list[Piece]:
    """Cut this rank's batch (on the CPU) into ``accumulate`` pieces with finished views and encoded factors."""
    recipe = run.recipe
    factors = {name: factor.batch(batch.rows).to(run.device) for name, factor in run.factors.items()}
    counts = [factor.valid.sum() for factor in factors.values()]
    valid_counts = dict(zip(factors, sum_over_ranks(torch.stack(counts)) if counts else (), strict=True))
    local = batch.rows.shape[0]
    size = -(-local // recipe.train.accumulate)
    first_slot = run.world.rank * local
    gram_normalization = (run.gram and run.gram.normalization) or recipe.images.normalization
    pieces = []
    for start in range(0, local, size):
        part = batch.slice(start, min(start + size, local))
        masked = part.masks.flatten().nonzero().squeeze(1)
        part = part.to(run.device)
        global_views, local_views = finish_views(part, recipe.views, recipe.images.normalization)
        pieces.append(
            Piece(
                step=batch.step,
                global_views=global_views,
                local_views=local_views,
                masks=part.masks,
                masked=to_device(masked, run.device),
                factors={name: factor.slice(start, start + size) for name, factor in factors.items()},
                slots=torch.arange(first_slot + start, first_slot + start + part.rows.shape[0]),
                batch_size=recipe.train.batch_size,
                valid_counts=valid_counts,
                gram_views=finish_gram_views(part, gram_normalization),
            )
        )
    return pieces


def _forward_backward(
    run: Run, wrapped: nn.Module | None, pieces: list[Piece], targets: list[Targets]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate gradients over the pieces; returns the mean total and the mean of each term on this rank."""
    assert wrapped is not None  # set at the first step
    totals: list[Tensor] = []
    terms: list[dict[str, Tensor]] = []
    run.model.objective.begin(torch.cat([own.cls for own in targets], dim=1), _whole_factors(pieces))
    for piece, own in zip(pieces, targets, strict=True):
        share = piece.slots.shape[0] * len(pieces) / sum(other.slots.shape[0] for other in pieces)
        sync: AbstractContextManager[Any] = nullcontext()
        if isinstance(wrapped, DistributedDataParallel) and piece is not pieces[-1]:
            sync = wrapped.no_sync()
        with sync:
            with _autocast(run):
                total, values = wrapped(piece, own)
            (total * (share / len(pieces))).backward()
        totals.append(total.detach() * share)
        terms.append({name: value.detach() * share for name, value in values.items()})
    mean = {name: torch.stack([piece[name] for piece in terms]).mean() for name in terms[0]}
    return torch.stack(totals).mean(), mean


def _wrap(run: Run) -> nn.Module:
    """DDP on several ranks; the objective's buffers are kept equal by its own gathered updates."""
    if run.world.size == 1:
        return run.model
    devices = [run.device.index] if run.device.type == "cuda" else None
    # The name from torch 2.13 on; the older one still works there, with a warning.
    known = inspect.signature(DistributedDataParallel).parameters
    unsynced: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(run.model, device_ids=devices, gradient_as_bucket_view=True, **unsynced)


def _autocast(run: Run) -> AbstractContextManager[Any]:
    precision = run.recipe.train.precision
    wanted = precision == "bfloat16" or (precision == "auto" and run.device.type == "cuda")
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=wanted)


def _drop_last_layer_gradients(student: Student) -> None:
    for head in (student.dino_head, student.ibot_head):
        if head is not None:
            head.last_layer.weight.grad = None


def _whole_factors(pieces: list[Piece]) -> dict[str, Any]:
    """Factors of this rank's whole batch, in slot order."""
    first = pieces[0].factors
    return {name: type(first[name]).cat([piece.factors[name] for piece in pieces]) for name in first}


def _report_skip(
    run: Run, guard: guards.NonFiniteGuard, pieces: list[Piece], values: Mapping[str, Tensor], rows: Tensor
) -> None:
    """Say why a step was skipped; after too many in a row, save the batch and stop."""
    views = {
        "global": torch.cat([piece.global_views for piece in pieces], dim=1),
        "local": torch.cat([piece.local_views for piece in pieces], dim=1),
    }
    step = pieces[0].step
    weights = dict(run.model.student.named_parameters())
    found = guards.explain_non_finite(values, views, rows, weights)
    cause = guards.agreed_cause(gather_objects(found))
    run.log.say(f"[yellow]step {step} skipped:[/] {cause}")
    if guard.exhausted:
        replay = run.folder / "replay" / f"step_{step:08d}_rank{run.world.rank}.pt"
        content = {
            "step": step,
            "rows": rows.cpu(),
            "cause": cause,
            "terms": dict(values),
            "masks": torch.cat([piece.masks for piece in pieces], dim=1),
            "factors": {name: (own.values, own.valid) for name, own in _whole_factors(pieces).items()},
            **views,
        }
        # No step was taken since the first bad one, so these are the weights that it met.
        if run.world.is_main:
            content |= {"model": run.model.state_dict(), "teacher": run.teacher.state_dict()}
        guards.write_replay(replay, content)
        raise guards.stop_non_finite(step, cause, replay)


def _metrics(
    run: Run,
    total: Tensor,
    values: Mapping[str, Tensor],
    norm: Tensor,
    targets: list[Targets],
    data_wait: float,
    elapsed: float,
) -> dict[str, float]:
    """Everything worth a line in the log; losses are means over ranks."""
    ranks = run.world.size
    losses = {"loss/total": total, **{f"loss/{name}": value for name, value in values.items()}}
    metrics = {name: (sum_over_ranks(value.float()) / ranks).item() for name, value in losses.items()}
    cls = torch.cat([own.cls for own in targets], dim=1)
    probs = torch.cat([own.probs for own in targets], dim=1)
    measured = {**run.model.objective.metrics(), **guards.collapse_metrics(cls, probs), "gradient_norm": norm}
    metrics |= {name: (sum_over_ranks(value.float()) / ranks).item() for name, value in measured.items()}
    unreadable = sum_over_ranks(torch.tensor(float(len(run.unreadable)), device=run.device))
    step = run.step - 1
    if run.gram:
        metrics["schedule/gram_weight"] = run.gram.weight(step)
    metrics |= {
        "schedule/lr": run.schedules.lr(step),
        "schedule/backbone": run.schedules.backbone_factor(step),
        "schedule/momentum": run.schedules.momentum(step),
        "schedule/teacher_temperature": run.schedules.teacher_temperature(step),
        "count/skipped_steps": run.skipped,
        "count/unreadable_images": unreadable.item(),
        "speed/images_per_second": run.recipe.train.batch_size / max(elapsed, 1e-9),
        "speed/data_wait": data_wait,
    }
    return metrics


def save_run(run: Run) -> None:
    """Checkpoint everything that :func:`restore_run` needs; the main process writes."""
    unreadable = all_unreadable(run)
    if run.world.is_main:
        names: dict[Tensor, str] = {parameter: name for name, parameter in run.model.named_parameters()}
        parts = {
            "model": run.model.state_dict(),
            "teacher": run.teacher.state_dict(),
            "optimizer": optimizer_tensors(run.optimizer, names),
            "gram": run.gram.state_dict() if run.gram else {},
        }
        tensors = {f"{root}/{name}": value for root, part in parts.items() for name, value in part.items()}
        state = {"skipped": run.skipped, "consecutive_skips": run.consecutive_skips, "unreadable": unreadable}
        settings = run.recipe.train
        save_checkpoint(run.folder / FOLDER, run.step, tensors, state, keep=settings.keep_checkpoints)
    if run.on_checkpoint:
        run.on_checkpoint(run.step)
    barrier()


def restore_run(run: Run, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put a checkpoint back into a freshly built run."""
    run.model.load_state_dict(grow_rows(strip(tensors, "model"), run.model.state_dict()))
    run.teacher.load_state_dict(strip(tensors, "teacher"))
    load_optimizer_tensors(run.optimizer, strip(tensors, "optimizer"), dict(run.model.named_parameters()))
    if run.gram and run.gram.backbone:
        run.gram.load_state_dict(strip(tensors, "gram"), state["step"], run.teacher.backbone)
    run.step, run.skipped = state["step"], state["skipped"]
    run.consecutive_skips = state["consecutive_skips"]
    if run.world.is_main:
        run.unreadable = set(state["unreadable"])


def all_unreadable(run: Run) -> list[int]:
    """Manifest rows whose image could not be read on any rank so far."""
    return sorted(set().union(*gather_objects(run.unreadable)))
