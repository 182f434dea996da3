"""One trial of an arm: train a network with one learning rate and strength, keep its best state by validation."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openfino.baselines.arm import Arm, Trial
from openfino.baselines.data import WholeImages, finish_images, training_batches
from openfino.baselines.methods import Method, Seen, build_method
from openfino.baselines.network import Network, build_network, method_seed, state_of
from openfino.distributed import to_device
from openfino.errors import OpenfinoError
from openfino.evaluation.scores import score_task
from openfino.evaluation.splits import Rows
from openfino.training.guards import MAX_CONSECUTIVE, NonFiniteGuard, explain_non_finite
from openfino.training.optimizer import build_optimizer, freeze_for_stage, gradient_norm, set_rates
from openfino.training.schedules import Rates, half_cosine

Progress = Callable[[int, int], None]


class TrialFailedError(OpenfinoError):
    """A trial that came to nothing, with the reason; the other trials of the arm go on."""


@dataclass
class Outcome:
    """What a trial leaves.

    Attributes:
        score: the best value of the arm's metric on validation, after ``step`` steps.
        scores: all metrics at that step. untrained: before the first.
        state: the network at that step.
        seconds: of training and validation together.
    """

    score: float = -math.inf
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    untrained: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    skipped_steps: int = 0
    unreadable: set[int] = field(default_factory=set)


def run_trial(
    arm: Arm, trial: Trial, validation: WholeImages, log: Path, progress: Progress | None = None
) -> Outcome:
    """Train and validate; ``log`` gets a line of JSON every ``train.log_every`` steps and for every validation.

    Raises:
        TrialFailedError: when three steps in a row, or the logits of a validation, are not finite.
        OpenfinoError: if ten images in a row cannot be read.
    """
    started = time.perf_counter()
    network, method = _build(arm, trial)
    optimizer = _optimizer(arm, network, method)
    guard, outcome = NonFiniteGuard(), Outcome()
    validate_at = {math.ceil(arm.steps * number / arm.settings.validations) for number in _counted(arm)}
    with log.open("w", encoding="utf-8") as file, torch.random.fork_rng(devices=[]):
        outcome.untrained = validate(arm, network, validation)
        _write(file, trial, 0, validation=outcome.untrained)
        for batch in _batches(arm):
            step = batch.step
            outcome.unreadable.update(batch.unreadable)
            _set_stage(arm, network, optimizer, trial, step)
            pixels = finish_images(batch, arm.recipe, arm.device)
            loss, parts = _forward(arm, network, method, pixels, batch.rows, step)
            loss.backward()
            trained = [*network.parameters(), *method.parameters()]
            norm = gradient_norm(trained)
            if guard.accepts(loss, norm):
                nn.utils.clip_grads_with_norm_(trained, arm.recipe.train.clip_norm, norm)
                optimizer.step()
            elif guard.exhausted:
                raise TrialFailedError(_why(step, parts, pixels, batch.rows, network))
            optimizer.zero_grad(set_to_none=True)
            if step % arm.recipe.train.log_every == 0 or step + 1 == arm.steps:
                values = {name: value.item() for name, value in {"loss": loss, **parts}.items()}
                _write(file, trial, step, **values, lr=learning_rate(arm, trial, step))
            if step + 1 in validate_at:
                scores = validate(arm, network, validation)
                _write(file, trial, step + 1, validation=scores)
                _keep_best(arm, outcome, network, step + 1, scores)
            if progress is not None:
                progress(step + 1, arm.steps)
    outcome.seconds, outcome.skipped_steps = time.perf_counter() - started, guard.skipped
    return outcome


def _counted(arm: Arm) -> range:
    return range(1, arm.settings.validations + 1)


def learning_rate(arm: Arm, trial: Trial, step: int) -> float:
    """Linear to the peak over the warm-up, then half a cosine that would reach 0 one step after the last."""
    warmup = arm.warmup_steps
    if step < warmup:
        return trial.lr * (step + 1) / warmup
    return trial.lr * half_cosine((step - warmup) / max(arm.steps - warmup, 1))


@torch.inference_mode()
def predict(network: Network, images: WholeImages, device: torch.device) -> tuple[Tensor, Tensor, Rows]:
    """Pooled features [n, width], logits [n, t] on the CPU, and the rows that could be read, int64 [n]; float32."""
    network.eval()
    pooled, logits, rows = [], [], []
    with torch.autocast(device.type, enabled=False):
        for own, pixels in images:
            features, scores = network(to_device(pixels, device))
            pooled.append(features.cpu())
            logits.append(scores.cpu())
            rows.append(own)
    if not rows:
        raise OpenfinoError(
            f"none of the images can be read. The first: {next(iter(images.unreadable.values()))}"
        )
    return torch.cat(pooled), torch.cat(logits), np.concatenate(rows)


def validate(arm: Arm, network: Network, images: WholeImages) -> dict[str, float]:
    """All metrics of the task on the validation rows that can be read.

    Raises:
        TrialFailedError: if a logit is not finite.
        OpenfinoError: if the task does not have the arm's metric.
    """
    _, logits, rows = predict(network, images, arm.device)
    if not bool(logits.isfinite().all()):
        raise TrialFailedError("its logits are not finite: the weights diverged; lower the learning rate")
    groups = None if arm.groups is None else arm.groups[rows]
    scores = score_task(arm.task, arm.task.predict(logits), arm.targets.at(rows), groups)
    if arm.metric not in scores:
        raise OpenfinoError(
            f"metric {arm.metric} is not defined for label {arm.task.label!r} on these validation rows; there are "
            f"{', '.join(scores)}"
        )
    return scores


def _build(arm: Arm, trial: Trial) -> tuple[Network, Method]:
    task, recipe = arm.task, arm.recipe
    network = build_network(
        recipe, arm.method, channels=arm.ready.channels, outputs=task.outputs, seed=arm.seed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(method_seed(arm.seed))
        method = build_method(
            arm.method,
            lambda logits, labels: task.losses(logits, labels, arm.settings.label_smoothing),
            arm.settings,
            strength=trial.strength,
            width=recipe.compare.head.width,
            domains=arm.domains.count,
        )
    network.backbone.install_drop_path(recipe.train.drop_path)
    if recipe.train.activation_checkpointing:
        network.backbone.checkpoint_activations()
    network, method = network.to(arm.device), method.to(arm.device)
    if recipe.train.compile:
        network.backbone.compile_blocks()
    return network, method


def _optimizer(arm: Arm, network: Network, method: Method) -> torch.optim.AdamW:
    """AdamW; the backbone has one rate, without decay over its depth."""
    plain = {"layer_decay": 1.0, "patch_embedding_lr": 1.0, "freeze_patch_embedding": True}
    modules = {"backbone": network.backbone, "head": network.head, "method": method}
    optimizer = build_optimizer(modules, arm.recipe.train.model_copy(update=plain))
    for group in optimizer.param_groups:
        if not group["backbone"]:
            group["lr_multiplier"] = arm.settings.fresh_lr_factor
    return optimizer


def _batches(arm: Arm) -> Any:
    return training_batches(
        arm.recipe,
        arm.ready.manifest,
        arm.train_rows,
        channels=arm.ready.channels,
        patch_size=arm.ready.patch_size,
        seed=arm.seed,
        steps=arm.steps,
        batch_size=arm.batch_size,
        pin_memory=arm.device.type == "cuda",
        runs=arm.runs,
    )


def _set_stage(arm: Arm, network: Network, optimizer: torch.optim.Optimizer, trial: Trial, step: int) -> None:
    """What trains in this step, in which mode, and how fast."""
    head_only = step < arm.head_steps
    network.train()
    if head_only:
        network.backbone.eval().requires_grad_(False)
    elif arm.method == "scratch":
        network.backbone.requires_grad_(True)
    else:
        freeze_for_stage(network.backbone, arm.recipe.train, stage_one=False)
    set_rates(optimizer, Rates(learning_rate(arm, trial, step), arm.settings.weight_decay))


def _forward(
    arm: Arm, network: Network, method: Method, pixels: Tensor, rows: Tensor, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; the network under autocast, the losses in float32."""
    network.draw(arm.seed, step, len(rows), arm.device)
    precision = arm.recipe.train.precision
    half = precision == "bfloat16" or (precision == "auto" and arm.device.type == "cuda")
    with torch.autocast(arm.device.type, dtype=torch.bfloat16, enabled=half):
        pooled, logits = network(pixels)
    labels = to_device(torch.from_numpy(arm.targets.values[rows.numpy()]), arm.device)
    seen = Seen(pooled, logits, labels, torch.from_numpy(arm.domains.codes[rows.numpy()]))
    loss: Tensor
    loss, parts = method(seen, step - arm.head_steps, arm.steps - arm.head_steps)
    return loss, parts


def _keep_best(arm: Arm, outcome: Outcome, network: Network, step: int, scores: Mapping[str, float]) -> None:
    """The earliest of the best."""
    score = scores[arm.metric]
    if score <= outcome.score:
        return
    outcome.score, outcome.step, outcome.scores = score, step, dict(scores)
    outcome.state = state_of(network)


def _why(step: int, parts: Mapping[str, Tensor], pixels: Tensor, rows: Tensor, network: Network) -> str:
    cause = explain_non_finite(parts, {"training": pixels[None]}, rows, dict(network.named_parameters()))
    return f"{MAX_CONSECUTIVE} steps in a row (the last is {step}) were not finite: {cause}"


def _write(file: Any, trial: Trial, step: int, **values: Any) -> None:
    file.write(json.dumps({"trial": trial.number, "step": step, **_plain(values)}) + "\n")
    file.flush()


def _plain(value: Any) -> Any:
    """As JSON has it: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
