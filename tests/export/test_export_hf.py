import json

import numpy as np
import pytest
import torch
from export_models import PROVENANCE, save, save_run
from PIL import Image
from transformers import AutoModel, BitImageProcessorPil
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from openfino.errors import OpenfinoError
from openfino.export import export, hf
from openfino.export.hf import preprocessor_config
from openfino.images.preprocess import Preprocessing
from openfino.models.licence import licence_of, public_provenance
from openfino.models.store import load_model, quiet_transformers, save_backbone
from tiny_models import tiny_model

PROCESSOR = "DINOv3ViTImageProcessorFast"
FILES = ["README.md", "config.json", "model.safetensors", "openfino.json", "preprocessor_config.json"]


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "run")


def open_with_transformers(folder):
    with quiet_transformers():
        return AutoModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(("channels", "normalization"), [(3, "imagenet"), (4, "zscore")])
def test_transformers_opens_the_folder_and_gives_the_same_features(tmp_path, channels, normalization):
    model = tiny_model(channels, normalization, size=(16, 32))
    report = export(save(tmp_path / "m", model), tmp_path / "out")
    pixels = torch.randn(3, channels, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.backbone(pixels)
        theirs = open_with_transformers(tmp_path / "out")(pixel_values=pixels).last_hidden_state
    for tokens, part in (
        (ours.cls, theirs[:, 0]),
        (ours.registers, theirs[:, 1:3]),
        (ours.patches, theirs[:, 3:]),
    ):
        assert torch.allclose(tokens, part, atol=1e-5)
    assert report.files == FILES == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert report.max_abs <= 1e-5
    assert report.min_cosine > 0.99999
    assert 0.5 < report.scale < 2  # tokens leave a layer norm
    assert report.to_json()["folder"] == str(tmp_path / "out")
    assert "largest difference" in str(report)


def test_openfino_opens_its_own_export_with_preprocessing_and_provenance(run_folder, tmp_path):
    export(run_folder, tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert model.provenance == public_provenance(PROVENANCE)
    assert model.preprocessing == tiny_model().preprocessing
    assert licence_of(tmp_path / "out") == "dinov3-license"
    again = export(tmp_path / "out", tmp_path / "again")
    assert again.files == FILES
    assert load_model(tmp_path / "again").provenance == model.provenance


def test_features_that_differ_stop_the_export(run_folder, tmp_path, monkeypatch):
    def nudge(*args, **kwargs):
        model, info = AutoModel.from_pretrained(*args, **kwargs)
        model.embeddings.cls_token.data[..., 0] += nudge.size
        return model, info

    class Nudged:
        from_pretrained = staticmethod(nudge)

    monkeypatch.setattr(hf, "AutoModel", Nudged)
    for nudge.size in (1e-3, float("nan")):
        with pytest.raises(OpenfinoError, match=r"was not written.*differ"):
            export(run_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_tensor_that_is_missing_in_the_folder_stops_the_export(run_folder, tmp_path, monkeypatch):
    def forgetful(folder, backbone, preprocessing, provenance):
        save_backbone(folder, backbone, preprocessing, provenance)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))

    monkeypatch.setattr(hf, "save_backbone", forgetful)
    with pytest.raises(OpenfinoError, match=r"does not open as it was written.*layer\.2"):
        export(run_folder, tmp_path / "out")


# Preprocessing


def test_the_preprocessor_gives_transformers_our_pixels(tmp_path):
    """Pillow's back end rounds the resized image to 8 bits: half a level, divided by the deviation."""
    preprocessing = Preprocessing(size=(24, 32), normalization="imagenet", channels=["r", "g", "b"])
    config = preprocessor_config(preprocessing, PROCESSOR)
    assert (
        config["image_processor_type"].removesuffix("Fast")
        in IMAGE_PROCESSOR_MAPPING_NAMES["dinov3_vit"].values()
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    ours = preprocessing.load([tmp_path / "image.png"])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = BitImageProcessorPil.from_pretrained(tmp_path, do_center_crop=False)
    theirs = torch.as_tensor(
        np.asarray(processor(images=Image.open(tmp_path / "image.png"))["pixel_values"][0])
    )
    assert theirs.shape == ours.shape == (3, 24, 32)
    assert (theirs - ours).abs().max() < 1.01 / 255 / 0.224


def test_given_statistics_are_passed_on():
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = preprocessor_config(
        Preprocessing(size=(8, 8), normalization=given, channels=["a", "b", "c"]), PROCESSOR
    )
    assert (config["image_mean"], config["image_std"], config["do_normalize"]) == (
        given["mean"],
        given["std"],
        True,
    )


@pytest.mark.parametrize(
    ("channels", "normalization"), [(4, "zscore"), (3, "zscore"), (1, {"mean": [0.5], "std": [0.2]})]
)
def test_what_transformers_cannot_do_is_not_claimed(channels, normalization):
    names = [f"c{index}" for index in range(channels)]
    preprocessing = Preprocessing(size=(8, 16), normalization=normalization, channels=names)
    config = preprocessor_config(preprocessing, PROCESSOR)
    assert config["do_normalize"] is False
    assert "image_mean" not in config
    assert config["size"] == {"height": 8, "width": 16}
    facts = config["openfino"]
    assert facts["channels"] == names
    assert facts["normalization"] == normalization
    assert "65535" in facts["value_range"]
