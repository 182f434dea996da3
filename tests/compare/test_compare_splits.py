"""Which rows train, choose and are tested."""

import polars as pl
import pytest

from openfino.compare.splits import TEST, TRAIN, VAL, plan_splits
from openfino.manifest import Manifest
from openfino.recipe import build_recipe


def table(rows=200, **columns):
    own = {
        "path": [f"{number}.png" for number in range(rows)],
        "label": ["ab"[number % 2] for number in range(rows)],
        "plate": [f"p{number // 10}" for number in range(rows)],
        "split": [("train", "train", "val", "test", "extra")[number // 10 % 5] for number in range(rows)],
    }
    return pl.DataFrame(own | columns)


def plan(frame, tmp_path, group=None, **changes):
    settings = {"manifest": "m.csv", "out": "run", "model": {"config": {}}, **changes}
    settings["probe"] = {"label": "label", "split": "split", **changes.get("probe", {})}
    manifest = Manifest(tmp_path / "m.csv", tmp_path, frame, ("path",))
    return plan_splits(manifest, build_recipe(settings), group)


def counts(splits):
    return dict(splits.column.value_counts(sort=True).iter_rows())


def test_own_splits_are_kept(tmp_path):
    splits, problems = plan(table(), tmp_path, probe={"val": "val", "tests": ["test"]})
    assert not problems
    assert (splits.train, splits.val, splits.tests, splits.training) == ("train", "val", ["test"], ["train"])
    assert counts(splits) == {"train": 80, "val": 40, "test": 40, "extra": 40}


def test_without_tests_every_other_split_is_one(tmp_path):
    splits, _ = plan(table(), tmp_path, probe={"val": "val"})
    assert splits.tests == ["extra", "test"]


def test_without_val_rows_are_held_out_of_train_by_label(tmp_path):
    splits, _ = plan(table(), tmp_path, probe={"tests": ["test"]})
    frame = table().with_columns(splits.column.alias("use"))
    held = frame.filter(pl.col("use") == VAL)
    assert len(held) == 12  # 15 % of 80
    assert held["split"].unique().to_list() == ["train"]
    assert held["label"].value_counts()["count"].to_list() == [6, 6]
    assert splits.val == VAL
    assert "taken from training" in splits.how


def test_whole_groups_are_held_out_where_one_is_named(tmp_path):
    splits, _ = plan(table(), tmp_path, "plate", probe={"tests": ["test"]})
    frame = table().with_columns(splits.column.alias("use")).filter(pl.col("split") == "train")
    per_plate = frame.group_by("plate").agg(pl.col("use").n_unique(), pl.col("use").first().alias("where"))
    assert per_plate["use"].to_list() == [1] * 8
    assert 1 <= (per_plate["where"] == VAL).sum() <= 4


def test_held_out_groups_leave_all_that_trains(tmp_path):
    shared = [f"p{number % 8}" for number in range(200)]
    splits, _ = plan(
        table(plate=shared),
        tmp_path,
        "plate",
        probe={"tests": ["test"], "val": None},
        train_split=["train", "extra"],
    )
    frame = table(plate=shared).with_columns(splits.column.alias("use"))
    held = set(frame.filter(pl.col("use") == VAL)["plate"])
    assert held
    assert not held & set(frame.filter(pl.col("use").is_in(["train", "extra"]))["plate"])


def test_a_table_without_splits_gives_both(tmp_path):
    splits, problems = plan(table(), tmp_path, probe={"split": None})
    assert not problems
    assert counts(splits) == {TRAIN: 136, TEST: 40, VAL: 24}
    assert (splits.tests, splits.val, splits.training) == ([TEST], VAL, [TRAIN])


@pytest.mark.parametrize(
    ("changes", "group", "said"),
    [
        ({"train_split": ["train", "test"], "probe": {"tests": ["test"]}}, None, "the rows of 'test' train"),
        ({"train_split": "all", "probe": {"tests": ["test"]}}, None, "all rows train"),
        ({"probe": {"val": "val", "tests": ["val"]}}, None, "cannot be a test too"),
        ({"probe": {"tests": ["test"]}}, "label", "2 different values"),
    ],
)
def test_refused(tmp_path, changes, group, said):
    splits, problems = plan(table(), tmp_path, group, **changes)
    assert splits is None
    assert said in " ".join(map(str, problems))


def test_reserved_names(tmp_path):
    frame = table(split=[VAL] * 200).with_columns(compare_split=pl.lit("x"))
    _, problems = plan(frame, tmp_path)
    assert len(problems) == 2
