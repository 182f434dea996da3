import json

import polars as pl
import pytest

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.evaluation.command import embed_command, probe_command
from openfino.manifest import read_manifest
from openfino.models.store import save_backbone
from tiny_models import tiny_model, write_arrays

OPTIONS = {
    "label": "label",
    "split": "split",
    "train": "train",
    "tests": [],
    "group": None,
    "leakage": [],
    "k": 5,
    "batch_size": 16,
    "device": "cpu",
}


@pytest.fixture
def run_folder(tmp_path):
    model = tiny_model()
    save_backbone(
        tmp_path / "run" / "model", model.backbone, model.preprocessing, {"source": "random weights"}
    )
    return str(tmp_path / "run")


def test_probe_scores_all_other_splits_by_default(run_folder, image_set):
    report = probe_command(run_folder, image_set, **{**OPTIONS, "leakage": ["site"], "group": "site"})
    assert list(report.label.splits) == ["test", "val"]
    assert report.leakage["site"].rows > 0
    assert "worst_group_accuracy" in report.table()
    report = probe_command(run_folder, image_set, **{**OPTIONS, "tests": ["val"]})
    assert list(report.label.splits) == ["val"]


def test_probe_without_a_split_column_holds_rows_out(run_folder, image_set):
    table = pl.read_csv(image_set).drop("split")
    manifest = image_set.with_name("plain.csv")
    table.write_csv(manifest)
    assert list(probe_command(run_folder, manifest, **OPTIONS).label.splits) == ["held_out"]
    for change in ({"tests": ["val"]}, {"split": "fold"}):
        with pytest.raises(InputProblemsError, match="there is no column"):
            probe_command(run_folder, manifest, **{**OPTIONS, **change})


def test_embed_writes_the_file_that_it_names(run_folder, image_set, tmp_path):
    out = tmp_path / "f.parquet"
    options = {"batch_size": 16, "device": "auto", "overwrite": False}
    report = embed_command(run_folder, image_set, out, patches=True, **options)
    assert str(report).startswith(f"wrote {out}: 40 rows, 32 dimensions")
    assert "patches" in pl.read_parquet(out).columns


def test_what_became_of_the_weights_is_said(run_folder, image_set, tmp_path, capsys):
    options = {"patches": False, "batch_size": 16, "device": "auto", "overwrite": False}
    embed_command(run_folder, image_set, tmp_path / "features.parquet", **options)
    said = capsys.readouterr()
    assert "parameters matched (100.00%), 0 tensors missing, 0 unexpected, 0 reshaped" in said.err
    assert "matched" not in said.out


def test_a_device_that_is_not_there_is_named(run_folder, image_set):
    for name in ("gpu", "cuda:77"):
        with pytest.raises(OpenfinoError, match="device: "):
            probe_command(run_folder, image_set, **{**OPTIONS, "device": name})


# What the model's run knew


def save_run(folder, model, recipe, factors=None, before=None):
    """A run folder whose model carries its recipe and the probes of its start."""
    provenance = {"source": "tiny", "recipe": recipe, "factors": factors or {}}
    if before is not None:
        provenance["probes"] = {"before": before}
    save_backbone(folder / "model", model.backbone, model.preprocessing, provenance)
    return str(folder)


def test_a_manifest_is_read_as_the_run_read_its_own(tmp_path):
    names = write_arrays(tmp_path / "data", 12, channels=1)
    (tmp_path / "data" / "03.npy").unlink()
    table = pl.DataFrame(
        {
            "dna": [*names[:3], "01.npy", *names[4:]],
            "actin": ["00.npy"] * 3 + ["02.npy"] + ["00.npy"] * 8,
            "label": ["x", "y", "n/a"] * 4,
        }
    )
    manifest = tmp_path / "data" / "manifest.csv"
    table.write_csv(manifest)
    recipe = {"images": {"path_columns": ["dna", "actin"]}, "missing": ["n/a"]}
    run = save_run(tmp_path / "run", tiny_model(2, "zscore"), recipe)
    report = probe_command(run, manifest, **OPTIONS)
    assert (report.label.classes, report.label.train_missing_label, report.unreadable) == (2, 4, 0)
    options = {"patches": False, "batch_size": 16, "device": "cpu", "overwrite": False}
    assert embed_command(run, manifest, tmp_path / "features.parquet", **options).unreadable == 0

    renamed = tmp_path / "data" / "renamed.csv"
    table.rename({"dna": "nuclei"}).write_csv(renamed)
    with pytest.raises(InputProblemsError, match=r"--path-column.*there is no column 'dna'"):
        probe_command(run, renamed, **OPTIONS)
    told = {"path_columns": ["nuclei", "actin"], "missing": ["none"]}
    assert probe_command(run, renamed, **OPTIONS, **told).label.classes == 3
    assert embed_command(run, renamed, tmp_path / "again.parquet", **options, **told).unreadable == 0


def test_leakage_names_factors_of_the_run_and_columns(image_set, tmp_path):
    recipe = {"factors": {"clinic": {"role": "spurious", "columns": ["site"]}, "dose": {"role": "watched"}}}
    kinds = {"clinic": {"kind": "discrete"}, "dose": {"kind": "continuous"}}
    run = save_run(tmp_path / "run", tiny_model(), recipe, kinds)
    options = {**OPTIONS, "leakage": ["clinic", "dose", "site"]}
    leakage = probe_command(run, image_set, **options).leakage
    assert leakage["clinic"] == leakage["site"]
    assert leakage["clinic"].knn_accuracy is not None
    assert leakage["dose"].knn_r2 is not None
    plain = save_run(tmp_path / "plain", tiny_model(), {})
    assert probe_command(plain, image_set, **{**OPTIONS, "leakage": ["dose"]}).leakage == {
        "dose": leakage["dose"]
    }
    with pytest.raises(InputProblemsError) as caught:
        probe_command(run, image_set, **{**options, "label": "lable", "leakage": ["plate"]})
    assert [problem.where for problem in caught.value.problems] == ["--leakage", "probe.label"]


