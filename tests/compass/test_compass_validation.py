import numpy as np
import polars as pl
import pytest

from openfino.compass.validation import ASIDE, CARVED, Asked, check_asked, plan_validation
from openfino.manifest import Manifest
from openfino.recipe import build_recipe


def recipe(**probe):
    given = {"label": "label", "split": "split", "tests": ["test"], **probe}
    given = {key: value for key, value in given.items() if value is not None}
    return build_recipe(
        {"manifest": "m.csv", "out": "run", "model": "tiny", "factors": {"plate": "watched"}, "probe": given}
    )


def manifest(tmp_path, count=400):
    row = np.arange(count)
    split = np.where(row < 300, "train", np.where(row < 350, "val", "test"))
    plate = [None if index % 10 == 9 else f"p{index % 20}" for index in row]
    # Half of the rows of val are on plates that training never sees.
    plate = [
        f"new{index % 2}" if 300 <= index < 325 else value for index, value in zip(row, plate, strict=True)
    ]
    table = pl.DataFrame(
        {
            "path": [f"{index}.png" for index in row],
            "label": [f"l{index % 3}" for index in row],
            "split": split,
            "plate": plate,
        }
    )
    return Manifest(None, tmp_path, table, ("path",))


def rows(found, name):
    return set(np.flatnonzero((found.column == name).to_numpy()).tolist())


def test_a_validation_split_is_divided_by_unseen_groups(tmp_path):
    table = manifest(tmp_path)
    found, problems = plan_validation(table, recipe(val="val"), Asked("plate"))
    assert not problems
    assert rows(found, CARVED["out"]) == set(range(300, 325))
    known = {index for index in range(325, 350) if index % 10 != 9}
    assert rows(found, CARVED["in"]) == known
    assert rows(found, ASIDE) == set(range(325, 350)) - known
    assert rows(found, "train") == set(range(300))
    assert found.deciding == "out"
    assert found.train == ["train"]
    assert found.tests == ["test"]


def test_without_a_group_a_validation_split_is_in_distribution(tmp_path):
    found, _ = plan_validation(manifest(tmp_path), recipe(val="val"), Asked())
    assert list(found.parts) == ["in"]
    assert found.deciding == "in"
    assert any("Nothing tells how the roles do out of distribution" in text for text in found.warnings)


def test_without_a_validation_split_rows_are_taken_from_training(tmp_path):
    table = manifest(tmp_path)
    found, problems = plan_validation(table, recipe(), Asked("plate"))
    assert not problems
    plates = table.table["plate"].to_list()
    held = {plates[index] for index in rows(found, CARVED["out"])}
    trained = {plates[index] for index in rows(found, "train")}
    checked = {plates[index] for index in rows(found, CARVED["in"])}
    assert held
    assert not held & trained
    assert checked <= trained
    assert None not in trained | held | checked  # a row without a plate may be of a held-out one
    assert 0.13 * 270 <= len(rows(found, CARVED["out"])) <= 0.25 * 270
    assert len(rows(found, CARVED["in"])) == pytest.approx(
        0.1 * len(rows(found, "train") | rows(found, CARVED["in"])), abs=3
    )
    assert rows(found, "test") == set(range(350, 400))
    again, _ = plan_validation(table, recipe(), Asked("plate"))
    assert again.column.equals(found.column)


def test_held_out_groups_leave_every_training_split(tmp_path):
    table = manifest(tmp_path)
    more = recipe().model_copy(update={"train_split": ["train", "val"]})
    found, _ = plan_validation(table, more, Asked("plate"))
    plates = table.table["plate"].to_list()
    held = {plates[index] for index in rows(found, CARVED["out"])}
    assert not held & {plates[index] for index in rows(found, "train") | rows(found, "val")}
    assert found.train == ["train", "val"]


def test_without_splits_all_other_rows_train(tmp_path):
    found, problems = plan_validation(manifest(tmp_path), recipe(split=None, tests=None), Asked())
    assert not problems
    assert rows(found, CARVED["in"]) | rows(found, "compass_train") == set(range(400))
    assert any("not chosen on" in text for text in found.warnings)


def test_named_splits_are_taken_as_they_are(tmp_path):
    found, problems = plan_validation(manifest(tmp_path), recipe(tests=None), Asked(names={"out": "val"}))
    assert not problems
    assert found.parts == {"out": "val"}
    both, _ = plan_validation(manifest(tmp_path), recipe(tests=["val", "test"]), Asked(names={"out": "val"}))
    assert both.tests == ["test"]  # what was chosen on reports nothing


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("plat"), "there is no column 'plat'"),
        (Asked(names={"in": "vall"}), "no row has 'vall'"),
        (Asked(names={"in": "train"}), "the rows of 'train' train"),
        (Asked(names={"in": "val", "out": "val"}), "both name one split"),
        (Asked("plate", {"in": "val"}), "would make"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, asked, said):
    problems = check_asked(manifest(tmp_path), recipe(), asked)
    assert said in "\n".join(map(str, problems))


def test_a_group_of_few_values_is_refused(tmp_path):
    _, problems = plan_validation(manifest(tmp_path), recipe(), Asked("label"))
    assert "3 different values" in str(problems[0])


def test_few_rows_are_warned_of(tmp_path):
    found, _ = plan_validation(manifest(tmp_path), recipe(val="val"), Asked())
    assert any("Only 50 labelled rows" in text for text in found.warnings)
