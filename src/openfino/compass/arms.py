"""Training the arms of a compass."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from openfino.adapt import SUMMARY_FILE
from openfino.compass.plan import Job
from openfino.jobs import running
from openfino.jobs.running import Say


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
    running.run_jobs([_Training(job) for job in jobs], say)


@dataclass(frozen=True)
class _Training:
    """A job as any process may do it."""

    job: Job

    @property
    def title(self) -> str:
        return self.job.title

    @property
    def place(self) -> Path:
        return self.job.recipe.out

    def finished(self) -> bool:
        return summary_of(self.job) is not None

    def run(self, console: Console) -> None:
        running.train_run(self.job.recipe, console)
