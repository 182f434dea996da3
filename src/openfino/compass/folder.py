"""The folder of a compass, which several processes and machines may share.

``plan.json`` (what every process must agree on), ``table.parquet`` (the manifest with the arms' splits), ``arms/`` (a
run folder, a log and a lock for each arm and seed), and the result: ``compass.json``, ``compass.png``,
``compass.html``, ``recommended.yaml``.

Locks are those of the operating system (flock): they end with the process that holds them, however it ends.
"""

import fcntl
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from openfino.compass.plan import ARMS_FOLDER
from openfino.errors import OpenfinoError
from openfino.runfolder import write_whole

PLAN_FILE, TABLE_FILE, LOCK_FILE = "plan.json", "table.parquet", ".openfino-compass"
_POLL = 0.2


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock ``path`` if no other process does; yields whether it is held.

    Args:
        path: a file that is made if need be, and stays.
        wait: until it is free.

    Raises:
        OpenfinoError: if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        held = _try_lock(file)
        while wait and not held:
            time.sleep(_POLL)
            held = _try_lock(file)
        yield held  # closing the file gives the lock back


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OpenfinoError(
            f"{file.name} cannot be locked ({error.strerror}): choose a folder on a file system with locks, such as a "
            "local disk or NFS 4"
        ) from None
    return True


def claim(out: Path, plan: Mapping[str, Any], table: pl.DataFrame, *, overwrite: bool) -> Path:
    """Make ``out`` the folder of this plan, or join the one that is there; returns the arms' table.

    Raises:
        OpenfinoError: if there is something else in it, another plan, or another table.
    """
    if out.exists() and not out.is_dir():
        raise OpenfinoError(f"{out} is a file; choose another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / LOCK_FILE).is_file():
        raise OpenfinoError(
            f"{out} is not empty and holds no compass; nothing in it was touched. Choose another folder with --out"
        )
    with lock(out / LOCK_FILE, wait=True):
        if overwrite:
            _clear(out)
        if (out / PLAN_FILE).is_file():
            _refuse_other(out, plan, table)
        else:
            _write_table(out / TABLE_FILE, table)
            write_whole(out / PLAN_FILE, json.dumps(plan, indent=1))
    return out / TABLE_FILE


def _refuse_other(out: Path, plan: Mapping[str, Any], table: pl.DataFrame) -> None:
    stored = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))
    now = json.loads(json.dumps(plan))
    before, after = _flat(stored), _flat(now)
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    remedy = "Put it back, write --overwrite to start anew, or choose another folder with --out"
    if changed:
        shown = ", ".join(f"{key} ({before.get(key)} -> {after.get(key)})" for key in changed[:10])
        raise OpenfinoError(f"{out} holds a compass of another plan; it differs in {shown}. {remedy}")
    if not pl.read_parquet(out / TABLE_FILE).equals(table):
        raise OpenfinoError(f"{out} holds a compass of another table: the manifest has changed. {remedy}")


def _clear(out: Path) -> None:
    """Remove all but the lock of the folder.

    Raises:
        OpenfinoError: if some process still trains an arm.
    """
    for path in sorted((out / ARMS_FOLDER).glob("*.lock")):
        with lock(path) as held:
            if not held:
                raise OpenfinoError(f"{out}: another process trains {path.stem} right now; end it first")
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _write_table(path: Path, table: pl.DataFrame) -> None:
    """A kill leaves no half table."""
    file = io.BytesIO()
    table.write_parquet(file)
    write_bytes(path, file.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Write so that a kill, or a second process that writes the same, leaves no half file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
