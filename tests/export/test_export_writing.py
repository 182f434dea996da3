import dataclasses
import json

import pytest
import torch
from export_models import save, save_run

from openfino.cli import main
from openfino.errors import OpenfinoError
from openfino.export import export
from openfino.export.compare import compare, fixed_images
from openfino.images.normalize import normalize
from openfino.models.backbone import Tokens
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.store import load_model
from openfino.models.variants import Variants
from openfino.models.vit import DINOv3ViTModel
from tiny_models import tiny_model

FILES = ["README.md", "config.json", "model.safetensors", "openfino.json", "preprocessor_config.json"]


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "run")


def test_an_earlier_export_is_replaced_only_when_allowed(run_folder, tmp_path):
    out = tmp_path / "out"
    export(run_folder, out)
    (out / "notes.txt").write_text("mine")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier, larger model")
    with pytest.raises(OpenfinoError, match="allow overwriting"):
        export(run_folder, out)
    other = save(tmp_path / "other", tiny_model(seed=9))
    export(other, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])
    found, wanted = load_model(out).backbone.state_dict(), load_model(other).backbone.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_of_the_user_is_ever_touched(run_folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OpenfinoError, match="is not empty"):
            export(run_folder, mine, overwrite=overwrite)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(OpenfinoError, match="is a file"):
        export(run_folder, mine / "thesis.txt", overwrite=True)
    for source in (run_folder, run_folder / "model"):
        with pytest.raises(OpenfinoError, match="holds the model to export"):
            export(run_folder, source, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert export(run_folder, tmp_path / "empty").files == FILES
    with pytest.raises(OpenfinoError, match="holds no model"):
        export(mine, tmp_path / "new")


def test_another_format_leaves_nothing_of_the_first(run_folder, tmp_path):
    export(run_folder, tmp_path / "out", to="hf")
    report = export(run_folder, tmp_path / "out", to="timm", overwrite=True)
    assert report.files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "preprocessor_config.json" not in report.files


def test_a_folder_of_weights_that_is_no_export_is_left_alone(run_folder, tmp_path):
    theirs = save(tmp_path / "theirs", tiny_model(seed=5))  # a run's model: no card
    with pytest.raises(OpenfinoError, match="no earlier export"):
        export(run_folder, theirs, overwrite=True)
    assert torch.equal(
        load_model(theirs).backbone.state_dict()["model.norm.weight"],
        tiny_model(seed=5).backbone.state_dict()["model.norm.weight"],
    )


def test_an_unknown_format_is_answered_with_those_there_are(run_folder, tmp_path):
    with pytest.raises(OpenfinoError, match=r"no export to 'keras'; the formats are hf, timm, onnx, torch"):
        export(run_folder, tmp_path / "out", to="keras")


def test_the_command_takes_the_format(run_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run_folder), "--out", str(tmp_path / "out"), "--to", "timm"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "parameters matched (100.00%), 0 tensors missing, 0 unexpected, 0 reshaped" in said
    assert "largest difference 0 at feature scale" in said
    assert "licence of the starting weights: dinov3-license" in said
    assert "note: timm has no mask token" in said
    with pytest.raises(SystemExit):
        main(["export", str(run_folder), "--out", str(tmp_path / "json"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["max_abs"], report["notes"]) == ("hf", 0, [])
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run_folder), "--out", str(tmp_path / "x"), "--to", "keras"])
    assert stopped.value.code == 2
    assert "the formats are hf, timm, onnx, torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variants", "formats", "said"),
    [
        (Variants(rope_dtype="bfloat16"), ("hf", "timm", "onnx"), ["bfloat16"]),
        (Variants(rope_periods=(0.5, 40.0), norm="rmsnorm"), ("hf", "timm"), ["periods", "rmsnorm"]),
        (Variants(rope_coords="min", cls_norm=True), ("hf", "timm"), ["coordinates", "cls_norm"]),
    ],
)
def test_traits_that_a_format_would_compute_otherwise_are_refused(variants, formats, said, tmp_path):
    source = save_variant(tmp_path / "m", variants)
    for to in formats:
        with pytest.raises(OpenfinoError) as raised:
            export(source, tmp_path / "out", to=to)
        assert all(part in str(raised.value) for part in said), str(raised.value)


def test_a_program_holds_every_trait(tmp_path):
    variants = Variants("max", "bfloat16", (0.5, 40.0), "rmsnorm", cls_norm=True, local_cls_norm=True)
    report = export(save_variant(tmp_path / "m", variants), tmp_path / "out", to="torch")
    assert report.min_cosine > 0.9999
    assert report.notes == []


def save_variant(folder, variants):
    model = tiny_model()
    config = model.backbone.config
    variants.store(config)
    backbone = Dinov3Backbone(DINOv3ViTModel(config))
    return save(folder, dataclasses.replace(model, backbone=backbone))


# The comparison


def test_images_are_the_same_every_time_and_of_several_shapes():
    model = tiny_model(size=(32, 48))
    first, second = list(fixed_images(model)), list(fixed_images(model))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [tuple(images.shape) for images in first] == [(2, 3, 32, 48), (3, 3, 32, 32), (1, 3, 24, 40)]
    assert [tuple(images.shape) for images in fixed_images(model, any_size=False)] == [(2, 3, 32, 48)]
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in first)


@pytest.mark.parametrize("name", ["cls", "registers", "patches"])
@pytest.mark.parametrize("wrong", [3e-4, float("nan"), None])
def test_one_wrong_value_of_any_token_is_found(name, wrong):
    model = tiny_model()

    def run(images):
        tokens = model.backbone(normalize(images, "imagenet"))
        parts = {part: getattr(tokens, part).clone() for part in ("cls", "registers", "patches")}
        if wrong is None:
            parts[name] = parts[name][..., :-1]  # of another shape
        elif images.shape[-1] == 40:  # at one size alone
            parts[name][0, ..., -1] += wrong
        return Tokens(**parts)

    found = compare(model, run)
    assert not found.within(1e-4)
