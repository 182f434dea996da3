"""Doing jobs: each once, by whichever process gets to it first, going on where a kill left it."""

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console

from openfino.adapt import adapt
from openfino.errors import OpenfinoError
from openfino.locks import lock
from openfino.recipe import Recipe, dump_recipe
from openfino.runfolder import write_whole
from openfino.training.checkpoint import FOLDER

POLL = 1.0
LOG_WIDTH = 120

Say = Callable[[str], None]


class Job(Protocol):
    """A piece of work that leaves a folder."""

    @property
    def title(self) -> str:
        """For the reader."""

    @property
    def place(self) -> Path:
        """Its folder; its lock and its log lie beside it."""

    def finished(self) -> bool:
        """Whether all of it is done."""

    def run(self, console: Console) -> None:
        """Do it, or what is left of it; ``console`` writes into its log."""


def run_jobs(jobs: Sequence[Job], say: Say) -> None:
    """Finish every one of ``jobs``; returns when all are finished, by this process or by others.

    Raises:
        OpenfinoError: if one cannot be done.
    """
    done = _finished(jobs)
    if done:
        say(f"{done} of {len(jobs)} arms are finished already")
    waited = False
    while left := [job for job in jobs if not job.finished()]:
        for job in left:
            with lock(beside(job.place, "lock")) as held:
                if held and not job.finished():
                    _do(job, say, f"{_finished(jobs) + 1} of {len(jobs)}")
                    break
        else:
            if not waited and any(not job.finished() for job in jobs):
                say("other processes work on the arms that are left; waiting for them")
                waited = True
            time.sleep(POLL)
        # Begin again with the first: a process that was killed meanwhile has left one behind.


def train_run(recipe: Recipe, console: Console) -> dict[str, Any]:
    """One run of ``adapt``, begun or gone on with; its recipe lies beside it, its checkpoints go when it is done."""
    recipe.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(beside(recipe.out, "yaml"), dump_recipe(recipe))
    summary = adapt(recipe, resume=True, console=console)
    shutil.rmtree(recipe.out / FOLDER, ignore_errors=True)
    return summary


def beside(place: Path, extension: str) -> Path:
    """The file of that extension that belongs to the folder ``place``."""
    return place.with_name(f"{place.name}.{extension}")


def _do(job: Job, say: Say, number: str) -> None:
    """One job, with what it says in a log beside its folder."""
    started = time.perf_counter()
    with beside(job.place, "log").open("a", encoding="utf-8") as log:
        console = Console(file=log, width=LOG_WIDTH, no_color=True)
        try:
            job.run(console)
        except OpenfinoError as error:
            console.print(f"error: {error}", markup=False)
            raise OpenfinoError(
                f"the arm {job.title} failed: {error}\nIts log: {beside(job.place, 'log')}. The same command goes on "
                "with the arms that are left"
            ) from None
    _release_memory()
    say(f"{number}: {job.title}, {time.perf_counter() - started:.0f} s")


def _release_memory() -> None:
    """Of the models and the optimizer of the job before: they hold each other until a collection."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _finished(jobs: Sequence[Job]) -> int:
    return sum(job.finished() for job in jobs)
