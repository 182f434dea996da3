"""``tiny`` wherever a model is named."""

import json
import socket
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration
from transformers import AutoModel
from typer.testing import CliRunner

from openfino import tiny
from openfino.adapt import starting_backbone
from openfino.cli import app
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.export import export
from openfino.models.licence import card_header, licence_of, parent_of, public_name, public_provenance
from openfino.models.store import load_model, model_folder
from openfino.preflight import preflight
from openfino.recipe import build_recipe, load_recipe
from tiny_models import write_arrays
from tiny_runs import run_tiny, tiny_settings
from tiny_stand_in import make_stand_in

ROOT = Path(__file__).parents[1]
SHIPPED = tiny.FOLDER
PARENT = {"source": "openfino/tiny", "licence": "apache-2.0"}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return make_stand_in(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def packed(stand_in, monkeypatch):
    """The folder of ``tiny``: a stand-in, so that nothing here depends on what the real one learned."""
    monkeypatch.setattr(tiny, "FOLDER", stand_in)
    return stand_in


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def four_channels(folder):
    """A manifest of 12 images of four channels, with labels and splits."""
    names = write_arrays(folder, 12, 4)
    columns = {
        "path": names,
        "label": ["a", "b"] * 6,
        "split": ["train"] * 8 + ["test"] * 4,
        "site": ["x", "x", "y"] * 4,
        "dose": list(range(12)),
    }
    pl.DataFrame(columns).write_csv(folder / "manifest.csv")
    return folder / "manifest.csv"


# ---------------------------------------------------------------- what is shipped


def listed_by_setuptools(monkeypatch):
    """Data files of the package ``openfino`` in a wheel, relative to it."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    apply_configuration(distribution, "pyproject.toml")
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}  # what version control lists is not asked
    files = command.find_data_files("openfino", "src/openfino")
    return {Path(file).relative_to("src/openfino").as_posix() for file in files}


def test_the_wheel_holds_every_file_and_no_more_than_ten_megabytes(monkeypatch):
    listed = listed_by_setuptools(monkeypatch)
    own = {f"tiny/{path.name}" for path in SHIPPED.iterdir() if path.is_file()}
    assert own <= listed
    for name in (tiny.WEIGHTS, tiny.SUMS, "config.json", "openfino.json", "README.md"):
        assert f"tiny/{name}" in own
    assert sum((SHIPPED / Path(name).name).stat().st_size for name in own) <= 10_000_000


def test_the_folder_belongs_to_the_wheel(monkeypatch):
    assert "tiny/__init__.py" in listed_by_setuptools(monkeypatch)


def test_what_is_shipped_opens_and_says_what_it_is(no_network):
    model = load_model("tiny")
    assert model.report.fraction == 1.0
    assert (model.report.missing, model.report.unexpected, model.report.reshaped) == ([], [], [])
    assert {value.dtype for value in model.backbone.parameters()} == {torch.float32}
    assert {value.dtype for value in load_file(SHIPPED / tiny.WEIGHTS).values()} == {torch.float16}
    assert card_header(SHIPPED / "README.md")["license"] == "apache-2.0"
    assert 3e6 <= sum(value.numel() for value in model.backbone.parameters()) <= 6e6


def test_its_log_holds_the_curve_of_knn():
    probes = [
        json.loads(line)
        for file in sorted(SHIPPED.glob("*.probes.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(probes) > 2
    for record in probes:
        assert {"digits", "fashion"} <= record["label"]["splits"].keys()
    assert list(SHIPPED.glob("*.recipe.yaml"))
    assert list(SHIPPED.glob("*.metrics.jsonl"))


# ---------------------------------------------------------------- the name


def test_the_bare_word_is_the_shipped_backbone(packed):
    assert model_folder("tiny") == model_folder("openfino/tiny") == packed
    assert model_folder("facebook/tiny") is None
    assert not tiny.is_tiny("./tiny")
    assert not tiny.is_tiny(Path("tiny"))
    assert (licence_of("tiny"), public_name("tiny")) == ("apache-2.0", "openfino/tiny")
    assert licence_of("./tiny") == "unknown"


def test_a_folder_of_ones_own_is_reached_by_its_place(packed, image_set, tmp_path, monkeypatch):
    """A run with the name ``tiny`` in the working folder and beside the recipe."""
    monkeypatch.chdir(tmp_path)
    run_tiny(image_set, tmp_path / "tiny", train={"steps": 1})
    own = load_model("./tiny")
    assert own.folder.parent.resolve() == (tmp_path / "tiny").resolve()
    assert own.report.notes == []
    assert load_model(Path("tiny")).folder.parent == Path("tiny")
    shipped = load_model("tiny")
    assert (shipped.folder, shipped.name) == (packed, "tiny")
    assert "./tiny" in str(shipped.report)
    for name, place in (("tiny", "tiny"), ("./tiny", str(tmp_path / "tiny"))):
        for key in ("model", "objective"):
            gram = {"gram": {"weight": 1.0, "teacher": name}}
            settings = tiny_settings("data/manifest.csv", "run", objective=gram, model={"source": name})
            settings["model"].pop("config", None)
            Path("recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
            recipe = load_recipe("recipe.yaml")
            assert {"model": recipe.model.source, "objective": recipe.objective.gram.source}[key] == place


def test_a_run_may_be_called_tiny(packed, image_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"model": "tiny", "train": {"steps": 1}}
    run_tiny(image_set, "tiny", **changes)
    assert run_tiny(image_set, "tiny", resume=True, **changes)["steps"] == 1


def test_absent_weights_are_named_with_the_other_problems(image_set, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "FOLDER", tmp_path)
    with pytest.raises(OpenfinoError, match="'tiny' is not in this installation"):
        load_model("tiny")
    with pytest.raises(InputProblemsError, match="'tiny' is not in this installation") as caught:
        preflight(build_recipe(tiny_settings(image_set, tmp_path / "run", model="tiny", seed=1)))
    assert [problem.where for problem in caught.value.problems] == ["model"]


def test_damaged_weights_are_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "FOLDER", tmp_path)
    for name in (tiny.WEIGHTS, tiny.SUMS, "config.json", "openfino.json"):
        (tmp_path / name).write_bytes((packed / name).read_bytes())
    load_model("tiny")
    content = bytearray((tmp_path / tiny.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / tiny.WEIGHTS).write_bytes(content)
    with pytest.raises(OpenfinoError, match="damaged"):
        load_model("tiny")


def test_nobody_elses_tiny_gets_its_licence(packed, tmp_path, monkeypatch):
    """A model called ``tiny`` that says nothing of its licence, named by its place."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", tiny.WEIGHTS):
        Path("tiny").mkdir(exist_ok=True)
        Path("tiny", name).write_bytes((packed / name).read_bytes())
    for source in ("./tiny", Path("tiny"), tmp_path / "tiny"):
        model = load_model(source)
        assert licence_of(source) == parent_of(model.provenance).licence == "unknown"
        public = public_provenance(model.provenance)
        assert public["parent"] == {"source": "./tiny", "licence": "unknown"}
        assert public_provenance(public) == public
        report = export(source, tmp_path / "out", overwrite=True)
        assert report.licence == "unknown"
        assert "the local model `./tiny`" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------- every place that takes a model


