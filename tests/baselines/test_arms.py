"""Whole arms on drawn images: what they write, that they learn, and on what they are chosen."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tiny_arms import COMPARE, run_arm, tiny_recipe

from conftest import TINY, make_image_set
from openfino.baselines import training, trial
from openfino.baselines.arm import plan_arm
from openfino.baselines.methods import METHODS
from openfino.baselines.network import build_network, random_like
from openfino.baselines.predict import baseline_features, load_network, predict_baseline, task_of
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.evaluation.scores import score_task
from openfino.evaluation.splits import encode_column
from openfino.evaluation.tasks import resolve_task
from openfino.export import export
from openfino.manifest import read_manifest
from openfino.models.licence import card_header
from openfino.models.store import load_model, save_backbone
from openfino.preflight import preflight
from openfino.recipe import build_recipe
from tiny_models import tiny_model

PER_METHOD = {"finetune": None, "scratch": None, "dann": 1.0, "coral": 1.0, "groupdro": 0.1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A manifest of 64 drawn images."""
    return make_image_set(tmp_path_factory.mktemp("drawn") / "data", count=64)


def changed_table(manifest, tmp_path, **columns):
    """The manifest beside its images with other columns."""
    table = pl.read_csv(manifest)
    table = table.with_columns(pl.Series(name, make(table)) for name, make in columns.items())
    table = table.with_columns(path=str(manifest.parent) + "/" + pl.col("path"))
    table.write_parquet(tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


def settled(summary):
    """A summary without what a clock and a folder say."""
    text = json.dumps(summary)
    plain = json.loads(
        text, object_hook=lambda own: {k: v for k, v in own.items() if k not in ("seconds", "model")}
    )
    return plain


def source(tmp_path):
    model = tiny_model()
    save_backbone(tmp_path / "source", model.backbone, model.preprocessing, {})
    return str(tmp_path / "source")


def logits_of(out, manifest, split="test", **options):
    table = read_manifest(manifest)
    return predict_baseline(out, table, table.rows_where("split", [split]), **options)


@pytest.mark.parametrize("method", METHODS)
def test_an_arm_from_end_to_end(drawn, tmp_path, method):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"lrs": [1e-3, 3e-3]}})
    told = []
    summary = run_arm(recipe, method, tmp_path / method, progress=lambda *done: told.append(done))
    out, manifest = tmp_path / method, read_manifest(drawn)

    # The grid, and what it cost.
    trials = summary["trials"]
    assert [own["lr"] for own in trials] == [1e-3, 3e-3]
    assert {own["strength"] for own in trials} == {PER_METHOD[method]}
    assert summary["images_seen"] == 2 * summary["images_per_trial"] == 2 * 12 * 12
    assert summary["seconds"] > 0
    assert told[-1] == (24, 24)
    assert summary["score"] == max(own["score"] for own in trials)
    assert summary["uses_metadata"] == (method in ("dann", "coral", "groupdro"))
    assert summary["domains"] == (4 if summary["uses_metadata"] else 0)
    assert json.loads((out / "summary.json").read_text()) == summary

    # The network on disk is the one that was chosen.
    task, rows = task_of(out), manifest.rows_where("split", ["val"])
    assert task == resolve_task(manifest, "label")
    groups, targets = encode_column(manifest.table["site"])[rows], task.targets(manifest.table, rows)
    for untrained, expected in ((False, summary["scores"]), (True, summary["untrained"])):
        logits, read = predict_baseline(out, manifest, rows, batch_size=5, untrained=untrained)
        assert read.tolist() == rows.tolist()
        found = score_task(task, task.predict(torch.from_numpy(logits)), targets, groups)
        assert found == pytest.approx(expected, abs=1e-4)
    assert load_model(out).provenance["supervised"]["method"] == method
    pooled, _ = baseline_features(out, manifest, rows)
    assert pooled.shape == (len(rows), 32)
    network, _ = load_network(out)
    assert np.allclose(
        network.head.read(torch.from_numpy(pooled)).detach(),
        predict_baseline(out, manifest, rows)[0],
        atol=1e-5,
    )

    # Its log has every loss and validation.
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line and line["trial"] == 1] == [0, 4, 8, 11]
    seen = [line for line in lines if "validation" in line and line["trial"] == summary["chosen"]["trial"]]
    assert [line["step"] for line in seen] == [0, 4, 8, 12]
    best = max(seen[1:], key=lambda line: line["validation"]["macro_f1"])
    assert summary["chosen"]["step"] == best["step"]
    assert summary["score"] == best["validation"]["macro_f1"]


