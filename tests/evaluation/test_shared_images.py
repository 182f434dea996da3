"""An image that trains and is scored is found by its path and by its bytes."""

import os

import numpy as np
import polars as pl
import pytest

from openfino.evaluation.shared_images import FIRST_BYTES, shared_images
from openfino.manifest import read_manifest


def manifest_of(folder, columns):
    folder.mkdir(exist_ok=True)
    pl.DataFrame(columns).write_csv(folder / "manifest.csv")
    return read_manifest(folder / "manifest.csv", path_columns=list(columns))


def parts(train, test):
    return {"training": np.array(train), "test": np.array(test)}


@pytest.fixture
def files(tmp_path):
    """Six files: b.bin is a copy of a.bin, e.bin differs from d.bin in the last byte alone."""
    long = b"x" * (FIRST_BYTES + 10)
    contents = {"a": b"one", "b": b"one", "c": b"two", "d": long + b"1", "e": long + b"2", "f": long + b"1"}
    for name, content in contents.items():
        (tmp_path / f"{name}.bin").write_bytes(content)
    return tmp_path


def found(folder, names, train, test):
    return shared_images(manifest_of(folder, {"path": [f"{name}.bin" for name in names]}), parts(train, test))


def test_the_same_path_and_the_same_bytes_are_the_same_image(files):
    (problem,) = found(files, "aacbdef", [0, 2, 4], [1, 3, 5, 6])
    assert problem.what.startswith("training and test share 3 images: line 2 and line 3; line 2 and line 5; ")
    assert "line 6 and line 8 are the same image" in problem.what
    assert "one split" in problem.remedy


def test_images_that_differ_anywhere_are_not_shared(files):
    assert found(files, "acde", [0, 2], [1, 3]) == []


def test_copies_within_one_part_are_nobodys_business(files):
    assert found(files, "abcc", [0, 1], [2, 3]) == []
    assert found(files, "aab", [0, 1, 2], []) == []


def test_links_lead_to_one_image(files):
    os.symlink(files / "c.bin", files / "g.bin")
    assert len(found(files, "cg", [0], [1])) == 1


def test_all_files_of_an_image_must_be_the_same(files):
    columns = {"dna": ["a.bin", "b.bin", "a.bin"], "actin": ["c.bin", "c.bin", "a.bin"]}
    manifest = manifest_of(files, columns)
    assert shared_images(manifest, parts([0], [2])) == []
    assert len(shared_images(manifest, parts([0], [1]))) == 1


def test_missing_files_and_paths_are_left_to_others(files):
    pl.DataFrame({"path": ["gone.bin", "gone.bin", None, None]}).write_parquet(files / "m.parquet")
    assert shared_images(read_manifest(files / "m.parquet"), parts([0, 2], [1, 3])) == []


def test_only_a_few_of_many_pairs_are_listed(files):
    (problem,) = found(files, "abababababab", [0, 2, 4], [1, 3, 5, 7, 9, 11])
    assert "share 6 images" in problem.what
    assert "and 1 more are the same image" in problem.what
    assert problem.what.count(" and line ") == 5
