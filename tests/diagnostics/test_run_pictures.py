"""The pictures of a run."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openfino.diagnostics.pictures import TAG, Pictures, picture_rows
from openfino.errors import InputProblemsError
from openfino.images.preprocess import Preprocessing
from openfino.manifest import read_manifest
from openfino.models.loading import random_backbone
from openfino.recipe import build_recipe
from openfino.training.logging import RunLog
from tiny_runs import TINY, losses, run_tiny, tiny_settings

PREPROCESSING = Preprocessing(size=(32, 32), normalization="imagenet", channels=["red", "green", "blue"])


def opened(file):
    with Image.open(file) as image:
        return np.asarray(image)


def steps_drawn(out):
    return sorted(int(path.stem.removeprefix("step_")) for path in (out / "pictures").iterdir())


def on_the_board(out):
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    if TAG not in board.Tags()["images"]:
        return {}
    return {event.step: opened(io.BytesIO(event.encoded_image_string)) for event in board.Images(TAG)}


def rows_of(manifest, split=None, training=("train",), **probe):
    table = read_manifest(manifest)
    recipe = build_recipe(
        tiny_settings(
            manifest,
            "run",
            train_split=None,
            probe={"split": split, "label": "label", "pictures": 4, **probe},
        )
    )
    rows = table.rows_where("split", training) if split else np.arange(len(table))
    return picture_rows(recipe, table, rows), table.table["split"].to_list()


def test_held_out_images_are_drawn(image_set):
    rows, splits = rows_of(image_set, "split", val="val", tests=["test"])
    assert len(rows) == 4
    assert {splits[row] for row in rows} == {"val"}
    rows, splits = rows_of(image_set, "split", tests=["test"])
    assert {splits[row] for row in rows} == {"test"}
    rows, splits = rows_of(image_set, "split", pictures=20)
    assert {splits[row] for row in rows} == {"val", "test"}
    rows, _ = rows_of(image_set, "split", val="val", pictures=4, training=("train", "val", "test"))
    assert len(rows) == 4  # everything trains
    assert len(rows_of(image_set, pictures=100)[0]) == 40
    assert len(rows_of(image_set, pictures=0)[0]) == 0


def test_what_trains_is_never_shown_as_held_out(image_set):
    rows, splits = rows_of(image_set, "split", val="val", tests=["test"], training=("train", "val"))
    assert {splits[row] for row in rows} == {"test"}


def test_a_run_draws_at_the_start_at_every_probe_and_at_the_end(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "run", train={"steps": 5}, probe={"every": 2, "pictures": 3})
    assert steps_drawn(tmp_path / "run") == [0, 2, 4, 5]
    files = {step: opened(tmp_path / "run" / "pictures" / f"step_{step:06d}.png") for step in (2, 4, 5)}
    board = on_the_board(tmp_path / "run")
    assert sorted(board) == [0, 1, 3, 4]  # where the numbers of the same probes are
    for step, pixels in files.items():
        assert np.array_equal(board[step - 1], pixels)
    assert not np.array_equal(files[2], files[4])


def test_no_pictures_when_none_are_asked_for(image_set, tmp_path):
    run_tiny(image_set, tmp_path / "run", train={"steps": 2}, probe={"pictures": 0})
    assert not (tmp_path / "run" / "pictures").exists()
    assert on_the_board(tmp_path / "run") == {}


def test_every_needs_something_to_do(image_set, tmp_path):
    settings = tiny_settings(image_set, tmp_path, probe={"every": 2, "pictures": 0})
    with pytest.raises(InputProblemsError, match="'every' would have no effect"):
        build_recipe({**settings, "factors": {}})
    build_recipe(settings)  # factors are read at every probe


def test_training_does_not_notice(image_set, tmp_path):
    for name, count in (("with", 3), ("without", 0)):
        probe = {"label": "label", "every": 1, "k": 3, "pictures": count}
        run_tiny(image_set, tmp_path / name, train={"steps": 4, "drop_path": 0.3}, probe=probe)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_a_killed_run_has_the_pictures_of_an_unbroken_one(image_set, tmp_path, monkeypatch):
    changes = {"train": {"steps": 9, "checkpoint_every": 4, "drop_path": 0.2}, "probe": {"every": 2}}
    run_tiny(image_set, tmp_path / "straight", **changes)

    def killed(log, step):
        if step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(image_set, tmp_path / "killed", **changes)
    assert steps_drawn(tmp_path / "killed") == [0, 2, 4, 6]
    # Step 6 lies behind the last checkpoint, step 4: it runs again, and is drawn again.
    (tmp_path / "killed" / "pictures" / "step_000006.png").write_bytes(b"")
    run_tiny(image_set, tmp_path / "killed", resume=True, **changes)
    assert losses(tmp_path / "straight") == losses(tmp_path / "killed")
    assert steps_drawn(tmp_path / "straight") == steps_drawn(tmp_path / "killed") == [0, 2, 4, 6, 8, 9]
    for path in (tmp_path / "straight" / "pictures").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / "pictures" / path.name).read_bytes(), path.name
    assert sorted(on_the_board(tmp_path / "killed")) == [0, 1, 3, 5, 7, 8]


def test_a_run_goes_on_with_another_number_of_pictures(image_set, tmp_path):
    train = {"steps": 2, "schedule": "constant", "teacher_momentum": [0.9, 0.9], "weight_decay": 0.04}
    run_tiny(image_set, tmp_path / "run", train=train, probe={"pictures": 2})
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  pictures: 2\n", ""))  # a run of an earlier version
    run_tiny(image_set, tmp_path / "run", resume=True, train=train, probe={"pictures": 1})
    assert steps_drawn(tmp_path / "run") == [0, 2]


def test_images_that_cannot_be_used_do_not_stop_a_run(image_set, tmp_path):
    manifest = read_manifest(image_set)
    recipe = build_recipe(
        tiny_settings(image_set, tmp_path / "run", probe={"val": "val", "label": "label", "pictures": 2})
    )
    training = manifest.rows_where("split", ["train"])
    pictures = Pictures(recipe, manifest, training, PREPROCESSING, torch.device("cpu"))
    backbone = random_backbone(TINY, 3, 0).train()
    said = io.StringIO()
    (tmp_path / "run").mkdir()
    console = Console(file=said, width=200)
    with RunLog(tmp_path / "run", start_step=0, total_steps=9, console=console, active=True) as log:
        manifest.paths(int(pictures.rows[0]))[0].write_bytes(b"no image")
        pictures.draw(backbone, 3, log)
        assert steps_drawn(tmp_path / "run") == [3]
        assert backbone.training
        for row in pictures.rows:
            manifest.paths(int(row))[0].write_bytes(b"no image")
        pictures.draw(backbone, 4, log)
    assert "no pictures at step 4" in said.getvalue()
    assert steps_drawn(tmp_path / "run") == [3]


def test_four_images_are_drawn_unless_the_recipe_says_otherwise(image_set):
    assert build_recipe({"manifest": "m.csv", "out": "run", "model": {"config": {}}}).probe.pictures == 4
