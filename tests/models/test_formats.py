import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig
from transformers import DINOv3ViTModel as PlainModel

from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.formats.meta import from_meta, masked_biases, to_meta
from openfino.models.formats.timm import ARCHITECTURES, from_timm, to_timm
from openfino.models.loading import MASK_TOKEN, pretrained_backbone
from openfino.models.store import quiet_transformers, save_backbone
from openfino.models.variants import Variants
from openfino.models.vit import DINOv3ViTModel
from weight_files import TINY, Size, meta_shapes, random_meta

# dinov3.md 1.1: parameters with the masked bias of the keys and the norm of local crops, and in transformers.
COUNTS = {
    "vit_small_patch16_dinov3": (21_601_152, 21_596_544),
    "vit_small_plus_patch16_dinov3": (28_697_472, 28_692_864),
    "vit_base_patch16_dinov3": (85_669_632, 85_660_416),
    "vit_large_patch16_dinov3": (303_154_176, 303_129_600),
    "large_plus": (403_915_776, 403_915_776 - 24 * 1024),
    "vit_huge_plus_patch16_dinov3": (840_633_600, 840_592_640),
    "vit_7b_patch16_dinov3": (6_716_043_264, 6_716_035_072),
}
# One block each; the 7B is narrower, with its traits: heads of 128, no qkv bias, SwiGLU, a norm of local crops.
SMALL = {
    "S": Size(384, 1, 6, 1536),
    "S+": Size(384, 1, 6, 1536, gated=True),
    "L": Size(1024, 1, 16, 4096),
    "7B": Size(256, 1, 2, 512, gated=True, bias=False, local_norm=True),
}


def size_of(name):
    if name == "large_plus":
        return Size(1024, 24, 16, 4096, gated=True)
    known = ARCHITECTURES[name]
    billions = name.startswith("vit_7b")
    return Size(known.width, known.depth, known.heads, known.hidden, known.gated, not billions, billions)


def config_of(size, **changes):
    return DINOv3ViTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
        use_gated_mlp=size.gated,
        query_bias=size.bias,
        value_bias=size.bias,
        num_register_tokens=size.registers,
        **changes,
    )


@pytest.mark.parametrize("name", COUNTS)
def test_every_size_has_the_shapes_and_counts_of_the_released_files(name):
    size = size_of(name)
    official, plain = COUNTS[name]
    with torch.device("meta"):
        model = DINOv3ViTModel(config_of(size, **Variants(local_cls_norm=size.local_norm).as_config()))
        assert sum(value.numel() for value in PlainModel(config_of(size)).parameters()) == plain
    state = to_meta(model.state_dict(), model.config)
    assert {key: tuple(value.shape) for key, value in state.items()} == meta_shapes(size)
    buffers = ("bias_mask", "periods")
    assert sum(value.numel() for key, value in state.items() if not key.endswith(buffers)) == official


@pytest.mark.parametrize("name", SMALL)
def test_meta_to_ours_to_a_folder_to_meta_and_timm_changes_no_bit(name, tmp_path):
    size = SMALL[name]
    state = random_meta(size)
    torch.save(state, tmp_path / "weights.pth")
    preprocessing = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
    with quiet_transformers():
        first, report = pretrained_backbone(str(tmp_path / "weights.pth"))
        assert (report.fraction, report.missing, report.unexpected) == (1.0, [], [])
        save_backbone(tmp_path / "folder", first, preprocessing, {})
        second, report = pretrained_backbone(str(tmp_path / "folder"))
    assert (report.fraction, report.missing, report.unexpected) == (1.0, [], [])
    assert second.config.num_attention_heads == size.heads
    ours = second.model.state_dict()
    back = to_meta(ours, second.config)
    assert back.keys() == state.keys()
    assert not [key for key, value in state.items() if not torch.equal(back[key], value)]

    timm = tmp_path / "timm"
    timm.mkdir()
    save_file(to_timm(ours, second.config), timm / "model.safetensors")
    settings = {"architecture": "vit_some_patch16_dinov3", "model_args": {"num_heads": size.heads}}
    (timm / "config.json").write_text(json.dumps(settings))
    third, report = pretrained_backbone(str(timm))
    assert report.missing == [MASK_TOKEN]
    assert report.unexpected == []
    again = third.model.state_dict()
    lost = {name for name in ours if name.startswith("local_cls_norm")}
    assert again.keys() == ours.keys() - lost
    assert len(lost) == 2 * size.local_norm
    differing = [key for key in again if key != MASK_TOKEN and not torch.equal(again[key], ours[key])]
    assert not differing
    assert not again[MASK_TOKEN].any()
    same = ("query_bias", "key_bias", "value_bias", "use_gated_mlp", "layer_norm_eps", "rope_theta")
    assert all(getattr(third.config, key) == getattr(first.config, key) for key in same)


