import json

import pytest
import torch
from rich.console import Console

from openfino import demo
from openfino.demo import ARMS, CHANNELS, Budget, keep_start, run_demo, write_recipe
from openfino.errors import OpenfinoError
from openfino.models.store import load_model, save_backbone
from tiny_models import tiny_model

QUIET = Console(quiet=True)


def test_the_demo_leaves_what_it_promises(tmp_path):
    out = tmp_path / "demo"
    run_demo(out, budget=Budget(images=300, steps=2, batch_size=16), console=QUIET)
    results = json.loads((out / "results.json").read_text())
    assert list(results["arms"]) == ["frozen", "ssl", "fino"]
    for arm in results["arms"].values():
        for split in ("test_id", "test_ood"):
            for method in ("knn", "linear"):
                assert 0 <= arm[split][method]["macro_f1"] <= 1
        assert 0 <= arm["leakage"]["plate"]["knn_accuracy"] <= 1
    assert load_model(results["export"]).backbone.channels == 4
    assert (out / "report.html").stat().st_size > 10_000
    assert load_model(out / "start").provenance["parent"]["source"] == "openfino/tiny"
    # Both arms start from the same weights, and are scored there alike.
    first = [json.loads((out / arm / "probes.jsonl").read_text().splitlines()[0]) for arm in ("ssl", "fino")]
    assert first[0]["label"] == first[1]["label"]


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.csv").write_text("path\n")
    for overwrite in (False, True):
        with pytest.raises(OpenfinoError, match="not empty"):
            run_demo(tmp_path, overwrite=overwrite, console=QUIET)
    assert (tmp_path / "data" / "manifest.csv").is_file()


def test_the_start_is_kept_as_the_arms_see_it(tmp_path, monkeypatch):
    model = tiny_model()
    save_backbone(tmp_path / "rgb", model.backbone, model.preprocessing, {})
    monkeypatch.setattr(demo, "START", str(tmp_path / "rgb"))
    keep_start(tmp_path / "start", write_recipe(tmp_path, "ssl", ARMS["ssl"], 0, Budget()))
    kept = load_model(tmp_path / "start")
    assert (kept.preprocessing.channels, kept.preprocessing.normalization) == (CHANNELS, "zscore")
    assert kept.preprocessing.size == (48, 48)
    assert kept.provenance["parent"] == {"source": "rgb", "licence": "unknown"}
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))  # every channel alike
    with torch.no_grad():
        ours = kept.backbone(grey.expand(1, 4, 32, 32)).cls
        theirs = model.backbone(grey.expand(1, 3, 32, 32)).cls
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
