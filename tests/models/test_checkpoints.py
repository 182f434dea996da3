import json
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig

from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models import checkpoints
from openfino.models.formats.meta import from_meta
from openfino.models.formats.timm import to_timm
from openfino.models.licence import licence_of
from openfino.models.loading import MASK_TOKEN, pretrained_backbone, random_backbone, read_config
from openfino.models.pretraining import pretraining_normalization
from openfino.models.store import load_model, model_folder, quiet_transformers, save_backbone
from openfino.recipe import GivenNormalization
from weight_files import Size, random_meta

HEADS = {f"{head}.last_layer.weight": torch.zeros(4, 4) for head in ("dino_head", "ibot_head")}


class Pickled:
    """An object of somebody's own."""


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def zeros_like(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def opened(path, **options):
    with quiet_transformers():
        return pretrained_backbone(str(path), **options)


def write(path, content, **options):
    torch.save(content, path, **options)
    return path


def timm_folder(folder, *, tag="lvd1689m", **pretrained):
    converted = from_meta(random_meta())
    folder.mkdir(parents=True)
    state = to_timm(converted.state, DINOv3ViTConfig(**converted.config))
    save_file(state, folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch8_dinov3",
        "model_args": {"num_heads": 2},
        "pretrained_cfg": {"tag": tag, "input_size": [3, 32, 32], **pretrained},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def reference(tmp_path):
    """CLS tokens of two images by a backbone from a plain state dict."""
    backbone, _ = opened(write(tmp_path / "reference.pth", random_meta()))
    return cls_of(backbone)


def cls_of(backbone):
    with torch.no_grad():
        return backbone(torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24)).cls


LAYOUTS = {
    "hub style": lambda state: state,
    "ordered": OrderedDict,
    "teacher of training": lambda state: {"teacher": prefixed(state, "backbone.") | HEADS, "iteration": 3},
    "flat teacher": lambda state: prefixed(state, "teacher.backbone.") | HEADS,
    "student and average": lambda state: (
        prefixed(zeros_like(state), "student.backbone.") | prefixed(state, "model_ema.backbone.")
    ),
    "wrapped twice": lambda state: {"model": {"state_dict": prefixed(state, "module.")}, "epoch": 1},
    "average before frozen teacher": lambda state: (
        prefixed(zeros_like(state), "teacher.backbone.")
        | prefixed(state, "model_ema.backbone.")
        | prefixed(zeros_like(state), "gram_teacher.backbone.")
    ),
    "teacher before Gram teacher": lambda state: (
        prefixed(state, "teacher.backbone.") | prefixed(zeros_like(state), "gram_teacher.backbone.")
    ),
    "dicts in dicts": lambda state: {"model": {"teacher": {"backbone": state, "dino_head": HEADS}}},
    "average of timm": lambda state: {"state_dict": zeros_like(state), "state_dict_ema": state},
    "sharded training": lambda state: {
        f"_fsdp_wrapped_module.backbone.module.{name}".replace(
            "blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in state.items()
    },
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "teacher before model": lambda state: {"model": {"x": torch.ones(1)}, "teacher": state},
    "compiled blocks": lambda state: {
        f"_orig_mod.{name}".replace("blocks.1.", "blocks.1._orig_mod._checkpoint_wrapped_module."): tensor
        for name, tensor in state.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backbone_is_found_wherever_it_is(layout, reference, tmp_path):
    path = write(tmp_path / "weights.pth", LAYOUTS[layout](random_meta()))
    backbone, report = opened(path)
    assert (report.fraction, report.missing, report.unexpected) == (1.0, [], [])
    assert torch.equal(cls_of(backbone), reference)


def test_what_is_left_out_is_counted(tmp_path):
    state = prefixed(random_meta(), "backbone.") | HEADS | {"dino_head.mlp.0.bias": torch.zeros(1)}
    _, report = opened(write(tmp_path / "weights.pth", {"teacher": state}))
    assert report.notes == ["2 tensors of dino_head left out", "1 tensor of ibot_head left out"]
    assert "2 tensors of dino_head left out" in str(report)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_every_age_open_and_half_precision_becomes_whole(suffix, legacy, reference, tmp_path):
    path = write(tmp_path / f"weights{suffix}", random_meta(), _use_new_zipfile_serialization=not legacy)
    assert torch.equal(cls_of(opened(path)[0]), reference)
    half = {name: tensor.bfloat16() for name, tensor in random_meta().items()}
    backbone, report = opened(write(tmp_path / f"half{suffix}", half))
    assert report.fraction == 1.0
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
    assert backbone.config.rope_theta == 100.0  # from rounded periods
    assert torch.equal(backbone.model.norm.bias, half["norm.bias"].float())


def test_metas_names_in_safetensors_open_too(reference, tmp_path):
    save_file(random_meta(), tmp_path / "weights.safetensors")
    assert torch.equal(cls_of(opened(tmp_path / "weights.safetensors")[0]), reference)


def test_every_parameter_has_memory_of_its_own(tmp_path):
    path = write(tmp_path / "weights.pth", random_meta())
    backbone, _ = opened(path)
    places = {value.untyped_storage().data_ptr() for value in backbone.parameters()}
    assert len(places) == len(list(backbone.parameters()))
    before = path.read_bytes()
    with torch.no_grad():
        for value in backbone.parameters():
            value += 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": Pickled()}, r"objects of its own \(\S*Pickled\), and unpickling"),
        ([torch.zeros(2)], "a list and no state dict"),
        ({"iteration": 3}, "no tensor in it"),
        (
            {"conv1.weight": torch.zeros(4, 3, 7, 7), "layer1.0.bn1.weight": torch.ones(4)},
            "none of its 2 tensors",
        ),
        ({"downsample_layers.0.0.weight": torch.zeros(4, 3, 4, 4)}, "this is a ConvNeXt"),
        (random_meta() | {"pos_embed": torch.zeros(1, 5, 32)}, "absolute position embeddings"),
        ({"embeddings.patch_embeddings.weight": torch.zeros(4, 3, 8, 8)}, "the names of transformers"),
        (
            prefixed(random_meta(), "a.") | prefixed(random_meta(), "b."),
            r"several backbones \('a\.', 'b\.'\)",
        ),
        ({"teacher": {"backbone.stages.0.0.gamma": torch.zeros(4)}}, "this is a ConvNeXt"),
        ({"patch_embed.proj.weight": torch.zeros(4, 3, 8, 8)}, "another vision transformer than DINOv3"),
        (random_meta() | {"storage_tokens": torch.zeros(32)}, r"registers have shape \(32,\)"),
        (random_meta() | {"rope_embed.periods": torch.zeros(0)}, "do not divide 32"),
        (
            random_meta() | {"blocks.0.mlp.fc1.weight": torch.zeros(48, 32, dtype=torch.int8)},
            r"quantised or packed: blocks\.0\.mlp\.fc1\.weight \(int8\)",
        ),
        (
            random_meta() | {"blocks.0.attn.qkv.weight": torch.zeros(96, 32).to_sparse()},
            r"packed: blocks\.0\.attn\.qkv\.weight \(float32, sparse\)",
        ),
        (
            {name: tensor for name, tensor in random_meta().items() if name != "rope_embed.periods"},
            "no rope_embed.periods",
        ),
        (random_meta() | {"rope_embed.periods": torch.tensor([1.0, 5.0, 6.0, 7.0])}, "not the periods"),
        (random_meta() | {"rope_embed.periods": torch.tensor([1.0, 2.0, 4.0])}, "do not divide 32"),
        (random_meta() | {"patch_embed.proj.weight": torch.zeros(32, 192)}, "a convolution"),
        (random_meta() | {"blocks.0.attn.qkv.weight": torch.zeros(95, 32)}, "has 95 rows"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(content, message, tmp_path):
    path = write(tmp_path / "weights.pth", content)
    with pytest.raises(OpenfinoError, match=message) as caught:
        opened(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>no weights", r"neither .* it begins with '<!DOCTYPE html>"),
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_a_file_without_weights_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OpenfinoError, match=f"cannot load .*{name}: .*{message}"):
        opened(tmp_path / name)
    with pytest.raises(OpenfinoError, match=r"there is no file .*absent\.pth"):
        opened(tmp_path / "absent.pth")


def test_half_a_file_is_refused_in_one_line(tmp_path):
    whole = write(tmp_path / "weights.pth", random_meta())
    save_file(random_meta(), tmp_path / "weights.safetensors")
    for path, message in (
        (whole, "damaged, or not whole"),
        (tmp_path / "weights.safetensors", "not the whole"),
    ):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(OpenfinoError, match=message) as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_the_content_says_what_reads_a_file_not_its_name(reference, tmp_path):
    save_file(random_meta(), tmp_path / "weights.pth")
    assert torch.equal(cls_of(opened(tmp_path / "weights.pth")[0]), reference)


def test_a_program_of_torchscript_is_refused(tmp_path):
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(OpenfinoError, match="a program of TorchScript"):
        opened(path)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    state = random_meta()
    state["blocks.1.norm2.bias"][3] = torch.nan
    with pytest.raises(
        OpenfinoError, match=r"no numbers .* 1 tensors \(model\.model\.layer\.1\.norm2\.bias\)"
    ):
        opened(write(tmp_path / "weights.pth", state))


def test_the_backbone_that_was_taken_is_named(tmp_path):
    state = (
        prefixed(random_meta(), "teacher.backbone.") | prefixed(random_meta(), "student.backbone.") | HEADS
    )
    _, report = opened(write(tmp_path / "weights.pth", state))
    assert report.notes == [
        "the backbone 'teacher.backbone.' is taken, not 'student.backbone.'",
        "1 tensor of dino_head left out",
        "1 tensor of ibot_head left out",
    ]


def test_a_numpy_scalar_is_refused_by_name(tmp_path):
    path = write(tmp_path / "weights.pth", {"teacher": random_meta(), "loss": np.float64(1.0)})
    with pytest.raises(OpenfinoError, match="objects of its own"):
        opened(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_torch_distributed_is_refused_with_what_to_do(tmp_path):
    folder = tmp_path / "ckpt"
    distributed_checkpoint.save({"model": random_meta()}, checkpoint_id=folder, no_dist=True)
    for open_it in (opened, load_model, model_folder):
        with pytest.raises(OpenfinoError, match=r"format_utils dcp_to_torch .*ckpt"):
            open_it(folder)


def test_under_99_percent_is_refused_unless_allowed(tmp_path):
    state = random_meta()
    del state["blocks.1.mlp.fc2.weight"]
    state["blocks.0.norm1.weight"] = torch.ones(5)
    state["strange"] = torch.zeros(1)
    path = write(tmp_path / "weights.pth", state)
    with pytest.raises(OpenfinoError, match=r"2 tensors missing, 1 unexpected(.|\n)*Under 99%"):
        opened(path)
    backbone, report = opened(path, allow_partial=True)
    assert report.missing == ["model.layer.0.norm1.weight", "model.layer.1.mlp.down_proj.weight"]
    assert report.unexpected == ["strange"]
    assert report.total - report.matched == 32 + 32 * 48
    assert report.notes == ["model.layer.0.norm1.weight: (5,) in the file, (32,) in the model"]
    assert torch.equal(backbone.model.model.layer[0].norm1.weight, torch.ones(32))
    drawn = backbone.model.model.layer[1].mlp.down_proj.weight
    assert drawn.std() > 0
    again, _ = opened(path, allow_partial=True)
    assert torch.equal(again.model.model.layer[1].mlp.down_proj.weight, drawn)


def test_a_bias_that_one_block_alone_has_is_unexpected(tmp_path):
    state = random_meta(Size(32, 2, 2, 48, patch=8, bias=False))
    state["blocks.1.attn.qkv.bias"] = torch.ones(96)
    _, report = opened(write(tmp_path / "weights.pth", state))
    assert report.unexpected == [f"model.layer.1.attention.{letter}_proj.bias" for letter in "kqv"]


def test_the_epsilon_of_the_norms_is_the_released_ones_unless_given(tmp_path):
    path = write(tmp_path / "weights.pth", random_meta())
    assert opened(path)[0].config.layer_norm_eps == 1e-5
    backbone, _ = opened(path, layer_norm_eps=1e-6)
    assert backbone.config.layer_norm_eps == backbone.model.model.layer[0].norm1.eps == 1e-6
    folder = timm_folder(tmp_path / "timm")
    with pytest.raises(OpenfinoError, match=r"model\.layer_norm_eps is for files of Meta"):
        opened(folder, layer_norm_eps=1e-6)
    save_backbone(tmp_path / "hf", backbone, preprocessing(), {})
    with pytest.raises(OpenfinoError, match=r"hf's config\.json does"):
        opened(tmp_path / "hf", layer_norm_eps=1e-6)
    assert opened(tmp_path / "hf")[0].config.layer_norm_eps == 1e-6


def preprocessing():
    return Preprocessing(size=(16, 24), normalization="zscore", channels=["a", "b", "c"])


def test_a_timm_folder_or_its_file_opens(reference, tmp_path):
    folder = timm_folder(tmp_path / "timm")
    for source in (folder, folder / "model.safetensors"):
        backbone, report = opened(source)
        assert report.missing == [MASK_TOKEN]
        assert report.total - report.matched == 32
        assert torch.equal(cls_of(backbone), reference)
        assert backbone.config.image_size == 32
    assert read_config(str(folder)).num_attention_heads == 2
    (folder / "model.safetensors").unlink()
    with pytest.raises(OpenfinoError, match=r"timm's config\.json but no model\.safetensors"):
        opened(folder)


@pytest.mark.parametrize("name", ["timm/some_dinov3.lvd1689m", "hf-hub:someone/model", "hf_hub:timm/x"])
def test_a_timm_name_is_downloaded(name, reference, tmp_path, monkeypatch):
    asked = []

    def download(repository, *, allow_patterns):
        asked.append((repository, tuple(allow_patterns)))
        return str(timm_folder(tmp_path / "cache"))

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    backbone, report = opened(name)
    assert asked == [(name.split(":")[-1], ("config.json", "model.safetensors"))]
    assert report.source == name
    assert torch.equal(cls_of(backbone), reference)


def test_a_name_that_cannot_be_downloaded_is_refused(monkeypatch):
    def download(*_inputs, **_options):
        raise OSError("no network")

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    with pytest.raises(OpenfinoError, match="cannot download 'timm/absent' from the hub: no network"):
        opened("timm/absent")


def test_the_weights_file_of_a_transformers_folder_means_the_folder(tmp_path):
    backbone = random_backbone(
        {"patch_size": 8, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}, 3, 0
    )
    save_backbone(tmp_path / "hf", backbone, preprocessing(), {"parent": {"source": "x", "licence": "mit"}})
    source = tmp_path / "hf" / "model.safetensors"
    model = load_model(source)
    assert model.preprocessing == preprocessing()
    assert model.folder == tmp_path / "hf"
    assert torch.equal(cls_of(model.backbone), cls_of(backbone))
    assert licence_of(source) == "mit"
    assert pretrained_backbone(str(source))[1].fraction == 1.0


def test_a_file_is_a_model_with_default_preprocessing(reference, tmp_path):
    path = write(tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth", random_meta())
    model = load_model(path)
    assert torch.equal(cls_of(model.backbone), reference)
    assert not any(value.requires_grad for value in model.backbone.parameters())
    assert model.preprocessing.size == (224, 224)
    assert model.preprocessing.normalization == "imagenet"
    assert model.name == str(path)
    four = write(tmp_path / "four.pth", random_meta(Size(32, 1, 2, 48, patch=8, channels=4)))
    assert load_model(four).preprocessing.normalization == "zscore"


def test_satellite_and_timm_weights_bring_their_normalisation(tmp_path):
    path = write(tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", random_meta())
    satellite = GivenNormalization(mean=[0.430, 0.411, 0.296], std=[0.213, 0.156, 0.143])
    assert pretraining_normalization(str(path)) == load_model(path).preprocessing.normalization == satellite
    folder = timm_folder(tmp_path / "timm", mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    assert pretraining_normalization(str(folder)).mean == [0.1, 0.2, 0.3]
    assert load_model(folder).preprocessing.size == (32, 32)


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ({"license": "cc-by-4.0"}, "cc-by-4.0"),
        ({}, "dinov3-license"),
        ({"tag": "mine"}, "unknown"),
    ],
)
def test_the_licence_of_a_timm_folder_is_the_stated_one(stated, licence, tmp_path):
    folder = timm_folder(tmp_path / "timm", **stated)
    assert licence_of(folder) == licence_of(folder / "model.safetensors") == licence


def test_the_licence_of_a_timm_name_is_in_the_cache(tmp_path, monkeypatch):
    folder = timm_folder(tmp_path / "cache", license="apache-2.0")
    monkeypatch.setattr(
        checkpoints, "try_to_load_from_cache", lambda name, file: {"me/mine": str(folder / file)}.get(name)
    )
    assert licence_of("hf-hub:me/mine") == "apache-2.0"
    assert licence_of("hf-hub:me/other") == "unknown"
