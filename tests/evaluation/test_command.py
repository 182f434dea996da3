import polars as pl
import pytest

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.evaluation.command import embed_command, probe_command
from openfino.models.store import save_backbone
from tiny_models import tiny_model

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


def test_a_device_that_is_not_there_is_named(run_folder, image_set):
    for name in ("gpu", "cuda:77"):
        with pytest.raises(OpenfinoError, match=f"--device {name}"):
            probe_command(run_folder, image_set, **{**OPTIONS, "device": name})
