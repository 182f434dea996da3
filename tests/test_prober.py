import json

import polars as pl
import pytest
import torch

import openfino.prober
from openfino.images.preprocess import Preprocessing
from openfino.manifest import read_manifest
from openfino.models.loading import random_backbone
from openfino.models.store import load_model
from openfino.prober import Prober
from openfino.recipe import build_recipe
from tiny_runs import TINY, tiny_settings

PREPROCESSING = Preprocessing(size=(32, 32), normalization="imagenet", channels=["red", "green", "blue"])
PROBE = {"label": "label", "val": "val", "tests": ["test"], "k": 3}
FACTORS = {"site": "informative", "dose": "spurious"}


def make_prober(manifest, out, probe=PROBE, factors=FACTORS, **changes):
    settings = tiny_settings(manifest, out, probe=probe, factors=None, **changes)
    recipe = build_recipe({**settings, "factors": factors})
    recipe.out.mkdir(exist_ok=True)
    return Prober(recipe, read_manifest(manifest), PREPROCESSING, {"factors": {}}, torch.device("cpu"))


def backbone(seed):
    return random_backbone(TINY, 3, seed)


def records(out):
    return [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]


def stored_step(out):
    return load_model(out / "best").provenance["steps"]


def is_stored(out, module):
    saved = load_model(out / "best").backbone.state_dict()
    return all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())


@pytest.fixture
def selections(monkeypatch):
    """What the validation split says, probe by probe."""
    planned = []
    monkeypatch.setattr(Prober, "_selection", lambda self, report: planned.pop(0))
    return planned


# What is measured


def test_a_factor_is_read_from_its_columns_and_reported_by_its_name(image_set, tmp_path):
    table = pl.read_csv(image_set).rename({"site": "clinic"})
    table = table.with_columns(hour=pl.int_range(pl.len()) % 24, x=pl.col("dose") ** 2)
    table.write_csv(image_set)
    factors = {
        "site": {"role": "watched", "kind": "discrete", "columns": ["clinic"]},
        "amount": {"role": "informative", "columns": ["dose"]},
        "time": {"role": "watched", "kind": "cyclic", "columns": ["hour"], "period": "hour"},
        "place": {"role": "spurious", "kind": "vector", "columns": ["dose", "x"]},
    }
    metrics = make_prober(image_set, tmp_path / "run", factors=factors).start(backbone(0), 0)
    (record,) = records(tmp_path / "run")
    assert list(record["leakage"]) == ["site", "amount", "time", "place"]
    assert record["leakage"]["site"]["knn_r2"] is None
    for name in ("amount", "time", "place"):
        assert record["leakage"][name]["knn_accuracy"] is None
        assert metrics[f"probe/leakage/{name}/knn_r2"] == record["leakage"][name]["knn_r2"]
        assert record["leakage"][name]["rows"] == 10
    assert metrics["probe/leakage/site/knn_accuracy"] == record["leakage"]["site"]["knn_accuracy"]


