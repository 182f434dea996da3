"""Runs that start from each family: trained, resumed, probed, embedded, exported."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig

from openfino.errors import InputProblemsError
from openfino.evaluation.embed import embed
from openfino.images.preprocess import Preprocessing
from openfino.manifest import read_manifest
from openfino.models.store import load_model, quiet_transformers, save_backbone
from openfino.preflight import preflight
from openfino.recipe import build_recipe
from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_models import TINY_FAMILIES, tiny_family
from tiny_runs import losses, run_tiny, tiny_settings

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
# The sizes and terms that the convolutions need.
CHANGES = {
    "dinov3_convnext": {
        "views": {"global_size": 64, "local_size": 32},
        "objective": {"ibot": {"weight": 0}},
    }
}
every_family = pytest.mark.parametrize("name", TINY_FAMILIES)


def start(folder, name, channels=3):
    """The folder of a tiny model as others would hand it over: without a file of ours."""
    backbone = tiny_family(name, channels)
    with quiet_transformers():
        backbone.model.save_pretrained(folder)
    return str(folder)


def weights(out):
    return load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0]


@every_family
def test_a_run_from_each_family_trains_resumes_probes_and_embeds(name, image_set, tmp_path):
    changes = {
        "model": start(tmp_path / "start", name),
        **CHANGES.get(name, {}),
        "train": {"steps": 4, "checkpoint_every": 2, "drop_path": 0.3, "activation_checkpointing": True},
        "probe": {"label": "label", "split": "split", "val": "val", "tests": ["test"]},
    }
    summary = run_tiny(image_set, tmp_path / "run", **changes)
    assert summary["skipped_steps"] == 0
    assert set(summary["probes"]["after"]["label"]["splits"]) == {"val", "test"}
    # A run that was cut after two steps and goes on.
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(list_checkpoints(tmp_path / "cut" / "checkpoints")[-1])
    run_tiny(image_set, tmp_path / "cut", resume=True, **changes)
    assert losses(tmp_path / "cut") == losses(tmp_path / "run")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    # Everything that trains has moved, and the teacher after it.
    begun = load_model(tmp_path / "start").backbone.state_dict()
    for key, value in begun.items():
        assert not torch.equal(one[f"model/student.backbone.{key}"], value), key
        assert not torch.equal(one[f"teacher/backbone.{key}"], value), key
    model = load_model(tmp_path / "run" / "model")
    assert model.backbone.family == name
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, one[f"teacher/backbone.{key}"]), key
    report = embed(model, read_manifest(image_set), tmp_path / "features.parquet")
    assert (report.rows, report.dimensions, report.unreadable) == (40, 32, 0)


@every_family
def test_four_channels(name, image_set, tmp_path):
    """A model of three channels takes images of four."""
    generator = np.random.default_rng(0)
    for path in sorted((image_set.parent / "images").glob("*.png")):
        np.save(path.with_suffix(".npy"), generator.integers(0, 255, (4, 40, 48), dtype=np.uint8))
    image_set.write_text(image_set.read_text().replace(".png", ".npy"))
    changes = {
        "model": start(tmp_path / "start", name),
        **CHANGES.get(name, {}),
        "images": {"normalization": "zscore"},
        "train": {"steps": 1},
    }
    run_tiny(image_set, tmp_path / "run", **changes)
    model = load_model(tmp_path / "run")
    assert (model.backbone.channels, len(model.preprocessing.channels)) == (4, 4)


@pytest.mark.parametrize("name", ["siglip_vision_model", "dinov2"])
def test_images_are_normalised_as_the_starting_weights_know_them(name, image_set, tmp_path):
    source = start(tmp_path / "start", name)
    run_tiny(image_set, tmp_path / "run", model=source, train={"steps": 1})
    known = HALF if name == "siglip_vision_model" else "imagenet"
    stored = json.loads((tmp_path / "run" / "model" / "openfino.json").read_text())
    assert stored["preprocessing"]["normalization"] == known
    # Resumed, and gone on from, with the same recipe; what the recipe names counts first.
    run_tiny(image_set, tmp_path / "run", model=source, train={"steps": 1}, resume=True)
    given = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    run_tiny(image_set, tmp_path / "given", model=source, train={"steps": 1}, images={"normalization": given})
    assert load_model(tmp_path / "given").preprocessing.normalization.model_dump() == given
    run_tiny(image_set, tmp_path / "next", model=str(tmp_path / "given"), train={"steps": 1})
    assert load_model(tmp_path / "next").preprocessing.normalization.model_dump() == given


def problems(manifest, out, **changes):
    with pytest.raises(InputProblemsError) as caught:
        preflight(build_recipe(tiny_settings(manifest, out, **changes)))
    return {problem.where: problem for problem in caught.value.problems}


def test_terms_that_need_masks_are_refused_for_convolutions_before_training(image_set, tmp_path):
    source = start(tmp_path / "start", "dinov3_convnext")
    changes = {
        "views": {"global_size": 48, "local_size": 32},
        "objective": {"gram": {"weight": 1, "tokens": "masked", "per_image": False}},
    }
    found = problems(image_set, tmp_path / "run", model=source, **changes)
    assert set(found) == {"objective.ibot.weight", "objective.gram.tokens", "views.global_size"}
    assert "objective.ibot.weight: 0" in found["objective.ibot.weight"].remedy
    assert "patch size 32" in found["views.global_size"].what


def test_other_models_are_refused_before_training_with_the_list(image_set, tmp_path):
    CLIPVisionConfig().save_pretrained(tmp_path / "clip")
    found = problems(image_set, tmp_path / "run", model=str(tmp_path / "clip"))
    assert set(found) == {"model"}
    assert "families are dinov2, dinov2_with_registers, dinov3_convnext" in found["model"].what


def test_statistics_for_other_channels_than_the_images_are_explained(image_set, tmp_path):
    backbone = tiny_family("siglip_vision_model", 4)
    given = {"mean": [0.5] * 4, "std": [0.5] * 4}
    preprocessing = Preprocessing(size=(32, 32), normalization=given, channels=list("abcd"))
    save_backbone(tmp_path / "start", backbone, preprocessing, {})
    found = problems(image_set, tmp_path / "run", model=str(tmp_path / "start"))
    assert set(found) == {"images.normalization.mean", "images.normalization.std"}
    assert "normalization: zscore" in found["images.normalization.mean"].remedy
