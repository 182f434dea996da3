"""Tables are read as they are written."""

import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfino.errors import OpenfinoError
from openfino.tables import read_table, typed, value_keys


def write(tmp_path, text, name="table.csv"):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (["1", "2", None], pl.Int64, [1, 2, None]),
        (["1", "2.5"], pl.Float64, [1.0, 2.5]),
        (["-1e+05", ".5", "0.50"], pl.Float64, [-1e5, 0.5, 0.5]),
        (["0", "-0", "10"], pl.Int64, [0, 0, 10]),
        (["007", "8"], pl.String, ["007", "8"]),
        (["8", "007"], pl.String, ["8", "007"]),
        (["-01.5", "2"], pl.String, ["-01.5", "2"]),
        (["1E05", "2E05"], pl.String, ["1E05", "2E05"]),
        (["1", "x"], pl.String, ["1", "x"]),
        (["x", "1"], pl.String, ["x", "1"]),
        (["1,5", "2"], pl.String, ["1,5", "2"]),
        (["12345678901234567890", "1"], pl.String, ["12345678901234567890", "1"]),
        (["0.5", "9007199254740993"], pl.String, ["0.5", "9007199254740993"]),
        ([None, None], pl.String, [None, None]),
    ],
)
def test_text_becomes_numbers_only_if_nothing_changes(values, dtype, expected):
    column = typed(pl.Series("x", values, dtype=pl.String))
    assert column.dtype == dtype
    assert column.to_list() == expected


def test_a_late_value_decides_the_type_of_the_whole_column(tmp_path):
    rows = [f"{row}.png,{row},{row}" for row in range(20_000)]
    frame, _ = read_table(write(tmp_path, "\n".join(["path,a,b", *rows, "z.png,none,0.5"]) + "\n"))
    assert typed(frame["a"]).to_list()[-2:] == ["19999", "none"]
    assert typed(frame["b"]).to_list()[-2:] == [19999.0, 0.5]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_written_floats_come_back_bit_equal(values):
    column = typed(pl.Series([None if value is None else repr(value) for value in values], dtype=pl.String))
    if column.dtype != pl.String:
        assert column.cast(pl.Float64).to_list() == values


def test_names_of_values_do_not_depend_on_the_storage():
    integers = value_keys(pl.Series([1, -2, None]))
    assert integers.to_list() == ["1", "-2", None]
    assert value_keys(pl.Series([1.0, -2.0, None])).to_list() == ["1", "-2", None]
    assert value_keys(pl.Series([1.0, -2.0, float("nan")])).to_list() == ["1", "-2", None]
    assert value_keys(pl.Series([0.5, 1e300, -0.0], dtype=pl.Float64)).to_list()[::2] == ["0.5", "0"]
    assert value_keys(pl.Series([0.1], dtype=pl.Float32)).to_list() == ["0.1"]
    assert value_keys(pl.Series(["1.0", "007"])).to_list() == ["1.0", "007"]
    assert value_keys(pl.Series([True, False])).to_list() == ["true", "false"]
    assert value_keys(pl.Series(["1.50"]).cast(pl.Decimal(10, 2))).to_list() == ["1.5"]
    assert value_keys(pl.Series(["b", "a"], dtype=pl.Categorical)).to_list() == ["b", "a"]
    with pytest.raises(OpenfinoError, match="column tags holds List"):
        value_keys(pl.Series("tags", [[1]]))


def test_lines_are_those_of_an_editor(tmp_path):
    text = 'path,"two\nlines"\na,1\n\n"b\nb\nb",2\n,\nc,3\n'
    frame, lines = read_table(write(tmp_path, text))
    assert frame["path"].to_list() == ["a", "b\nb\nb", "c"]
    assert lines.tolist() == [3, 5, 9]
    shown = text.split("\n")
    assert [shown[line - 1][:1] for line in lines] == ["a", '"', "c"]


def test_lines_with_carriage_returns_and_blank_lines_before_the_header(tmp_path):
    frame, lines = read_table(write(tmp_path, "\r\n\r\npath,x\r\na,1\r\n\r\nb,2"))
    assert frame["x"].to_list() == ["1", "2"]
    assert lines.tolist() == [4, 6]


