"""What holds for every family; see the files of each for what is its own."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, CLIPVisionConfig, ResNetConfig

from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.channels import expand_channels
from openfino.models.drop_path import draw_drop_path
from openfino.models.ema import make_teacher, update_teacher
from openfino.models.families import FAMILIES, backbone_config, family_of
from openfino.models.loading import pretrained_backbone, random_backbone
from openfino.models.store import load_model, quiet_transformers, save_backbone
from openfino.recipe import TrainSettings
from openfino.training.optimizer import backbone_groups, freeze_for_stage
from tiny_models import MASKABLE, TINY_FAMILIES, tiny_family

# The stored grid of positions, a larger one, an oblong one, and an oblong one of as many patches as are stored.
SIZES = [(32, 32), (48, 48), (24, 40), (16, 64)]
every_family = pytest.mark.parametrize("name", TINY_FAMILIES)
every_maskable = pytest.mark.parametrize("name", MASKABLE)
CPU = torch.device("cpu")


def images(backbone, count=2, size=None, seed=0):
    height, width = size or (4 * backbone.patch_size, 4 * backbone.patch_size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, backbone.channels, height, width, generator=generator)


def all_tokens(tokens):
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


def draw(backbone, rows, total, seed=3):
    draw_drop_path(backbone.blocks, seed=seed, rows=rows, total_rows=total, device=CPU)


def save(folder, backbone):
    preprocessing = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
    save_backbone(folder, backbone, preprocessing, {"steps": 1})
    return folder


def test_every_family_has_a_tiny_one():
    assert TINY_FAMILIES.keys() == FAMILIES.keys()


@every_family
def test_the_configuration_tells_the_depth(name):
    backbone = tiny_family(name)
    assert backbone.depth_of(backbone.config) == len(backbone.blocks)


@every_family
@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_those_of_transformers(name, size):
    backbone = tiny_family(name)
    scale = backbone.patch_size // 8  # the convolutions' patches are larger
    pixels = images(backbone, size=(size[0] * scale, size[1] * scale))
    untouched = AutoModel.from_config(backbone.config).eval()
    untouched.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        ours = backbone(pixels)
        output = untouched(**backbone.inputs_of(pixels))
    patches = size[0] // 8 * (size[1] // 8)
    assert ours.patches.shape == (2, patches, backbone.embed_dim)
    assert ours.registers.shape == (2, backbone.registers, backbone.embed_dim)
    torch.testing.assert_close(ours.cls, output.pooler_output)
    torch.testing.assert_close(all_tokens(ours), all_tokens(backbone.tokens_of(output)))
    torch.testing.assert_close(ours.patches, output.last_hidden_state[:, -patches:])


@every_maskable
def test_a_mask_hides_the_pixels_below_it_and_nothing_else(name):
    backbone = tiny_family(name)
    pixels = images(backbone, 1, (16, 24))
    mask = torch.tensor([[False, False, True, False, False, False]])
    hidden, seen = pixels.clone(), pixels.clone()
    hidden[:, :, :8, 16:] += 1.0  # the third patch, row by row
    seen[:, :, 8:, :8] += 1.0  # the fourth
    with torch.no_grad():
        base = all_tokens(backbone(pixels, mask))
        torch.testing.assert_close(all_tokens(backbone(hidden, mask)), base, rtol=0, atol=0)
        assert (all_tokens(backbone(seen, mask)) - base).abs().max() > 1e-3
        none = all_tokens(backbone(pixels, torch.zeros_like(mask)))
        torch.testing.assert_close(all_tokens(backbone(pixels)), none)
    backbone(pixels, mask).cls.sum().backward()
    tokens = [value for key, value in backbone.named_parameters() if key.endswith("mask_token")]
    assert len(tokens) == 1
    assert tokens[0].grad.abs().max() > 0


@every_family
def test_drop_path_is_keyed_by_the_row(name):
    backbone = tiny_family(name)
    backbone.config.pos_embed_rescale = None
    backbone.install_drop_path(0.5)
    backbone.train()
    pixels = images(backbone, 6)
    draw(backbone, torch.arange(6), 6)
    whole = backbone(pixels).cls
    parts = []
    for rows in (torch.arange(3), torch.arange(3, 6)):
        draw(backbone, rows, 6)
        parts.append(backbone(pixels[rows]).cls)
    torch.testing.assert_close(torch.cat(parts), whole)
    draw(backbone, torch.arange(6), 6, seed=4)
    assert not torch.allclose(backbone(pixels).cls, whole)


@every_family
def test_a_block_whose_branches_are_dropped_does_nothing(name):
    backbone = tiny_family(name)
    backbone.install_drop_path(0.5)
    backbone.train()
    for block in backbone.blocks:
        block.drop_path.keep = torch.zeros(backbone.branches, 2, 1, 1)
    seen = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output)))
    backbone(images(backbone))
    assert len(seen) == len(backbone.blocks)
    for before, after in seen:
        torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert {block.drop_path.branch for block in backbone.blocks} == {0}  # each branch asked once


@every_family
def test_recomputed_blocks_have_the_same_gradients(name):
    gradients = []
    for recompute in (False, True):
        backbone = tiny_family(name)
        backbone.config.pos_embed_rescale = None
        backbone.install_drop_path(0.4)
        if recompute:
            backbone.checkpoint_activations()
        backbone.train()
        draw(backbone, torch.arange(4), 4)
        first = backbone(images(backbone, 4)).cls.square().sum()
        draw(backbone, torch.arange(4), 4, seed=9)  # a second pass before the backward pass of the first
        (first + backbone(images(backbone, 4, seed=5)).patches.square().sum()).backward()
        gradients.append({key: value.grad for key, value in backbone.named_parameters()})
    for key, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][key] is None
        else:
            torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@every_family
def test_a_grey_image_looks_the_same_with_more_channels(name):
    backbone = tiny_family(name)
    grey = images(backbone)[:, :1]
    with torch.no_grad():
        before = all_tokens(backbone(grey.expand(-1, 3, -1, -1)))
        expand_channels(backbone, 4)
        after = all_tokens(backbone(grey.expand(-1, 4, -1, -1)))
    torch.testing.assert_close(after, before)
    assert (backbone.channels, backbone.config.num_channels) == (4, 4)
    backbone(images(backbone)).cls.sum().backward()
    touched = [key for key, value in backbone.named_parameters() if backbone.is_patch_embedding(key)]
    assert len(touched) == 2
    assert all(dict(backbone.named_parameters())[key].grad is not None for key in touched)


@every_family
@pytest.mark.parametrize("channels", [3, 4])
def test_a_saved_model_comes_back_and_opens_with_transformers(name, channels, tmp_path):
    backbone = tiny_family(name, channels)
    save(tmp_path / "m", backbone)
    loaded = load_model(tmp_path / "m").backbone
    assert type(loaded) is type(backbone)
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    with quiet_transformers():
        opened, info = AutoModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert type(opened).__name__ == type(backbone.model).__name__
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = images(backbone)
    with torch.no_grad():
        theirs = backbone.tokens_of(opened.eval()(**backbone.inputs_of(pixels)))
        torch.testing.assert_close(all_tokens(theirs), all_tokens(backbone(pixels)))


@every_family
def test_the_teacher_is_a_copy_of_its_own(name):
    student = tiny_family(name)
    student.install_drop_path(0.5)
    student.train()
    teacher = make_teacher(student)
    for block in student.blocks:
        block.drop_path.keep = torch.zeros(student.branches, 2, 1, 1)
    pixels = images(student)
    with torch.no_grad():
        before = teacher(pixels).cls
        torch.testing.assert_close(student.eval()(pixels).cls, before)
        for block in teacher.blocks:
            block.drop_path.train()  # if it were the student's, its draws would show
        torch.testing.assert_close(teacher(pixels).cls, before)
    old = {key: value.clone() for key, value in teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
        torch.testing.assert_close(teacher(pixels).cls, before)
    update_teacher(teacher, student, momentum=0.9)
    for key, value in teacher.named_parameters():
        torch.testing.assert_close(value, old[key] + 0.1, msg=key)


@every_family
def test_layers_cover_the_depth(name):
    backbone = tiny_family(name)
    depth = len(backbone.blocks)
    layers = {key: backbone.layer_of(key) for key, _ in backbone.named_parameters()}
    assert set(layers.values()) == set(range(depth + 2))
    first = {key for key, layer in layers.items() if layer == 0}
    assert {key for key in layers if backbone.is_patch_embedding(key)} <= first
    assert {key for key in layers if "position" in key or key.endswith("_token")} <= first
    groups = backbone_groups(backbone, TrainSettings(layer_decay=0.5, patch_embedding_lr=1.0))
    for key, group in groups.items():
        assert group.lr_multiplier == pytest.approx(0.5 ** (depth + 1 - layers[key])), key
    tokens = ("token", "tokens", "probe", "position_embeddings", "position_embedding.weight")
    for key, value in backbone.named_parameters():
        assert groups[key].decays == (value.ndim > 1 and not key.endswith(tokens)), key


@every_family
def test_stages_freeze_what_they_should(name):
    backbone = tiny_family(name)

    def training():
        return {key for key, value in backbone.named_parameters() if value.requires_grad}

    freeze_for_stage(backbone, TrainSettings(), stage_one=True)
    assert training() == {key for key, _ in backbone.named_parameters() if backbone.is_patch_embedding(key)}
    backbone(images(backbone)).cls.sum().backward()
    freeze_for_stage(backbone, TrainSettings(trainable_blocks=1), stage_one=False)
    depth = len(backbone.blocks)
    assert {backbone.layer_of(key) for key in training()} == {0, depth, depth + 1}
    freeze_for_stage(backbone, TrainSettings(), stage_one=False)
    assert training() == {key for key, _ in backbone.named_parameters()}


@every_family
def test_unknown_keys_are_refused(name):
    settings = {**TINY_FAMILIES[name], "num_heds": 2}
    with pytest.raises(OpenfinoError, match=r"model\.config: \w+Config does not know num_heds"):
        backbone_config(settings, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "clip_vision_model"},
            "dinov2, dinov2_with_registers, dinov3_convnext, dinov3_vit, siglip",
        ),
        ({"model_type": "dinov2", "num_attention_heads": 5}, "not divisible by 5 attention heads"),
        ({"model_type": "dinov2", "image_size": [32, 64]}, "32 x 64.*square grid"),
        ({"model_type": "siglip_vision_model", "image_size": [32, 64]}, "32 x 64.*square grid"),
        ({"model_type": "siglip_vision_model", "patch_size": [16, 8]}, "16 x 8 pixels are not square"),
        ({"model_type": "siglip2_vision_model", "num_patches": 15}, "15 is no square number"),
        ({"model_type": "dinov3_convnext", "depths": [1, 1]}, r"\[1, 1\].*same stages"),
        ({"model_type": "dinov2", "hidden_size": "wide"}, "Dinov2Config refuses it"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(OpenfinoError, match=message):
        backbone_config(changes, 3)


@pytest.mark.parametrize("config", [CLIPVisionConfig(), ResNetConfig()])
def test_other_models_are_refused_with_the_list_of_families(config, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(OpenfinoError, match=f"{config.model_type}.*families are dinov2, .*siglip2"):
        pretrained_backbone(str(tmp_path))
    with pytest.raises(OpenfinoError, match="cannot be a backbone"):
        family_of(config)


def test_dinov3_is_the_family_when_none_is_named():
    named = {key: value for key, value in TINY_FAMILIES["dinov3_vit"].items() if key != "model_type"}
    assert random_backbone(named, 3, 0).family == "dinov3_vit"


def test_tokens_beside_the_model_are_in_a_file_of_their_own(tmp_path):
    save(tmp_path / "siglip", tiny_family("siglip_vision_model"))
    assert list(load_file(tmp_path / "siglip" / "openfino.safetensors")) == ["mask_token"]
    save(tmp_path / "dinov2", tiny_family("dinov2"))
    assert not (tmp_path / "dinov2" / "openfino.safetensors").exists()