def test_without_a_label_factors_alone_are_read(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run", probe={"label": None})
    metrics = prober.start(backbone(0), 0)
    discrete = {"knn_accuracy", "linear_accuracy", "knn_balanced", "linear_balanced", "majority", "chance"}
    assert set(metrics) == {f"probe/leakage/site/{measure}" for measure in discrete} | {
        f"probe/leakage/dose/{method}_r2" for method in ("knn", "linear")
    }
    assert prober.history[0]["leakage"]["dose"]["rows"] == 10  # half of the 20 rows of train
    prober.probe(backbone(1), 4, full=False)
    assert prober.best_step is None
    assert not (tmp_path / "run" / "best").exists()
    assert prober.describe_baseline().startswith("starting backbone: leakage/site/knn_accuracy ")
    lines = [line for line in prober.table().splitlines() if line.startswith("read ")]
    assert [line.split(":")[0] for line in lines] == ["read site (informative)", "read dose (spurious)"]
    assert "dose/knn_r2" in prober.line(4)
    assert "linear" not in prober.line(4)


def test_without_a_label_and_such_a_split_all_rows_are_read(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run", probe={"label": None, "train": "training"})
    prober.start(backbone(0), 0)
    assert prober.history[0]["leakage"]["dose"]["rows"] == 20


def test_a_run_that_asked_for_no_probe_does_not_read_every_image(image_set, tmp_path, monkeypatch):
    monkeypatch.setattr(openfino.prober, "UNASKED_ROWS", 12)
    prober = make_prober(image_set, tmp_path / "few", probe={"label": None})
    prober.start(backbone(0), 0)
    assert prober.history[0]["leakage"]["dose"]["rows"] == 6
    asked = make_prober(image_set, tmp_path / "asked", probe={"label": None, "max_rows": 16})
    asked.start(backbone(0), 0)
    assert asked.history[0]["leakage"]["dose"]["rows"] == 8


def test_before_the_start_there_is_nothing_to_say(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run")
    assert (prober.describe_baseline(), prober.line(0), prober.before_and_after()) == ("", "", {})
    assert (prober.best_step, prober.table(), prober.changes()) == (None, "", [])


def test_probes_during_training_run_the_method_that_selects(image_set, tmp_path, monkeypatch):
    asked = []
    real = openfino.prober.probe_model
    monkeypatch.setattr(
        openfino.prober,
        "probe_model",
        lambda *a, **b: asked.append((b["methods"], b["workers"])) or real(*a, **b),
    )
    prober = make_prober(image_set, tmp_path / "run", probe={**PROBE, "method": "linear"})
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4, full=False)
    prober.probe(backbone(2), 8)
    assert asked == [(("knn", "linear"), 2), (("linear",), 2), (("knn", "linear"), 2)]
    assert [list(record["label"]["splits"]["test"]["scores"]) for record in records(tmp_path / "run")] == [
        ["knn", "linear"],
        ["linear"],
        ["knn", "linear"],
    ]
    scored = [line for line in prober.table().splitlines() if line.startswith("label, ")]
    assert len(scored) == 2 * 2 * 2  # splits, methods, metrics


def test_between_start_and_end_factors_are_read_by_their_neighbours_alone(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4, full=False)
    prober.probe(backbone(2), 8)
    linear = [
        record["leakage"]["site"]["linear_accuracy"] is not None for record in records(tmp_path / "run")
    ]
    assert linear == [True, False, True]
    assert [list(record["erased"]) for record in records(tmp_path / "run")] == [["dose"], [], ["dose"]]
    # A last step that was probed on the way is probed once more for what is missing, label or not.
    again = make_prober(image_set, tmp_path / "again", probe={"label": None})
    again.start(backbone(0), 0)
    again.probe(backbone(1), 4, full=False)
    again.probe(backbone(1), 4)
    assert [record["leakage"]["dose"]["linear_r2"] is not None for record in again.history] == [True, True]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, ["dose"]), ([], []), (["site"], ["site"]), (["dose", "site"], ["site", "dose"])],
)
def test_what_is_erased_is_named_or_spurious(image_set, tmp_path, given, expected):
    prober = make_prober(image_set, tmp_path / "run", probe={"label": None, "erase": given})
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4)
    assert list(prober.history[0]["erased"]) == expected
    header = prober.table().splitlines()[0]
    assert [name for name in ("site", "dose") if f"adapted - {name}" in header] == expected


