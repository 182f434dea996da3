import json

import pytest
from rich.console import Console

from openfino.demo import Budget, run_demo
from openfino.errors import OpenfinoError
from openfino.models.store import load_model

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
