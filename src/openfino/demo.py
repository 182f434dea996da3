"""``openfino demo``: the whole of openfino on a drawn data set, in minutes on two CPU cores.

sample -> check -> adapt (a plain self-supervised arm and a guided arm, from the same start, side by side) -> probes in
and out of distribution -> export -> a table, ``results.json`` and one HTML page.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from openfino import tiny
from openfino.adapt import starting_backbone
from openfino.check import check_source
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.export import export
from openfino.images.preprocess import Preprocessing
from openfino.models.licence import licence_of, public_name
from openfino.models.store import save_backbone
from openfino.recipe import load_recipe
from openfino.report.demo_page import write_demo_page
from openfino.runfolder import claim_workspace
from openfino.sampledata import draw_sample
from openfino.training.logging import read_metrics

# What both arms start from. It has three channels; its patch embedding is widened to the screen's four.
START = tiny.NAME
CHANNELS = ["nucleus", "protein", "microtubules", "er"]
SIZE = 48
TESTS = ("test_id", "test_ood")
METHODS = ("knn", "linear")
# Why these roles (docs/demo.md): the antibody is what the pattern depends on; the plate is a batch effect, but each
# plate carries one cell line and its own panel of antibodies, so erasing it would erase part of the antibody too.
GUIDED_FACTORS: dict[str, dict[str, Any]] = {
    "antibody": {"role": "informative", "kind": "discrete", "weight": 0.3},
    "plate": {"role": "watched", "kind": "discrete"},
}
PLAIN_FACTORS = {name: {**factor, "role": "watched"} for name, factor in GUIDED_FACTORS.items()}
ARMS: dict[str, dict[str, dict[str, Any]]] = {"ssl": PLAIN_FACTORS, "fino": GUIDED_FACTORS}


@dataclass(frozen=True)
class Budget:
    """How much the demo does: images of the sample, steps and images per step of each arm."""

    images: int = 2400
    steps: int = 130
    batch_size: int = 32


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    seed: int = 0,
    budget: Budget = Budget(),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the demo in ``out`` and return what is in ``out/results.json``.

    Raises:
        OpenfinoError: if ``out`` is not empty (and not an earlier demo to overwrite), or an arm fails.
    """
    console = console or Console()
    started = time.perf_counter()
    claim_workspace(out, overwrite=overwrite)

    console.print("[bold]1. sample[/]  a drawn screen: 60 antibodies, 10 patterns, plates with batch effects")
    manifest = draw_sample(out / "data", images=budget.images, seed=0, workers=min(os.cpu_count() or 1, 2))
    recipes = {arm: write_recipe(out, arm, factors, seed, budget) for arm, factors in ARMS.items()}
    keep_start(out / "start", recipes["ssl"])

    console.print("[bold]2. check[/]   every problem of table, files and factors at once")
    for recipe in recipes.values():
        problems, summary = check_source(recipe)
        if problems:
            raise InputProblemsError(problems)
    console.print(f"   no problems. {summary.splitlines()[0]}", highlight=False)

    console.print(
        "[bold]3. adapt[/]   two arms from the same start: plain SSL, and FINO guided by the antibody"
    )
    train_arms(recipes, budget.steps, console)

    console.print("[bold]4. export[/]  the guided backbone as a Hugging Face folder")
    exported = export(out / "fino", out / "export", overwrite=True)
    console.print(f"   {exported}", highlight=False)

    results = collect_results(out)
    results["export"] = str(out / "export")
    results["seconds"] = round(time.perf_counter() - started, 1)
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    page = write_demo_page(out, manifest, results)
    console.print(result_table(results))
    console.print(
        f"{results['seconds']:.0f} s. The page: {page}   The model: {out / 'export'}", highlight=False
    )
    return results


def keep_start(folder: Path, recipe: Path) -> None:
    """Save the model that the arms of ``recipe`` start from, with its patch embedding fitted to their channels."""
    settings = load_recipe(recipe)
    backbone, _ = starting_backbone(settings, CHANNELS)
    source = settings.model.source
    parent = {"source": public_name(source), "licence": licence_of(source, backbone.config)}
    preprocessing = Preprocessing(
        size=settings.views.global_size, normalization=settings.images.normalization, channels=CHANNELS
    )
    save_backbone(folder, backbone, preprocessing, {"source": parent["source"], "parent": parent})


