import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from rich.console import Console

from conftest import TINY
from openfino.adapt import adapt, starting_backbone
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.factors.encode import load_vocabularies
from openfino.models.loading import random_backbone
from openfino.models.store import load_model
from openfino.recipe import build_recipe
from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_runs import command, environment, kill_at_step, losses, recipe_file, run_tiny, tiny_settings


def test_a_run_leaves_everything_that_is_promised(image_set, tmp_path):
    out = tmp_path / "run"
    summary = run_tiny(image_set, out)
    assert summary["steps"] == 8
    assert summary["images_seen"] == 64
    assert (summary["skipped_steps"], summary["unreadable_rows"]) == (0, [])
    for name in ("recipe.yaml", "environment.json", "factors.json", "metrics.jsonl", "summary.json"):
        assert (out / name).is_file(), name
    assert list((out / "tensorboard").iterdir())
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss/total" in record] == list(range(8))
    # Without a label the factors are still read from the features, before and after.
    assert [record["step"] for record in records if "probe/leakage/site/knn_accuracy" in record] == [0, 7]
    # What became of each of them, reader by reader, is judged; as sentences too where it is not what was asked for.
    judged = {(change["factor"], change["role"], change["method"]) for change in summary["leakage"]}
    roles = {"site": "informative", "dose": "spurious"}
    assert judged == {(name, role, method) for name, role in roles.items() for method in ("knn", "linear")}
    assert len(summary["flags"]) == sum(change["flagged"] for change in summary["leakage"])
    assert list(summary["probes"]["after"]["erased"]) == ["dose"]
    assert json.loads((out / "summary.json").read_text())["leakage"] == summary["leakage"]
    records = [record for record in records if "loss/total" in record]
    expected = {
        "loss/total", "loss/dino", "loss/ibot", "loss/sigreg", "loss/guidance", "gradient_norm", "guidance/ramp",
        "guidance/site/accuracy", "guidance/site/valid_fraction", "guidance/dose/mae", "guidance/dose/gradient_norm",
        "watch/feature_rank", "watch/target_entropy", "schedule/lr", "count/skipped_steps", "speed/data_wait",
    }  # fmt: skip
    assert expected <= records[0].keys()
    model = load_model(out)
    assert model.preprocessing.size == (32, 32)
    assert model.provenance["factors"]["site"] == {
        "role": "informative",
        "kind": "discrete",
        "columns": ["site"],
    }


def test_the_teacher_is_what_is_saved(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "run")
    tensors, _ = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    saved = load_model(tmp_path / "run").backbone.state_dict()
    for name, value in saved.items():
        assert torch.equal(value, tensors[f"teacher/backbone.{name}"]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(image_set, tmp_path, workers):
    changes = {"train": {"steps": 12, "workers": workers, "drop_path": 0.2}}
    run_tiny(image_set, tmp_path / "straight", **changes)
    settings = tiny_settings(image_set, tmp_path / "killed", **changes)
    kill_at_step(recipe_file(tmp_path, settings), tmp_path / "killed", step=7 + workers)
    summary = run_tiny(image_set, tmp_path / "killed", resume=True, **changes)
    assert summary["steps"] == 12
    straight, killed = losses(tmp_path / "straight"), losses(tmp_path / "killed")
    assert list(killed) == list(range(12))
    assert killed == straight
    assert_same_weights(tmp_path / "straight", tmp_path / "killed")


def assert_same_weights(first, second):
    one, other = (load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0] for out in (first, second))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_two_processes_give_the_losses_and_weights_of_one(image_set, tmp_path):
    # Frozen first, so that DDP wraps twice; 30 % of the sites missing, so that valid counts differ by rank.
    table = pl.read_csv(image_set)
    generator = np.random.default_rng(1)
    for column in ("site", "dose"):
        kept = pl.Series(generator.random(len(table)) > 0.3)
        table = table.with_columns(pl.when(kept).then(pl.col(column)).otherwise(None).alias(column))
    table.write_csv(image_set)
    changes = {
        "train": {"steps": 5, "freeze_steps": 2, "drop_path": 0.3, "clip_norm": 1e9, "checkpoint_every": 2}
    }
    changes["objective"] = {"koleo": {"weight": 0.1}, "guidance": {"regressor_dropout": 0.5}}
    run_tiny(image_set, tmp_path / "one", **changes)
    settings = tiny_settings(image_set, tmp_path / "two", **changes)
    recipe = recipe_file(tmp_path, settings)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, *command(recipe)[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(5))
    for step, values in one.items():
        for name, value in values.items():
            assert two[step][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)
    first, second = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1])[0] for name in ("one", "two")
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_accumulated_pieces_see_the_targets_of_the_whole_batch(image_set, tmp_path):
    plain = {"factors": {"site": "watched", "dose": "watched"}, "objective": {"koleo": {"weight": 0}}}
    run_tiny(image_set, tmp_path / "whole", train={"steps": 3}, **plain)
    run_tiny(
        image_set, tmp_path / "pieces", train={"steps": 3, "accumulate": 3}, **plain
    )  # 8 images in 3, 3, 2
    whole, pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    for step, values in whole.items():
        for name, value in values.items():
            assert pieces[step][name] == pytest.approx(value, rel=2e-5), (step, name)


