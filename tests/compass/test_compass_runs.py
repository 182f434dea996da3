"""Compasses that train: on one folder by one process, by several, and after a kill."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import openfino
from openfino.adapt import adapt
from openfino.cli import app
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.jobs.folder import Workplace
from openfino.locks import lock
from openfino.models.store import load_model
from openfino.preflight import preflight
from openfino.recipe import load_recipe
from openfino.sampledata import draw_sample
from tiny_runs import environment, recipe_file, tiny_settings

QUIET = Console(quiet=True)
STEPS = 16
RESULTS = ("compass.json", "compass.html", "compass.png", "recommended.yaml")


def recipe_of(manifest, folder, **changes):
    """A recipe of two factors with a label and every split, and steps of some milliseconds."""
    probe = {"label": "label", "val": "val", "tests": ["test"], "pictures": 1, "k": 3}
    changes = {"train": {"steps": STEPS}, "probe": probe, "train_split": None, **changes}
    return recipe_file(folder, tiny_settings(manifest, folder / "run", **changes))


def run(recipe, **options):
    return openfino.compass(recipe, **{"seeds": 2, "factors": ["site"], "console": QUIET, **options})


def command(recipe, *options):
    given = ["--seeds", "2", "--factors", "site", *options]
    return [sys.executable, "-m", "openfino.cli", "compass", str(recipe), *given]


GAINS = {("site", "informative"): 0.2, ("dose", "spurious"): 0.1}


@pytest.fixture
def no_training(monkeypatch):
    """Arms whose scores are made up: what they add to 0.3, for each role that helps, and a little by their seed."""

    def pretend(recipe, **_):
        roles = {(name, factor.role) for name, factor in recipe.factors.items()}
        score = 0.3 + sum(gain for role, gain in GAINS.items() if role in roles) + 0.001 * recipe.seed
        score += 0.002 * len(roles & {("site", "spurious")}) * recipe.seed
        splits = {split: {"scores": {"knn": {"macro_f1": score}}} for split in recipe.probe.tests}
        record = {"label": {"splits": splits}}
        recipe.out.mkdir(parents=True)
        summary = {"steps": recipe.train.steps, "probes": {"before": record, "after": record}}
        (recipe.out / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr("openfino.jobs.running.adapt", pretend)
    monkeypatch.setattr("openfino.jobs.running._release_memory", lambda: None)


def summaries(out):
    """When each arm was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "arms").glob("*/summary.json")}


def log_of(out, arm):
    return (out / "arms" / f"{arm}.log").read_text()


