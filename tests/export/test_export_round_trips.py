"""From Meta's file through every format and back: no bit of a weight changes."""

import dataclasses

import pytest
import torch
from shapes import shaped_model

from openfino.export import export
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.formats.meta import to_meta
from openfino.models.store import load_model
from openfino.models.variants import Variants
from openfino.models.vit import DINOv3ViTModel


def with_local_norm(backbone):
    """The same with what Meta's 7B has beyond the others: a norm for CLS of local crops, used in training alone."""
    config = backbone.config
    dataclasses.replace(Variants.of(config), local_cls_norm=True).store(config)
    model = DINOv3ViTModel(config).eval()
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    return Dinov3Backbone(model)


@pytest.mark.parametrize("name", ["S", "S+", "L", "7B"])
def test_meta_to_ours_to_hugging_face_to_timm_to_ours(name, tmp_path):
    backbone = shaped_model(name, channels=3).backbone
    if name == "7B":
        backbone = with_local_norm(backbone)
    meta = {
        key: value.clone() for key, value in to_meta(backbone.model.state_dict(), backbone.config).items()
    }
    torch.save({"teacher": {f"backbone.{key}": value for key, value in meta.items()}}, tmp_path / "meta.pth")
    reports = [
        export(tmp_path / "meta.pth", tmp_path / "hf", to="hf"),
        export(tmp_path / "hf", tmp_path / "timm", to="timm"),
        export(tmp_path / "timm", tmp_path / "again", to="hf"),
    ]
    assert [report.max_abs for report in reports] == [0, 0, 0]
    last = load_model(tmp_path / "again").backbone
    found = to_meta(last.model.state_dict(), last.config)
    lost = {"mask_token"} | {key for key in meta if key.startswith("local_cls_norm.")}
    assert found.keys() == {key for key in meta if not key.startswith("local_cls_norm.")}
    assert all(torch.equal(found[key], meta[key]) for key in meta.keys() - lost)
    assert ("local crops" in str(reports[0])) is (name == "7B")
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(last(pixels).patches, backbone(pixels).patches)
