"""The runs that made ``tiny``, one after the other, and what is kept of each beside its weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from openfino.errors import OpenfinoError
from openfino.manifest import read_manifest
from openfino.models.store import model_folder, read_sidecar
from openfino.procedural import is_image_name
from openfino.recipe import Recipe, build_recipe, dump_recipe
from openfino.runfolder import RECIPE_FILE
from openfino.training.logging import read_metrics

KEPT = 400
"""Logged steps that are kept of each run, evenly spaced; probes are all kept."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        folder: of the run; its name is the stage's.
        recipe: resolved.
        steps: that its model has behind it.
        log: records of ``metrics.jsonl``, at most :data:`KEPT` of logged steps.
        probes: records of ``probes.jsonl``.
        device: what it ran on.
    """

    folder: Path
    recipe: Recipe
    steps: int
    log: list[Record]
    probes: list[Record]
    device: str

    @property
    def name(self) -> str:
        """As the files of this stage begin."""
        return self.folder.name


def stages_of(run: Path) -> list[Stage]:
    """``run`` and the runs that it started from, the first one first.

    Raises:
        OpenfinoError: if the first one did not start from random weights, or one saw other than procedural images.
    """
    stages = [_stage(run)]
    while (source := stages[0].recipe.model.source) is not None:
        before = next(
            (place for place in (Path(source), Path(source).parent) if (place / RECIPE_FILE).is_file()), None
        )
        if before is None:
            raise OpenfinoError(
                f"{stages[0].folder} started from {source}, which is no run of ours: 'tiny' has no parent whose "
                "licence would go with it"
            )
        stages.insert(0, _stage(before))
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise OpenfinoError(f"the runs {', '.join(names)} need names of their own")
    return stages


def _stage(folder: Path) -> Stage:
    if not (folder / RECIPE_FILE).is_file():
        raise OpenfinoError(f"{folder} is no run: it has no {RECIPE_FILE}")
    recipe = build_recipe(yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8")))
    _refuse_other_images(folder, recipe)
    sidecar = read_sidecar(model_folder(folder)) or {}
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Stage(
        folder=folder,
        recipe=recipe,
        steps=int(sidecar["provenance"]["steps"]),
        log=thinned(read_metrics(folder / "metrics.jsonl")),
        probes=read_metrics(folder / "probes.jsonl"),
        device=str(environment["device"]),
    )


def _refuse_other_images(folder: Path, recipe: Recipe) -> None:
    """Every row that trained must be the name of a procedural image."""
    manifest = read_manifest(recipe.manifest, path_columns=recipe.images.path_columns, missing=recipe.missing)
    table = manifest.table
    if recipe.training_splits is not None:
        table = table.filter(pl.col(str(recipe.probe.split)).is_in(recipe.training_splits))
    paths = table[manifest.path_columns[0]]
    other = [path for path in paths if not is_image_name(path)]
    if other or not len(paths) or len(manifest.path_columns) > 1:
        raise OpenfinoError(
            f"{folder} did not train on procedural images alone: {recipe.manifest} has {len(other):,} others"
            + (f", such as {other[0]}" if other else "")
        )


def thinned(records: Sequence[Record]) -> list[Record]:
    """``records`` with at most :data:`KEPT` of those that hold losses, evenly spaced, and the last one."""
    losses = [number for number, record in enumerate(records) if "loss/total" in record]
    every = max(-(-len(losses) // KEPT), 1)
    dropped = set(losses) - set(losses[::every]) - set(losses[-1:])
    return [record for number, record in enumerate(records) if number not in dropped]


def write_stage(stage: Stage, folder: Path) -> None:
    """``STAGE.recipe.yaml``, ``STAGE.metrics.jsonl`` and ``STAGE.probes.jsonl``; of places only their names."""
    settings = yaml.safe_load(dump_recipe(stage.recipe))
    for keys in (("manifest",), ("out",), ("model", "source"), ("objective", "gram", "teacher")):
        section = settings
        for key in keys[:-1]:
            section = section[key]
        if section[keys[-1]] is not None:
            section[keys[-1]] = Path(section[keys[-1]]).name
    dumped = yaml.safe_dump(settings, sort_keys=False)
    (folder / f"{stage.name}.{RECIPE_FILE}").write_text(dumped, encoding="utf-8")
    for what, records in (("metrics", stage.log), ("probes", stage.probes)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{stage.name}.{what}.jsonl").write_text(lines, encoding="utf-8")