def test_stage_one_moves_the_patch_embedding_and_heads_only(image_set, tmp_path):
    changes = {"train": {"steps": 6, "freeze_steps": 3, "checkpoint_every": 3, "keep_checkpoints": 9}}
    run_tiny(image_set, tmp_path / "run", **changes)
    first, last = (load_checkpoint(path)[0] for path in list_checkpoints(tmp_path / "run" / "checkpoints"))
    start = first["model/student.backbone.model.norm.weight"]
    assert torch.equal(start, torch.ones_like(start))
    assert "optimizer/student.backbone.model.norm.weight/exp_avg" not in first
    assert "optimizer/student.backbone.model.embeddings.patch_embeddings.weight/exp_avg" in first
    assert not torch.equal(last["model/student.backbone.model.norm.weight"], start)


def test_a_run_with_missing_values_trains_every_term(image_set, tmp_path):
    table = pl.read_csv(image_set)
    table = table.with_columns(
        site=pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise(pl.col("site"))
    )
    table.write_csv(image_set)
    run_tiny(image_set, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "loss/total" in record]
    fractions = [record["guidance/site/valid_fraction"] for record in records]
    assert 0.3 < sum(fractions) / len(fractions) < 0.9
    assert all(np.isfinite(record["loss/total"]) for record in records)


def test_a_run_may_end_where_it_stands_but_not_before(image_set, tmp_path):
    def run(steps, **options):
        train = {"schedule": "constant", "teacher_momentum": [0.9, 0.9], "steps": steps}
        objective = {"guidance": {"ramp": "constant"}}
        return run_tiny(image_set, tmp_path / "run", train=train, objective=objective, **options)

    run(2)
    before = losses(tmp_path / "run")
    with pytest.raises(OpenfinoError, match=r"is at step 2; train\.steps 1 is behind it"):
        run(1, resume=True)
    assert run(2, resume=True)["steps"] == 2
    assert losses(tmp_path / "run") == before


def test_a_resumed_run_on_a_grown_table_keeps_every_value_on_its_row(image_set, tmp_path):
    out = tmp_path / "run"
    changes = {"train": {"steps": 3, "schedule": "constant", "teacher_momentum": [0.9, 0.9]}}
    changes["objective"] = {"guidance": {"ramp": "constant"}}
    run_tiny(image_set, out, **changes)
    before = load_vocabularies(out / "factors.json")["site"]
    bank = "model/objective.terms.guidance.heads.factor:site.prototypes"
    old = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0][bank]
    table = pl.read_csv(image_set)
    grown = pl.concat([table.with_columns(site=pl.lit("another site")), table])  # the new value comes first
    grown = grown.with_columns(
        path=pl.when(pl.int_range(pl.len()) < len(table))
        .then("images/../" + pl.col("path"))
        .otherwise(pl.col("path"))
    )
    grown.write_csv(image_set)
    changes["train"]["steps"] = 6
    run_tiny(image_set, out, resume=True, **changes)
    after = load_vocabularies(out / "factors.json")["site"]
    assert after.values[: len(before.values)] == before.values
    assert after.values[len(before.values) :] == ["another site"]
    new = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0][bank]
    assert new.shape[0] == old.shape[0] + 1
    cosine = torch.nn.functional.cosine_similarity(new[: len(old)], old)
    assert cosine.min() > 0.9  # moved a little by three steps, never swapped


