"""The manifest: one row per image (DESIGN decision 1).

A table file or a plain folder becomes a :class:`Manifest`: where each image lies and what is known about it.
Every missing value is null, every other value is what the file says. :mod:`openfino.images.check` finds what is
wrong with one.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.tables import SEPARATORS, read_table, typed, value_keys

PATH_ALIASES = ("path", "file_name", "filepath")
IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".npy"})

_MISSING_WORDS = ("", "null", "Null", "NULL", "nan", "NaN", "NAN")
_LISTED_ROWS = 5
_LISTED_COLUMNS = 20


@dataclass(frozen=True)
class Manifest:
    """One row per image.

    Attributes:
        file: the table file; None for a plain folder.
        root: absolute folder that relative paths start from.
        table: N rows; missing values are null, other columns than paths hold no blank text.
        path_columns: columns with image paths, one per channel or group of channels.
        missing: the tokens that the user declared to mean "no value".
        lines: line of each row in ``file`` as an editor numbers it, int64 [N]; None where rows are not lines.
    """

    file: Path | None
    root: Path
    table: pl.DataFrame
    path_columns: tuple[str, ...]
    missing: tuple[str, ...] = ()
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def name(self) -> str:
        """What the user calls it: the name of the file or the folder."""
        return (self.file or self.root).name

    def paths(self, row: int) -> tuple[Path, ...]:
        """Absolute path of each file of the image in ``row``, one per path column.

        Raises:
            OpenfinoError: if a path is missing.
        """
        values = [self.table[column][row] for column in self.path_columns]
        if None in values:
            column = self.path_columns[values.index(None)]
            raise OpenfinoError(f"{self.name} {self.locate(row)}: there is no path in column {column}")
        return tuple(self.root / value for value in values)

    def rows_where(self, column: str, values: Iterable[object]) -> np.ndarray:
        """Rows whose ``column`` holds one of ``values``, compared as text -> int64 [n], ascending.

        Whole numbers compare without a trailing ``.0``.

        Raises:
            InputProblemsError: if there is no such column.
        """
        if column not in self.table.columns:
            raise InputProblemsError([self.absent(column, self.name)])
        wanted = [key for value in values for key in value_keys(pl.Series([value]))]
        found = value_keys(self.table[column]).is_in(wanted).fill_null(False)
        return found.arg_true().to_numpy().astype(np.int64)

    def locate(self, row: int) -> str:
        """Where the user finds ``row``: ``line 17`` of a text file, ``row 16`` (counted from 1) of others."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def list_rows(self, rows: Sequence[int] | np.ndarray, values: Sequence[object] | None = None) -> str:
        """``line 3 'abc', line 9 'x' and 12 more``: the first five of ``rows``, each with its value."""
        shown = [
            self.locate(int(row)) + ("" if values is None else f" {values[position]!r}")
            for position, row in enumerate(rows[:_LISTED_ROWS])
        ]
        more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
        return ", ".join(shown) + more

    def absent(self, column: str, where: str) -> Problem:
        """The problem that ``column``, asked for in ``where``, is not in the table."""
        columns = self.table.columns
        close = difflib.get_close_matches(column, columns, n=1)
        more = ", ..." if len(columns) > _LISTED_COLUMNS else ""
        listed = f"Columns: {', '.join(columns[:_LISTED_COLUMNS])}{more}"
        remedy = f"Did you mean {close[0]!r}? {listed}" if close else listed
        return Problem(where, f"there is no column {column!r} in {self.name}", remedy)


