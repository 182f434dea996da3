"""Comparisons that train: the whole table, going on after a kill, several processes, and what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
import yaml
from comparisons_small import COMPARE, compare_recipe, saved_start
from rich.console import Console
from sklearn.metrics import f1_score

import openfino
from conftest import make_image_set
from openfino.compare.arms import ADAPTED, ERASED, EVERY, METHODS
from openfino.compare.learned import WITHOUT_PRETRAINING
from openfino.compare.terminal import print_compared
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.settings_layers import merge
from tiny_runs import environment

QUIET = Console(quiet=True)
FEW = {"arms": ["ssl", "finetune"], "fractions": []}


@pytest.fixture(scope="module", autouse=True)
def _no_figures():
    """They are tested with the page, and take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openfino.report.compare_page.write_figures", lambda *_: "not drawn in this test")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_image_set(tmp_path_factory.mktemp("compare") / "data", count=64)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Every arm, one seed."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = compare_recipe(data, folder, model={"source": str(saved_start(folder / "start"))})
    return openfino.compare(recipe, console=QUIET)


def few(data, folder, **compare):
    """Two arms that train, without shares of the labels."""
    changes = merge(COMPARE, {"fractions": [], **compare})
    return compare_recipe(data, folder, compare=changes)


def readings(out):
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "arms").glob("*/reading.json")}


def test_every_arm_is_in_the_table(whole):
    result = json.loads((whole.out / "compare.json").read_text())
    assert result == whole.result
    assert not result["not_run"]
    assert list(result["arms"]) == list(EVERY)
    for arm in EVERY:
        value = result["arms"][arm]["test"]["macro_f1"]
        assert value["low"] <= value["mean"] <= value["high"]
        assert value["seeds"] == [value["mean"]]
        assert result["cost"][arm]["seconds"] >= 0
        assert "site" in result["leakage"][arm]
        heads = {"own_head", "refitted"} if arm in METHODS else set()
        assert set(result["probes"][arm]) == {"attentive", "linear", "knn3", *heads}
    assert set(result["fractions"]) == {"frozen", "finetune"}
    assert all(set(shares) == {"0.5", "1"} for shares in result["fractions"].values())
    assert set(result["curves"]) == {*ADAPTED, *METHODS}
    assert all(points["0"] for points in result["curves"].values())
    assert result["splits"] == {"train": {"rows": 32}, "val": {"rows": 16}, "test": {"rows": 16}}
    pairs = {(entry["arm"], entry["than"]) for entry in result["differences"]}
    assert {("fino", arm) for arm in EVERY if arm != "fino"} | {(arm, "frozen") for arm in EVERY[1:]} == pairs


def test_every_probe_of_an_arm_is_held_against_what_the_arm_began_as(whole):
    probes, learned = whole.result["probes"], whole.result["learned"]
    for arm in EVERY:
        own = learned[arm]["test"]
        assert set(own) == ({"attentive", "linear", "knn3"} if arm in (*ADAPTED, *METHODS) else {"attentive"})
        for probe, found in own.items():
            assert found["after"] == probes[arm][probe]["test"]["macro_f1"]["mean"]
            assert found["difference"] == pytest.approx(found["after"] - found["before"])
            assert found["low"] <= found["difference"] <= found["high"]
            if arm not in WITHOUT_PRETRAINING and (arm in ADAPTED or probe != "attentive"):
                assert found["before"] == probes["frozen"][probe]["test"]["macro_f1"]["mean"]
    for probe in ("linear", "knn3"):
        without = [learned[arm]["test"][probe]["before"] for arm in WITHOUT_PRETRAINING]
        assert without[0] == without[1]
    random = whole.result["random_weights"]["test"]["macro_f1"]["mean"]
    assert learned["fino_scratch"]["test"]["attentive"]["before"] == random


def test_costs_count_the_images_of_every_trial(whole):
    cost = whole.result["cost"]
    assert all(cost[arm]["images"] == 4 * 8 for arm in ADAPTED)
    assert all(cost[arm]["images"] == 6 * 8 for arm in METHODS)
    assert all(cost[arm]["images"] == cost[source]["images"] for arm, source in ERASED.items())
    assert {arm for arm in EVERY if cost[arm]["uses_labels"]} == set(METHODS)
    assert not any(
        cost[arm]["uses_metadata"] for arm in ("frozen", "ssl", "ssl_sigreg", "finetune", "scratch")
    )


