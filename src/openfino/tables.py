"""Reading table files without changing what they say.

CSV and TSV cells are read as text and typed afterwards over the whole column, so that an odd value late in
the file neither fails the reading nor loses its neighbours, and identifiers such as 007 stay text.
"""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from openfino.errors import OpenfinoError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
TABLE_EXTENSIONS = (*SEPARATORS, *JSON_LINES, ".parquet")

# 007 is an identifier, and so is well 1E05 (1e+05 is how programs write the number).
_LEADING_ZERO = r"^[+-]?0\d|[eE]0\d"
_BEYOND_FLOAT = r"^[+-]?\d{16,}$"
_SHOWN_LINES = 5


def read_table(file: Path) -> tuple[pl.DataFrame, np.ndarray | None]:
    """Read a table file; CSV and TSV columns stay text (see :func:`typed`).

    Returns:
        The table, without blank rows, and the line of each row as an editor numbers it (int64 [N], the header
        of a CSV file is line 1); None where rows are not lines (Parquet).

    Raises:
        OpenfinoError: if the file is absent, of another format, malformed or holds no row.
    """
    if not file.is_file():
        raise OpenfinoError(f"{file}: there is no such file")
    extension = file.suffix.lower()
    if extension in SEPARATORS:
        frame, lines = _read_delimited(file, SEPARATORS[extension])
    elif extension in JSON_LINES:
        frame, lines = _read_json_lines(file)
    elif extension == ".parquet":
        frame, lines = _read_parquet(file), None
    else:
        known = ", ".join(TABLE_EXTENSIONS)
        raise OpenfinoError(f"{file}: a manifest is a folder of images or a file that ends in one of {known}")
    if frame.is_empty():
        raise OpenfinoError(f"{file} holds no row: write one row per image")
    return frame, lines


def typed(text: pl.Series) -> pl.Series:
    """Text as Int64 or Float64 if every value is a number and none would change; else as it is.

    Values with leading zeros, and integers beside decimals that a float64 cannot hold, keep a column text.
    """
    present = text.drop_nulls()
    if present.is_empty() or present.head(1).cast(pl.Float64, strict=False).null_count():
        return text
    if present.str.contains(_LEADING_ZERO).any():
        return text
    integers = text.cast(pl.Int64, strict=False)
    if integers.null_count() == text.null_count():
        return integers
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() > text.null_count() or present.str.contains(_BEYOND_FLOAT).any():
        return text
    return numbers


def value_keys(column: pl.Series) -> pl.Series:
    """The name of each value: text that is the same however the column is stored; null where missing.

    Whole numbers lose a trailing ``.0``, because tools write integers so as soon as one value is missing.

    Raises:
        OpenfinoError: if the column holds lists, structures or bytes.
    """
    dtype = column.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise OpenfinoError(f"column {column.name} holds {dtype}, not single values")
    if dtype.is_decimal():
        column = column.cast(pl.Float64)
    if not column.dtype.is_float():
        return column.cast(pl.String)
    column = column.fill_nan(None)
    integers = column.cast(pl.Int64, strict=False)
    whole = (integers.cast(column.dtype) == column).fill_null(False)
    return integers.cast(pl.String).zip_with(whole, column.cast(pl.String)).alias(column.name)


def _read_delimited(file: Path, separator: str) -> tuple[pl.DataFrame, np.ndarray]:
    header, first = _header(file, separator)
    try:
        frame = pl.read_csv(file, separator=separator, infer_schema=False, glob=False)
        frame.columns = header
        lines = _lines(frame, first)
    except (pl.exceptions.PolarsError, OSError):
        # Slower, but takes a lone inch mark for what it is, and knows which line is at fault.
        frame, lines = _parse_delimited(file, separator, header, first)
    frame = frame.with_columns(pl.all().str.strip_chars().replace("", None))
    filled = frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    return frame.filter(filled), lines[filled.to_numpy()]


def _lines(frame: pl.DataFrame, first: int) -> np.ndarray:
    """The line of each row, the first in line ``first``: quoted cells may hold line breaks."""
    breaks = np.zeros(len(frame), dtype=np.int64)
    for column in frame:
        if column.str.contains("\n", literal=True).any():
            breaks += column.str.count_matches("\n", literal=True).fill_null(0).to_numpy()
    return first + np.arange(len(frame)) + np.cumsum(breaks) - breaks


