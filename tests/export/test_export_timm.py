import json

import pytest
import torch
from export_models import PROVENANCE, save
from safetensors.torch import load_file
from shapes import SHAPES, shaped_model

from openfino.errors import OpenfinoError
from openfino.export import export
from openfino.export.timm import _ratio, architecture_of
from openfino.images.preprocess import Preprocessing
from openfino.models.families import backbone_config
from openfino.models.formats.timm import ARCHITECTURES
from openfino.models.store import LoadedModel, load_model
from tiny_models import tiny_family, tiny_model


def released(name, biases):
    """The configuration of one of the released models."""
    known = ARCHITECTURES[name]
    settings = {
        "hidden_size": known.width,
        "num_hidden_layers": known.depth,
        "num_attention_heads": known.heads,
        "intermediate_size": known.hidden,
        "use_gated_mlp": known.gated,
        "hidden_act": "silu" if known.gated else "gelu",
        "num_register_tokens": 4,
        "query_bias": biases,
        "value_bias": biases,
    }
    return backbone_config(settings, 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_released_shapes_have_a_name_and_need_no_arguments(name):
    assert architecture_of(released(name, biases=False)) == (name, {})
    found = architecture_of(released(name, biases=True))
    assert found == (f"{name}_qkvb", {}) if ARCHITECTURES[name].qkvb else (name, {"qkv_bias": True})


def test_other_shapes_are_said_in_arguments():
    name, arguments = architecture_of(backbone_config(SHAPES["odd and gated"], 3))
    assert name == "vit_small_plus_patch16_dinov3_qkvb"
    ratio = arguments.pop("mlp_ratio")
    assert int(48 * ratio) == 101
    assert arguments == {
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
        "num_reg_tokens": 1,
        "swiglu_align_to": 1,
    }
    assert architecture_of(backbone_config(SHAPES["S"], 3)) == ("vit_small_patch16_dinov3_qkvb", {"depth": 2})


def test_a_ratio_gives_the_width_again_where_timm_cuts_it_off():
    for width in range(4, 200, 4):
        assert all(int(width * _ratio(hidden, width)) == hidden for hidden in range(1, 1000, 7))


@pytest.mark.parametrize("name", SHAPES)
def test_the_folder_opens_here_too_with_everything_but_the_mask_token(name, tmp_path):
    model = shaped_model(name)
    export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    opened = load_model(tmp_path / "out")
    assert opened.preprocessing == model.preprocessing
    found, wanted = opened.backbone.state_dict(), model.backbone.state_dict()
    assert found.keys() == wanted.keys()
    lost = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert lost == ["model.embeddings.mask_token"]


def test_the_configuration_says_what_timm_needs(tmp_path):
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    model = tiny_model(3, given, PROVENANCE, size=(32, 48))
    export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_classes"], config["num_features"], config["global_pool"]) == (0, 32, "token")
    assert config["model_args"]["global_pool"] == "token"
    stated = config["pretrained_cfg"]
    assert stated["input_size"] == [3, 32, 48]
    assert (stated["mean"], stated["std"]) == (given["mean"], given["std"])
    assert (stated["interpolation"], stated["crop_pct"], stated["crop_mode"]) == ("bilinear", 1.0, "squash")
    assert (stated["license"], stated["first_conv"]) == ("dinov3-license", "patch_embed.proj")
    assert "mask_token" not in load_file(tmp_path / "out" / "model.safetensors")


def test_what_timm_cannot_hold_is_said(tmp_path):
    model = tiny_model(4, "zscore")
    report = export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"], config["first_conv"]) == ([0.0] * 4, [1.0] * 4, None)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (str(report), card):
        assert "no mask token" in text
        assert "cannot say per-image z-score" in text
    assert "cannot say per-image z-score" in config["notes"][0]


def test_everything_that_cannot_be_expressed_is_named_at_once(tmp_path):
    model = tiny_model(size=(32, 36))
    model.backbone.config.layer_norm_eps = 1e-6
    model.backbone.config.hidden_act = "relu"
    with pytest.raises(OpenfinoError) as raised:
        export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    for part in ("layer_norm_eps 1e-06", "hidden_act relu", "images of 32 x 36", "hf, timm, onnx, torch"):
        assert part in str(raised.value)


def test_other_families_are_refused(tmp_path):
    preprocessing = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
    source = save(tmp_path / "m", LoadedModel(tiny_family("dinov2"), preprocessing, {}, None))
    with pytest.raises(OpenfinoError, match="type dinov2, and only DINOv3"):
        export(source, tmp_path / "out", to="timm")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