def test_a_corrupt_image_is_replaced_and_counted(image_set, tmp_path):
    (image_set.parent / "images" / "000.png").write_bytes(b"\x89PNG broken")
    summary = run_tiny(image_set, tmp_path / "run")
    assert summary["unreadable_rows"] == [0]
    assert summary["steps"] == 8


def test_images_smaller_than_a_crop_are_enlarged(image_set, tmp_path):
    for path in (image_set.parent / "images").iterdir():
        Image.open(path).resize((20, 12)).save(path)
    assert run_tiny(image_set, tmp_path / "run", train={"steps": 2})["steps"] == 2


def test_a_factor_with_one_value_is_refused_before_training(image_set, tmp_path):
    table = pl.read_csv(image_set).with_columns(site=pl.lit("only"))
    table.write_csv(image_set)
    with pytest.raises(InputProblemsError, match="site"):
        run_tiny(image_set, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_factor_constant_among_the_training_rows_is_refused_before_training(image_set, tmp_path):
    table = pl.read_csv(image_set)
    table = table.with_columns(
        site=pl.when(pl.col("split") == "train").then(pl.lit("one")).otherwise(pl.col("site"))
    )
    table.write_csv(image_set)
    with pytest.raises(InputProblemsError, match=r"factors\.site.*fewer than two values"):
        run_tiny(image_set, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_loaded_leave_no_folder(image_set, tmp_path):
    (tmp_path / "start").mkdir()
    with pytest.raises(OpenfinoError, match="start"):
        run_tiny(image_set, tmp_path / "run", model={"source": str(tmp_path / "start"), "config": None})
    assert not (tmp_path / "run").exists()


def test_everything_wrong_is_said_before_training(image_set, tmp_path):
    with pytest.raises(InputProblemsError) as caught:
        run_tiny(
            image_set,
            tmp_path / "run",
            factors={"sight": "informative"},
            views={"local_size": 17, "protein_channel": "green"},
            images={"channels": ["a", "b"]},
            train_split=["trian"],
            probe={"label": "lable"},
        )
    text = str(caught.value)
    for word in ("sight", "views.local_size", "[16, 16]", "green", "images.channels", "trian", "lable"):
        assert word in text, word
    assert not (tmp_path / "run").exists()


def test_three_bad_steps_stop_the_run_with_a_replay(image_set, tmp_path):
    with pytest.raises(OpenfinoError, match=r"3 steps in a row.*diverged, lower train.lr.*saved in"):
        run_tiny(image_set, tmp_path / "run", train={"lr": 1e30, "warmup_steps": 0})
    (replay,) = (tmp_path / "run" / "replay").iterdir()
    content = torch.load(replay, weights_only=True)
    assert content["step"] == 3
    assert len(content["rows"]) == 8
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "loss/total" in record]
    assert [record["count/skipped_steps"] for record in records] == [0, 1, 2]
    assert records[1]["loss/total"] is None


def test_the_best_backbone_is_kept_and_retention_is_told(image_set, tmp_path):
    probe = {"label": "label", "val": "val", "tests": ["test"], "every": 2, "k": 3}
    summary = run_tiny(image_set, tmp_path / "run", probe=probe)
    history = [json.loads(line) for line in (tmp_path / "run" / "probes.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [0, 2, 4, 6, 8]
    assert summary["probes"]["before"]["step"] == 0
    assert summary["probes"]["after"]["step"] == 8
    best = max(history, key=lambda record: record["selection"])
    stored = json.loads((tmp_path / "run" / "best" / "openfino.json").read_text())
    assert stored["provenance"]["steps"] == best["step"]
    assert summary["model"].endswith("best")


def test_probing_changes_nothing(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "plain", train={"steps": 4})
    run_tiny(image_set, tmp_path / "probed", train={"steps": 4}, probe={"label": "label", "every": 1, "k": 3})
    assert losses(tmp_path / "plain") == losses(tmp_path / "probed")


def test_a_started_model_folder_and_channels(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "first", train={"steps": 2})
    second = run_tiny(
        image_set,
        tmp_path / "second",
        train={"steps": 2},
        model={"source": str(tmp_path / "first"), "config": None},
    )
    assert second["weights"]["matched"] == second["weights"]["total"]


def test_new_channels_may_leave_the_old_filters_as_they_are(image_set, tmp_path):
    folder = tmp_path / "start"
    random_backbone(TINY, 3, seed=0).model.save_pretrained(folder)
    filters = {}
    for keep in (True, False):
        model = {"source": str(folder), "keep_grey_response": keep}
        recipe = build_recipe({"manifest": str(image_set), "out": str(tmp_path / "run"), "model": model})
        filters[keep] = starting_backbone(recipe, list("abcd"))[0].filters
    torch.testing.assert_close(filters[True], filters[False] * 3 / 4)


def test_checkpointed_activations_change_no_loss(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "kept", train={"steps": 3, "drop_path": 0.3})
    again = {"steps": 3, "drop_path": 0.3, "activation_checkpointing": True}
    run_tiny(image_set, tmp_path / "recomputed", train=again)
    kept, recomputed = losses(tmp_path / "kept"), losses(tmp_path / "recomputed")
    for step, values in kept.items():
        assert recomputed[step] == pytest.approx(values, rel=1e-6), step


def test_autocast_keeps_weights_and_terms_in_float32(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "exact", train={"steps": 2})
    run_tiny(image_set, tmp_path / "mixed", train={"steps": 2, "precision": "bfloat16"})
    tensors, _ = load_checkpoint(list_checkpoints(tmp_path / "mixed" / "checkpoints")[-1])
    assert {value.dtype for name, value in tensors.items() if "weight" in name} == {torch.float32}
    exact, mixed = (losses(tmp_path / name)[0]["loss/total"] for name in ("exact", "mixed"))
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.02)


def test_one_file_per_channel_sixteen_bits_and_a_non_square_crop(tmp_path):
    generator = np.random.default_rng(0)
    rows = []
    for index in range(12):
        names = [f"{index}_{channel}.png" for channel in ("dna", "actin")]
        for name in names:
            pixels = generator.integers(0, 65_535, (48, 56), dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / name)
        rows.append(
            {
                "dna_path": names[0],
                "actin_path": names[1],
                "dose": float(index),
                "day": f"2024-0{1 + index % 9}-03",
            }
        )
    pl.DataFrame(rows).write_parquet(tmp_path / "manifest.parquet")
    settings = {
        "train_split": None,
        "images": {
            "path_columns": ["dna_path", "actin_path"],
            "channels": ["dna", "actin"],
            "normalization": "zscore",
        },
        "views": {"preset": "overhead", "global_size": [32, 48], "local_size": [16, 24]},
        "factors": {
            "site": {"role": "watched", "kind": "discrete", "columns": ["day"]},
            "dose": {"role": "informative"},
            "season": {"role": "informative", "kind": "cyclic", "columns": ["day"], "period": "day_of_year"},
        },
        "probe": {"split": None},
        "train": {"steps": 2, "batch_size": 6},
    }
    run_tiny(tmp_path / "manifest.parquet", tmp_path / "run", **settings)
    model = load_model(tmp_path / "run")
    assert model.backbone.channels == 2
    assert model.preprocessing.channels == ["dna", "actin"]


def test_a_plain_folder_trains_without_a_table(image_set, tmp_path):
    recipe = tiny_settings(
        image_set.parent / "images", tmp_path / "run", train_split=None, probe={"split": None}
    )
    recipe["factors"] = {}
    summary = adapt(build_recipe(recipe), console=Console(quiet=True))
    assert summary["images"] == 40


CURVES = Path(__file__).parent / "curves"


@pytest.mark.parametrize("name", ["plain", "guided"])
def test_the_loss_curve_is_the_stored_one(image_set, tmp_path, name):
    """A change that was meant to change nothing must change no loss; ``curves/README.md`` says how to renew."""
    roles = {"plain": ("watched", "watched"), "guided": ("informative", "spurious")}[name]
    run_tiny(image_set, tmp_path / "run", factors=dict(zip(("site", "dose"), roles, strict=True)))
    found = [values["loss/total"] for values in losses(tmp_path / "run").values()]
    path = CURVES / f"{name}.json"
    if os.environ.get("OPENFINO_RENEW_CURVES"):
        path.write_text(json.dumps(found) + "\n")
    assert found == pytest.approx(json.loads(path.read_text()), rel=1e-4)
