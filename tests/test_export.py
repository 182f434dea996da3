import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModel, BitImageProcessorPil
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from conftest import TINY
from openfino.errors import OpenfinoError
from openfino.export import export_huggingface, hf
from openfino.export.hf import preprocessor_config
from openfino.images.preprocess import Preprocessing
from openfino.models.licence import card_header, licence_of
from openfino.models.store import load_model, quiet_transformers, save_backbone
from tiny_models import tiny_model

PARENT = {"source": "facebook/dinov3-vits16-pretrain-lvd1689m", "licence": "dinov3-license"}
FILES = ["README.md", "config.json", "model.safetensors", "openfino.json", "preprocessor_config.json"]


def probe_record(knn, linear, plate, step=0):
    scores = {"knn": {"macro_f1": knn}, "linear": {"macro_f1": linear, "accuracy": 0.5}}
    reading = {"knn_accuracy": plate, "majority": 0.3, "chance": 0.1}
    return {
        "step": step,
        "label": {"label": "organelle", "splits": {"test": {"scores": scores}}},
        "leakage": {"plate": reading, "dose": {"knn_accuracy": None, "knn_r2": 0.25 if step == 0 else 0.125}},
    }


PROVENANCE = {
    "source": PARENT["source"],
    "parent": PARENT,
    "images": 12345,
    "steps": 678,
    "factors": {
        "antibody": {"role": "informative", "kind": "discrete"},
        "plate": {"role": "spurious", "kind": "discrete"},
    },
    "recipe": {
        "manifest": "/home/someone/secret/manifest.csv",
        "out": "/home/someone/runs/a",
        "model": {"source": PARENT["source"]},
        "train": {"batch_size": 96, "lr": 5e-5, "schedule": "constant"},
        "views": {"global_size": [224, 224], "local_count": 8},
    },
    "probes": {"before": probe_record(0.111, 0.222, 0.999), "after": probe_record(0.333, 0.444, 0.777, 678)},
}


def save(folder, model):
    save_backbone(folder, model.backbone, model.preprocessing, model.provenance)
    return folder


@pytest.fixture
def run_folder(tmp_path):
    save(tmp_path / "run" / "model", tiny_model(provenance=PROVENANCE))
    return tmp_path / "run"


def open_with_transformers(folder):
    with quiet_transformers():
        return AutoModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(("channels", "normalization"), [(3, "imagenet"), (4, "zscore")])
def test_transformers_opens_the_folder_and_gives_the_same_features(tmp_path, channels, normalization):
    model = tiny_model(channels, normalization, size=(16, 32))
    report = export_huggingface(save(tmp_path / "m", model), tmp_path / "out")
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
    export_huggingface(run_folder, tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert model.provenance == PROVENANCE
    assert model.preprocessing == tiny_model().preprocessing
    assert licence_of(tmp_path / "out") == "dinov3-license"
    again = export_huggingface(tmp_path / "out", tmp_path / "again")
    assert again.files == FILES


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
            export_huggingface(run_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_tensor_that_is_missing_in_the_folder_stops_the_export(run_folder, tmp_path, monkeypatch):
    def forgetful(folder, backbone, preprocessing, provenance):
        save_backbone(folder, backbone, preprocessing, provenance)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))

    monkeypatch.setattr(hf, "save_backbone", forgetful)
    with pytest.raises(OpenfinoError, match=r"does not open as it was written.*layer\.2"):
        export_huggingface(run_folder, tmp_path / "out")


# Where it may write


def test_an_earlier_export_is_replaced_only_when_allowed(run_folder, tmp_path):
    out = tmp_path / "out"
    export_huggingface(run_folder, out)
    (out / "notes.txt").write_text("mine")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier, larger model")
    with pytest.raises(OpenfinoError, match="allow overwriting"):
        export_huggingface(run_folder, out)
    other = save(tmp_path / "other", tiny_model(seed=9))
    export_huggingface(other, out, overwrite=True)
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
            export_huggingface(run_folder, mine, overwrite=overwrite)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(OpenfinoError, match="is a file"):
        export_huggingface(run_folder, mine / "thesis.txt", overwrite=True)
    for source in (run_folder, run_folder / "model"):
        with pytest.raises(OpenfinoError, match="holds the model to export"):
            export_huggingface(run_folder, source, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert export_huggingface(run_folder, tmp_path / "empty").files == FILES
    with pytest.raises(OpenfinoError, match="holds no model"):
        export_huggingface(mine, tmp_path / "new")


# Preprocessing


def test_the_preprocessor_gives_transformers_our_pixels(tmp_path):
    """Pillow's back end rounds the resized image to 8 bits: half a level, divided by the deviation."""
    preprocessing = Preprocessing(size=(24, 32), normalization="imagenet", channels=["r", "g", "b"])
    config = preprocessor_config(preprocessing)
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
    config = preprocessor_config(Preprocessing(size=(8, 8), normalization=given, channels=["a", "b", "c"]))
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
    config = preprocessor_config(preprocessing)
    assert config["do_normalize"] is False
    assert "image_mean" not in config
    assert config["size"] == {"height": 8, "width": 16}
    facts = config["openfino"]
    assert facts["channels"] == names
    assert facts["normalization"] == normalization
    assert "65535" in facts["value_range"]


# The card


def test_the_card_states_the_facts(run_folder, tmp_path):
    export_huggingface(run_folder, tmp_path / "out")
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
    export_huggingface(save(tmp_path / "m", model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| organelle, test | knn | macro_f1 | 0.111 | - |" in card
    assert "This model (step 900) was not probed at this step." in card


def test_the_card_of_random_weights_names_no_parent(tmp_path):
    model = tiny_model(4, "zscore", {"source": "random weights", "parent": {"source": None, "licence": None}})
    export_huggingface(save(tmp_path / "m", model), tmp_path / "out")
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
    export_huggingface(save(tmp_path / "m", model), tmp_path / "out")
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
    export_huggingface(save(tmp_path / "m", model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "the local model `weights`" in card
    assert card_header(tmp_path / "out" / "README.md")["license"] == "unknown"
    assert "Find out before passing" in card


def test_the_code_on_the_card_runs(run_folder, tmp_path, monkeypatch):
    export_huggingface(run_folder, tmp_path / "out")
    Image.new("RGB", (40, 30), (200, 30, 60)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    with quiet_transformers():
        for snippet in snippets:
            names = {}
            exec(snippet.replace("FOLDER", "out"), names)  # the card is ours
            patches = names["patches"] if "patches" in names else names["tokens"].patches
            assert patches.shape == (1, 16, TINY["hidden_size"])