def test_an_arm_learns(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"steps": 40, "validations": 5}})
    summary = run_arm(recipe, "finetune", tmp_path / "arm")
    assert summary["untrained"]["macro_f1"] < 0.7
    assert summary["score"] > 0.9


def test_an_arm_depends_on_its_seed_alone(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run")
    torch.manual_seed(1)
    first = run_arm(recipe, "dann", tmp_path / "a", seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = run_arm(recipe, "dann", tmp_path / "b", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert settled(first) == settled(second)
    assert np.array_equal(logits_of(tmp_path / "a", drawn)[0], logits_of(tmp_path / "b", drawn)[0])
    run_arm(recipe, "dann", tmp_path / "c", seed=4)
    assert not np.allclose(logits_of(tmp_path / "a", drawn)[0], logits_of(tmp_path / "c", drawn)[0])


def test_an_arm_that_was_cut_off_goes_on_behind_its_last_trial(drawn, tmp_path, monkeypatch):
    grid = {"lrs": [1e-3, 3e-3, 1e-4], "steps": 6}
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": grid})
    whole = run_arm(recipe, "finetune", tmp_path / "whole")
    ran = []

    def cut_off(arm, point, *rest):
        ran.append(point.number)
        if point.number == 1 and ran.count(1) == 1:
            raise KeyboardInterrupt
        return trial.run_trial(arm, point, *rest)

    monkeypatch.setattr(training, "run_trial", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_arm(recipe, "finetune", tmp_path / "arm")
    with pytest.raises(OpenfinoError, match="another baseline"):
        run_arm(recipe, "finetune", tmp_path / "arm", seed=1)
    again = run_arm(recipe, "finetune", tmp_path / "arm")
    assert ran == [0, 1, 1, 2]
    assert settled(again) == settled(whole)
    assert np.array_equal(logits_of(tmp_path / "arm", drawn)[0], logits_of(tmp_path / "whole", drawn)[0])
    assert run_arm(recipe, "finetune", tmp_path / "arm") == again
    assert ran == [0, 1, 1, 2]


def test_other_folders_are_not_touched(drawn, tmp_path):
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "thesis.txt").write_text("mine")
    with pytest.raises(OpenfinoError, match="holds no baseline"):
        run_arm(tiny_recipe(drawn, tmp_path / "run"), "finetune", tmp_path / "arm")
    with pytest.raises(OpenfinoError, match="holds no baseline"):
        predict_baseline(tmp_path / "arm", read_manifest(drawn), np.arange(2))
    assert [path.name for path in (tmp_path / "arm").iterdir()] == ["thesis.txt"]


def test_only_training_and_validation_images_are_read(tmp_path):
    manifest = make_image_set(tmp_path / "data", count=64)
    recipe = tiny_recipe(manifest, tmp_path / "run")
    before = run_arm(recipe, "coral", tmp_path / "a")
    ready = preflight(recipe)
    table = read_manifest(manifest)
    for row in table.rows_where("split", ["test"]):
        table.paths(int(row))[0].unlink()
    after = run_arm(recipe, "coral", tmp_path / "b", ready=ready)
    assert settled(after) == settled(before)


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path):
    manifest = make_image_set(tmp_path / "data", count=64)
    table, recipe = read_manifest(manifest), tiny_recipe(manifest, tmp_path / "run")
    bad = [int(table.rows_where("split", [split])[1]) for split in ("train", "val")]
    for row in bad:
        table.paths(row)[0].write_bytes(b"no image")
    summary = run_arm(recipe, "finetune", tmp_path / "arm")
    assert summary["unreadable_rows"] == sorted(bad)
    assert logits_of(tmp_path / "arm", manifest, "val")[1].tolist() == [
        row for row in table.rows_where("split", ["val"]) if row not in bad
    ]


def test_rows_without_label_or_domain(drawn, tmp_path):
    def some(column, every):
        return lambda table: [None if row % every == 0 else value for row, value in enumerate(table[column])]

    manifest = changed_table(drawn, tmp_path, label=some("label", 5), site=some("site", 3))
    table = read_manifest(manifest)
    summary = run_arm(tiny_recipe(manifest, tmp_path / "run"), "groupdro", tmp_path / "arm")
    train = table.rows_where("split", ["train"])
    labelled = [row for row in train if row % 5]
    assert summary["train_rows"] == len(labelled)
    assert summary["unlabelled_rows"] == len(train) - len(labelled)
    assert summary["rows_without_domain"] == sum(row % 3 == 0 for row in labelled) > 0


@pytest.mark.parametrize(
    ("column", "make", "metric"),
    [
        ("things", lambda table: ["a|b" if name == "top" else "b|c" for name in table["label"]], "macro_f1"),
        ("level", lambda table: 90.0 + 10.5 * (table["label"] == "top"), "r2"),
    ],
)
def test_many_labels_and_numbers(drawn, tmp_path, column, make, metric):
    manifest = changed_table(drawn, tmp_path, **{column: make})
    for method in ("finetune", "groupdro"):
        recipe = tiny_recipe(manifest, tmp_path / "run", compare={"baselines": {"steps": 30}})
        summary = run_arm(recipe, method, tmp_path / method, label=column)
        assert summary["metric"] == metric
        assert summary["score"] > summary["untrained"][metric] + 0.2
        assert task_of(tmp_path / method) == resolve_task(read_manifest(manifest), column)


def test_half_precision_is_that_of_the_recipe(drawn, tmp_path):
    seen = {}
    for precision in ("float32", "bfloat16"):
        recipe = tiny_recipe(drawn, tmp_path / "run", train={"precision": precision})
        for method in ("dann", "coral"):
            seen[precision, method] = run_arm(recipe, method, tmp_path / f"{precision}{method}")["scores"]
    for method in ("dann", "coral"):
        full, half = seen["float32", method], seen["bfloat16", method]
        assert full["calibration_error"] != half["calibration_error"]
        assert full["macro_auroc"] == pytest.approx(half["macro_auroc"], abs=0.2)


def test_a_trial_that_diverges_is_recorded_and_another_chosen(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"lrs": [1e30, 3e-3], "warmup": 0.0}})
    summary = run_arm(recipe, "finetune", tmp_path / "arm")
    assert "finite" in summary["trials"][0]["failed"]
    assert summary["chosen"]["lr"] == 3e-3
    assert summary["images_seen"] < 2 * summary["images_per_trial"]
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"lrs": [1e30], "warmup": 0.0}})
    with pytest.raises(OpenfinoError, match="every trial of finetune failed"):
        run_arm(recipe, "finetune", tmp_path / "none")


