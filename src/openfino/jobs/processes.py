"""More processes of this machine for the jobs of one folder."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from openfino.errors import OpenfinoError

LAST_WORDS = 2000


@contextmanager
def helpers(module: str, arguments: Sequence[str], count: int, folder: Path, threads: int) -> Iterator[None]:
    """``count`` processes ``python -m MODULE ARGUMENTS`` while the block runs; what they say goes into ``folder``.

    At the end of the block they are waited for; where it fails, they are ended.

    Raises:
        OpenfinoError: with the last words of one that failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *arguments]
    with ExitStack() as stack:
        logs = [folder / f"{os.getpid()}-{number}.log" for number in range(count)]
        streams = [stack.enter_context(log.open("w", encoding="utf-8")) for log in logs]
        processes = [
            subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
            for stream in streams
        ]
        try:
            yield
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                process.wait()
    for process, log in zip(processes, logs, strict=True):
        if process.returncode:
            tail = log.read_text(encoding="utf-8")[-LAST_WORDS:]
            raise OpenfinoError(f"a helping process failed (exit code {process.returncode}):\n{tail}")
        log.unlink()
