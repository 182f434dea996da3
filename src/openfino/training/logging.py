"""Where a run's numbers go: metrics.jsonl always, TensorBoard, and the terminal."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The objects of a metrics file; a last line cut off by a kill is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class RunLog:
    """Writes metrics and shows progress; does nothing on ranks other than the main one."""

    def __init__(
        self, folder: Path, *, start_step: int, total_steps: int, console: Console, active: bool
    ) -> None:
        self.active = active
        self.console = console
        self.total_steps = total_steps
        self._printed_tenth = -1
        if not active:
            return
        path = folder / METRICS_FILE
        # A killed run has logged steps beyond its last checkpoint; they run again.
        kept = [record for record in read_metrics(path) if record["step"] < start_step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=start_step, note="")

    @classmethod
    def silent(cls) -> Self:
        """A log that keeps nothing."""
        return cls(Path(), start_step=0, total_steps=1, console=Console(quiet=True), active=False)

    def __enter__(self) -> Self:
        if self.active:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._progress.stop()
            self._board.close()
            self._file.close()

    def advance(self, step: int) -> None:
        """Move the progress bar to ``step`` finished steps."""
        if self.active:
            self._progress.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one object for ``step``; non-finite numbers become null, as JSON has none."""
        if not self.active or not metrics:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if "loss/total" in metrics:
            note = f"loss {metrics['loss/total']:.3f}  {metrics['speed/images_per_second']:.0f} images/s"
            self._progress.update(self._task, note=note)
            tenth = 10 * (step + 1) // self.total_steps
            if not self.console.is_terminal and tenth > self._printed_tenth:
                self._printed_tenth = tenth
                self.console.print(f"step {step + 1}/{self.total_steps}  {note}", highlight=False)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show an RGB image [h, w, 3] in TensorBoard, at ``step`` as :meth:`write` counts."""
        if self.active:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """A line for the user, above the progress bar."""
        if self.active:
            self.console.print(text, highlight=False)