def write_recipe(
    out: Path, name: str, factors: Mapping[str, Mapping[str, Any]], seed: int, budget: Budget
) -> Path:
    """The recipe of one arm.

    The two differ in the role of the antibody, and so in the regulariser that the paper gives each kind of run:
    KoLeo to the plain arm, SIGReg to the guided one.
    """
    recipe = {
        "preset": "small",
        "manifest": "data/manifest.csv",
        "out": name,
        "model": START,
        "seed": seed,
        "train_split": ["train"],
        "images": {"channels": CHANNELS, "normalization": "zscore"},
        "views": {
            "preset": "fluorescence",
            "protein_channel": "protein",
            "global_size": SIZE,
            "local_size": SIZE // 2,
            "local_count": 4,
            # Images of a few cells: a crop of a twentieth of the area would show none.
            "global_scale": [0.5, 1.0],
            "local_scale": [0.2, 0.5],
        },
        "factors": {factor: dict(settings) for factor, settings in factors.items()},
        "train": {
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            # The preset's 1e-3 is for random weights; of the two this was better for both arms on split val.
            "lr": 3e-4,
            "warmup_steps": min(20, budget.steps // 15),
            "workers": 0,
            "threads": max((os.cpu_count() or 2) // len(ARMS), 1),
            "checkpoint_every": budget.steps,
            "device": "cpu",
        },
        "probe": {
            "label": "localization",
            "split": "split",
            "train": "train",
            "tests": list(TESTS),
            "every": max(budget.steps // 4, 1),
        },
    }
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def train_arms(recipes: Mapping[str, Path], steps: int, console: Console) -> None:
    """Train the arms side by side, each in its own process on its share of the cores.

    A backbone this small gains little from a second thread, so two processes finish sooner than two runs in turn.

    Raises:
        OpenfinoError: with the last lines of its log, if an arm fails.
    """
    processes, logs = {}, {}
    for arm, recipe in recipes.items():
        logs[arm] = recipe.with_suffix(".log").open("w", encoding="utf-8")
        command = [sys.executable, "-m", "openfino.cli", "adapt", str(recipe)]
        processes[arm] = subprocess.Popen(command, stdout=logs[arm], stderr=subprocess.STDOUT)
    columns = (
        TextColumn("   {task.description:5}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            tasks = {arm: progress.add_task(arm, total=steps, note="starting") for arm in recipes}
            announced = dict.fromkeys(recipes, 0)
            while any(process.poll() is None for process in processes.values()):
                time.sleep(1.0)
                for arm, recipe in recipes.items():
                    done, note = _progress_of(recipe.parent / arm)
                    progress.update(tasks[arm], completed=done, note=note)
                    if not console.is_terminal and 4 * done // steps > announced[arm]:
                        announced[arm] = 4 * done // steps
                        console.print(f"   {arm}: step {done} of {steps}  {note}", highlight=False)
    finally:
        for arm, process in processes.items():
            if process.poll() is None:
                process.terminate()
            process.wait()
            logs[arm].close()
    for arm, process in processes.items():
        if process.returncode:
            tail = recipes[arm].with_suffix(".log").read_text(encoding="utf-8")[-2000:]
            raise OpenfinoError(f"the arm {arm} failed (exit code {process.returncode}):\n{tail}")


def collect_results(out: Path) -> dict[str, Any]:
    """Scores of the three arms from the probes that the runs kept: the start is the frozen arm."""
    probes = {arm: _read_lines(out / arm / "probes.jsonl") for arm in ARMS}
    records = {"frozen": probes["ssl"][0], "ssl": probes["ssl"][-1], "fino": probes["fino"][-1]}
    return {"arms": {arm: _scores(record) for arm, record in records.items()}}


def _scores(record: Mapping[str, Any]) -> dict[str, Any]:
    splits = record["label"]["splits"]
    scores: dict[str, Any] = {
        split: {method: {"macro_f1": splits[split]["scores"][method]["macro_f1"]} for method in METHODS}
        for split in TESTS
    }
    scores["leakage"] = {
        name: {key: reading[key] for key in ("knn_accuracy", "majority", "chance")}
        for name, reading in record["leakage"].items()
    }
    return scores


def result_table(results: Mapping[str, Any]) -> Table:
    """The three arms on the terminal."""
    table = Table(title="macro-F1 of the localisation pattern on frozen features", title_justify="left")
    table.add_column("arm")
    for split in TESTS:
        for method in METHODS:
            table.add_column(f"{split}\n{method}", justify="right")
    table.add_column("plate read\nby kNN", justify="right")
    for arm, scores in results["arms"].items():
        cells = [f"{scores[split][method]['macro_f1']:.3f}" for split in TESTS for method in METHODS]
        table.add_row(arm, *cells, f"{scores['leakage']['plate']['knn_accuracy']:.3f}")
    table.caption = "test_ood: plates that training never saw"
    return table


def _progress_of(run: Path) -> tuple[int, str]:
    """Steps done and a note, from the run's metrics so far."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if "loss/total" in record]
    if not records:
        return 0, "starting"
    last = records[-1]
    return int(last["step"]) + 1, f"loss {last['loss/total']:.2f}"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
