"""Checkpoints: one folder per step, written beside and renamed into place, so that a kill loses nothing.

A checkpoint holds ``tensors.safetensors`` (student, objective, teacher, Gram teacher if it has weights of its own, and
the optimizer's state, all by name) and ``state.json`` (the next step, counters, unreadable rows). Nothing in it is
pickled.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openfino.errors import OpenfinoError

FOLDER = "checkpoints"  # of a run's folder
PREFIX = "step_"
# Where rows may be missing when a vocabulary has grown: the state of openfino.objectives.guidance.prototypes.Bank, and
# the layers of a Classifier, of which only the last has a row per value (the others keep their shape, so that nothing
# is added to them). An escaped factor name holds no dot.
BANK = re.compile(
    r"objective\.terms\.guidance\.heads\.[^.]+\."
    r"(prototypes|seen|counts|centroids|concentration|classifier\.layers\.\d+\.(weight|bias))"
)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state as ``<parameter name>/<state name>``; parameters that never stepped have none."""
    tensors = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"{names[parameter]}/{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Put back what :func:`optimizer_tensors` took, onto each parameter's device.

    Rows of a vocabulary that has grown since begin with zero moments.
    """
    optimizer.state.clear()
    for entry, value in tensors.items():
        name, _, key = entry.rpartition("/")
        parameter = parameters[name]
        if BANK.fullmatch(name) and value.dim() > 0:
            value = _with_rows(value, torch.zeros_like(parameter, device=value.device))
        # AdamW keeps its step count on the CPU unless it is fused.
        fused = bool(optimizer.param_groups[0].get("fused"))
        target = parameter.device if key != "step" or fused else torch.device("cpu")
        optimizer.state[parameter][key] = value.to(target)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int
) -> Path:
    """Write the checkpoint of ``step`` (the next step to run) under ``folder`` and drop all but ``keep``."""
    final = folder / f"{PREFIX}{step:08d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        partial / "tensors.safetensors",
    )
    (partial / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, if any."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def step_of(checkpoint: Path | None) -> int:
    """The first step to run after a checkpoint; 0 without one."""
    return int(checkpoint.name.removeprefix(PREFIX)) if checkpoint else 0


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and state of a checkpoint folder."""
    return load_file(path / "tensors.safetensors"), json.loads(
        (path / "state.json").read_text(encoding="utf-8")
    )


def strip(tensors: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    """The entries under ``root/``, without it.

    Raises:
        OpenfinoError: if there are none.
    """
    found = {name[len(root) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{root}/")}
    if not found:
        raise OpenfinoError(
            f"the checkpoint holds nothing under {root!r}: it was not written by this version"
        )
    return found


def grow_rows(saved: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Append rows to the saved banks and classifiers of an objective whose vocabularies have grown since.

    Values only ever append to a vocabulary, so row m keeps its value; the new rows are those of ``current``, the state
    of a freshly built model. Nothing else may differ in shape: it is left for ``load_state_dict`` to refuse.
    """
    grown = dict(saved)
    for name, value in saved.items():
        if BANK.fullmatch(name) and name in current:
            grown[name] = _with_rows(value, current[name])
    return grown


def _with_rows(saved: Tensor, fresh: Tensor) -> Tensor:
    """``saved`` and those rows of ``fresh`` that come after it."""
    return torch.cat([saved, fresh[saved.shape[0] :].to(saved)])
