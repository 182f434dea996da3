"""A whole arm: all trials of a baseline, the choice among them, and what is written.

A folder of an arm holds ``recipe.yaml``, ``arm.json`` (what the network is), ``trials/`` (a record and a log for
each), ``model/`` (the backbone of the chosen trial's best step), ``head.safetensors``, ``log.jsonl`` (all logs) and, at
the end, ``summary.json``. An arm that was cut off goes on behind its last finished trial.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from openfino.adapt import describe_provenance
from openfino.baselines.arm import Arm, Trial, plan_arm
from openfino.baselines.data import WholeImages
from openfino.baselines.methods import OF_DOMAINS, MethodName
from openfino.baselines.network import build_network
from openfino.baselines.trial import Outcome, Progress, TrialFailedError, run_trial
from openfino.errors import OpenfinoError
from openfino.evaluation.splits import Rows
from openfino.evaluation.tasks import Targets, Task
from openfino.models.store import save_backbone
from openfino.preflight import Preflight, preflight, with_source_normalization
from openfino.recipe import ObjectiveSettings, Recipe, dump_recipe
from openfino.recipe.baselines import BaselineSettings
from openfino.runfolder import write_whole

ARM_FILE, SUMMARY_FILE, HEAD_FILE, LOG_FILE, TRIALS = (
    "arm.json",
    "summary.json",
    "head.safetensors",
    "log.jsonl",
    "trials",
)
RECIPE_FILE = "recipe.yaml"
FORMAT = 1
RANDOM: dict[str, Any] = {"source": "random weights", "parent": {"source": None, "licence": None}}


def train_baseline(
    recipe: Recipe,
    method: MethodName,
    *,
    task: Task,
    targets: Targets,
    train_rows: Rows,
    val_rows: Rows,
    out: Path,
    seed: int,
    settings: BaselineSettings | None = None,
    domain: str | None = None,
    metric: str | None = None,
    groups: NDArray[np.int64] | None = None,
    full_rows: int | None = None,
    ready: Preflight | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train every trial of a baseline (fino.md section 7) and keep the best by validation.

    On a CPU the result depends on the arguments alone. Only ``train_rows`` and ``val_rows`` are read.

    Args:
        recipe: model, images, views (one global crop per image), budget and hardware; its objective and factors are not
            used.
        method: ``finetune``, ``scratch``, ``dann``, ``coral`` or ``groupdro``.
        task: of the label.
        targets: the label of **every** row of the manifest.
        train_rows: that train; those without a label are left out and counted.
        val_rows: on which learning rate, strength and the step are chosen.
        out: folder of the arm; one that holds the same arm goes on, or is returned when it is finished.
        seed: of random weights, order and augmentation.
        settings: ``recipe.compare.baselines`` when not given.
        domain: column of the domains, for the last three methods. A training row without a domain trains the label
            alone.
        metric: that chooses; when not given ``compare.metric``, else ``r2`` for a number and ``probe.metric``.
        groups: of every row of the manifest, for worst-group accuracy; -1 where unknown.
        full_rows: labelled rows of the whole training set, of which ``train_rows`` is a part: fewer rows have fewer
            steps.
        ready: the recipe's preflight, if it has been made already.
        progress: called with (steps done, steps) of all trials together.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputProblemsError: with every problem of the recipe, the rows or the domains.
        OpenfinoError: if ``out`` holds something else, or every trial failed.
    """
    recipe = with_source_normalization(recipe)
    arm = plan_arm(
        recipe,
        method,
        task=task,
        targets=targets,
        train_rows=train_rows,
        val_rows=val_rows,
        out=out,
        seed=seed,
        settings=settings or recipe.compare.baselines,
        ready=ready or preflight(recipe),
        domain=domain,
        metric=metric,
        groups=groups,
        full_rows=full_rows,
    )
    _claim(arm)
    if (arm.out / SUMMARY_FILE).is_file():
        return _read(arm.out / SUMMARY_FILE)
    validation = WholeImages(
        arm.ready.manifest,
        arm.val_rows,
        arm.preprocessing,
        batch_size=arm.batch_size,
        workers=recipe.train.workers,
    )
    records: list[dict[str, Any]] = []
    for trial in arm.trials:
        place = arm.out / TRIALS / f"{trial.number:03d}.json"
        if not place.is_file():
            _one_trial(arm, trial, records, validation, place, progress)
        records.append(_read(place))
    return _finish(arm, records)


def _claim(arm: Arm) -> None:
    """Make the folder the arm's.

    Raises:
        OpenfinoError: if something else is in it.
    """
    place, fingerprint = arm.out / ARM_FILE, arm.fingerprint()
    if place.is_file():
        if _read(place)["fingerprint"] != fingerprint:
            raise OpenfinoError(
                f"{arm.out} holds another baseline (other rows, settings or recipe); choose another folder"
            )
        return
    if arm.out.exists() and any(path.name != TRIALS for path in arm.out.iterdir()):
        raise OpenfinoError(f"{arm.out} is not empty and holds no baseline; choose another folder")
    (arm.out / TRIALS).mkdir(parents=True, exist_ok=True)
    network = build_network(
        arm.recipe, arm.method, channels=arm.ready.channels, outputs=arm.task.outputs, seed=arm.seed
    )
    facts = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "method": arm.method,
        "seed": arm.seed,
        "channels": arm.ready.channels,
        "task": dataclasses.asdict(arm.task),
        "layers": network.layers,
        "token_dim": network.head.project_weight.shape[1],
        "width": arm.recipe.compare.head.width,
        "heads": arm.recipe.compare.head.heads,
    }
    write_whole(arm.out / RECIPE_FILE, dump_recipe(arm.recipe))
    write_whole(place, json.dumps(facts, indent=1))


