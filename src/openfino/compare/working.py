"""One arm with one seed as a job: trained where it trains, read, and put away in a few small files."""

import io
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from openfino.adapt import starting_backbone
from openfino.baselines.training import train_baseline
from openfino.compare.arms import ADAPTED, ERASED, METHODS, RANDOM, Trained, random_config, recipe_of
from openfino.compare.reading import HEADLINE, OWN_HEAD, REFITTED, UNTRAINED, Reader, Reading, read_head
from openfino.compare.setup import Setup
from openfino.images.preprocess import Preprocessing
from openfino.jobs.folder import write_bytes
from openfino.jobs.running import train_run
from openfino.models.store import LoadedModel, load_model
from openfino.recipe import Recipe, build_recipe
from openfino.runfolder import write_whole
from openfino.settings_layers import merge
from openfino.training.logging import read_metrics

READING_FILE, SCORES_FILE = "reading.json", "scores.npz"
RUN_FOLDER, CACHE_FOLDER = "run", "features"
CLS = "cls"  # before the name of the arm, in the file of the scores
CURVE_POINTS = 200
QUIET_PROBE: dict[str, Any] = {
    # The run's own probes would only repeat, at the cost of a part of its budget, what the arms are read with.
    "label": None,
    "val": None,
    "tests": [],
    "group": None,
    "metric": "macro_f1",
    "every": None,
    "erase": [],
    "pictures": 0,
    "max_rows": 64,
}


