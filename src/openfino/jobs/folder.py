"""A folder that several processes and machines may share: what they must agree on, and who may write into it.

``plan.json`` (what every process must agree on), ``table.parquet`` (the manifest with the splits of the jobs),
``arms/`` (a folder, a log and a lock for each job), and a mark that says of which command it is.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from openfino.errors import OpenfinoError
from openfino.locks import lock
from openfino.manifest import Manifest
from openfino.runfolder import write_whole

PLAN_FILE, TABLE_FILE, ARMS_FOLDER = "plan.json", "table.parquet", "arms"


@dataclass(frozen=True)
class Workplace:
    """The shared folder of one command.

    Attributes:
        out: the folder.
        word: what lies in it, such as "compass".
    """

    out: Path
    word: str

    @property
    def mark(self) -> Path:
        """The file that says whose folder it is, and its lock."""
        return self.out / f".openfino-{self.word}"

    def claim(self, plan: Mapping[str, Any], table: pl.DataFrame, *, overwrite: bool) -> Path:
        """Make the folder that of this plan, or join the one that is there; returns the table of the jobs.

        Raises:
            OpenfinoError: if there is something else in it, another plan, or another table.
        """
        out = self.out
        if out.exists() and not out.is_dir():
            raise OpenfinoError(f"{out} is a file; choose another folder with --out")
        if out.is_dir() and any(out.iterdir()) and not self.mark.is_file():
            raise OpenfinoError(
                f"{out} is not empty and holds no {self.word}; nothing in it was touched. Choose another folder with "
                "--out"
            )
        with lock(self.mark, wait=True):
            if overwrite:
                self._clear()
            if (out / PLAN_FILE).is_file():
                self._refuse_other(plan, table)
            else:
                _write_table(out / TABLE_FILE, table)
                write_whole(out / PLAN_FILE, json.dumps(plan, indent=1))
        return out / TABLE_FILE

    def refuse_inside(self, manifest: Path) -> None:
        """Refuse a folder that holds the manifest, or that lies among the images.

        Raises:
            OpenfinoError: if it does.
        """
        manifest, folder = manifest.resolve(), self.out.resolve()
        if manifest.is_relative_to(folder):
            raise OpenfinoError(f"{self.out} holds the manifest; choose another folder with --out")
        if manifest.is_dir() and folder.is_relative_to(manifest):
            raise OpenfinoError(
                f"{self.out} lies among the images, where its pictures would become some of them; choose another with "
                "--out"
            )

    def _refuse_other(self, plan: Mapping[str, Any], table: pl.DataFrame) -> None:
        stored = json.loads((self.out / PLAN_FILE).read_text(encoding="utf-8"))
        now = json.loads(json.dumps(plan))
        before, after = _flat(stored), _flat(now)
        changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
        remedy = "Put it back, write --overwrite to start anew, or choose another folder with --out"
        holds = f"{self.out} holds a {self.word}"
        if changed:
            shown = ", ".join(f"{key} ({before.get(key)} -> {after.get(key)})" for key in changed[:10])
            raise OpenfinoError(f"{holds} of another plan; it differs in {shown}. {remedy}")
        if not pl.read_parquet(self.out / TABLE_FILE).equals(table):
            raise OpenfinoError(f"{holds} of another table: the manifest has changed. {remedy}")

    def _clear(self) -> None:
        """Remove all but the mark of the folder.

        Raises:
            OpenfinoError: if some process still works on a job.
        """
        for path in sorted((self.out / ARMS_FOLDER).glob("*.lock")):
            with lock(path) as held:
                if not held:
                    raise OpenfinoError(
                        f"{self.out}: another process works on {path.stem} right now; end it first"
                    )
        for path in self.out.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.mark:
                path.unlink()


def with_absolute_paths(manifest: Manifest) -> pl.DataFrame:
    """The table with paths that do not depend on where it lies."""
    absolute = [
        pl.Series(name, [_absolute(manifest, value) for value in manifest.table[name]], dtype=pl.String)
        for name in manifest.path_columns
    ]
    return manifest.table.with_columns(*absolute)


def _absolute(manifest: Manifest, value: str | None) -> str | None:
    return None if value is None else str(manifest.root / value)


def write_bytes(path: Path, content: bytes) -> None:
    """Write so that a kill, or a second process that writes the same, leaves no half file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _write_table(path: Path, table: pl.DataFrame) -> None:
    """A kill leaves no half table."""
    file = io.BytesIO()
    table.write_parquet(file)
    write_bytes(path, file.getvalue())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
