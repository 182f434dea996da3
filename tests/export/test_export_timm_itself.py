"""timm opens what was exported for it; skipped where timm is not installed."""

import re
import warnings

import pytest
import torch
from export_models import save
from shapes import SHAPES, SMALL, shaped_model

from openfino.export import export


@pytest.fixture(scope="module")
def timm():
    """The package, for a test that runs: a choice of other tests does not count this file as skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", exc_type=ImportError)


@pytest.mark.parametrize("name", [*SHAPES, "S in full"])
def test_timm_gives_the_same_features(timm, name, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "S in full", SMALL | {"num_hidden_layers": 12, "image_size": 256})
    model = shaped_model(name)
    export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    patch, registers = model.backbone.patch_size, model.backbone.registers
    for rows, columns in ((2, 3), (4, 4), (5, 2)):
        pixels = torch.randn(2, 4, rows * patch, columns * patch, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, tokens, pooled = model.backbone(pixels), theirs.forward_features(pixels), theirs(pixels)
        expected = torch.cat([ours.cls[:, None], ours.registers, ours.patches], dim=1)
        assert tokens.shape == (2, 1 + registers + rows * columns, model.backbone.embed_dim)
        assert torch.allclose(tokens, expected, atol=1e-5)
        assert torch.allclose(pooled, ours.cls, atol=1e-5)


def test_timm_finds_the_preprocessing(timm, tmp_path):
    model = shaped_model("S", channels=3, normalization="imagenet")
    export(save(tmp_path / "m", model), tmp_path / "out", to="timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        found = timm.data.resolve_model_data_config(theirs)
    assert tuple(found["input_size"]) == (3, 32, 48)
    assert found["interpolation"] == "bilinear"
    assert (found["crop_pct"], found["crop_mode"]) == (1.0, "squash")
    assert tuple(found["mean"]) == (0.485, 0.456, 0.406)
    assert tuple(found["std"]) == (0.229, 0.224, 0.225)


@pytest.mark.usefixtures("timm")
def test_the_code_on_the_card_runs(tmp_path, monkeypatch):
    export(save(tmp_path / "m", shaped_model("odd")), tmp_path / "out", to="timm")
    monkeypatch.chdir(tmp_path)
    snippet = re.search(
        r"```python\n(import timm.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL
    )
    names = {}
    exec(snippet.group(1).replace("FOLDER", "out"), names)  # the card is ours
    assert names["patches"].shape == (1, 6, 48)