def test_the_fused_projection_is_cut_in_the_order_queries_keys_values():
    state = random_meta()
    converted = from_meta(state).state
    fused = state["blocks.1.attn.qkv.weight"]
    for place, letter in enumerate("qkv"):
        own = converted[f"model.layer.1.attention.{letter}_proj.weight"]
        assert torch.equal(own, fused[32 * place : 32 * (place + 1)])


def test_what_the_mask_hides_may_be_anything():
    state = random_meta()
    bias, mask = state["blocks.0.attn.qkv.bias"], state["blocks.0.attn.qkv.bias_mask"]
    bias[32:64] = torch.nan
    query, key, value = masked_biases(bias, mask, "bias_mask")
    assert torch.equal(query, bias[:32])
    assert key is None
    assert torch.equal(value, bias[64:])
    converted = from_meta(state)
    assert "model.layer.0.attention.k_proj.bias" not in converted.state
    assert converted.config["key_bias"] is False


def test_the_released_masks_of_zeros_leave_no_bias():
    state = random_meta()
    for index in range(TINY.depth):
        state[f"blocks.{index}.attn.qkv.bias_mask"].zero_()
    converted = from_meta(state)
    assert not converted.state["model.layer.0.attention.q_proj.bias"].any()
    assert not converted.state["model.layer.1.attention.v_proj.bias"].any()


@pytest.mark.parametrize("value", [torch.nan, 0.5, 1e20])
def test_a_mask_that_was_never_initialised_is_refused(value):
    state = random_meta()
    state["blocks.1.attn.qkv.bias_mask"][40] = value
    with pytest.raises(OpenfinoError, match=r"blocks\.1\.attn\.qkv\.bias_mask must be zeros and ones"):
        from_meta(state)


def test_an_unmasked_bias_keeps_its_keys_and_goes_back():
    state = random_meta()
    for index in range(TINY.depth):
        del state[f"blocks.{index}.attn.qkv.bias_mask"]
        state[f"blocks.{index}.attn.qkv.bias"] = torch.randn(96)
    converted = from_meta(state)
    assert converted.config["key_bias"] is True
    back = to_meta(converted.state, DINOv3ViTConfig(**converted.config))
    assert back.keys() == state.keys()
    assert torch.equal(back["blocks.1.attn.qkv.bias"], state["blocks.1.attn.qkv.bias"])
    with pytest.raises(OpenfinoError, match="no bias of the keys"):
        to_timm(converted.state, DINOv3ViTConfig(**converted.config))


def test_the_settings_follow_from_the_shapes():
    size = Size(width=48, depth=3, heads=3, hidden=40, gated=True, registers=2, channels=5, patch=4)
    config = from_meta(random_meta(size)).config
    assert DINOv3ViTConfig(**config).hidden_act == "silu"
    expected = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "use_gated_mlp": True,
        "num_register_tokens": 2,
        "num_channels": 5,
        "patch_size": 4,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "pos_embed_rescale": 2.0,
    }
    assert {key: config[key] for key in expected} == expected
    assert "openfino" not in config


def test_absent_layer_scale_and_registers_mean_ones_and_none():
    whole = random_meta()
    state = {key: value for key, value in whole.items() if "gamma" not in key and key != "storage_tokens"}
    converted = from_meta(state)
    assert converted.config["num_register_tokens"] == 0
    assert converted.notes == ["no layer scale in the file: ones, which mean the same"]
    scale = converted.state["model.layer.1.layer_scale2.lambda1"]
    assert torch.equal(scale, torch.ones(32))
    model = DINOv3ViTModel(DINOv3ViTConfig(**converted.config))
    model.load_state_dict(converted.state)  # strict


