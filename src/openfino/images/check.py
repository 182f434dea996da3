"""Everything that is wrong with a manifest and the images it names, all at once, before any training."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.factors.spec import resolve_specs
from openfino.images.read import read_image
from openfino.manifest import Manifest
from openfino.procedural import is_image_name
from openfino.recipe import FactorSettings

_LISTED_FILES = 20
_CHUNK = 256


def check_manifest(
    manifest: Manifest,
    *,
    factors: Mapping[str, FactorSettings],
    required_columns: Mapping[str, str],
    read_images: Literal["none", "exist", "decode"],
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Every problem of the table, the factors and the image files.

    Args:
        manifest: the table.
        factors: the factors of the recipe (see :func:`openfino.factors.spec.resolve_specs`).
        required_columns: columns that something else needs, each with the recipe key that asks for it.
        read_images: look at no file, look whether each exists and can be opened, or decode each.
        progress: called with (rows done, rows in all) as files are looked at or decoded.
    """
    problems = _check_factors(manifest, factors) + _check_required(manifest, required_columns)
    problems += _check_paths(manifest)
    if read_images == "none":
        return problems
    rows = np.flatnonzero(_has_paths(manifest).to_numpy())
    causes = _look_at_files(manifest, rows, progress if read_images == "exist" else None)
    if read_images == "decode":
        channels = _decode(manifest, rows, causes, progress)
        problems += _check_channels(manifest, channels)
    return problems + _bad_files(manifest, causes)


def _check_factors(manifest: Manifest, factors: Mapping[str, FactorSettings]) -> list[Problem]:
    try:
        resolve_specs(manifest, factors)
    except InputProblemsError as error:
        return error.problems
    return []


def _check_required(manifest: Manifest, required_columns: Mapping[str, str]) -> list[Problem]:
    problems = []
    for column, key in required_columns.items():
        if column not in manifest.table.columns:
            problems.append(manifest.absent(column, key))
        elif manifest.table[column].null_count() == len(manifest):
            what = f"every value is missing, but {key} needs them"
            problems.append(
                Problem(f"{manifest.name}, column {column}", what, f"Fill the column in, or remove {key}")
            )
    return problems


def _has_paths(manifest: Manifest) -> pl.Series:
    return manifest.table.select(pl.all_horizontal(pl.col(manifest.path_columns).is_not_null())).to_series()


def _check_paths(manifest: Manifest) -> list[Problem]:
    """Rows without a path, and rows that repeat the image of an earlier one."""
    problems = []
    for column in manifest.path_columns:
        empty = manifest.table[column].is_null().arg_true().to_numpy()
        if len(empty):
            what = f"there is no path in {len(empty):,} {_rows(len(empty))}: {manifest.list_rows(empty)}"
            problems.append(
                Problem(f"{manifest.name}, column {column}", what, "Fill them in, or remove the rows")
            )
    paths = manifest.table.select(pl.col(manifest.path_columns).str.replace_all(r"(^|/)(\./)+", "${1}"))
    again = (
        _has_paths(manifest) & ~paths.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    ).arg_true()
    if len(again):
        values = [", ".join(row) for row in paths[again[:5].to_list()].rows()]
        listed = manifest.list_rows(again.to_numpy(), values)
        repeat = "row repeats" if len(again) == 1 else "rows repeat"
        what = f"{len(again):,} {repeat} the image of an earlier row: {listed}"
        problems.append(
            Problem(f"{manifest.name}, column {', '.join(manifest.path_columns)}", what, "Remove them")
        )
    return problems


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _look_at_files(
    manifest: Manifest, rows: np.ndarray, progress: Callable[[int, int], None] | None
) -> dict[int, str]:
    """Why the files of a row cannot be opened, for the rows where one cannot."""
    causes: dict[int, str] = {}
    columns = [manifest.table[column] for column in manifest.path_columns]
    for done in range(0, len(rows), _CHUNK):
        chunk = rows[done : done + _CHUNK]
        for row, *values in zip(chunk, *(column[chunk] for column in columns), strict=True):
            found = [
                f"{value}: {cause}" for value in values if (cause := _why_unreadable(manifest.root, value))
            ]
            if found:
                causes[int(row)] = "; ".join(found)
        if progress is not None:
            progress(done + len(chunk), len(rows))
    return causes


def _why_unreadable(root: Path, value: str) -> str | None:
    if is_image_name(value):
        return None
    path = os.path.join(root, value)
    try:
        found = os.stat(path)
    except OSError as error:
        if "\\" in value:
            return "there is no such file; write / between folders"
        return "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError:  # a null character
        return "is no file name"
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_size == 0:
        return "the file is empty"
    return None if os.access(path, os.R_OK) else "you have no permission to read it"


def _decode(
    manifest: Manifest, rows: np.ndarray, causes: dict[int, str], progress: Callable[[int, int], None] | None
) -> dict[int, int]:
    """Channel count of each row that decodes; the cause of each that does not is added to ``causes``."""

    def count(row: int) -> int | str:
        try:
            return read_image(manifest.paths(row)).shape[0]
        except (OpenfinoError, OSError) as error:
            return str(error)

    channels: dict[int, int] = {}
    readable = [int(row) for row in rows if int(row) not in causes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks, because the pool would otherwise queue every row of the table at once.
        for done in range(0, len(readable), _CHUNK):
            chunk = readable[done : done + _CHUNK]
            for row, result in zip(chunk, pool.map(count, chunk), strict=True):
                if isinstance(result, str):
                    causes[row] = result
                else:
                    channels[row] = result
            if progress is not None:
                progress(done + len(chunk), len(readable))
    return channels


def _check_channels(manifest: Manifest, channels: Mapping[int, int]) -> list[Problem]:
    counts = Counter(channels.values())
    if len(counts) < 2:
        return []
    described = []
    for number, (count, share) in enumerate(counts.most_common()):
        rows = sorted(row for row, found in channels.items() if found == count)
        where = f" ({manifest.list_rows(rows)})" if number else ""
        described.append(f"{count} in {share:,} {_rows(share)}{where}")
    what = f"the number of channels differs: {', '.join(described)}"
    return [
        Problem(manifest.name, what, "Every image needs the same channels: convert or remove the odd ones")
    ]


def _bad_files(manifest: Manifest, causes: Mapping[int, str]) -> list[Problem]:
    remedy = f"Relative paths start from {manifest.root}"
    rows = sorted(causes)
    problems = [
        Problem(f"{manifest.name} {manifest.locate(row)}", causes[row], remedy)
        for row in rows[:_LISTED_FILES]
    ]
    if len(rows) > _LISTED_FILES:
        what = f"{len(rows) - _LISTED_FILES:,} more images cannot be read ({len(rows):,} in all)"
        problems.append(Problem(manifest.name, what, remedy))
    return problems
