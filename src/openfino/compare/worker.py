"""``python -m openfino.compare.worker RECIPE``: one more process that does the jobs of a comparison.

RECIPE is the arms' recipe, as the command wrote it into the folder. It ends when no job is left.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console

from openfino.compare.setup import open_setup
from openfino.compare.working import ArmJob
from openfino.errors import OpenfinoError
from openfino.jobs.running import Say, run_jobs
from openfino.recipe import Recipe, load_recipe


def work(base: Recipe, say: Say, threads: int | None = None) -> None:
    """Do every job of the arms' recipe that nobody has done yet, and wait for those that others are at.

    Raises:
        OpenfinoError: if an arm fails.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    setup = open_setup(base)
    run_jobs([ArmJob(setup, trained) for trained in setup.trained()], say)


def main(recipe: str, threads: str) -> int:
    """Entry point."""
    console = Console()
    try:
        work(load_recipe(Path(recipe)), lambda text: console.print(text, markup=False), int(threads))
    except OpenfinoError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