@dataclass(frozen=True)
class ArmJob:
    """An arm with a seed, as any process may do it."""

    setup: Setup
    trained: Trained

    @property
    def title(self) -> str:
        """For the reader."""
        return self.trained.title

    @property
    def place(self) -> Path:
        """Its folder."""
        return self.setup.place(self.trained)

    @property
    def erases(self) -> str | None:
        """The arm that is read from the same features."""
        return next((arm for arm in self.setup.arms if ERASED.get(arm) == self.trained.arm), None)

    def finished(self) -> bool:
        """Whether all that is asked for has been read."""
        found = reading_of(self.place)
        return found is not None and self._asked() <= set(found["read"])

    def run(self, console: Console) -> None:
        """Train what is not trained yet, and read."""
        arm, started = self.trained.arm, time.perf_counter()
        if arm in METHODS:
            reading, facts = self._supervised(console)
        elif arm in ADAPTED:
            reading, facts = self._adapted(console)
        else:
            reading = self._reader(starting_model(self.setup, self.trained), console).read(
                arm, erased=self.erases
            )
            facts = {"images": 0, "seconds": 0.0, "trials": 1, "curve": []}
        facts["probe_seconds"] = round(time.perf_counter() - started - facts.pop("spent", 0.0), 2)
        self._keep(reading, facts)

    def _asked(self) -> set[str]:
        arms = [self.trained.arm, *([self.erases] if self.erases else [])]
        asked = {f"{arm}|{HEADLINE}" for arm in arms}
        if self.trained.arm not in METHODS and self.setup.reads_fractions(self.trained.arm):
            asked |= {f"{self.trained.arm}|{share:g}" for share in self.setup.fractions}
        return asked

    def _supervised(self, console: Console) -> tuple[Reading, dict[str, Any]]:
        setup, trained, started = self.setup, self.trained, time.perf_counter()
        out = self.place / RUN_FOLDER
        summary = train_baseline(
            setup.base,
            trained.arm,  # type: ignore[arg-type]
            task=setup.task,
            targets=setup.targets,
            train_rows=setup.labelled(trained.fraction, trained.seed),
            val_rows=setup.rows["val"],
            out=out,
            seed=trained.seed,
            domain=setup.domain,
            metric=setup.metric,
            groups=setup.codes(setup.base.probe.group),
            full_rows=len(setup.rows["train"]),
            ready=setup.ready,
        )
        spent = time.perf_counter() - started
        console.print(
            f"chosen: {summary['chosen']}, val {summary['score']:.3f}", highlight=False, markup=False
        )
        reading = self._reader(load_model(out), console).read(trained.arm, whole=trained.fraction == 1)
        if trained.fraction == 1:
            reading.scores[f"{trained.arm}|{UNTRAINED}"] = read_head(setup, out, untrained=True)
        self._choose_head(reading, summary, read_head(setup, out))
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
        best = summary["chosen"]["trial"]
        points = [(line["step"], line["loss"]) for line in lines if line["trial"] == best and "loss" in line]
        facts = {
            "images": summary["images_seen"],
            "seconds": summary["seconds"],
            "trials": len(summary["trials"]),
            "curve": thinned(points),
            "spent": spent,
        }
        return reading, facts

    def _choose_head(self, reading: Reading, summary: dict[str, Any], said: NDArray[np.float32]) -> None:
        """Of a supervised arm the head that trained with it, or the probe that all arms get: what validation prefers.

        A few hundred steps may suit a backbone and leave its head unfinished. An arm shall not lose for that alone.
        """
        arm = self.trained.arm
        probe = reading.facts["chosen"].setdefault(arm, {})[HEADLINE]
        own = {
            **summary["chosen"],
            "val": summary["score"],
            "points": [
                {key: trial.get(key) for key in ("lr", "strength", "score", "failed")}
                for trial in summary["trials"]
            ],
        }
        reading.scores[f"{arm}|{REFITTED}"] = reading.scores[f"{arm}|{HEADLINE}"]
        reading.scores[f"{arm}|{OWN_HEAD}"] = said
        trained = summary["score"] >= probe["val"]
        if trained:
            reading.scores[f"{arm}|{HEADLINE}"] = said
        reading.facts["chosen"][arm] |= {
            REFITTED: probe,
            OWN_HEAD: own,
            HEADLINE: {"head": OWN_HEAD, **own}
            if trained
            else {**own, "head": REFITTED, "val": probe["val"]},
        }

    def _adapted(self, console: Console) -> tuple[Reading, dict[str, Any]]:
        recipe, started = self._recipe(), time.perf_counter()
        finished = recipe.out / "summary.json"
        if finished.is_file():
            summary = json.loads(finished.read_text(encoding="utf-8"))
        else:
            summary = train_run(recipe, console)
        spent = time.perf_counter() - started
        model = load_model(recipe.out / "model")
        reading = self._reader(model, console).read(self.trained.arm, erased=self.erases)
        records = read_metrics(recipe.out / "metrics.jsonl")
        points = [(int(each["step"]), each["loss/total"]) for each in records if "loss/total" in each]
        facts = {
            "images": summary["images_seen"],
            "seconds": summary["seconds"],
            "trials": 1,
            "curve": thinned(points),
            "spent": spent,
        }
        return reading, facts

    def _recipe(self) -> Recipe:
        """Of the run."""
        recipe = recipe_of(self.trained.arm, self.setup.base)
        changes = {
            "out": str(self.place / RUN_FOLDER),
            "seed": self.trained.seed,
            "probe": QUIET_PROBE,
            "train": {
                "checkpoint_every": min(recipe.train.checkpoint_every, max(recipe.train.steps // 4, 1)),
                "keep_checkpoints": 1,
            },
        }
        return build_recipe(merge(recipe.model_dump(mode="json"), changes))

    def _reader(self, model: LoadedModel, console: Console) -> Reader:
        cache = self.place / CACHE_FOLDER
        return Reader(self.setup, model, self.trained.seed, cache, console, self.trained.fraction)

    def _keep(self, reading: Reading, facts: dict[str, Any]) -> None:
        """Write the scores, and then the record that says that they are whole."""
        self.place.mkdir(parents=True, exist_ok=True)
        arrays = {**reading.scores, **{f"{CLS}|{arm}": values for arm, values in reading.cls.items()}}
        file = io.BytesIO()
        np.savez_compressed(file, **{name: values.astype(np.float32) for name, values in arrays.items()})  # type: ignore[arg-type]
        write_bytes(self.place / SCORES_FILE, file.getvalue())
        record = {
            **facts,
            **reading.facts,
            "read": sorted(reading.scores),
            "rows": self.setup.tested.tolist(),
        }
        write_whole(self.place / READING_FILE, json.dumps(record))
        if not self.setup.base.compare.keep_features:
            shutil.rmtree(self.place / CACHE_FOLDER, ignore_errors=True)


def starting_model(setup: Setup, trained: Trained) -> LoadedModel:
    """The starting backbone, or one with random weights."""
    base, channels = setup.base, setup.ready.channels
    settings = base.model_dump(mode="json")
    settings["seed"] = trained.seed
    if trained.arm == RANDOM:
        settings["model"] = {"config": random_config(base)}
    backbone, _ = starting_backbone(build_recipe(settings), channels)
    preprocessing = Preprocessing(
        size=base.views.global_size, normalization=base.images.normalization, channels=channels
    )
    return LoadedModel(backbone.requires_grad_(False).eval(), preprocessing, {}, None)


def reading_of(place: Path) -> dict[str, Any] | None:
    """The record of a finished reading."""
    path = place / READING_FILE
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def thinned(points: list[tuple[int, float]]) -> list[dict[str, float]]:
    """At most ``CURVE_POINTS`` of a curve, evenly spaced, the last among them."""
    if not points:
        return []
    places = np.unique(np.linspace(0, len(points) - 1, min(CURVE_POINTS, len(points))).round().astype(int))
    return [{"step": points[place][0], "loss": points[place][1]} for place in places]
