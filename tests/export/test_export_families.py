"""Exports of models that started from other families than DINOv3 ViT."""

import json
import re

import numpy as np
import pytest
import torch
from export_models import save
from PIL import Image
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ConvNextModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from openfino.export import export
from openfino.images.preprocess import Preprocessing
from openfino.models.store import LoadedModel, load_model, quiet_transformers
from tiny_models import tiny_family

CLASSES = {
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "dinov3_convnext": DINOv3ConvNextModel,
    "siglip_vision_model": SiglipVisionModel,
    "siglip2_vision_model": Siglip2VisionModel,
}
PROCESSORS = {
    "dinov2": BitImageProcessorPil,
    "dinov2_with_registers": BitImageProcessorPil,
    "siglip_vision_model": SiglipImageProcessorPil,
}
OWN_TOKEN = ("siglip_vision_model", "siglip2_vision_model")


def family_model(name, size=(64, 96), channels=3):
    backbone = tiny_family(name, channels)
    normalization = backbone.normalization if channels == 3 else "zscore"
    names = [f"c{index}" for index in range(channels)]
    preprocessing = Preprocessing(size=size, normalization=normalization, channels=names)
    return LoadedModel(backbone, preprocessing, {"steps": 3}, None)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_opens_each_family_as_itself(name, channels, tmp_path):
    model = family_model(name, channels=channels)
    report = export(save(tmp_path / "m", model), tmp_path / "out")
    assert ("openfino.safetensors" in report.files) == (name in OWN_TOKEN)
    with quiet_transformers():
        opened = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(opened) is CLASSES[name]
    pixels = torch.randn(2, channels, 64, 96)
    with torch.no_grad():
        ours = model.backbone(pixels)
        output = opened(**model.backbone.inputs_of(pixels))
    torch.testing.assert_close(output.pooler_output, ours.cls)
    torch.testing.assert_close(output.last_hidden_state[:, -ours.patches.shape[1] :], ours.patches)
    again = load_model(tmp_path / "out").backbone
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_preprocessor_of_the_family_gives_our_pixels(name, tmp_path):
    model = family_model(name)
    export(save(tmp_path / "m", model), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert f"{stored['image_processor_type']}Pil" == PROCESSORS[name].__name__
    pixels = np.random.default_rng(0).integers(0, 256, (160, 150, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    ours = model.preprocessing.load([tmp_path / "image.png"])
    processor = PROCESSORS[name].from_pretrained(tmp_path / "out")
    theirs = np.asarray(processor(images=Image.open(tmp_path / "image.png"))["pixel_values"][0])
    assert theirs.shape == ours.shape == (3, 64, 96)
    assert np.abs(theirs - ours.numpy()).max() < 1.01 / 255 / 0.224


@pytest.mark.parametrize("name", CLASSES)
def test_the_code_on_the_card_runs(name, tmp_path, monkeypatch):
    model = family_model(name)
    export(save(tmp_path / "m", model), tmp_path / "out")
    Image.new("RGB", (40, 30), (200, 30, 60)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    network = "convolutional network" if name == "dinov3_convnext" else "vision transformer"
    assert f"A {network}" in card
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippets
    patches = 6 if name == "dinov3_convnext" else 96
    with quiet_transformers():
        for snippet in snippets:
            names = {}
            exec(snippet.replace("FOLDER", "out"), names)  # the card is ours
            if "tokens" in names:
                names |= {"cls": names["tokens"].cls, "patches": names["tokens"].patches}
            assert names["cls"].shape == (1, 32)
            assert names["patches"].shape == (1, patches, 32)