def test_a_compass_over_the_sample_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_sample(Path("sample"), images=120, size=32)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    views = {"preset": "fluorescence", "protein_channel": "protein", "global_size": 32, "local_size": 16}
    settings = {
        "preset": "small",
        "manifest": "sample/manifest.csv",
        "out": "run",
        "model": {"config": {**small, "patch_size": 8}},
        "images": {
            "channels": ["nucleus", "protein", "microtubules", "er"],
            "normalization": "zscore",
        },
        "views": {**views, "local_count": 2},
        "factors": {"antibody": "watched", "plate": "watched"},
        "train": {"steps": 40, "batch_size": 16, "workers": 0, "threads": 1},
        "probe": {"label": "localization", "split": "split", "val": "val", "tests": ["test_id", "test_ood"]},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    options = ["--seeds", "2", "--steps", "4", "--group", "plate", "--factors", "antibody"]
    result = CliRunner().invoke(app, ["compass", "recipe.yaml", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    out = Path("run-compass")
    assert all((out / name).stat().st_size > 300 for name in RESULTS)
    assert "Recommended" in result.output
    found = json.loads((out / "compass.json").read_text())
    assert set(found["validation"]["splits"]) == {"in", "out"}
    assert list(found["scores"]) == ["start", "control", "01-antibody-informative", "01-antibody-spurious"]
    assert set(found["scores"]["control"]) == {"compass_in", "compass_out", "test_id", "test_ood"}
    control = load_recipe(out / "arms" / "control-seed1.yaml")
    arm = load_recipe(out / "arms" / "01-antibody-spurious-seed1.yaml")
    assert (control.train.steps, control.train.warmup_steps) == (4, 2)
    assert {name: factor.role for name, factor in arm.factors.items()} == {
        "antibody": "spurious",
        "plate": "watched",
    }
    # An arm differs from the control in its guidance alone.
    assert (control.koleo_weight, control.sigreg_weight) == (arm.koleo_weight, arm.sigreg_weight) == (0, 0.05)
    assert control.seed == arm.seed == 1
    # What is recommended can be run as it stands, on the user's own splits.
    advised = load_recipe(out / "recommended.yaml")
    assert advised.probe.val == "val"
    assert advised.train.steps == 40
    preflight(advised)
    assert load_model(str(out / "arms" / "control-seed0")).backbone.channels == 4


def test_a_killed_compass_goes_on(image_set, tmp_path):
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "killed"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            command(recipe, "--out", str(out)), env=environment(), stdout=said, stderr=said
        )
    unfinished = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and unfinished is None:
        begun = {path.parent.parent.name for path in (out / "arms").glob("*/checkpoints/step_*")}
        unfinished = next(iter(begun - summaries(out).keys()), None) if summaries(out) else None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = summaries(out)
    assert unfinished, (tmp_path / "said").read_text()
    assert 0 < len(before) < 6
    assert unfinished not in before

    found = run(recipe, out=out)
    assert {arm: when for arm, when in summaries(out).items() if arm in before} == before
    assert all(log_of(out, arm).count(f"done: {STEPS} steps") == 1 for arm in summaries(out))
    assert "resuming at step" in log_of(out, unfinished)
    assert not list((out / "arms").glob("*/checkpoints"))  # nothing resumes a finished arm
    whole = load_recipe(out / "arms" / f"{unfinished}.yaml", [f"out={tmp_path / 'whole'}"])
    after = adapt(whole, console=QUIET)["probes"]["after"]["label"]["splits"]["test"]["scores"]["knn"]
    arm, _, seed = unfinished.rpartition("-seed")
    assert found.scores[arm]["test"][int(seed)] == after["macro_f1"]


def test_two_processes_share_the_arms(image_set, tmp_path):
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "shared"
    ask = command(recipe, "--out", str(out), "--json")
    pair = [
        subprocess.Popen(ask, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    results = [json.loads(out) for out, _ in said]
    assert results[0] == results[1] == json.loads((out / "compass.json").read_text())
    assert len(summaries(out)) == 6
    assert all(log_of(out, arm).count(f"done: {STEPS} steps") == 1 for arm in summaries(out))


def test_an_arm_of_another_process_is_waited_for(image_set, tmp_path, no_training):
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "waiting"
    done = []
    with lock(out / "arms" / "control-seed0.lock") as held:
        (out / ".openfino-compass").touch()
        assert held
        thread = threading.Thread(target=lambda: done.append(run(recipe, out=out)))
        thread.start()
        deadline = time.monotonic() + 120
        while len(summaries(out)) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "control-seed0" not in summaries(out)
        assert not done
    thread.join(timeout=120)
    assert "control-seed0" in summaries(out)
    assert done[0].scores["control"]


def test_more_seeds_and_factors_keep_what_is_finished(image_set, tmp_path, no_training):
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "more"
    run(recipe, out=out)
    before = summaries(out)
    found = run(recipe, out=out, seeds=3, factors=[])
    assert len(found.scores["control"]["test"]) == 3
    assert set(found.factors) == {"site", "dose"}
    assert {arm: when for arm, when in summaries(out).items() if arm in before} == before


def test_what_helps_is_combined_in_one_more_arm(image_set, tmp_path, no_training):
    recipe = recipe_of(image_set, tmp_path)
    found = run(recipe, factors=[])
    out = tmp_path / "run-compass"
    assert dict(found.recommendation.arm.roles) == {"site": "informative", "dose": "spurious"}
    assert len([arm for arm in summaries(out) if arm.startswith("combined-")]) == 2
    assert found.recommendation.tests["test"].mean == pytest.approx(0.3)
    advised = load_recipe(out / "recommended.yaml")
    assert {name: factor.role for name, factor in advised.factors.items()} == {
        "site": "informative",
        "dose": "spurious",
    }
    assert "it beats the control" in (out / "recommended.yaml").read_text()
    before = summaries(out)
    assert run(recipe, factors=[]).scores == found.scores
    assert summaries(out) == before


def test_another_plan_or_table_is_refused(image_set, tmp_path, no_training):
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "plans"
    run(recipe, out=out)
    with pytest.raises(OpenfinoError, match=r"another plan; it differs in recipe.train.steps \(16 -> 8\)"):
        run(recipe, out=out, steps=8)
    text = image_set.read_text()
    image_set.write_text(text.replace("site3", "site2"))
    with pytest.raises(OpenfinoError, match="the manifest has changed"):
        run(recipe, out=out)
    with lock(out / "arms" / "control-seed0.lock"), pytest.raises(OpenfinoError, match="right now"):
        run(recipe, out=out, overwrite=True)
    image_set.write_text(text)
    kept = summaries(out)
    assert len(kept) == 6
    run(recipe, out=out, steps=8, overwrite=True)
    assert not set(summaries(out).values()) & set(kept.values())


def test_a_failing_arm_is_named_with_its_log(image_set, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OpenfinoError("the device caught fire")

    monkeypatch.setattr("openfino.jobs.running.adapt", fail)
    recipe, out = recipe_of(image_set, tmp_path), tmp_path / "failing"
    with pytest.raises(
        OpenfinoError, match=r"(?s)control \(no guidance\), seed 0 failed: the device"
    ) as caught:
        run(recipe, out=out)
    assert "control-seed0.log" in str(caught.value)
    assert "the device caught fire" in log_of(out, "control-seed0")


def test_a_foreign_folder_is_left_alone(image_set, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    recipe = recipe_of(image_set, tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OpenfinoError, match="holds no compass"):
            run(recipe, out=foreign, overwrite=overwrite)
    with pytest.raises(OpenfinoError, match="holds the manifest"):
        run(recipe, out=image_set.parent, overwrite=True)
    assert os.listdir(foreign) == ["thesis.txt"]


def test_a_folder_among_the_images_is_refused(image_set, tmp_path):
    recipe = recipe_of(image_set.parent, tmp_path, factors={"folder": "watched"})
    with pytest.raises(OpenfinoError, match="lies among the images"):
        Workplace(image_set.parent / "images" / "compass", "compass").refuse_inside(
            load_recipe(recipe).manifest
        )


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OpenfinoError, match="No locks available"), lock(tmp_path / "lock"):
        pass


def test_everything_wrong_is_said_at_once_and_nothing_is_written(image_set, tmp_path):
    probe = {"split": "split", "pictures": 1}
    recipe = recipe_of(image_set, tmp_path, probe=probe, factors={"sitee": "informative"})
    with pytest.raises(InputProblemsError) as caught:
        run(recipe, seeds=1, factors=["plate"])
    said = str(caught.value)
    for part in (
        "no column with the task label",
        "there is no factor 'plate'",
        "no column 'sitee'",
        "1 seed",
    ):
        assert part in said
    assert not (tmp_path / "run-compass").exists()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"factors": None}, {"factors": []}, "names no factor"),
        ({"factors": {"dose": {"role": "informative", "output": "identity"}}}, {}, "'identity' is refused"),
        ({}, {"group": "plate"}, "no column 'plate'"),
        ({}, {"val_out": "nowhere"}, "no row has 'nowhere'"),
        ({}, {"steps": 2, "group": "label"}, None),
    ],
)
def test_bad_input(image_set, tmp_path, changes, options, said):
    settings = tiny_settings(image_set, tmp_path / "run", probe={"label": "label", "tests": ["test"]})
    settings |= {"train_split": None, **{key: value or {} for key, value in changes.items()}}
    recipe = recipe_file(tmp_path, settings)
    if "dose" in (changes.get("factors") or {}):
        options = {"factors": ["dose"]}
    with pytest.raises(InputProblemsError, match=said or "2 different values"):
        run(recipe, **options)
    assert not (tmp_path / "run-compass").exists()