def test_a_metric_that_does_not_exist_here_is_refused(drawn, tmp_path):
    with pytest.raises(OpenfinoError, match="metric r2 is not defined"):
        run_arm(tiny_recipe(drawn, tmp_path / "run"), "finetune", tmp_path / "arm", metric="r2")


def test_only_the_head_trains_at_first(drawn, tmp_path, monkeypatch):
    settings = {"steps": 6, "validations": 6, "head_epochs": 100, "head_share": 0.5}
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": settings})
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"source": source(tmp_path), "config": None})}
    )
    states = []

    def watch(arm, network, images):
        states.append({name: value.clone() for name, value in network.state_dict().items()})
        return real(arm, network, images)

    real = trial.validate
    monkeypatch.setattr(trial, "validate", watch)
    assert run_arm(recipe, "finetune", tmp_path / "arm")["head_steps"] == 3

    def same(one, other, part):
        names = [name for name in one if name.startswith(part)]
        return all(torch.equal(one[name], other[name]) for name in names)

    assert [same(states[0], own, "backbone") for own in states] == [True] * 4 + [False] * 3
    assert [same(states[0], own, "head") for own in states] == [True] + [False] * 6
    start = load_file(tmp_path / "source" / "model.safetensors")
    assert all(torch.equal(states[0][f"backbone.model.{name}"], value) for name, value in start.items())


