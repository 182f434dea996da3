"""``openfino probe`` with every kind of label: heads chosen on validation rows, intervals, clusters, masks, cache."""

import json
import tempfile

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

import openfino
import openfino.evaluation.full_probe as full_probe
from conftest import make_image_set
from openfino.cli import app
from openfino.errors import InputProblemsError
from openfino.evaluation.command import probe_command
from openfino.evaluation.full_results import FullReport
from openfino.evaluation.plan import Asked, plan_full
from openfino.evaluation.results import ProbeReport
from openfino.evaluation.scores import METRICS
from openfino.manifest import read_manifest
from openfino.models.store import save_backbone
from openfino.recipe import ProbeGridSettings
from tiny_models import tiny_model

ROWS = 96
GRID = ProbeGridSettings(lrs=[1e-3], linear_lrs=[1e-3, 1e-2], weight_decays=[0.01], steps=25, batch_size=32)
OPTIONS = {"grid": GRID, "device": "cpu", "batch_size": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = tiny_model()
    folder = tmp_path_factory.mktemp("run")
    save_backbone(folder / "model", model.backbone, model.preprocessing, {"source": "random weights"})
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """96 images; labels of every kind, wells within sites, masks of the bright block."""
    manifest = make_image_set(tmp_path_factory.mktemp("full") / "data", count=ROWS)
    folder = manifest.parent
    (folder / "masks").mkdir()
    table = pl.read_csv(manifest)
    for row in range(ROWS):
        mask = np.zeros((40, 48), dtype=np.uint8)
        top = 4 if row % 2 else 16
        mask[top : top + 12, 8:24] = 3
        Image.fromarray(mask).save(folder / "masks" / f"{row:03d}.png")
    number = pl.int_range(ROWS)
    table = table.with_columns(
        tags=pl.concat_str("site", "label", separator="|"),
        well=pl.format("{} {}", "site", number // 16),
        mask=pl.format("masks/{}.png", number.cast(pl.String).str.zfill(3)),
        alone=number,
    )
    table.write_csv(manifest)
    return manifest


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def probed(run, data, cache):
    """The fullest of probes of one class per image."""
    return probe_command(
        run,
        data,
        label="label",
        val="val",
        group="site",
        cluster="well",
        probes=["attentive", "linear", "knn"],
        k=[5, 3],
        cache=cache,
        **OPTIONS,
    )


def changed(data, name, **columns):
    """The manifest beside the images with other columns."""
    path = data.with_name(f"{name}.csv")
    pl.read_csv(data).with_columns(**columns).write_csv(path)
    return path


def problems_of(*arguments, **options):
    with pytest.raises(InputProblemsError) as caught:
        probe_command(*arguments, **options)
    return caught.value.problems


def test_every_probe_has_every_metric_with_its_interval(probed):
    assert isinstance(probed, FullReport)
    result = probed.label
    assert (result.kind, result.classes, result.train_rows, result.val_rows) == ("single", 2, 48, 24)
    assert list(result.splits) == ["test"]
    split = result.splits["test"]
    assert (split.rows, split.missing_label, split.without_features, split.missing_group) == (24, 0, 0, 0)
    assert list(split.scores) == ["knn5", "knn3", "linear", "attentive"]
    for probe, scores in split.scores.items():
        assert tuple(scores) == METRICS["single"]
        for metric, value in scores.items():
            low, high = split.intervals[probe][metric]
            assert 0 <= low <= value <= high <= 1
    text = probed.table()
    assert "label: 2 classes, fitted on 48 rows" in text
    assert "95 % intervals over whole values of well" in text
    assert "Chosen by macro_f1 on 24 rows (split val)" in text
    low, high = split.intervals["linear"]["macro_auroc"]
    assert f"{split.scores['linear']['macro_auroc']:.3f} ({low:.3f} to {high:.3f})" in text
    record = json.loads(json.dumps(probed.to_json()))
    assert record["label"]["splits"]["test"]["intervals"]["knn5"]["map"] == list(
        split.intervals["knn5"]["map"]
    )
    assert record["label"]["chosen"]["linear"]["points"][1]["lr"] == 1e-2


def test_neighbours_are_those_of_the_quick_probe(run, data, probed):
    quick = probe_command(run, data, label="label", group="site", tests=["test"], k=5, device="cpu")
    assert isinstance(quick, ProbeReport)
    expected = quick.label.splits["test"].scores["knn"]
    assert {name: probed.label.splits["test"].scores["knn5"][name] for name in expected} == expected


def test_nothing_of_the_test_is_chosen_by(run, data, cache, probed):
    flipped = pl.when(pl.col("split") == "test").then(pl.lit("top")).otherwise(pl.col("label"))
    other = changed(data, "flipped", label=flipped)
    options = {"label": "label", "val": "val", "probes": ["linear"], "cache": cache, **OPTIONS}
    report = probe_command(run, other, **options)
    assert report.label.chosen["linear"] == probed.label.chosen["linear"]
    assert report.label.splits["test"].scores["linear"] != probed.label.splits["test"].scores["linear"]


def test_features_are_computed_once(run, data, cache, probed, monkeypatch):
    asked = []
    real = full_probe.cached_features

    def watched(*arguments, **options):
        found = real(*arguments, **options)
        asked.append((found.computed, options["folder"], options["windows"], options["patches"]))
        return found

    monkeypatch.setattr(full_probe, "cached_features", watched)
    monkeypatch.setattr(tempfile, "tempdir", str(cache / ".."))
    options = {"label": "label", "val": "val", "probes": ["knn"], **OPTIONS}
    again = probe_command(run, data, cache=cache, group="site", cluster="well", k=[5], **options)
    assert again.label.splits["test"].scores == {"knn5": probed.label.splits["test"].scores["knn5"]}
    assert again.label.splits["test"].intervals["knn5"] == probed.label.splits["test"].intervals["knn5"]
    windowed = probe_command(run, data, windows=2, **options)
    assert windowed.label.splits["test"].scores["knn20"] != {}
    assert [(computed, windows) for computed, _, windows, _ in asked] == [
        (0, None),
        (0, None),
        (72, 2),
        (24, 2),
    ]
    assert asked[0][1] == cache
    assert not asked[2][1].exists()
    assert not any(patches for *_, patches in asked)


def test_numbers_and_several_labels_are_told_from_the_column(run, data, cache):
    tags = probe_command(run, data, label="tags", cache=cache, **OPTIONS).label
    assert (tags.kind, tags.classes) == ("multi", 6)
    assert tags.chosen_on == "a fifth of train, held out"
    assert (tags.train_rows, tags.val_rows) == (39, 9)
    assert list(tags.splits) == ["test", "val"]
    assert set(tags.splits["test"].scores["linear"]) == {*METRICS["multi"]} - {"worst_group_accuracy"}
    dose = probe_command(run, data, label="dose", val="val", cache=cache, **OPTIONS).label
    assert (dose.kind, dose.metric, list(dose.splits)) == ("regression", "r2", ["test"])
    assert dose.splits["test"].scores.keys() == {"knn20", "linear"}
    assert dose.splits["test"].scores["linear"].keys() == {"r2"}
    row = probe_command(run, data, label="alone", kind="regression", val="val", cache=cache, **OPTIONS)
    assert row.label.kind == "regression"
    assert "alone: a number, fitted on 48 rows" in row.table()


def plan_of(data, **asked):
    plan, problems = plan_full(read_manifest(data), Asked(**{"split": "split", "tests": ("test",), **asked}))
    assert problems == []
    return plan


def test_rows_to_choose_on_are_held_out_of_training(data):
    table = pl.read_csv(data)
    train = set(table["alone"].filter(table["split"] == "train"))
    plan = plan_of(data, label="label")
    assert set(plan.train) | set(plan.val) == train
    assert not set(plan.train) & set(plan.val)
    assert table["label"][plan.val].value_counts()["count"].to_list() == [4, 4]
    whole = plan_of(data, label="label", cluster="well")
    wells = [set(table["well"][rows]) for rows in (whole.train, whole.val)]
    assert not wells[0] & wells[1]
    assert "values of well, held out of train" in whole.chosen_on
    assert set(whole.train) | set(whole.val) == train
    few = plan_of(changed(data, "two", side=pl.col("alone") % 2), label="label", cluster="side")
    assert few.chosen_on == "a fifth of train, held out"
    again = plan_of(data, label="label", split=None, tests=())
    assert list(again.tests) == ["held_out"]
    assert len({*again.train, *again.val, *again.tests["held_out"]}) == ROWS


def test_intervals_draw_whole_clusters(run, data, cache, probed):
    options = {"label": "label", "val": "val", "probes": ["knn"], "k": 5, "cache": cache, **OPTIONS}
    intervals = {
        cluster: probe_command(run, data, cluster=cluster, **options).label.splits["test"].intervals["knn5"]
        for cluster in ("well", "split")
    }
    assert intervals["well"] == {
        name: interval
        for name, interval in probed.label.splits["test"].intervals["knn5"].items()
        if name != "worst_group_accuracy"
    }
    low, high = intervals["split"]["accuracy"]
    assert low == high  # one cluster: every draw is all rows


def test_clusters_of_averaged_features_are_held_against_the_label(run, data, cache):
    options = {"val": "val", "probes": ["knn"], "cache": cache, **OPTIONS}
    report = probe_command(run, data, label="site", cluster_by="well", **options)
    found = report.clustering
    assert (found.by, found.label, list(found.splits)) == ("well", "site", ["test", "all rows"])
    every = found.splits["all rows"]
    assert (every.units, every.clusters, every.mixed) == (24, 4, 0)
    assert every.ari == every.v_measure == 1.0  # colours that nobody could mistake
    mixed = probe_command(run, data, label="label", cluster_by="site", **options)
    assert mixed.clustering.splits["all rows"].ari < 0.5
    coarse = changed(data, "coarse", well=pl.when(pl.col("split") == "test").then(0).otherwise("alone"))
    left = probe_command(run, coarse, label="site", cluster_by="well", **options)
    assert list(left.clustering.splits) == ["all rows"]
    assert "1 groups or images with" in left.clustering.left_out["test"]
    assert "test left out: " in left.table()
    assert "1.000" in report.table()


def test_masks_give_segmentation_with_or_without_a_label(run, data, cache):
    gaps = changed(data, "gaps", mask=pl.when(pl.col("alone") % 12 == 5).then(None).otherwise("mask"))
    grid = ProbeGridSettings(steps=150)
    options = {
        "masks": "mask",
        "cache": cache,
        "cluster": "well",
        "val": "val",
        "device": "cpu",
        "grid": grid,
    }
    alone = probe_command(run, gaps, **options)
    assert alone.label is None
    found = alone.segmentation
    assert (found.masks, found.classes, list(found.splits)) == ("mask", [0, 3], ["test"])
    masked = pl.read_csv(gaps).drop_nulls("mask")["split"].value_counts().rows_by_key("split", unique=True)
    assert (found.train_images, found.val_images) == (*masked["train"], *masked["val"])
    split = found.splits["test"]
    assert split.images == masked["test"][0]
    assert 0.6 < split.patch_miou <= 1
    assert 0.6 < split.miou < 1
    assert split.ious.keys() == {"0", "3"}
    low, high = split.intervals["miou"]
    assert low < split.miou < high
    assert "linear segmentation, masks of mask" in alone.table()
    both = probe_command(run, gaps, label="label", probes=["knn"], **options)
    assert both.segmentation == found
    assert both.label.splits["test"].rows == 24


def test_leakage_and_erasure_are_measured_with_every_probe(run, data, cache):
    options = {"val": "val", "cache": cache, "probes": ["linear", "attentive"], **OPTIONS}
    report = probe_command(run, data, label="label", leakage=["dose"], erase=["site"], **options)
    assert list(report.leakage) == ["dose", "site"]
    erased = report.erased["site"]
    assert (erased.dimensions, erased.of) == (3, 32)
    assert erased.leakage["site"].linear_accuracy <= report.leakage["site"].majority
    assert report.leakage["site"].linear_accuracy > 0.9
    assert erased.label.splits["test"].scores.keys() == {"linear", "attentive"}
    assert erased.label.splits["test"].scores != report.label.splits["test"].scores
    text = report.table()
    assert "this model - site" in text
    assert "label, test: attentive macro_f1" in text
    quick = probe_command(run, data, label="label", leakage=["dose"], device="cpu")
    assert report.leakage["dose"].rows == quick.leakage["dose"].rows
    assert report.leakage["dose"].knn_r2 == pytest.approx(quick.leakage["dose"].knn_r2, abs=0.02)


def test_images_without_features_are_counted(run, data, cache):
    (data.parent / "images" / "bad.png").write_bytes(b"no image")
    bad = pl.when(pl.col("alone") == 6).then(pl.lit("images/bad.png")).otherwise("path")
    report = probe_command(
        run,
        changed(data, "bad", path=bad),
        label="label",
        val="val",
        probes=["knn"],
        cache=cache,
        device="cpu",
    )
    split = report.label.splits["test"]
    assert (report.unreadable, split.rows, split.without_features) == (1, 23, 1)
    assert report.causes[0].startswith("line 8: ")
    assert "1 images were left out, such as: line 8: " in report.table()


def test_a_test_image_that_trains_is_refused_by_every_probe(run, data):
    copied = data.parent / "images" / "copy.png"
    copied.write_bytes((data.parent / "images" / "000.png").read_bytes())  # row 0 trains, row 6 is a test
    shared = changed(
        data,
        "shared",
        path=pl.when(pl.col("alone") == 6).then(pl.lit("images/copy.png")).otherwise("path"),
    )
    for options in ({}, {"probes": ["linear"]}, {"kind": "multi"}):
        (problem,) = problems_of(run, shared, label="label", **options)
        assert problem.what.startswith("training and test (test, val) share 1 images: line 2 and line 8")
    (problem,) = problems_of(run, shared, masks="mask", val="val")
    assert "training and test (test) share 1 images" in problem.what
    (problem,) = problems_of(run, shared, label="label", train="val", val="train", tests=["test"])
    assert problem.what.startswith("validation (train) and test (test) share 1 images")
    copies = pl.when(pl.col("split") == "train").then(pl.lit("images/000.png")).otherwise("path")
    assert len(plan_of(changed(data, "copies", path=copies), label="label").val) == 8  # these two may share
    one = changed(data, "one", path=pl.lit("images/000.png"))
    plan, (problem,) = plan_full(read_manifest(one), Asked(label="label"))
    assert plan is None
    assert "training and test (held_out) share 18 images" in problem.what


def test_all_problems_are_told_at_once(run, data):
    wheres = [
        problem.where
        for problem in problems_of(
            run, data, label="lable", group="plate", cluster="c", masks="m", cluster_by="w", leakage=["x"]
        )
    ]
    assert wheres == ["--leakage", "--label", "--group", "--cluster", "--cluster-by", "--masks"]
    found = problems_of(run, data, label="tags", val="vel", tests=["tset", "train"])
    assert [problem.where for problem in found] == ["--val", "--test", "--test"]
    assert [problem.where for problem in problems_of(run, data, label="label", val="val", tests=["val"])] == [
        "--test"
    ]
    found = problems_of(run, data, kind="class", probes=["mlp"], k=[0])
    assert [problem.where for problem in found] == ["--label", "--kind", "--probes", "--k"]
    found = problems_of(run, data, masks="mask", group="site", cluster_by="well")
    assert [problem.where for problem in found] == ["--group", "--cluster-by"]
    broken = changed(
        data,
        "broken",
        mask=pl.lit("gone.png"),
        label=pl.when(pl.col("split") == "test").then(None).otherwise("label"),
    )
    found = problems_of(run, broken, label="label", masks="mask", val="val", cluster_by="site")
    assert [problem.where for problem in found] == ["column label, split test", "column mask"]
    found = problems_of(run, data, label="tags", cluster_by="well")
    assert "one class for each image" in found[0].what
    found = problems_of(run, data, label="well", cluster_by="site")
    assert "4 values of 'site' for 24 labels" in found[0].what
    other = changed(
        data, "other", label=pl.when(pl.col("split") == "val").then(pl.lit("x")).otherwise("label")
    )
    (problem,) = problems_of(run, other, label="label", val="val")
    assert (problem.where, "none of its labels" in problem.what) == ("column label, split val", True)
    (problem,) = problems_of(run, data, label="label", val="val", split="fold")
    assert problem.where == "--split"


def test_the_command_line_says_it_all(run, data, cache):
    options = ["--manifest", str(data), "--label", "label", "--device", "cpu", "--cache", str(cache)]
    told = [
        "--val",
        "val",
        "--probes",
        "knn,linear",
        "--k",
        "3,5",
        "--steps",
        "7",
        "--cluster",
        "well",
        "--json",
    ]
    result = CliRunner().invoke(app, ["probe", run, *options, *told])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert list(record["label"]["splits"]["test"]["scores"]) == ["knn3", "knn5", "linear"]
    assert record["label"]["chosen"]["linear"]["steps"] == 7
    assert record["label"]["cluster"] == "well"
    result = CliRunner().invoke(app, ["probe", run, *options, "--k", "many"])
    assert isinstance(result.exception, InputProblemsError)


def test_from_python_it_is_one_call(run, data):
    report = openfino.probe(run, str(data), label="label", device="cpu")
    assert isinstance(report, ProbeReport)
    assert report.to_json().keys() == {"model", "label", "leakage", "unreadable", "causes", "erased"}
