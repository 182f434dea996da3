import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from export_models import PARENT, PROVENANCE, run_snippets, save, save_run

import openfino
from conftest import TINY
from openfino.export import export
from openfino.export.card import model_card
from openfino.export.door import Written
from openfino.export.writing import DOORS
from openfino.models.licence import card_header
from tiny_models import tiny_model
from weight_files import random_meta


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "run")


def test_the_card_states_the_facts(run_folder, tmp_path):
    export(run_folder, tmp_path / "out")
    header, card = card_header(tmp_path / "out" / "README.md"), (tmp_path / "out" / "README.md").read_text()
    assert header["license"] == "other"
    assert header["license_name"] == "dinov3-license"
    assert header["license_link"].startswith("https://")
    assert header["base_model"] == PARENT["source"]
    assert header["library_name"] == "transformers"
    assert "12,345 images" in card
    assert "- steps: 678" in card
    assert "| plate | spurious | discrete |" in card
    assert "| organelle, test | knn | macro_f1 | 0.111 | 0.333 |" in card
    assert "| organelle, test | linear | macro_f1 | 0.222 | 0.444 |" in card
    assert "| plate, read from the features | knn | accuracy (majority 0.300) | 0.999 | 0.777 |" in card
    assert "| dose, read from the features | knn | R^2 | 0.250 | 0.125 |" in card
    assert "| dose, read from the features | linear | R^2 | 0.500 | 0.500 |" in card
    assert "not probed" not in card
    assert "ImageNet mean" in card
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card, re.DOTALL).group(1))
    assert recipe == {key: PROVENANCE["recipe"][key] for key in ("model", "train", "views")}
    assert "/home/someone" not in card


@pytest.mark.parametrize("stale", [True, False])
def test_the_card_shows_no_scores_of_another_step(tmp_path, stale):
    probes = dict(PROVENANCE["probes"])
    if not stale:
        del probes["after"]
    model = tiny_model(provenance={**PROVENANCE, "steps": 900, "probes": probes})
    export(save(tmp_path / "m", model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| organelle, test | knn | macro_f1 | 0.111 | - |" in card
    assert "This model (step 900) was not probed at this step." in card


def test_the_card_of_random_weights_names_no_parent(tmp_path):
    model = tiny_model(4, "zscore", {"source": "random weights", "parent": {"source": None, "licence": None}})
    export(save(tmp_path / "m", model), tmp_path / "out")
    header, card = card_header(tmp_path / "out" / "README.md"), (tmp_path / "out" / "README.md").read_text()
    assert "license" not in header
    assert "base_model" not in header
    assert "random weights" in card
    assert "z-score" in card
    assert "AutoImageProcessor` cannot" in card
    assert "## Data" not in card
    assert "## Probes" not in card


def test_a_run_whose_best_model_is_its_start_does_not_call_it_adapted(tmp_path):
    model = tiny_model(provenance={**PROVENANCE, "steps": 0})
    export(save(tmp_path / "m", model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "unchanged from" in card
    assert "# Vision backbone" in card


def test_the_card_of_a_local_parent_hides_its_path(tmp_path):
    parent = tmp_path / "private" / "weights"
    provenance = {
        "parent": {"source": str(parent), "licence": "unknown"},
        "recipe": {"model": {"source": str(parent)}},
    }
    model = tiny_model(provenance={**provenance, "steps": 3})
    export(save(tmp_path / "m", model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (tmp_path / "out" / "openfino.json").read_text()
    assert "the local model `weights`" in card
    assert card_header(tmp_path / "out" / "README.md")["license"] == "unknown"
    assert "Find out before passing" in card


@pytest.mark.parametrize("to", DOORS)
def test_nothing_says_where_things_lay_on_a_disk(to, tmp_path):
    folder = save(tmp_path / "m", tiny_model(provenance=PROVENANCE))
    export(folder, tmp_path / "out", to=to)
    hidden = [tmp_path, Path.home(), Path(openfino.__file__).parent, Path(torch.__file__).parent]
    for path in (tmp_path / "out").iterdir():
        for text in (*map(str, hidden), "/home/someone", "patient_7"):
            assert text.encode() not in path.read_bytes(), (path.name, text)


def test_a_model_that_was_only_loaded_tells_its_name_alone(tmp_path):
    folder = save(tmp_path / "m", tiny_model())
    (folder / "openfino.json").unlink()
    export(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "openfino.json").read_text())["provenance"] == {
        "source": "m",
        "parent": {"source": "m", "licence": "unknown"},
    }


def test_the_licence_goes_on_with_an_export_of_an_export(tmp_path):
    weights = tmp_path / "dinov3_vits16_pretrain_lvd1689m.pth"
    torch.save(random_meta(), weights)
    export(weights, tmp_path / "first", to="timm")
    weights.unlink()
    report = export(tmp_path / "first", tmp_path / "second", to="torch")
    assert report.licence == "dinov3-license"
    assert "DINOv3 License" in (tmp_path / "second" / "README.md").read_text()


@pytest.mark.parametrize("to", DOORS)
def test_every_card_has_the_licence_and_what_opens_it(to):
    card = model_card(tiny_model(provenance=PROVENANCE), DOORS[to], Written(["a note"]))
    assert "stay under its licence: [DINOv3 License](https://" in card
    assert f"library_name: {DOORS[to].library}" in card
    assert "- a note" in card
    assert ("the exported model does this step itself" in card) is (to in ("onnx", "torch"))


def test_the_code_on_the_card_runs(run_folder, tmp_path, monkeypatch):
    export(run_folder, tmp_path / "out")
    assert run_snippets(tmp_path / "out", monkeypatch) == [(1, 16, TINY["hidden_size"])] * 2