def read_manifest(
    source: Path | str, *, path_columns: Sequence[str] | None = None, missing: Sequence[str] = ()
) -> Manifest:
    """Read a table file (CSV, TSV, JSONL, Parquet), or a folder of images.

    Args:
        source: the file, or a folder: it is searched recursively, in sorted order, and gets the columns
            ``path`` and ``folder`` (the parent folder of the image, relative to ``source``).
        path_columns: columns with image paths, relative to the file's folder; by default the first of
            ``path``, ``file_name`` and ``filepath`` that exists.
        missing: tokens that mean "no value", besides null, NaN and blank text. Path columns know only blank.

    Raises:
        OpenfinoError: if the source cannot be read or holds no image.
        InputProblemsError: if path columns are absent or hold no text.
    """
    source = Path(source)
    if source.is_dir():
        return _read_folder(source, path_columns, missing)
    frame, lines = read_table(source)
    root = source.parent.absolute()
    unfinished = Manifest(source, root, frame, (), tuple(missing), lines)
    paths = _path_columns(unfinished, path_columns)
    columns = []
    for column in frame:
        if column.name in paths:
            columns.append(_without(column.cast(pl.String), column.cast(pl.String).str.strip_chars() == ""))
            continue
        column = masked(column, missing)
        columns.append(typed(column) if source.suffix.lower() in SEPARATORS else column)
    return Manifest(source, root, pl.DataFrame(columns), paths, tuple(missing), lines)


def masked(column: pl.Series, missing: Sequence[str]) -> pl.Series:
    """``column`` with null for everything that means "no value", and no blanks around text."""
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = _without(column, column.is_in(_MISSING_WORDS))
    elif column.dtype.is_float():
        column = column.fill_nan(None)
    tokens = {token.strip() for token in missing}
    if not tokens or column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return column
    return _without(column, value_keys(column).is_in(list(tokens)))


def _without(column: pl.Series, unwanted: pl.Series) -> pl.Series:
    """``column`` with null where ``unwanted`` is true."""
    if not unwanted.any():
        return column
    nothing = pl.Series(column.name, [None], dtype=column.dtype)
    return column.zip_with(~unwanted.fill_null(True), nothing)


def _path_columns(manifest: Manifest, given: Sequence[str] | None) -> tuple[str, ...]:
    """The given path columns, or the one with a customary name.

    Raises:
        InputProblemsError: if one is absent or holds no text, or there is none.
    """
    table = manifest.table
    names = given if given else [name for name in PATH_ALIASES if name in table.columns][:1]
    problems = []
    for name in names:
        where = "images.path_columns" if given else f"{manifest.name}, column {name}"
        if name not in table.columns:
            problems.append(manifest.absent(name, where))
        elif table[name].dtype not in (pl.String, pl.Null):
            what = f"column {name!r} holds {table[name].dtype}, not paths"
            problems.append(Problem(where, what, "Write paths as text"))
    if len(set(names)) < len(names):
        problems.append(Problem("images.path_columns", "a column is named twice", "Name each column once"))
    if not names:
        problems.append(_no_path_column(manifest))
    if problems:
        raise InputProblemsError(problems)
    return tuple(names)


def _no_path_column(manifest: Manifest) -> Problem:
    table = manifest.table
    suffixes = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
    likely = [
        column.name
        for column in table.head(100)
        if column.dtype == pl.String and column.str.contains(rf"(?i)\.({suffixes})\s*$").any()
    ]
    found = f"write images.path_columns: [{', '.join(likely)}]" if likely else "name it images.path_columns"
    what = f"there is no column called {', '.join(PATH_ALIASES[:-1])} or {PATH_ALIASES[-1]}"
    return Problem(manifest.name, what, f"Rename the column that holds the image paths, or {found}")


def _read_folder(folder: Path, path_columns: Sequence[str] | None, missing: Sequence[str]) -> Manifest:
    if path_columns is not None and list(path_columns) != ["path"]:
        what = f"{folder} is a folder: its only path column is 'path', not {', '.join(path_columns)}"
        remedy = "For one file per channel write a table with one row per image"
        raise InputProblemsError([Problem("images.path_columns", what, remedy)])
    images = sorted(_images_under(folder))
    if not images:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise OpenfinoError(f"{folder}: there is no image in this folder; images end in {known}")
    table = pl.DataFrame({"path": images, "folder": [image.rpartition("/")[0] or "." for image in images]})
    return Manifest(None, folder.absolute(), table, ("path",), tuple(missing))


def _images_under(folder: Path) -> Iterator[str]:
    """Image files under ``folder`` relative to it, with forward slashes; hidden ones are left out."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        base = Path(parent).relative_to(folder)
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (base / name).as_posix()