def test_the_numbers_are_those_of_the_predictions(whole, data):
    table = pl.read_csv(data)
    record = json.loads((whole.out / "arms" / "fino-seed0" / "reading.json").read_text())
    with np.load(whole.out / "arms" / "fino-seed0" / "scores.npz") as stored:
        for arm in ("fino", "fino_erased"):
            chosen = np.array(["middle", "top"])[stored[f"{arm}|attentive"].argmax(axis=1)]
            truth = table["label"].gather(record["rows"]).to_list()
            expected = f1_score(truth, chosen, average="macro")
            assert whole.result["arms"][arm]["test"]["macro_f1"]["mean"] == pytest.approx(expected)
    first, other = (whole.result["arms"][arm]["test"]["accuracy"]["mean"] for arm in ("fino", "frozen"))
    entry = next(
        each
        for each in whole.result["differences"]
        if (each["arm"], each["than"], each["metric"]) == ("fino", "frozen", "accuracy")
    )
    assert entry["difference"] == pytest.approx(first - other)


def test_validation_chooses_the_head_of_a_supervised_arm(whole):
    for arm in METHODS:
        record = json.loads((whole.out / "arms" / f"{arm}-seed0" / "reading.json").read_text())
        chosen = record["chosen"][arm]
        heads = {name: chosen[name]["val"] for name in ("own_head", "refitted")}
        assert chosen["attentive"]["val"] == max(heads.values())
        head = chosen["attentive"]["head"]
        assert heads[head] == max(heads.values())
        own = whole.result["probes"][arm]
        assert own["attentive"]["test"]["macro_f1"]["mean"] == own[head]["test"]["macro_f1"]["mean"]


def test_what_it_leaves(whole, capsys):
    assert whole.page.is_file()
    assert not list(whole.out.glob("arms/*/features")), "cached features are put away"
    print_compared(whole.result, Console(width=160))
    said = capsys.readouterr().out
    assert "FINO, MLP classifier" in said
    assert "images" in said


def test_the_labels_of_the_tests_change_nothing_but_the_scores(whole, data, tmp_path):
    lines = data.read_text().splitlines()
    swapped = {",top,test": ",middle,test", ",middle,test": ",top,test"}
    changed = [
        next((line.replace(old, new) for old, new in swapped.items() if line.endswith(old)), line)
        for line in lines
    ]
    other = data.with_name("swapped.csv")
    other.write_text("\n".join(changed) + "\n")
    start = saved_start(tmp_path / "start")
    recipe = compare_recipe(other, tmp_path, model={"source": str(start)})
    found = openfino.compare(recipe, arms=["frozen", "finetune"], console=QUIET)
    for name in ("frozen-seed0", "finetune-seed0"):
        with (
            np.load(whole.out / "arms" / name / "scores.npz") as before,
            np.load(found.out / "arms" / name / "scores.npz") as after,
        ):
            key = f"{name.removesuffix('-seed0')}|attentive"
            assert np.array_equal(before[key], after[key])
    accuracies = [
        result["arms"]["frozen"]["test"]["accuracy"]["mean"] for result in (whole.result, found.result)
    ]
    assert sum(accuracies) == pytest.approx(1)


def test_more_is_asked_of_the_same_folder(data, tmp_path):
    recipe = few(data, tmp_path)
    first = openfino.compare(recipe, arms=["frozen"], console=QUIET)
    before = readings(first.out)
    found = openfino.compare(recipe, arms=["frozen", "finetune"], seeds=2, console=QUIET)
    assert {name: when for name, when in readings(found.out).items() if name in before} == before
    assert len(found.result["arms"]["finetune"]["test"]["accuracy"]["seeds"]) == 2
    shares = openfino.compare(recipe, arms=["frozen"], fractions=[0.5, 1.0], console=QUIET)
    assert set(shares.result["fractions"]["frozen"]) == {"0.5", "1"}
    with pytest.raises(OpenfinoError, match=r"another plan; it differs in recipe.train.steps \(4 -> 5\)"):
        openfino.compare(recipe, overrides=["train.steps=5"], arms=["frozen"], console=QUIET)


def command(recipe, *options):
    given = ["--arms", "ssl,finetune", *options]
    return [sys.executable, "-m", "openfino.cli", "compare", str(recipe), *given]


