"""The folder of a run: who may write into it, and what is written there once.

``recipe.yaml`` (resolved), ``environment.json``, ``factors.json``, ``metrics.jsonl``, ``probes.jsonl``,
``checkpoints/``, ``tensorboard/``, ``pictures/`` (what the teacher sees in a few images), ``model/`` (the teacher's
backbone at the last checkpoint), ``best/`` (the best by the probe, if a validation split is named), ``summary.json`` at
the end.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

import openfino
from openfino import tiny
from openfino.errors import OpenfinoError
from openfino.recipe import Recipe, dump_recipe
from openfino.training.checkpoint import FOLDER, last_checkpoint

RECIPE_FILE = "recipe.yaml"
RUN_MARK = ".openfino-run"
WORKSPACE_MARK = ".openfino-workspace"
# Keys that may differ when a run is resumed: they change neither what is drawn nor what is learned.
FREE_ON_RESUME = {
    "out",
    "manifest",
    "entangled",
    "train.workers",
    "train.threads",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "probe.every",
    "probe.pictures",
}
OF_OTHER_COMMANDS = "compare."  # no run reads these keys


def check_folder(recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Refuse what may not be written to, before anything is read or touched.

    Raises:
        OpenfinoError: if the folder is not empty and neither ``resume`` nor ``overwrite`` is set, if it is not a run
            folder, if something that the run reads lies in it, or if the recipe differs from the one being resumed.
    """
    folder = recipe.out
    if resume and overwrite:
        raise OpenfinoError("--resume continues a run and --overwrite deletes it: write one of them")
    inside = [key for key, path in _inputs(recipe).items() if path.resolve().is_relative_to(folder.resolve())]
    if inside:
        raise OpenfinoError(
            f"out: {folder} holds the {' and the '.join(inside)} of this run; choose another folder"
        )
    if not (folder.exists() and any(folder.iterdir())):
        return
    if not (folder / RUN_MARK).is_file():
        raise OpenfinoError(
            f"out: {folder} is not empty and is not a run of openfino; nothing in it was touched. "
            "Choose another folder"
        )
    if not (resume or overwrite):
        raise OpenfinoError(
            f"out: {folder} already holds a run. Write --resume to continue it, --overwrite to start it "
            "anew, or choose another folder"
        )
    if resume and (folder / RECIPE_FILE).is_file():
        _refuse_other_recipe(recipe, yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8")))


def _inputs(recipe: Recipe) -> dict[str, Path]:
    """Local files and folders that the run reads, by their keys."""
    paths = {"manifest": recipe.manifest}
    models = {"model.source": recipe.model.source, "objective.gram.teacher": recipe.objective.gram.source}
    places = {key: Path(name) for key, name in models.items() if name and not tiny.is_tiny(name)}
    return paths | {key: place for key, place in places.items() if place.exists()}


def claim_folder(recipe: Recipe, *, resume: bool, overwrite: bool) -> Path | None:
    """Make the run folder ready and write the recipe; returns the checkpoint to continue from, if any.

    Raises:
        OpenfinoError: as :func:`check_folder`.
    """
    check_folder(recipe, resume=resume, overwrite=overwrite)
    folder = recipe.out
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RUN_MARK, "A run of openfino: 'openfino adapt --overwrite' clears this folder.\n")
    write_whole(folder / RECIPE_FILE, dump_recipe(recipe))
    return last_checkpoint(folder / FOLDER) if resume else None


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` so that a kill leaves the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def claim_workspace(out: Path, *, overwrite: bool) -> None:
    """Make ``out`` an empty folder for data and several runs; only one that was made here before is ever cleared.

    Raises:
        OpenfinoError: if it is not empty and may not be cleared.
    """
    if out.exists() and any(out.iterdir()):
        is_ours = (out / WORKSPACE_MARK).is_file()
        if not is_ours:
            raise OpenfinoError(
                f"{out} is not empty; nothing in it was touched. Choose another folder with --out"
            )
        if not overwrite:
            raise OpenfinoError(
                f"{out} is not empty; write --overwrite to replace what an earlier call left there"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / WORKSPACE_MARK).write_text("This folder is written by openfino and cleared by --overwrite.\n")


def _refuse_other_recipe(recipe: Recipe, stored: dict[str, Any]) -> None:
    before, now = _flatten(stored), _flatten(recipe.model_dump(mode="json"))
    free = set(FREE_ON_RESUME)
    if _may_end_anywhere(recipe):
        free.add("train.steps")
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in free and not key.startswith(OF_OTHER_COMMANDS)
    ]
    if changed:
        shown = ", ".join(f"{key} ({before.get(key)} -> {now.get(key)})" for key in changed[:10])
        raise OpenfinoError(
            f"cannot resume {recipe.out}: the recipe differs in {shown}. "
            "Put these back, or start a new run in another folder"
        )


def _may_end_anywhere(recipe: Recipe) -> bool:
    """Whether no schedule depends on the number of steps, so that the end may be moved."""
    train = recipe.train
    return (
        train.schedule == "constant"
        and all(start == end for start, end in (train.teacher_momentum, train.weight_decay))
        and recipe.objective.teacher_temperature.warmup_steps is not None
        and (not recipe.guided or recipe.objective.guidance.ramp == "constant")
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    packages = ("torch", "transformers", "numpy", "polars", "scikit-learn")
    return {
        "openfino": openfino.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