def _header(file: Path, separator: str) -> tuple[list[str], int]:
    """The column names, stripped, and the line after them.

    Raises:
        OpenfinoError: if two columns share a name or the separator is another one.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=separator)
            header = [name.strip() for name in next((row for row in rows if row), [])]
            first = rows.line_num + 1
    except (UnicodeDecodeError, OSError) as error:
        raise OpenfinoError(_not_text(file, error)) from None
    if not header:
        raise OpenfinoError(f"{file} is empty: write a line with column names, then one row per image")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise OpenfinoError(f"{file}: two columns are called {twice[0]!r}; give every column its own name")
    others = [
        mark for mark in (";", "\t", ",") if mark != separator and len(header) == 1 and mark in header[0]
    ]
    if others:
        raise OpenfinoError(
            f"{file}: the columns are separated by {others[0]!r}, not {separator!r}; "
            "save the table with commas as .csv or with tabs as .tsv"
        )
    return header, first


def _parse_delimited(
    file: Path, separator: str, header: list[str], first: int
) -> tuple[pl.DataFrame, np.ndarray]:
    rows: list[list[str | None]] = []
    lines: list[int] = []
    wrong: list[str] = []
    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            for cells in reader:
                line, start = reader.line_num + 1, line
                if start < first:
                    continue
                if len(cells) > len(header):
                    wrong.append(f"line {start} has {len(cells)}")
                rows.append([*cells[: len(header)], *[None] * (len(header) - len(cells))])
                lines.append(start)
    except csv.Error:
        raise OpenfinoError(
            f"{file}: in the row that begins in line {line} a quotation mark is not closed, or stands inside "
            "a quoted value; write a quotation mark inside a quoted value twice"
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise OpenfinoError(_not_text(file, error)) from None
    if wrong:
        raise OpenfinoError(
            f"{file}: the header has {len(header)} columns, but {_some(wrong)}; "
            "put values that hold the separator in double quotes"
        )
    frame = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
    return frame, np.array(lines, dtype=np.int64)


def _not_text(file: Path, error: UnicodeDecodeError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{file} cannot be read: {error.strerror}"
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError as bad:
        line = bad.object[: bad.start].count(b"\n") + 1
        return f"{file}: line {line} is not UTF-8 text; save the table as UTF-8 (in spreadsheets 'CSV UTF-8')"
    return f"{file} is not UTF-8 text"


def _some(wrong: list[str]) -> str:
    more = f" and {len(wrong) - _SHOWN_LINES} more" if len(wrong) > _SHOWN_LINES else ""
    return ", ".join(wrong[:_SHOWN_LINES]) + more


def _read_json_lines(file: Path) -> tuple[pl.DataFrame, np.ndarray]:
    try:
        frame = pl.read_ndjson(file, infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError):
        # Slower, but takes the NaN that Python writes, and knows which line is at fault.
        frame = _parse_json_lines(file)
    huge = [column.name for column in frame if column.dtype == pl.Int128]
    frame = frame.with_columns(pl.col(huge).cast(pl.String)) if huge else frame
    with file.open("rb") as stream:
        blank = [number for number, line in enumerate(stream) if line.isspace()]
    lines = np.delete(np.arange(1, len(frame) + len(blank) + 1), blank)
    return frame, lines


def _parse_json_lines(file: Path) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, line in _numbered_lines(file):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            wrong.append(f"line {number} ({error.msg})")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            wrong.append(f"line {number} ({type(row).__name__})")
    if wrong:
        raise OpenfinoError(f"{file}: write one JSON object per line; there is none in {_some(wrong)}")
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """A table of objects; a column that mixes types becomes text."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pl.Series(name, values)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
            columns[name] = pl.Series(name, texts, dtype=pl.String)
    return pl.DataFrame(columns)


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield number, line
    except (UnicodeDecodeError, OSError) as error:
        raise OpenfinoError(_not_text(file, error)) from None


def _read_parquet(file: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(file, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise OpenfinoError(f"{file} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
