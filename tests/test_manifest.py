"""The manifest: paths, missing values, rows."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.manifest import Manifest, read_manifest


def write(tmp_path, text, name="manifest.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


CSV = "path,plate,age,note\nimages/a.png,007,31,x\nimages/b.png,008,unknown,\n/abs/c.png,010,1.0, NaN \n"


def test_a_table_and_its_paths(tmp_path):
    manifest = read_manifest(write(tmp_path, CSV), missing=["unknown"])
    assert len(manifest) == 3
    assert manifest.root == tmp_path
    assert manifest.path_columns == ("path",)
    assert manifest.paths(1) == (tmp_path / "images/b.png",)
    assert manifest.paths(2) == (Path("/abs/c.png"),)
    assert manifest.table["plate"].to_list() == ["007", "008", "010"]
    assert manifest.table["age"].to_list() == [31.0, None, 1.0]
    assert manifest.table["note"].to_list() == ["x", None, None]
    assert manifest.locate(2) == "line 4"
    assert manifest.name == "manifest.csv"


def test_the_root_is_absolute(tmp_path, monkeypatch):
    write(tmp_path, CSV)
    monkeypatch.chdir(tmp_path)
    assert read_manifest("manifest.csv").root == tmp_path


def same_table_everywhere(tmp_path):
    rows = [
        {"file_name": "a.png", "x": 1.5, "s": "u", "n": 3},
        {"file_name": "b.png", "x": None, "s": "-", "n": -1},
        {"file_name": "c.png", "x": 2.0, "s": "  ", "n": 5},
        {"file_name": "d.png", "x": float("nan"), "s": "null", "n": None},
    ]
    frame = pl.DataFrame(rows)
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    write(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")
    return [tmp_path / f"t.{suffix}" for suffix in ("csv", "tsv", "parquet", "jsonl")]


def test_every_format_gives_the_same_manifest(tmp_path):
    for file in same_table_everywhere(tmp_path):
        table = read_manifest(file, missing=["-1", "-"]).table
        assert table.to_dict(as_series=False) == {
            "file_name": ["a.png", "b.png", "c.png", "d.png"],
            "x": [1.5, None, 2.0, None],
            "s": ["u", None, None, None],
            "n": [3, None, 5, None],
        }, file


def test_missing_tokens_match_whole_values_of_any_type(tmp_path):
    frame = pl.DataFrame(
        {"path": ["a", "b"], "f": [-1.0, -1.5], "c": pl.Series(["?", "??"], dtype=pl.Categorical)}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = read_manifest(tmp_path / "t.parquet", missing=["-1", " ? "]).table
    assert table["f"].to_list() == [None, -1.5]
    assert table["c"].to_list() == [None, "??"]


def test_missing_words_are_no_prefixes_and_paths_know_only_blank(tmp_path):
    file = write(tmp_path, "path,word,other\nNaN,nano,x\nnull,nullable,y\n-,NULL,z\n,nan,w\n")
    table = read_manifest(file, missing=["-"]).table
    assert table["word"].to_list() == ["nano", "nullable", None, None]
    assert table["path"].to_list() == ["NaN", "null", "-", None]
    with pytest.raises(OpenfinoError, match=r"manifest.csv line 5: there is no path in column path"):
        read_manifest(file).paths(3)


def test_a_declared_token_lets_a_column_be_numeric(tmp_path):
    file = write(tmp_path, "path,age\na,31\nb,unknown\n")
    assert read_manifest(file).table["age"].dtype == pl.String
    assert read_manifest(file, missing=["unknown"]).table["age"].dtype == pl.Int64


def test_several_path_columns(tmp_path):
    file = write(tmp_path, "path,dna,er\nx.png,d.tif,e.tif\n")
    manifest = read_manifest(file, path_columns=["er", "dna"])
    assert manifest.paths(0) == (tmp_path / "e.tif", tmp_path / "d.tif")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dan"], r"no column 'dan' in manifest.csv. Did you mean 'dna'\?"),
        (["dna", "er", "ear"], r"no column 'ear'"),
        (["dna", "dna"], "named twice"),
    ],
)
def test_wrong_path_columns_are_refused(tmp_path, given, message):
    file = write(tmp_path, "path,dna,er\nx.png,d.tif,3\n")
    with pytest.raises(InputProblemsError, match=message):
        read_manifest(file, path_columns=given)


def test_numbers_are_no_paths(tmp_path):
    pl.DataFrame({"path": [1, 2]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputProblemsError, match="'path' holds Int64, not paths"):
        read_manifest(tmp_path / "t.parquet")


def test_an_unnamed_path_column_is_recognised_in_the_remedy(tmp_path):
    file = write(tmp_path, "image,plate\na.PNG,1\nb.png,2\n")
    with pytest.raises(InputProblemsError, match=r"path_columns: \[image\]"):
        read_manifest(file)
    with pytest.raises(InputProblemsError, match=r"name it images\.path_columns"):
        read_manifest(write(tmp_path, "image,plate\na,1\n"))


def test_rows_where_compares_as_text(tmp_path):
    file = write(tmp_path, "path,split,n,f\na,train,1,1.0\nb,val,2,\nc,,1,2.5\nd,train,,1\n")
    manifest = read_manifest(file)
    rows = manifest.rows_where("split", ["train"])
    assert rows.dtype == np.int64
    assert rows.tolist() == [0, 3]
    assert manifest.rows_where("split", ["val", "train", "test"]).tolist() == [0, 1, 3]
    assert manifest.rows_where("n", ["1"]).tolist() == [0, 2]
    assert manifest.rows_where("f", [1, "2.5"]).tolist() == [0, 2, 3]
    assert manifest.rows_where("split", []).tolist() == []
    assert manifest.rows_where("split", [None]).tolist() == []
    with pytest.raises(InputProblemsError, match=r"Did you mean 'split'\?"):
        manifest.rows_where("spilt", ["train"])


def test_rows_are_listed_up_to_five():
    manifest = Manifest(Path("t.parquet"), Path("/"), pl.DataFrame({"path": list("abcdefgh")}), ("path",))
    assert manifest.list_rows([1, 4]) == "row 2, row 5"
    assert (
        manifest.list_rows(range(8), list("stuvw"))
        == "row 1 's', row 2 't', row 3 'u', row 4 'v', row 5 'w' and 3 more"
    )


def test_a_folder_is_a_manifest(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.tif", "c/d/x.npy", "notes.txt", ".hidden.png", ".cache/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.table["path"].to_list() == ["a.tif", "b/1.JPG", "b/2.png", "c/d/x.npy"]
    assert manifest.table["folder"].to_list() == [".", "b", "b", "c/d"]
    assert manifest.file is None
    assert manifest.paths(1) == (tmp_path / "b/1.JPG",)


def test_a_folder_follows_links_to_other_folders(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    assert read_manifest(tmp_path / "set").table["path"].to_list() == ["link/a.png"]


def test_a_folder_without_images_or_with_other_path_columns_is_refused(tmp_path):
    with pytest.raises(OpenfinoError, match="no image in this folder"):
        read_manifest(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputProblemsError, match="its only path column is 'path'"):
        read_manifest(tmp_path, path_columns=["dna", "er"])
