import importlib.util
import json

import onnx
import onnxruntime
import pytest
import torch
from export_models import PROVENANCE, run_snippets, save

import openfino
from openfino.errors import OpenfinoError
from openfino.export import export
from openfino.export import onnx as door
from openfino.images.normalize import normalize
from tiny_models import tiny_model

SIZES = [(1, 32, 48), (3, 16, 16), (2, 80, 24)]


def session_of(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def assert_same(session, model):
    names = [output.name for output in session.get_outputs()]
    assert names == ["cls", "patches", "registers"]
    for seed, (count, height, width) in enumerate(SIZES):
        shape = (count, model.backbone.channels, height, width)
        pixels = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            wanted = model.backbone(normalize(pixels, model.preprocessing.normalization))
        for name, found in zip(names, session.run(None, {"pixels": pixels.numpy()}), strict=True):
            assert torch.allclose(torch.from_numpy(found), getattr(wanted, name), atol=1e-5)


def test_a_graph_of_any_size_that_carries_its_zscore(tmp_path, monkeypatch):
    model = tiny_model(4, "zscore", PROVENANCE, size=(32, 48))
    report = export(save(tmp_path / "m", model), tmp_path / "out", to="onnx")
    assert report.files == ["README.md", "model.onnx", "openfino.json"]
    assert report.opened_with == "onnxruntime"
    session = session_of(tmp_path / "out")
    assert_same(session, model)
    shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
    assert shapes == {
        "pixels": ["batch", 4, "8*rows", "8*columns"],
        "cls": ["batch", 32],
        "patches": ["batch", "rows*columns", 32],
        "registers": ["batch", 2, 32],
    }
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["channels"]) == model.preprocessing.channels
    assert json.loads(facts["normalization"]) == "zscore"
    assert (facts["size"], facts["patch_size"], facts["licence"]) == ("32x48", "8", "dinov3-license")
    assert facts["openfino_version"] == openfino.__version__
    assert run_snippets(tmp_path / "out", monkeypatch) == [(1, 24, 32)]
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "model.onnx"), full_check=True)


def test_large_weights_lie_beside_the_graph_and_leave_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "LARGEST_ALONE", 0)
    model = tiny_model()
    source = save(tmp_path / "m", model)
    report = export(source, tmp_path / "out", to="onnx")
    assert report.files == ["README.md", "model.onnx", "model.onnx.data", "openfino.json"]
    assert_same(session_of(tmp_path / "out"), model)
    export(source, tmp_path / "out", to="timm", overwrite=True)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["README.md", "config.json", "model.safetensors", "openfino.json"]


def test_without_the_extra_the_message_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else True)
    message = r"needs onnx, onnxscript, onnxruntime\. Install with: pip install 'openfino\[onnx\]'"
    with pytest.raises(OpenfinoError, match=message):
        export(tmp_path / "absent", tmp_path / "out", to="onnx")