def test_blanks_around_cells_and_names_and_the_byte_order_mark_are_no_content(tmp_path):
    frame, _ = read_table(write(tmp_path, b"\xef\xbb\xbfpath , x\na.png , 1\n b.png,  \n"))
    assert frame.to_dict(as_series=False) == {"path": ["a.png", "b.png"], "x": ["1", None]}


def test_a_lone_inch_mark_is_text(tmp_path):
    frame, lines = read_table(write(tmp_path, 'path\tsize\na\t5" pipe\n\nb\t"6"" pipe"\nc\n', "table.tsv"))
    assert frame["size"].to_list() == ['5" pipe', '6" pipe', None]
    assert lines.tolist() == [2, 4, 5]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "t.csv", "is empty"),
        ("path,a\n", "t.csv", "holds no row"),
        ("path,a\n\n,\n", "t.csv", "holds no row"),
        ("path;a\nx;1\n", "t.csv", "separated by ';'"),
        ("path,a,a\n1,2,3\n", "t.csv", "two columns are called 'a'"),
        ("path,a\nx,1\ny,2,3\nz,4,5,6\n", "t.csv", "header has 2 columns, but line 3 has 3, line 4 has 4"),
        ('path,a\nx,1\ny,"2\nz,3\n', "t.csv", "row that begins in line 3"),
        (b"path,a\nx,1\ny,\xe9\n", "t.csv", "line 3 is not UTF-8"),
        ("path,a\nx,1\n".encode("utf-16"), "t.csv", "line 1 is not UTF-8"),
        ("", "t.jsonl", "holds no row"),
        ('{"path": "a"}\n{"path": \n\n[1]\n', "t.jsonl", r"line 2 \(Expecting value\), line 4 \(list\)"),
        (b'{"path": "a"}\n{"path": "\xe9"}\n', "t.jsonl", "line 2 is not UTF-8"),
        ("x", "t.parquet", "not a readable Parquet file"),
        ("x", "t.xlsx", "ends in one of .csv, .tsv, .jsonl, .ndjson, .parquet"),
    ],
)
def test_unreadable_tables_are_refused_with_the_place(tmp_path, text, name, message):
    with pytest.raises(OpenfinoError, match=message):
        read_table(write(tmp_path, text, name))


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(OpenfinoError, match="no such file"):
        read_table(tmp_path / "absent.csv")


def test_json_lines_with_nan_blank_lines_and_mixed_types(tmp_path):
    rows = [
        {"path": "a", "x": float("nan"), "y": 1},
        {"path": "b", "x": 2, "y": "u"},
        {"path": "c", "y": True},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    frame, lines = read_table(write(tmp_path, text, "table.jsonl"))
    assert frame["x"].fill_nan(None).to_list() == [None, 2.0, None]
    assert frame["y"].to_list() == ["1", "u", "true"]
    assert lines.tolist() == [1, 3, 5]


def test_json_lines_keep_long_integers_as_text(tmp_path):
    frame, _ = read_table(write(tmp_path, '{"path": "a", "id": 123456789012345678901234}\n', "table.ndjson"))
    assert frame["id"].to_list() == ["123456789012345678901234"]


def test_parquet_keeps_its_types(tmp_path):
    table = pl.DataFrame({"path": ["a"], "id": ["007"], "x": [1.5], "n": [3]})
    table.write_parquet(tmp_path / "t.parquet")
    frame, lines = read_table(tmp_path / "t.parquet")
    assert frame.equals(table)
    assert lines is None


def test_names_of_folders_are_no_patterns(tmp_path):
    folder = tmp_path / "set[1]*" / "plate=3"
    folder.mkdir(parents=True)
    table = pl.DataFrame({"path": ["a", "b"], "x": ["u", "v"]})
    table.write_csv(folder / "t.csv")
    table.write_ndjson(folder / "t.jsonl")
    table.write_parquet(folder / "t.parquet")
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        assert read_table(folder / name)[0].equals(table), name