def test_it_loads_as_float32_without_a_network(packed, no_network):
    model = load_model("tiny")
    assert str(model.report).startswith("weights from tiny: ")
    assert "(100.00%)" in str(model.report)
    stored = load_file(packed / tiny.WEIGHTS)
    for name, value in model.backbone.model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())
    assert model.provenance["parent"] == PARENT


@pytest.mark.parametrize("channels", [3, 4])
def test_a_run_starts_from_it(packed, image_set, tmp_path, no_network, channels):
    """Random heads, but the shipped backbone; other channels widen the patch embedding."""
    table = image_set if channels == 3 else four_channels(tmp_path / "four")
    changes = {"model": "tiny", "train": {"steps": 2}}
    if channels == 4:
        changes |= {"images": {"normalization": "zscore"}, "factors": {"dose": "watched", "site": "watched"}}
    settings = tiny_settings(table, tmp_path / "run", **changes)
    backbone, report = starting_backbone(build_recipe(settings), ["x"] * channels)
    stored = load_file(packed / tiny.WEIGHTS)
    widened = "embeddings.patch_embeddings.weight"
    for name, value in backbone.model.named_parameters():
        if channels == 3 or name != widened:
            assert torch.equal(value, stored[name].float()), name
    assert len(report.reshaped) == (channels == 4)
    summary = run_tiny(table, tmp_path / "run", **changes)
    assert summary["parent"] == PARENT
    assert summary["weights"]["source"] == "tiny"
    assert summary["weights"]["matched"] == summary["weights"]["total"]
    adapted = load_model(tmp_path / "run")
    assert adapted.backbone.channels == channels
    assert adapted.provenance["source"] == "openfino/tiny"
    assert "normalization" in adapted.preprocessing.to_json()
    if channels == 3:
        assert adapted.preprocessing.normalization == load_model("tiny").preprocessing.normalization


def test_it_is_a_gram_teacher(packed, image_set, tmp_path, no_network):
    gram = {"gram": {"weight": 1.0, "teacher": "tiny"}}
    run_tiny(image_set, tmp_path / "run", objective=gram, train={"steps": 1})
    assert load_model(tmp_path / "run").provenance["gram_teacher"] == PARENT


def test_the_commands_take_it(packed, image_set, tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    report = json.loads(invoke("probe", "tiny", "--manifest", image_set, "--label", "label", "--json"))
    assert report["model"] == "tiny"
    invoke("embed", "tiny", image_set, "--out", "features.parquet")
    facts = pq.read_schema("features.parquet").metadata
    assert facts[b"openfino.model"] == b"tiny"
    assert (facts[b"openfino.parent"], facts[b"openfino.licence"]) == (b"openfino/tiny", b"apache-2.0")
    invoke("export", "tiny", "--out", "out", "--to", "hf")
    opened = AutoModel.from_pretrained("out")
    assert opened.dtype == torch.float32
    for name, value in load_model("tiny").backbone.model.named_parameters():
        assert torch.equal(opened.get_parameter(name), value)


def test_an_export_of_what_was_made_from_it_says_so(packed, image_set, tmp_path):
    run_tiny(image_set, tmp_path / "run", model="tiny", train={"steps": 1})
    report = export(tmp_path / "run", tmp_path / "out")
    assert report.licence == "apache-2.0"
    header = card_header(tmp_path / "out" / "README.md")
    assert header["license"] == "apache-2.0"
    assert "base_model" not in header  # the hub has no such model
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`tiny`, the backbone that comes with openfino" in card
    assert str(packed.parent) not in card
