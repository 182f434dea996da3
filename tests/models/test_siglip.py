import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

from openfino.images.preprocess import Preprocessing
from openfino.models.channels import expand_channels, expand_filters
from openfino.models.drop_path import draw_drop_path
from openfino.models.loading import pretrained_backbone, read_config
from openfino.models.store import load_model, quiet_transformers, save_backbone
from tiny_models import TINY_FAMILIES, tiny_family

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 20,
    "max_position_embeddings": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
kinds = pytest.mark.parametrize("name", ["siglip_vision_model", "siglip2_vision_model"])


def settings(name):
    return {key: value for key, value in TINY_FAMILIES[name].items() if key != "model_type"}


def write_two_towers(folder, name):
    """A checkpoint as it is released: an image and a text tower, a scale and a bias."""
    config_class, model_class = {
        "siglip_vision_model": (SiglipConfig, SiglipModel),
        "siglip2_vision_model": (Siglip2Config, Siglip2Model),
    }[name]
    torch.manual_seed(0)
    model = model_class(config_class(vision_config=settings(name), text_config=TEXT)).eval()
    with quiet_transformers():
        model.save_pretrained(folder)
    return model


def naive_tokens(backbone, pixels, masks):
    """The whole tower from its weights, image by image, attention head by attention head."""
    state = {key.removeprefix("model."): value for key, value in backbone.state_dict().items()}
    filters, rows, columns = backbone.filters, *(side // 8 for side in pixels.shape[-2:])
    stored = state["embeddings.position_embedding.weight"]
    side = round(len(stored) ** 0.5)
    positions = stored.T.reshape(1, -1, side, side)
    if backbone.family == "siglip2_vision_model":
        positions = F.interpolate(positions, (rows, columns), mode="bilinear", antialias=True)
    elif (rows, columns) != (side, side):
        positions = F.interpolate(positions, (rows, columns), mode="bicubic")
    out = []
    for image, mask in zip(pixels, masks, strict=True):
        tokens = []
        for row in range(rows):
            for column in range(columns):
                patch = image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                seen = (filters * patch).sum(dim=(1, 2, 3)) + state["embeddings.patch_embedding.bias"]
                chosen = state["mask_token"] if mask[row * columns + column] else seen
                tokens.append(chosen + positions[0, :, row, column])
        hidden = torch.stack(tokens)
        for layer in range(len(backbone.blocks)):
            own = f"encoder.layers.{layer}."
            normed = norm(state, own + "layer_norm1", hidden)
            query, key, value = (linear(state, own + f"self_attn.{part}_proj", normed) for part in "qkv")
            hidden = hidden + linear(state, own + "self_attn.out_proj", attend(query, key, value))
            hidden = hidden + mlp(state, own + "mlp", norm(state, own + "layer_norm2", hidden))
        hidden = norm(state, "post_layernorm", hidden)
        parts = zip(
            state["head.attention.in_proj_weight"].chunk(3),
            state["head.attention.in_proj_bias"].chunk(3),
            (state["head.probe"][0], hidden, hidden),
            strict=True,
        )
        query, key, value = (entry @ weight.T + bias for weight, bias, entry in parts)
        pooled = linear(state, "head.attention.out_proj", attend(query, key, value))
        pooled = pooled + mlp(state, "head.mlp", norm(state, "head.layernorm", pooled))
        out.append(torch.cat([pooled, hidden]))
    return torch.stack(out)


def norm(state, name, hidden):
    centred = hidden - hidden.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state, name, hidden):
    return hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp(state, name, hidden):
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", hidden), approximate="tanh"))


def attend(query, key, value, heads=2):
    mixed = []
    for own in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        weights = (own[0] @ own[1].T / own[0].shape[-1] ** 0.5).softmax(dim=-1)
        mixed.append(weights @ own[2])
    return torch.cat(mixed, dim=-1)


@kinds
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (16, 64)])
def test_masked_tokens_match_the_definition(name, size):
    backbone = tiny_family(name).double()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, size[0] * size[1] // 64, generator=generator) < 0.4
    with torch.no_grad():
        tokens = backbone(pixels, masks)
        naive = naive_tokens(backbone, pixels, masks)
    torch.testing.assert_close(tokens.cls, naive[:, 0])
    torch.testing.assert_close(tokens.patches, naive[:, 1:])


@kinds
@pytest.mark.parametrize("size", [(32, 32), (16, 64), (40, 24)])
def test_the_position_embeddings_learn_at_every_size(name, size):
    backbone = tiny_family(name)
    backbone(torch.randn(2, 3, *size)).cls.square().sum().backward()
    gradient = backbone.model.embeddings.position_embedding.weight.grad
    assert gradient.abs().sum(dim=1).gt(0).all()


