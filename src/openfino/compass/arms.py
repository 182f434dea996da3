"""Training the arms: each once, by whichever process gets to it first, going on where a kill left it."""

import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openfino.adapt import SUMMARY_FILE, adapt
from openfino.compass.folder import lock
from openfino.compass.plan import Job
from openfino.errors import OpenfinoError
from openfino.recipe import dump_recipe
from openfino.runfolder import write_whole
from openfino.training.checkpoint import FOLDER

POLL = 1.0
LOG_WIDTH = 120

Say = Callable[[str], None]


def summary_of(job: Job) -> dict[str, Any] | None:
    """What the finished run of ``job`` recorded; None if it is not finished."""
    path = job.recipe.out / SUMMARY_FILE
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary["steps"] == job.recipe.train.steps else None


def run_jobs(jobs: Sequence[Job], say: Say) -> None:
    """Finish every one of ``jobs``; returns when all are finished, by this process or by others.

    Raises:
        OpenfinoError: if an arm cannot be trained.
    """
    done = sum(summary_of(job) is not None for job in jobs)
    if done:
        say(f"{done} of {len(jobs)} arms are finished already")
    waited = False
    while left := [job for job in jobs if summary_of(job) is None]:
        for job in left:
            with lock(_beside(job, "lock")) as held:
                if held and summary_of(job) is None:
                    _train(job, say, f"{_finished(jobs) + 1} of {len(jobs)}")
                    break
        else:
            if not waited and any(summary_of(job) is None for job in jobs):
                say("other processes train the arms that are left; waiting for them")
                waited = True
            time.sleep(POLL)
        # Begin again with the first: a process that was killed meanwhile has left one behind.


def _train(job: Job, say: Say, number: str) -> None:
    """One run, with what it says in a log beside its folder."""
    recipe, started = job.recipe, time.perf_counter()
    write_whole(_beside(job, "yaml"), dump_recipe(recipe))
    with _beside(job, "log").open("a", encoding="utf-8") as log:
        console = Console(file=log, width=LOG_WIDTH, no_color=True)
        try:
            adapt(recipe, resume=True, console=console)
        except OpenfinoError as error:
            console.print(f"error: {error}", markup=False)
            raise OpenfinoError(
                f"the arm {job.title} failed: {error}\nIts log: {_beside(job, 'log')}. The same command goes on "
                "with the arms that are left"
            ) from None
    shutil.rmtree(recipe.out / FOLDER, ignore_errors=True)
    _release_memory()
    say(f"{number}: {job.title}, {time.perf_counter() - started:.0f} s")


def _release_memory() -> None:
    """Of the models and the optimizer of the arm before: they hold each other until a collection."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _finished(jobs: Sequence[Job]) -> int:
    return sum(summary_of(job) is not None for job in jobs)


def _beside(job: Job, extension: str) -> Path:
    folder = job.recipe.out
    return folder.with_name(f"{folder.name}.{extension}")