def test_from_scratch_is_the_same_architecture_with_random_weights(drawn, tmp_path):
    place = source(tmp_path)
    recipe = tiny_recipe(drawn, tmp_path / "run")
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"source": place, "config": None})}
    )
    channels = preflight(recipe).channels

    def weights(method, seed):
        network = build_network(recipe, method, channels=channels, outputs=2, seed=seed)
        return network.backbone.filters, {name: value.shape for name, value in network.state_dict().items()}

    loaded, shapes = weights("finetune", 0)
    random, same = weights("scratch", 0)
    assert shapes == same
    assert torch.equal(loaded, load_model(place).backbone.filters)
    assert not torch.allclose(loaded, random)
    assert torch.equal(random, weights("scratch", 0)[0])
    assert not torch.equal(random, weights("scratch", 1)[0])
    model = load_model(place).backbone
    assert random_like(model, 0).config.to_dict() == {**model.config.to_dict(), "_name_or_path": ""}


@pytest.mark.parametrize("method", ["finetune", "scratch"])
def test_the_model_card_says_that_labels_trained(drawn, tmp_path, method):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"steps": 2}})
    place = source(tmp_path)
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\n---\n")
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"source": place, "config": None})}
    )
    run_arm(recipe, method, tmp_path / "arm")
    export(tmp_path / "arm", tmp_path / "out")
    card, header = (tmp_path / "out" / "README.md").read_text(), card_header(tmp_path / "out" / "README.md")
    assert f"with the labels of `label` ({method})" in card
    assert "without task labels" not in card
    assert "supervised" in header["tags"]
    assert "spurious" not in card
    assert header.get("license") == ("mit" if method == "finetune" else None)
    assert ("started from random weights" in card) == (method == "scratch")


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_an_arm_on_a_gpu(drawn, tmp_path, method):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    recipe = tiny_recipe(drawn, tmp_path / "run", train={"device": "cuda"})
    summary = run_arm(recipe, method, tmp_path / "arm")
    assert summary["score"] >= summary["untrained"]["macro_f1"]
    on_gpu, _ = logits_of(tmp_path / "arm", drawn, device="cuda")
    assert np.allclose(on_gpu, logits_of(tmp_path / "arm", drawn)[0], atol=1e-2)


def planned(recipe, method="finetune", **options):
    manifest = read_manifest(recipe.manifest)
    task = resolve_task(manifest, "label")
    given = {
        "task": task,
        "targets": task.targets(manifest.table, np.arange(len(manifest))),
        "train_rows": manifest.rows_where("split", ["train"]),
        "val_rows": manifest.rows_where("split", ["val"]),
        "out": recipe.out,
        "seed": 0,
        "settings": recipe.compare.baselines,
        "ready": preflight(recipe),
        "domain": "site",
        "metric": None,
        "groups": None,
        "full_rows": None,
    }
    return plan_arm(recipe, method, **{**given, **options})


@pytest.mark.parametrize(("rows", "steps"), [(32, 100), (16, 50), (9, 28), (4, 25), (64, 100)])
def test_fewer_rows_have_fewer_steps_but_not_too_few(drawn, tmp_path, rows, steps):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"steps": 100}})
    train = read_manifest(drawn).rows_where("split", ["train"])[:rows]
    assert planned(recipe, train_rows=train, full_rows=32 if rows <= 32 else 16).steps == steps


def test_the_budget_is_that_of_adaptation_by_default(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"steps": None, "batch_size": None}})
    arm = planned(recipe)
    assert (arm.steps, arm.batch_size) == (recipe.train.steps, recipe.train.batch_size)
    assert arm.head_steps == 0  # random weights
    assert arm.metric == "macro_f1"