def test_both_variants_of_timm_are_read():
    ours = from_meta(random_meta())
    config = DINOv3ViTConfig(**ours.config)
    with_biases = to_timm(ours.state, config)
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias"} <= with_biases.keys()
    assert "mask_token" not in with_biases
    without = {key: value for key, value in with_biases.items() if not key.endswith(("q_bias", "v_bias"))}
    heads = {"model_args": {"num_heads": 2}}
    assert from_timm(with_biases, heads).config["query_bias"] is True
    assert from_timm(without, heads).config["query_bias"] is False
    fused = dict(without)
    for index in range(TINY.depth):
        query, value = (with_biases[f"blocks.{index}.attn.{letter}_bias"] for letter in "qv")
        fused[f"blocks.{index}.attn.qkv.bias"] = torch.cat([query, torch.zeros(32), value])
    again = from_timm(fused, heads)
    assert again.config["key_bias"] is False
    assert torch.equal(
        again.state["model.layer.1.attention.v_proj.bias"], with_biases["blocks.1.attn.v_bias"]
    )


def test_the_heads_of_timm_come_from_its_configuration_else_from_the_width():
    state = to_timm(from_meta(random_meta(SMALL["S"])).state, config_of(SMALL["S"]))
    named = from_timm(state, {"architecture": "vit_small_patch16_dinov3_qkvb"})
    assert (named.config["num_attention_heads"], named.notes) == (6, [])
    assert named.config["image_size"] == 256
    sized = {"model_args": {"num_heads": 12}, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    given = from_timm(state, {"architecture": "vit_small_patch16_dinov3", **sized})
    assert (given.config["num_attention_heads"], given.config["image_size"]) == (12, 224)
    guessed = from_timm(state)
    assert guessed.config["num_attention_heads"] == 6
    assert "no configuration names the number of heads: 6" in guessed.notes[0]


@pytest.mark.parametrize(
    "config", [{"model_args": [1]}, {"model_args": {"num_heads": "two"}}, {"pretrained_cfg": "lvd1689m"}]
)
def test_a_configuration_that_is_not_timms_is_refused(config):
    converted = from_meta(random_meta())
    state = to_timm(converted.state, DINOv3ViTConfig(**converted.config))
    with pytest.raises(OpenfinoError, match=r"config\.json cannot be understood"):
        from_timm(state, config)


def test_a_classifier_of_timm_is_left_out_and_said():
    state = to_timm(from_meta(random_meta()).state, config_of(TINY, patch_size=8))
    state |= {
        "head.weight": torch.zeros(10, 32),
        "head.bias": torch.zeros(10),
        "blocks.0.strange": torch.ones(2),
    }
    converted = from_timm(state)
    assert converted.notes[0] == "2 tensors of the classifier left out"
    assert converted.unexpected == ["blocks.0.strange"]


def test_biases_that_timm_always_has_are_written_as_zeros():
    state = {
        key: value
        for key, value in random_meta().items()
        if not key.endswith(".bias") or "norm" in key or "patch_embed" in key
    }
    converted = from_meta({key: value for key, value in state.items() if "bias_mask" not in key})
    assert converted.config["proj_bias"] is converted.config["mlp_bias"] is False
    timm = to_timm(converted.state, DINOv3ViTConfig(**converted.config))
    for name, length in (("attn.proj.bias", 32), ("mlp.fc1.bias", 48), ("mlp.fc2.bias", 32)):
        assert torch.equal(timm[f"blocks.1.{name}"], torch.zeros(length))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"norm.bias": None}, "has RMSNorm"),
        ({"cls_norm.weight": torch.ones(32), "cls_norm.bias": torch.zeros(32)}, "for CLS and registers"),
    ],
)
def test_timm_is_refused_what_it_cannot_express(broken, message):
    state = random_meta() | broken
    converted = from_meta({key: value for key, value in state.items() if value is not None})
    with pytest.raises(OpenfinoError, match=message):
        to_timm(converted.state, DINOv3ViTConfig(**converted.config))


@pytest.mark.parametrize("direction", [to_meta, to_timm])
def test_a_missing_tensor_is_named(direction):
    converted = from_meta(random_meta())
    del converted.state["model.layer.1.mlp.up_proj.weight"]
    with pytest.raises(OpenfinoError, match=r"has no model\.layer\.1\.mlp\.up_proj"):
        direction(converted.state, DINOv3ViTConfig(**converted.config))


def test_a_state_dict_without_a_block_is_refused():
    state = {key: value for key, value in random_meta().items() if not key.startswith("blocks.0.")}
    with pytest.raises(OpenfinoError, match=r"no tensor of blocks\.0: the file is not whole"):
        from_meta(state)