def test_factors_are_erased_by_name(image_set, tmp_path):
    recipe = {"factors": {"clinic": {"role": "spurious", "columns": ["site"]}}}
    run = save_run(tmp_path / "run", tiny_model(), recipe, {"clinic": {"kind": "discrete"}})
    options = {**OPTIONS, "leakage": ["dose"], "erase": ["clinic,dose"]}
    report = probe_command(run, image_set, **options)
    assert list(report.leakage) == ["dose", "clinic"]
    assert [(name, erased.of) for name, erased in report.erased.items()] == [("clinic", 32), ("dose", 32)]
    assert (report.erased["clinic"].dimensions, report.erased["dose"].dimensions) == (3, 1)
    for erased in report.erased.values():
        assert list(erased.leakage) == ["dose", "clinic"]
        assert erased.label.splits["test"].rows == report.label.splits["test"].rows
    assert report.erased["clinic"].leakage["clinic"].linear_accuracy <= report.leakage["clinic"].majority
    assert "this model - clinic" in report.table()
    assert json.loads(json.dumps(report.to_json()))["erased"]["dose"]["of"] == 32
    plain = probe_command(run, image_set, **{**options, "erase": []})
    assert (plain.label, plain.leakage["dose"]) == (report.label, report.leakage["dose"])
    with pytest.raises(InputProblemsError) as caught:
        probe_command(run, image_set, **{**options, "erase": ["plate"]})
    assert [problem.where for problem in caught.value.problems] == ["--erase"]

    # The starting backbone without the factor, where the run recorded it on the same rows.
    probe = {"label": "label", "split": "split", "train": "train", "k": 5}
    record = json.loads(json.dumps(report.to_json()))
    later = save_run(
        tmp_path / "later",
        tiny_model(seed=2),
        {**recipe, "probe": probe, "seed": 0},
        {"clinic": {"kind": "discrete"}},
        record,
    )
    before = probe_command(later, image_set, **{**options, "erase": ["clinic"]}).before
    assert list(before["erased"]) == ["clinic"]
    assert before["erased"]["clinic"]["leakage"] == record["erased"]["clinic"]["leakage"]


def test_a_column_whose_name_has_a_comma_is_one(image_set, tmp_path):
    table = pl.read_csv(image_set).rename({"site": "site, room"})
    table.write_csv(image_set)
    run = save_run(tmp_path / "run", tiny_model(), {})
    report = probe_command(run, image_set, **{**OPTIONS, "leakage": ["site, room", "dose"]})
    assert list(report.leakage) == ["site, room", "dose"]


def test_retention_is_shown_where_the_same_rows_were_scored(image_set, tmp_path):
    options = {**OPTIONS, "leakage": ["site"], "group": "site"}
    start = probe_command(save_run(tmp_path / "start", tiny_model(seed=1), {}), image_set, **options)
    assert start.before is None
    assert "before" not in start.to_json()
    record = json.loads(json.dumps(start.to_json()))
    probe = {"label": "label", "split": "split", "train": "train", "k": 5, "group": "site"}

    def probed(recipe, **changes):
        run = save_run(tmp_path / "run", tiny_model(seed=2), recipe, before=record)
        return probe_command(run, image_set, **{**options, **changes})

    report = probed({"probe": probe, "seed": 0})
    knn = record["label"]["splits"]["test"]["scores"]["knn"]
    assert report.before["label"]["splits"]["test"]["scores"]["knn"] == knn
    line = next(line for line in report.table().splitlines() if line.startswith("test") and " knn " in line)
    assert f"({knn['macro_f1']:.3f})" in line
    reading = next(line for line in report.table().splitlines() if line.startswith("site"))
    assert f"({record['leakage']['site']['knn_accuracy']:.3f})" in reading
    assert "starting backbone" in report.table()
    assert report.to_json()["before"] == report.before

    assert probed({"probe": {**probe, "label": "other"}, "seed": 0}).before is None
    assert probed({"probe": probe, "seed": 0}, k=3).before is None
    other_draws = probed({"probe": probe, "seed": 1}).before
    assert other_draws["leakage"] == {}
    other_group = probed({"probe": {**probe, "group": "dose"}, "seed": 0}).before
    assert set(other_group["label"]["splits"]["val"]["scores"]["knn"]) == {"accuracy", "macro_f1"}
    record["label"]["splits"]["test"]["rows"] += 1
    assert list(probed({"probe": probe, "seed": 0}).before["label"]["splits"]) == ["val"]


def test_the_options_reach_the_manifest(run_folder, image_set):
    from typer.testing import CliRunner

    from openfino.cli import app

    renamed = image_set.with_name("renamed.csv")
    pl.read_csv(image_set).rename({"path": "picture"}).write_csv(renamed)
    told = ["--path-column", "picture", "--missing", "top", "--missing", "x", "--device", "cpu"]
    out = image_set.with_name("f.parquet")
    result = CliRunner().invoke(app, ["embed", run_folder, str(renamed), "--out", str(out), *told])
    assert result.exit_code == 0, result.output
    assert pl.read_parquet(out)["label"].null_count() == 20
    result = CliRunner().invoke(
        app, ["probe", run_folder, "--manifest", str(renamed), "--label", "site", "--json", *told]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["unreadable"] == 0
    assert len(read_manifest(renamed, path_columns=["picture"])) == 40
