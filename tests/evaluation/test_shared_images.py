"""An image on both sides of a split is found by its path and by its bytes."""

import os
import shutil

import numpy as np
import polars as pl
import pytest

from openfino.evaluation.shared_images import shared_images
from openfino.manifest import Manifest

PARTS = {"training": [0, 1], "validation": [2], "test": [3, 4]}


@pytest.fixture
def five(tmp_path):
    """Five files of equal size that differ in their last byte alone."""
    for number in range(5):
        (tmp_path / f"{number}.npy").write_bytes(bytes(100_000) + bytes([number]))
    return tmp_path


def problems(folder, names, parts=PARTS, columns=("path",)):
    table = pl.DataFrame({column: names[place :: len(columns)] for place, column in enumerate(columns)})
    manifest = Manifest(folder / "m.csv", folder, table, columns)
    return [str(found) for found in shared_images(manifest, {k: np.array(v) for k, v in parts.items()})]


def test_different_images_are_no_problem(five):
    assert problems(five, [f"{number}.npy" for number in range(5)]) == []


def test_the_same_path_and_a_link_to_it(five):
    os.symlink(five / "1.npy", five / "link.npy")
    found = problems(five, ["0.npy", "1.npy", "2.npy", "0.npy", "link.npy"])
    assert len(found) == 1
    assert "training and test share 2 images: row 1 and row 4; row 2 and row 5" in found[0]


def test_a_copy_under_another_name(five):
    shutil.copy(five / "2.npy", five / "copy.npy")
    found = problems(five, ["0.npy", "1.npy", "2.npy", "3.npy", "copy.npy"])
    assert len(found) == 1
    assert "validation and test share 1 images: row 3 and row 5" in found[0]


def test_all_that_is_shared_is_said_at_once(five):
    shutil.copy(five / "0.npy", five / "copy.npy")
    found = problems(five, ["0.npy", "1.npy", "copy.npy", "copy.npy", "1.npy"])
    assert [text.split(": ")[1].split(" share")[0] for text in found] == [
        "training and validation",
        "training and test",
        "validation and test",
    ]


def test_copies_within_one_part_are_no_problem(five):
    assert problems(five, ["0.npy", "0.npy", "2.npy", "3.npy", "3.npy"]) == []


def test_an_image_of_several_files_is_shared_if_all_of_them_are(five):
    names = ["0.npy", "1.npy", "0.npy", "2.npy", "3.npy", "4.npy"]
    parts = {"training": [0], "validation": [1], "test": [2]}
    assert problems(five, names, parts, ("a", "b")) == []
    names[3] = "1.npy"
    assert len(problems(five, names, parts, ("a", "b"))) == 1
