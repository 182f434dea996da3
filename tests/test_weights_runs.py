"""Whole runs that start from files of weights."""

import json

import pytest
import torch
import yaml

from openfino.adapt import starting_backbone
from openfino.errors import InputProblemsError
from openfino.models.store import load_model
from openfino.models.variants import Variants
from openfino.preflight import preflight
from openfino.recipe import build_recipe, load_recipe
from tiny_runs import run_tiny, tiny_settings
from weight_files import random_meta

NAME = "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"


@pytest.fixture
def weights(tmp_path):
    """A training checkpoint with a norm of local crops."""
    state = random_meta() | {"local_cls_norm.weight": torch.ones(32), "local_cls_norm.bias": torch.zeros(32)}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / NAME)
    return tmp_path / NAME


def test_a_run_starts_from_a_file_and_says_whose_it_is(weights, image_set, tmp_path):
    rope = {"coords": "max", "dtype": "bfloat16", "rescale": 2, "shift": 0.1, "jitter": 1.1}
    start = {"source": str(weights), "layer_norm_eps": 1e-6, "rope": rope}
    run_tiny(image_set, tmp_path / "run", model=start, train={"steps": 2})
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["parent"] == {"source": NAME, "licence": "dinov3-license"}
    assert summary["weights"]["matched"] == summary["weights"]["total"]
    model = load_model(tmp_path / "run")
    assert model.provenance["source"] == NAME
    variants = Variants(rope_coords="max", rope_dtype="bfloat16", local_cls_norm=True)
    assert Variants.of(model.backbone.config) == variants
    assert model.backbone.config.layer_norm_eps == 1e-6
    # The norm of local crops trained: its weights are not what they were.
    assert not torch.equal(model.backbone.model.local_cls_norm.weight, torch.ones(32))
    # A run that starts from this one keeps what the model is.
    run_tiny(image_set, tmp_path / "again", model=start, train={"steps": 1})
    start_again = {**start, "source": str(tmp_path / "again"), "layer_norm_eps": None}
    run_tiny(image_set, tmp_path / "next", model=start_again, train={"steps": 1})
    assert Variants.of(load_model(tmp_path / "next").backbone.config) == variants


def test_the_place_of_a_file_is_relative_to_the_recipe(weights, image_set, tmp_path):
    settings = tiny_settings(image_set, tmp_path / "run", model=NAME)
    settings["manifest"], settings["out"] = "data/manifest.csv", "run"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.model.source == str(weights)
    assert preflight(recipe).patch_size == 8


def test_problems_of_a_file_are_found_before_training(weights, image_set, tmp_path):
    def problems(**changes):
        with pytest.raises(InputProblemsError) as caught:
            preflight(build_recipe(tiny_settings(image_set, tmp_path / "run", **changes)))
        return {problem.where: problem.what for problem in caught.value.problems}

    assert "views.local_size" in problems(model=str(weights), views={"local_size": 20})
    torch.save({"conv1.weight": torch.zeros(2, 3, 7, 7)}, tmp_path / "resnet.pth")
    assert "none of its 1 tensors (conv1.weight" in problems(model=str(tmp_path / "resnet.pth"))["model"]
    assert "there is no file" in problems(model=str(tmp_path / "absent.pth"))["model"]


def test_rotary_settings_of_a_model_without_rotary_positions_are_refused(image_set, tmp_path):
    config = {
        "model_type": "dinov2",
        "patch_size": 8,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
    }
    settings = tiny_settings(image_set, tmp_path / "run")
    settings["model"] = {"config": config, "rope": {"shift": 0.1}}
    with pytest.raises(InputProblemsError, match=r"model\.rope\.shift: .*no rotary positions"):
        preflight(build_recipe(settings))
    # Of a preset it is not refused: its keys need not fit every model.
    settings |= {
        "preset": "authors",
        "train": {**settings["train"], "freeze_steps": 0, "unfreeze_ramp_steps": 0},
    }
    recipe = build_recipe({**settings, "model": {"config": config}})
    assert recipe.model.rope.dtype == "bfloat16"
    preflight(recipe)
    assert starting_backbone(recipe, ["a", "b", "c"])[0].family == "dinov2"
    with pytest.raises(InputProblemsError, match=r"1 problem.*\n.*model\.rope\.shift"):
        preflight(build_recipe(settings))


def test_an_epsilon_beside_a_configuration_is_refused(image_set, tmp_path):
    settings = tiny_settings(image_set, tmp_path / "run")
    settings["model"] = {**settings["model"], "layer_norm_eps": 1e-6}
    with pytest.raises(InputProblemsError, match="write it into 'config'"):
        build_recipe(settings)


def test_the_authors_preset_rotates_in_bfloat16():
    recipe = build_recipe({"preset": "authors", "manifest": "m.csv", "out": "run", "model": "facebook/x"})
    assert recipe.model.rope.dtype == "bfloat16"
    assert build_recipe({"manifest": "m.csv", "out": "run", "model": "x/y"}).model.rope.dtype is None
