import pickle
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from openfino.errors import OpenfinoError
from openfino.models.ema import make_teacher, update_teacher
from openfino.models.families import backbone_config
from openfino.models.loading import fit_channels, pretrained_backbone, random_backbone
from openfino.models.store import quiet_transformers


@pytest.fixture
def saved(tiny_config, tmp_path):
    backbone = random_backbone(tiny_config, 3, seed=1)
    with quiet_transformers():
        backbone.model.save_pretrained(tmp_path / "hf")
    return backbone, tmp_path / "hf"


def load(folder, **options):
    with quiet_transformers():
        return pretrained_backbone(str(folder), **options)


def test_tokens_are_split_in_order(tiny_config):
    backbone = random_backbone(tiny_config, 3, seed=0)
    tokens = backbone(torch.randn(2, 3, 16, 32))
    assert (tokens.cls.shape, tokens.registers.shape, tokens.patches.shape) == (
        (2, 32),
        (2, 2, 32),
        (2, 8, 32),
    )


def test_a_mask_hides_the_pixels_below_it(tiny_config):
    backbone = random_backbone(tiny_config, 3, seed=0)
    images = torch.randn(1, 3, 16, 16)
    mask = torch.tensor([[False, False, True, False]])
    changed = images.clone()
    changed[:, :, 8:, :8] += 1.0  # the third patch, row by row
    assert torch.equal(backbone(images, mask).cls, backbone(changed, mask).cls)
    assert not torch.equal(backbone(images).cls, backbone(changed).cls)


def test_random_weights_depend_on_the_seed_alone(tiny_config):
    first, again, other = (random_backbone(tiny_config, 3, seed=seed) for seed in (1, 1, 2))
    weights = [backbone.model.model.layer[0].mlp.up_proj.weight for backbone in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_random_initialisation_leaves_the_global_generator_alone(tiny_config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_backbone(tiny_config, 3, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_loads_whole_and_gives_the_same_features(saved):
    backbone, folder = saved
    loaded, report = load(folder)
    images = torch.randn(2, 3, 32, 32)
    assert report.fraction == 1.0
    assert "(100.00%), 0 tensors missing, 0 unexpected" in str(report)
    torch.testing.assert_close(loaded(images).cls, backbone(images).cls)
    expanded = fit_channels(loaded, report, 4)
    assert "3 -> 4 channels" in str(expanded)


def test_partly_matching_weights_are_refused_loudly(saved):
    _, folder = saved
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "up_proj.weight" in name)
    del tensors[lost]
    tensors["something.else"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenfinoError, match=r"1 tensors missing, 1 unexpected(.|\n)*Under 99%"):
        load(folder)
    _, report = load(folder, allow_partial=True)
    assert report.missing
    assert report.unexpected == ["something.else"]


def test_weights_of_another_shape_count_as_missing(saved):
    _, folder = saved
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "up_proj.weight" in name)
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpenfinoError, match=r"1 tensors missing(.|\n)*up_proj\.weight: \(3, 3\) in the file"):
        load(folder)


def test_weights_in_parts_and_in_pickles_open_too(saved):
    backbone, folder = saved
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(folder)[0](images).cls, backbone(images).cls)
    (folder / "pytorch_model.bin").unlink()
    with quiet_transformers():
        backbone.model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(load(folder)[0](images).cls, backbone(images).cls)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda whole: whole[: len(whole) // 2], "not the whole of one"),
        ("model.safetensors", lambda whole: b"", r"model\.safetensors: it is empty"),
        ("pytorch_model.bin", lambda whole: b"hello", r"pytorch_model\.bin: it is neither"),
        (
            "pytorch_model.bin",
            lambda whole: pickle.dumps(Fraction(1), protocol=2),
            r"\(fractions\.Fraction\), and unpickling",
        ),
    ],
)
def test_weights_in_a_folder_that_cannot_be_read_are_refused_in_one_line(saved, name, change, message):
    _, folder = saved
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(change(whole))
    with pytest.raises(OpenfinoError, match=f"cannot load the weights in .*{message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_with_the_reason(tmp_path):
    with pytest.raises(OpenfinoError, match=r"model\.source: cannot load"):
        load(tmp_path)


def test_unknown_or_impossible_configurations_are_refused(tiny_config):
    with pytest.raises(OpenfinoError, match="does not know widht"):
        backbone_config({**tiny_config, "widht": 3}, 3)
    with pytest.raises(OpenfinoError, match="divisible by 4"):
        backbone_config({**tiny_config, "hidden_size": 36}, 3)


def test_the_teacher_moves_by_one_minus_momentum(tiny_config):
    student = random_backbone(tiny_config, 3, seed=0)
    teacher = make_teacher(student)
    before = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    update_teacher(teacher, student, momentum=0.9)
    for old, new in zip(before, teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
        assert not new.requires_grad
