"""The table that is audited, one column at a time: Parquet columns are read only when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.manifest import IMAGE_SUFFIXES, PATH_ALIASES, Manifest, masked, read_manifest
from openfino.tables import SEPARATORS, read_table, typed

_PATHS_READ = 2000
_HEAD = 100


@dataclass(frozen=True)
class Source:
    """A table of N rows.

    Attributes:
        name: of its file or folder.
        columns: the names of its columns.
        path_columns: those that hold image paths.
        rows: N.
        missing: further tokens that mean "no value".
        frame: the table, lazily: nothing of a Parquet file is kept in memory.
        is_text: whether columns are text that stands for numbers, as in CSV files.
    """

    name: str
    columns: tuple[str, ...]
    path_columns: tuple[str, ...]
    rows: int
    missing: tuple[str, ...]
    frame: pl.LazyFrame
    is_text: bool

    def column(self, name: str) -> pl.Series:
        """One column, typed, null where there is no value."""
        column = masked(self.frame.select(name).collect()[name], self.missing)
        if column.dtype == pl.Duration:
            return column.dt.total_microseconds() / 1e6
        return typed(column) if self.is_text and column.dtype == pl.String else column

    def some_rows(self, names: Sequence[str]) -> pl.DataFrame:
        """A few blocks of rows, evenly spread over the table, at most about 2,000."""
        blocks = 20
        length = _PATHS_READ // blocks
        if self.rows <= _PATHS_READ:
            return self.frame.select(names).collect()
        starts = [number * (self.rows - length) // (blocks - 1) for number in range(blocks)]
        return pl.concat(self.frame.select(names).slice(start, length).collect() for start in starts)


def open_source(
    source: Path | Manifest | pl.DataFrame,
    *,
    path_columns: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Source:
    """A table file, a folder of images, a manifest or a frame; unlike a manifest it needs no image paths.

    Raises:
        OpenfinoError: if the file cannot be read or holds no row.
        InputProblemsError: if a path column is absent.
    """
    if isinstance(source, Manifest):
        lazy = source.table.lazy()
        columns = tuple(source.table.columns)
        return Source(source.name, columns, source.path_columns, len(source), source.missing, lazy, False)
    if isinstance(source, pl.DataFrame):
        return _with_paths("table", source.lazy(), len(source), path_columns, missing, False)
    if source.is_dir():
        return open_source(read_manifest(source, missing=missing))
    extension = source.suffix.lower()
    if extension == ".parquet" and source.is_file():
        lazy = pl.scan_parquet(source, glob=False, hive_partitioning=False)
        try:
            rows = int(lazy.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            said = str(error).splitlines()[0]
            raise OpenfinoError(f"{source} is not a readable Parquet file: {said}") from None
        if rows == 0:
            raise OpenfinoError(f"{source} holds no row: write one row per image")
        return _with_paths(source.name, lazy, rows, path_columns, missing, False)
    frame, _ = read_table(source)
    is_text = extension in SEPARATORS
    return _with_paths(source.name, frame.lazy(), len(frame), path_columns, missing, is_text)


def _with_paths(
    name: str,
    lazy: pl.LazyFrame,
    rows: int,
    path_columns: Sequence[str],
    missing: Sequence[str],
    is_text: bool,
) -> Source:
    head = lazy.head(_HEAD).collect()
    absent = [column for column in path_columns if column not in head.columns]
    if absent:
        listed = f"Columns: {', '.join(head.columns[:20])}"
        problems = [Problem("--path-column", f"there is no column {column!r}", listed) for column in absent]
        raise InputProblemsError(problems)
    found = list(path_columns) or [column for column in PATH_ALIASES if column in head.columns][:1]
    if not found:
        found = [column.name for column in head if _holds_paths(column)]
    return Source(name, tuple(head.columns), tuple(found), rows, tuple(missing), lazy, is_text)


def _holds_paths(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return False
    endings = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
    present = column.drop_nulls()
    named = present.str.contains(rf"(?i)\.({endings})\s*$").sum()
    return len(present) > 0 and named >= 0.9 * len(present)