def test_a_kill_costs_nothing_and_two_processes_give_the_same(data, tmp_path):
    recipe = few(data, tmp_path)
    straight = openfino.compare(recipe, arms=FEW["arms"], out=tmp_path / "straight", console=QUIET)
    out = tmp_path / "killed"
    with (tmp_path / "said.txt").open("w") as stream:
        process = subprocess.Popen(
            command(recipe, "--out", str(out)), env=environment(), stdout=stream, stderr=stream
        )
        deadline, log = time.monotonic() + 240, out / "arms" / "ssl-seed0" / "run" / "metrics.jsonl"
        while time.monotonic() < deadline and process.poll() is None:
            if log.is_file() and '"step": 1,' in log.read_text():
                break
            time.sleep(0.005)
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert "ssl-seed0" not in readings(out)
    before = readings(out)
    done = subprocess.run(
        command(recipe, "--out", str(out), "--jobs", "2", "--json"),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["arms"] == straight.result["arms"]
    assert found["differences"] == straight.result["differences"]
    assert {name: when for name, when in readings(out).items() if name in before} == before
    assert not list((out / "helpers").glob("*")), "helping processes leave nothing"


def test_no_validation_split_takes_rows_from_training(data, tmp_path):
    probe = {"label": "label", "val": None, "tests": ["test"], "pictures": 1, "k": 3}
    recipe = compare_recipe(data, tmp_path, probe=probe, compare=merge(COMPARE, {"fractions": []}))
    found = openfino.compare(recipe, arms=["frozen"], console=QUIET)
    rows = {name: split["rows"] for name, split in found.result["splits"].items()}
    assert rows == {"train": 28, "val": 4, "test": 16}


def test_a_number_as_the_label(data, tmp_path):
    probe = {"label": "dose", "val": "val", "tests": ["test"], "pictures": 1, "k": 3, "group": None}
    recipe = compare_recipe(data, tmp_path, probe=probe, factors={"site": "informative", "dose": None})
    settings = yaml.safe_load(recipe.read_text())
    del settings["factors"]["dose"]
    recipe.write_text(json.dumps(settings))
    found = openfino.compare(recipe, arms=["frozen", "finetune"], console=QUIET)
    assert found.result["task"] == "regression"
    assert found.result["metric"] == "r2"
    assert set(found.result["arms"]["frozen"]["test"]) == {"r2"}


def test_an_image_on_both_sides_is_refused_before_anything_is_written(data, tmp_path):
    lines = data.read_text().splitlines()
    for name, to in (("train", "test"), ("test", "val")):
        line = next(line for line in lines if line.endswith(name))
        path, _, rest = line.partition(",")
        shutil.copy(data.parent / path, data.parent / f"images/copy-{name}.png")
        lines.append(f"images/copy-{name}.png,{rest.rpartition(',')[0]},{to}")
    other = data.with_name("leaky.csv")
    other.write_text("\n".join(lines) + "\n")
    recipe = compare_recipe(other, tmp_path)
    with pytest.raises(InputProblemsError) as caught:
        openfino.compare(recipe, jobs=0, console=QUIET)
    said = str(caught.value)
    assert "training and test (test) share 1 images" in said
    assert "validation (val) and test (test) share 1 images" in said
    assert "--jobs" in said
    assert not (tmp_path / "run-compare").exists()


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"label": "lable"}, {}, "no column 'lable'"),
        ({"arms": ["fno"]}, {}, "no arm 'fno'"),
        ({"label": "split"}, {}, "different labels"),
        ({}, {"compare": {"domain": "plat"}}, "no column 'plat'"),
        (
            {},
            {"probe": {"label": None, "val": None, "tests": [], "group": None}},
            "no column with the task label",
        ),
        ({"fractions": [0.0]}, {}, "greater than 0"),
    ],
)
def test_bad_input(data, tmp_path, options, changes, said):
    recipe = compare_recipe(data, tmp_path, **changes)
    with pytest.raises(InputProblemsError, match=said):
        openfino.compare(recipe, console=QUIET, **options)
    assert not (tmp_path / "run-compare").exists()


def test_small_has_every_arm_at_a_small_budget():
    from openfino.compare.small import ROWS, STEPS, smaller
    from openfino.recipe import build_recipe

    recipe = build_recipe(
        {
            "manifest": "m.csv",
            "out": "o",
            "model": {"config": {}},
            "train": {"steps": 30_000, "batch_size": 96},
        }
    )
    small = smaller(recipe)
    assert small.train.steps == small.compare.baselines.steps == STEPS
    assert small.train.freeze_steps < STEPS
    assert small.probe.max_rows == ROWS
    assert small.compare.arms is None
    assert small.compare.seeds == 1