@kinds
def test_the_image_tower_of_a_released_checkpoint_is_loaded(name, tmp_path, caplog):
    model = write_two_towers(tmp_path, name)
    assert read_config(str(tmp_path)).model_type == name
    with quiet_transformers():
        backbone, report = pretrained_backbone(str(tmp_path))
    assert "LOAD REPORT" not in caplog.text  # transformers' own, of every tensor of the text tower
    tower = sum(parameter.numel() for parameter in model.vision_model.parameters())
    assert (report.matched, report.total) == (tower, tower + 32)
    assert report.missing == ["mask_token"]
    expected = {key for key in model.state_dict() if not key.startswith("vision_model.")}
    assert set(report.unexpected) == expected
    assert f"{len(expected)} unexpected" in str(report)
    assert backbone.mask_token.abs().max() == 0
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        theirs = model.vision_model(**backbone.inputs_of(pixels))
        tokens = backbone(pixels)
    torch.testing.assert_close(tokens.cls, theirs.pooler_output)
    torch.testing.assert_close(tokens.patches, theirs.last_hidden_state)


@kinds
def test_it_goes_on_as_an_image_tower_with_its_mask_token(name, tmp_path):
    write_two_towers(tmp_path / "start", name)
    backbone = load_model(tmp_path / "start").backbone
    with torch.no_grad():
        backbone.mask_token += 0.7
    preprocessing = Preprocessing(size=(32, 32), normalization="zscore", channels=["r", "g", "b"])
    save_backbone(tmp_path / "run", backbone, preprocessing, {})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == name
    assert not [key for key in load_file(tmp_path / "run" / "model.safetensors") if "mask" in key]
    with quiet_transformers():
        loaded, report = pretrained_backbone(str(tmp_path / "run"))
        opened, info = AutoModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert torch.equal(loaded.mask_token, backbone.mask_token)
    assert (report.missing, report.unexpected, report.fraction) == ([], [], 1.0)
    assert type(opened) is type(backbone.model)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]


@kinds
def test_without_a_pooling_head_the_patches_are_averaged(name, tmp_path):
    backbone = tiny_family(name, vision_use_head=False)
    pixels, depth = torch.randn(2, 3, 16, 24), len(backbone.blocks)
    with torch.no_grad():
        tokens = backbone(pixels)
        theirs = backbone.tokens_of(backbone.model(**backbone.inputs_of(pixels)))
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(dim=1))
    torch.testing.assert_close(theirs.cls, tokens.cls)
    assert backbone.layer_of("model.post_layernorm.weight") == depth + 1


def test_the_pooling_head_is_behind_the_last_block():
    backbone = tiny_family("siglip_vision_model")
    head = [key for key, _ in backbone.named_parameters() if key.startswith("model.head.")]
    assert {backbone.layer_of(key) for key in head} == {len(backbone.blocks) + 1}
    assert backbone.layer_of("mask_token") == 0


@kinds
def test_dropped_branches_are_scaled_as_defined(name):
    backbone = tiny_family(name)
    backbone.install_drop_path(0.5)
    backbone.train()
    block = backbone.blocks[0]
    draw_drop_path(backbone.blocks, seed=2, rows=torch.arange(3), total_rows=3, device=torch.device("cpu"))
    keep = block.drop_path.keep
    assert set(keep.unique().tolist()) == {0.0, 2.0}
    hidden = torch.randn(3, 5, 32)
    found = block(hidden, None)
    block.eval()
    block.drop_path.eval()
    after = hidden + keep[0] * block.self_attn(block.layer_norm1(hidden))[0]
    after = after + keep[1] * block.mlp(block.layer_norm2(after))
    torch.testing.assert_close(found, after)


def test_naflex_filters_are_those_of_a_convolution():
    backbone = tiny_family("siglip2_vision_model")
    pixels = torch.randn(2, 3, 16, 24)
    linear = backbone.model.embeddings.patch_embedding
    by_convolution = F.conv2d(pixels, backbone.filters, linear.bias, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(linear(backbone.inputs_of(pixels)["pixel_values"]), by_convolution)
    expected = expand_filters(backbone.filters.detach(), 5)
    expand_channels(backbone, 5)
    assert torch.equal(backbone.filters, expected)
    assert backbone.inputs_of(torch.zeros(2, 5, 16, 24))["spatial_shapes"].tolist() == [[2, 3], [2, 3]]
