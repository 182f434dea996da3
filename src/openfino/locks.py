"""Locks of the operating system (flock): they end with the process that holds them, however it ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openfino.errors import OpenfinoError

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