def test_what_training_did_not_do_is_flagged(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run", factors={"site": "spurious"}, entangled="record")
    prober.start(backbone(0), 0)
    prober.probe(backbone(0), 4)
    flagged = {(change.factor, change.method) for change in prober.changes() if change.flagged}
    assert {("site", "knn"), ("site", "linear")} <= flagged  # the same features
    assert all(change.before == change.after for change in prober.changes())
    assert "! site (spurious) did not fall: kNN accuracy 1.000 before, 1.000 after" in prober.table()


def test_a_step_is_probed_again_only_for_what_is_not_known(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    part = prober.probe(backbone(1), 4, full=False)
    assert prober.probe(backbone(2), 4, full=False) == part
    whole = prober.probe(backbone(1), 4)
    assert {name: whole[name] for name in part} == part
    assert len(whole) > len(part)
    assert prober.probe(backbone(2), 4) == whole
    assert [record["step"] for record in records(tmp_path / "run")] == [0, 4]


# What is told


def test_only_the_probe_of_the_asked_step_is_called_after(image_set, tmp_path):
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4)
    assert prober.before_and_after(4) == {"before": prober.history[0], "after": prober.history[1]}
    assert prober.before_and_after(5) == {"before": prober.history[0]}
    assert prober.before_and_after()["after"]["step"] == 4


def test_lines_hold_the_selecting_scores_and_the_readings(image_set, tmp_path, selections):
    selections += [0.5, 0.75, 0.25]
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    score = prober.history[0]["label"]["splits"]["val"]["scores"]["knn"]["macro_f1"]
    assert f"starting backbone: val/knn/macro_f1 {score:.3f}, test/knn/" in prober.describe_baseline()
    assert "linear" not in prober.describe_baseline()
    prober.probe(backbone(1), 4)
    assert prober.line(4).startswith("probe at step 4: val/knn/macro_f1 ")
    assert "leakage/site/knn_accuracy" in prober.line(4)
    assert prober.line(4).endswith("; best so far")
    prober.probe(backbone(2), 8)
    assert "best" not in prober.line(8)


# Kills


def test_a_resumed_run_takes_its_probes_up(image_set, tmp_path, selections):
    selections += [0.5, 0.75]
    prober = make_prober(image_set, tmp_path / "run")
    assert prober.start(backbone(0), 0) == prober.flat(prober.history[0])
    prober.probe(backbone(1), 4)
    text = (tmp_path / "run" / "probes.jsonl").read_text()
    again = make_prober(image_set, tmp_path / "run")
    assert again.start(backbone(0), 4) == {}
    assert again.history == prober.history
    assert again.best_step == 4
    assert (tmp_path / "run" / "probes.jsonl").read_text() == text
    assert is_stored(tmp_path / "run", backbone(1))


def test_a_line_that_was_cut_off_is_forgotten(image_set, tmp_path, selections):
    selections += [0.5, 0.25, 0.5]
    out = tmp_path / "run"
    prober = make_prober(image_set, out)
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4)
    text = (out / "probes.jsonl").read_text()
    (out / "probes.jsonl").write_text(text[:-20])
    again = make_prober(image_set, out)
    assert again.start(backbone(0), 4) == {}
    assert [record["step"] for record in records(out)] == [0]
    (out / "probes.jsonl").write_text(text[:50])
    assert make_prober(image_set, out).start(backbone(0), 4)
    assert [record["step"] for record in records(out)] == [0]


def test_the_file_is_replaced_in_one_step(image_set, tmp_path, monkeypatch):
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    text = (tmp_path / "run" / "probes.jsonl").read_text()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        prober._write()
    assert (tmp_path / "run" / "probes.jsonl").read_text() == text


def test_the_best_weights_are_there_before_their_record(image_set, tmp_path, selections, monkeypatch):
    selections += [0.5, 0.75]
    out = tmp_path / "run"
    prober = make_prober(image_set, out)
    prober.start(backbone(0), 0)

    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Prober, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        prober.probe(backbone(1), 4)
    assert [record["step"] for record in records(out)] == [0]
    probes = load_model(out / "best").provenance["probes"]
    assert (stored_step(out), probes["before"]["step"], probes["after"]["step"]) == (4, 0, 4)


@pytest.mark.parametrize("loss", ["overwritten by a later step", "no folder", "damaged"])
def test_a_best_step_whose_weights_are_lost_is_not_named(image_set, tmp_path, selections, loss):
    selections += [0.5, 0.75, 1.0]
    out = tmp_path / "run"
    prober = make_prober(image_set, out)
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4)
    if loss == "overwritten by a later step":
        prober.probe(backbone(2), 8)
    elif loss == "no folder":
        (out / "best").rename(out / ".best.old")
    else:
        (out / "best" / "openfino.json").write_text('{"format": 1, ')
    again = make_prober(image_set, out)
    again.start(backbone(0), 6)
    assert (again.best_step, stored_step(out)) == (0, 0)
    assert is_stored(out, backbone(0))
    # Better than what is kept, though not than what was lost: kept, and taken up by the next resume.
    selections[:] = [0.625]
    again.probe(backbone(3), 8)
    assert (again.best_step, stored_step(out)) == (8, 8)
    third = make_prober(image_set, out)
    third.start(backbone(0), 8)
    assert third.best_step == 8
    assert is_stored(out, backbone(3))


def test_best_without_a_score_is_removed(image_set, tmp_path):
    out = tmp_path / "run"
    scored = make_prober(image_set, out)
    scored.start(backbone(0), 0)
    assert stored_step(out) == 0
    for record in scored.history:
        record["selection"] = None
    scored._write()
    again = make_prober(image_set, out)
    again.start(backbone(0), 0)
    assert again.best_step is None
    assert not (out / "best").exists()


def test_an_equal_probe_does_not_replace_the_earlier_one(image_set, tmp_path, selections):
    selections += [0.5, 0.5, 0.25]
    prober = make_prober(image_set, tmp_path / "run")
    prober.start(backbone(0), 0)
    prober.probe(backbone(1), 4)
    prober.probe(backbone(2), 8)
    assert (prober.best_step, stored_step(tmp_path / "run")) == (0, 0)
