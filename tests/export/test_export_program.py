import json
import subprocess
import sys
import warnings

import pytest
import torch
from export_models import PROVENANCE, run_snippets, save
from safetensors.torch import load_file

from openfino.errors import OpenfinoError
from openfino.export import export, program
from openfino.export.program import torch_may_warn
from openfino.images.normalize import normalize
from openfino.images.preprocess import Preprocessing
from openfino.models.store import LoadedModel
from tiny_models import TINY_FAMILIES, tiny_family, tiny_model

# Run where neither openfino nor transformers can be imported.
ALONE = """
import sys
sys.modules["openfino"] = sys.modules["transformers"] = None
import torch
from safetensors.torch import save_file
facts = {"openfino.json": ""}
model = torch.export.load(sys.argv[1], extra_files=facts).module()
found = {}
for index, (count, height, width) in enumerate([(1, 32, 48), (3, 16, 16), (2, 80, 24)]):
    generator = torch.Generator().manual_seed(index)
    pixels = torch.rand(count, 4, height, width, generator=generator)
    found |= {f"{index}.{name}": value.contiguous() for name, value in model(pixels).items()}
save_file(found, sys.argv[2])
print(facts["openfino.json"])
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A 4-channel, z-scored model and the report of its export."""
    folder = tmp_path_factory.mktemp("program")
    model = tiny_model(4, "zscore", PROVENANCE, size=(32, 48))
    return model, export(save(folder / "m", model), folder / "out", to="torch"), folder / "out"


def test_the_program_needs_neither_openfino_nor_transformers(exported, tmp_path):
    model, report, folder = exported
    assert report.files == ["README.md", "model.pt2", "openfino.json"]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        ALONE,
        folder / "model.pt2",
        tmp_path / "found.safetensors",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((folder / "openfino.json").read_text())
    found = load_file(tmp_path / "found.safetensors")
    for index, (count, height, width) in enumerate([(1, 32, 48), (3, 16, 16), (2, 80, 24)]):
        pixels = torch.rand(count, 4, height, width, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            wanted = model.backbone(normalize(pixels, "zscore"))
        for name in ("cls", "patches", "registers"):
            assert torch.allclose(found[f"{index}.{name}"], getattr(wanted, name), atol=1e-5)


def test_the_report_names_what_was_compared(exported):
    report = exported[1]
    assert report.images == [(2, 4, 32, 48), (3, 4, 32, 32), (1, 4, 24, 40)]
    assert report.max_abs <= 1e-4 * report.scale
    assert report.min_cosine > 0.9999
    assert report.licence == "dinov3-license"
    text = str(report)
    assert "torch.export.load" in text
    assert "2x4x32x48, 3x4x32x32, 1x4x24x40" in text
    assert "dinov3-license" in text
    assert json.loads(json.dumps(report.to_json()))["format"] == "torch"


def test_the_code_on_the_card_runs(exported, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_snippets(exported[2], monkeypatch) == [(1, 24, 32)]


@pytest.mark.parametrize("name", [name for name in TINY_FAMILIES if name != "dinov3_vit"])
def test_other_families_take_any_size_too(name):
    backbone = tiny_family(name)
    preprocessing = Preprocessing(size=(64, 96), normalization="imagenet", channels=["r", "g", "b"])
    traced = program.trace(LoadedModel(backbone, preprocessing, {}, None))
    assert traced.any_size, traced.notes
    run = traced.program.module()
    for size in ((64, 96), (128, 64)):
        pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = backbone(normalize(pixels, "imagenet"))
        found = run(pixels)
        assert torch.allclose(found["cls"], wanted.cls, atol=1e-5)
        assert torch.allclose(found["patches"], wanted.patches, atol=1e-5)


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "channel_statistics", lambda *_: ([0.5] * 3, [0.25] * 3))
    source = save(tmp_path / "m", tiny_model())
    with pytest.raises(OpenfinoError, match=r"was not written.*torch\.export\.load.*differ"):
        export(source, tmp_path / "out", to="torch")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_program_that_holds_at_one_size_alone_says_so(tmp_path, monkeypatch):
    """As when a number that depends on the size was frozen into it, and no guard says so."""

    class Frozen(program.PixelModel):
        def forward(self, pixels):
            return super().forward(pixels * (pixels.shape[-1] / 40 if torch.compiler.is_compiling() else 1))

    monkeypatch.setattr(program, "PixelModel", Frozen)
    report = export(save(tmp_path / "m", tiny_model(size=(40, 40))), tmp_path / "out", to="torch")
    assert report.images == [(2, 3, 40, 40)]
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (str(report), card):
        assert "images of 40 x 40 alone" in text
        assert "the program differs on images of (32, 32)" in text
    assert "images must be 40 x 40" in card
    with torch_may_warn():
        run = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert run(torch.rand(5, 3, 40, 40))["cls"].shape == (5, 32)
    with pytest.raises(Exception, match=r"size|shape|equal"):
        run(torch.rand(1, 3, 32, 32))