def test_the_rate_warms_up_and_falls(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": {"steps": 40, "warmup": 0.1}})
    arm = planned(recipe)
    rates = [trial.learning_rate(arm, arm.trials[0], step) for step in range(40)]
    assert rates[:5] == pytest.approx([0.25 * 3e-3, 0.5 * 3e-3, 0.75 * 3e-3, 3e-3, 3e-3])
    expected = [3e-3 * (1 + math.cos(math.pi * (step - 4) / 36)) / 2 for step in range(4, 40)]
    assert rates[4:] == pytest.approx(expected)


def test_the_grids_and_the_fresh_rate(drawn, tmp_path):
    grids = {"lrs": [1e-3, 1e-4], "scratch_lrs": [1e-2], "coral": [0.1, 1.0], "fresh_lr_factor": 10.0}
    recipe = tiny_recipe(drawn, tmp_path / "run", compare={"baselines": grids})
    points = {
        method: [(own.lr, own.strength) for own in planned(recipe, method).trials] for method in METHODS
    }
    assert points["finetune"] == [(1e-3, None), (1e-4, None)]
    assert points["scratch"] == [(1e-2, None)]
    assert points["coral"] == [(1e-3, 0.1), (1e-3, 1.0), (1e-4, 0.1), (1e-4, 1.0)]
    arm = planned(recipe, "dann")
    network, method = trial._build(arm, arm.trials[0])
    optimizer = trial._optimizer(arm, network, method)
    factors = {id(own): group["lr_multiplier"] for group in optimizer.param_groups for own in group["params"]}
    assert {factors[id(own)] for own in network.backbone.parameters()} == {1.0}
    assert {factors[id(own)] for own in [*network.head.parameters(), *method.parameters()]} == {10.0}


def test_coral_comes_in_runs_of_a_domain(drawn, tmp_path):
    recipe = tiny_recipe(drawn, tmp_path / "run")
    codes, length = planned(recipe, "coral").runs
    assert length == COMPARE["baselines"]["batch_size"] // 3
    assert len(codes) == 32
    assert planned(recipe, "dann").runs is None


def test_every_problem_is_said_at_once(drawn, tmp_path):
    recipe, rows = tiny_recipe(drawn, tmp_path / "run"), np.arange(8)
    nothing = resolve_task(read_manifest(drawn), "label").targets(
        read_manifest(drawn).table.with_columns(label=pl.lit(None, dtype=pl.String)), np.arange(64)
    )
    with pytest.raises(InputProblemsError) as caught:
        planned(recipe, train_rows=rows, val_rows=rows[4:], targets=nothing)
    assert len(caught.value.problems) == 3
    assert "row 5" in str(caught.value)


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        (None, "needs a domain"),
        ("plate", "no column"),
        ("path", "have 2 training rows"),
        ("split", "have 2 training"),
    ],
)
def test_a_domain_that_is_none_is_refused(drawn, tmp_path, domain, said):
    recipe = tiny_recipe(drawn, tmp_path / "run")
    assert planned(recipe, "finetune", domain=domain).domains.count == 0
    with pytest.raises(InputProblemsError, match=said):
        planned(recipe, "dann", domain=domain)


def test_wider_backbones_keep_their_own_sizes(tmp_path, drawn):
    wide = {**TINY, "hidden_size": 48, "num_hidden_layers": 3}
    recipe = tiny_recipe(drawn, tmp_path / "run", model={"config": wide}, compare={"baselines": {"steps": 2}})
    run_arm(recipe, "finetune", tmp_path / "arm")
    facts = json.loads((tmp_path / "arm" / "arm.json").read_text())
    assert (facts["layers"], facts["token_dim"], facts["width"]) == (2, 96, 32)


def test_short_runs_have_a_higher_rate(drawn, tmp_path):
    plain = {"manifest": drawn, "out": tmp_path / "run", "model": "tiny"}
    assert build_recipe({**plain, "preset": "small"}).compare.baselines.lrs == [3e-4]
    assert build_recipe(plain).compare.baselines.lrs == [5e-5]
