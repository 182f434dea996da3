"""How long ``openfino audit`` takes and how much memory, on a drawn screen of any length.

    python benchmarks/audit.py --rows 100000 10000000

Ten columns beside none that holds paths, with the shape of the Human Protein Atlas: 1,457 plates of 35 cell lines,
14,678 antibodies of which each plate has about 25, wells, a label, an independent operator and scanner, a timestamp and
two quantities. Each size is drawn into a Parquet file and audited in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

PLATES, LINES, ANTIBODIES, PANEL = 1457, 35, 14_678, 25


def draw_table(rows: int, seed: int = 0) -> pl.DataFrame:
    """A screen of ``rows`` images."""
    rng = np.random.default_rng(seed)
    plate = rng.integers(0, PLATES, rows)
    line = rng.integers(0, LINES, PLATES)
    panel = rng.integers(0, ANTIBODIES, (PLATES, PANEL))
    antibody = panel[plate, rng.integers(0, PANEL, rows)]
    label = rng.integers(0, 28, ANTIBODIES)

    def named(prefix: str, codes: np.ndarray) -> pl.Series:
        names = pl.Series([f"{prefix}-{code:05d}" for code in range(int(codes.max()) + 1)])
        return names.gather(codes)

    return pl.DataFrame(
        {
            "antibody": named("AB", antibody),
            "plate": named("PL", plate),
            "cell_line": named("CL", line[plate]),
            "localization": named("L", label[antibody]),
            "well": named("W", rng.integers(0, 96, rows)),
            "operator": named("OP", rng.integers(0, 12, rows)),
            "scanner": named("SC", rng.integers(0, 4, rows)),
            "acquired": pl.Series(1_600_000_000 + 40_000 * plate + rng.integers(0, 30_000, rows)).cast(
                pl.Int64
            )
            * 1_000_000,
            "dose": rng.lognormal(size=rows),
            "cells": rng.integers(0, 200, rows),
        }
    ).with_columns(pl.col("acquired").cast(pl.Datetime("us")))


def measure(file: Path) -> dict[str, float]:
    """Audit ``file`` in this process."""
    from openfino.audit.analysis import run_audit

    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    audit = run_audit(file)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": audit.rows,
        "pairs": len(audit.dependence),
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": after.ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--file", type=Path, help="Audit this file and print the figures.")
    arguments = parser.parse_args()
    if arguments.file:
        print(json.dumps(measure(arguments.file)))
        return
    print("| rows | columns | wall s | processor s | peak GB |\n| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            file = Path(folder) / f"{rows}.parquet"
            table = draw_table(rows)
            table.write_parquet(file)
            columns = table.width
            del table
            command = [sys.executable, __file__, "--file", str(file)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            figures = " | ".join(f"{found[key]:.2f}" for key in ("seconds", "cpu_seconds", "peak_gb"))
            print(f"| {rows:,} | {columns} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