def _one_trial(
    arm: Arm,
    trial: Trial,
    before: list[dict[str, Any]],
    validation: WholeImages,
    place: Path,
    progress: Progress | None,
) -> None:
    """Run a trial, keep its network if it is the best so far, and then record it."""
    total, done = len(arm.trials) * arm.steps, 0

    def tell(steps: int, _of: int) -> None:
        nonlocal done
        done = steps
        if progress is not None:
            progress(trial.number * arm.steps + steps, total)

    record: dict[str, Any] = {"trial": trial.number, "lr": trial.lr, "strength": trial.strength}
    started = time.perf_counter()
    try:
        outcome = run_trial(arm, trial, validation, place.with_suffix(".jsonl"), tell)
        if outcome.score > max((each["score"] for each in before if not each["failed"]), default=-math.inf):
            _save(arm, trial, outcome)
        record |= _record(arm, outcome, validation)
    except TrialFailedError as error:
        seconds = round(time.perf_counter() - started, 2)
        record |= {"failed": str(error), "seconds": seconds, "unreadable": sorted(validation.unreadable)}
    record["images_seen"] = done * arm.batch_size
    write_whole(place, json.dumps(record, indent=1))


def _record(arm: Arm, outcome: Outcome, validation: WholeImages) -> dict[str, Any]:
    return {
        "failed": None,
        "score": outcome.score,
        "step": outcome.step,
        "scores": outcome.scores,
        "untrained": outcome.untrained,
        "seconds": round(outcome.seconds, 2),
        "skipped_steps": outcome.skipped_steps,
        "unreadable": sorted(outcome.unreadable | set(validation.unreadable)),
    }


def _save(arm: Arm, trial: Trial, outcome: Outcome) -> None:
    """Write the network of ``outcome``; ``arm.json`` and the record of the trial say what it is."""
    network = build_network(
        arm.recipe, arm.method, channels=arm.ready.channels, outputs=arm.task.outputs, seed=arm.seed
    )
    network.load_state_dict(outcome.state)
    # The self-supervised objective, its Gram teacher and the factors had no part in these weights.
    plain = arm.recipe.model_copy(update={"objective": ObjectiveSettings(), "factors": {}})
    facts = {
        **describe_provenance(plain, arm.ready, network.backbone),
        **(RANDOM if arm.method == "scratch" else {}),
        "factors": {},
        "images": len(arm.train_rows),
        "steps": outcome.step,
        "supervised": {
            "method": arm.method,
            "label": arm.task.label,
            "lr": trial.lr,
            "strength": trial.strength,
        },
    }
    save_backbone(arm.out / "model", network.backbone, arm.preprocessing, facts)
    partial = arm.out / f".{HEAD_FILE}.partial"
    save_file({name: value.contiguous() for name, value in network.head.state_dict().items()}, partial)
    partial.replace(arm.out / HEAD_FILE)


def _finish(arm: Arm, records: list[dict[str, Any]]) -> dict[str, Any]:
    sound = [record for record in records if not record["failed"]]
    if not sound:
        reasons = "; ".join(dict.fromkeys(record["failed"] for record in records))
        raise OpenfinoError(f"every trial of {arm.method} failed: {reasons}")
    best = max(sound, key=lambda record: record["score"])  # the first of the best
    logs = [(arm.out / TRIALS / f"{record['trial']:03d}.jsonl").read_text("utf-8") for record in records]
    write_whole(arm.out / LOG_FILE, "".join(logs))
    summary = {
        "format": FORMAT,
        "method": arm.method,
        "seed": arm.seed,
        "label": arm.task.label,
        "metric": arm.metric,
        "chosen": {key: best[key] for key in ("trial", "lr", "strength", "step")},
        "score": best["score"],
        "scores": best["scores"],
        "untrained": best["untrained"],
        "trials": records,
        "steps": arm.steps,
        "head_steps": arm.head_steps,
        "batch_size": arm.batch_size,
        "images_seen": sum(record["images_seen"] for record in records),
        "images_per_trial": arm.steps * arm.batch_size,
        "seconds": round(sum(record["seconds"] for record in records), 2),
        "train_rows": len(arm.train_rows),
        "val_rows": len(arm.val_rows),
        "unlabelled_rows": arm.unlabelled,
        "domain": arm.domains.column,
        "domains": arm.domains.count,
        "rows_without_domain": int((arm.domains.codes[arm.train_rows] < 0).sum())
        if arm.domains.column
        else 0,
        "unreadable_rows": sorted({row for record in records for row in record["unreadable"]}),
        "uses_labels": True,
        "uses_metadata": arm.method in OF_DOMAINS,
        "model": str(arm.out / "model"),
    }
    write_whole(arm.out / SUMMARY_FILE, json.dumps(summary, indent=1))
    return summary


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
