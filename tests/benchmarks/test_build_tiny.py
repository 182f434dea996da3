"""Packing ``tiny``, and the whole way to it in small."""

import gzip
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import TINY
from openfino import tiny
from openfino.errors import OpenfinoError
from openfino.models.licence import card_header
from openfino.models.store import load_model
from tiny_runs import run_tiny
from tiny_stand_in import make_table, pretrain

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import build_tiny
import tiny_data
import tiny_stages

GRAM = {"gram": {"weight": 1.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, one from the other, and the table that they share."""
    folder = tmp_path_factory.mktemp("build")
    table = make_table(folder / "data")
    pretrain(table, folder / "pretrain")
    start = {"source": str(folder / "pretrain")}
    pretrain(table, folder / "refine", model=start, objective=GRAM)
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    build_tiny.package(folder / "pretrain", folder / "tiny")
    return folder / "tiny"


def test_everything_is_packed(folder, packed):
    assert {path.name for path in packed.iterdir()} == {
        *("model.safetensors", "config.json", "openfino.json", "SHA256SUMS", "README.md"),
        *("pretrain.recipe.yaml", "pretrain.metrics.jsonl", "pretrain.probes.jsonl"),
    }
    digest, name = (packed / "SHA256SUMS").read_text().split()
    assert (digest, name) == (tiny.sha256(packed / tiny.WEIGHTS), tiny.WEIGHTS)
    assert {path.stat().st_mode & 0o444 for path in packed.iterdir()} == {0o444}
    recipe = yaml.safe_load((packed / "pretrain.recipe.yaml").read_text())
    assert (recipe["manifest"], recipe["out"]) == ("table.parquet", "pretrain")
    assert recipe["model"]["config"] == TINY
    for path in packed.iterdir():
        assert str(folder).encode() not in path.read_bytes()
    assert load_model(packed).preprocessing.channels == ["red", "green", "blue"]


def test_half_the_bits_are_close(folder, packed):
    exact, rounded = load_model(folder / "pretrain").backbone, load_model(packed).backbone
    for name, value in exact.named_parameters():
        assert torch.equal(rounded.get_parameter(name), value.half().float())
    assert {value.dtype for value in load_file(packed / tiny.WEIGHTS).values()} == {torch.float16}
    preprocessing = load_model(packed).preprocessing
    closeness = build_tiny.compare(exact, rounded, preprocessing)
    assert 0 < closeness.largest < 0.02 * closeness.scale
    assert 0.9999 < closeness.cosine < 1
    assert build_tiny.compare(exact, exact, preprocessing).largest == 0


def test_the_card_is_filled_from_the_logs(folder, packed):
    card = (packed / "README.md").read_text()
    assert card_header(packed / "README.md")["license"] == "apache-2.0"
    assert "| pretrain | 4 | 8 | 32 | DINO 1, iBOT 1, KoLeo 0.1 | 0 | cpu |" in card
    for line in (folder / "pretrain" / "probes.jsonl").read_text().splitlines():
        record = json.loads(line)
        accuracy = record["label"]["splits"]["real"]["scores"]["knn"]["accuracy"]
        assert f"| pretrain | {record['step']} | {accuracy:.3f} |" in card
    assert tiny.sha256(packed / tiny.WEIGHTS) in card


def test_every_run_on_the_way_is_kept_and_old_data_goes(folder, tmp_path):
    into = tmp_path / "tiny"
    into.mkdir()
    (into / "__init__.py").write_text("")
    (into / "older.recipe.yaml").write_text("")
    said = build_tiny.package(folder / "refine", into)
    assert "smallest cosine 0.99999" in said
    assert (into / "__init__.py").is_file()
    assert not (into / "older.recipe.yaml").exists()
    assert sorted(path.name for path in into.glob("*.recipe.yaml")) == [
        "pretrain.recipe.yaml",
        "refine.recipe.yaml",
    ]
    assert yaml.safe_load((into / "refine.recipe.yaml").read_text())["model"]["source"] == "pretrain"
    card = (into / "README.md").read_text()
    assert card.index("| pretrain | 4 |") < card.index(
        "| refine | 4 | 8 | 32 | DINO 1, iBOT 1, KoLeo 0.1, Gram 1"
    )
    assert "build_tiny.py --refine" in card


def test_only_what_is_our_own_is_packed(folder, image_set, tmp_path):
    def refused(run, why):
        with pytest.raises(OpenfinoError, match=why):
            build_tiny.package(run, tmp_path / "tiny")
        assert not (tmp_path / "tiny").exists()

    run_tiny(image_set, tmp_path / "photographs", train={"steps": 1})
    refused(tmp_path / "photographs", "did not train on procedural images alone")
    shutil.copytree(folder / "pretrain" / "model", tmp_path / "somebodys")
    start = {"source": str(tmp_path / "somebodys")}
    pretrain(folder / "data" / "table.parquet", tmp_path / "run", model=start, train={"steps": 1})
    refused(tmp_path / "run", "somebodys, which is no run of ours")
    refused(tmp_path / "somebodys", "is no run")


def test_what_does_not_fit_is_refused(folder, tmp_path, monkeypatch):
    backbone = load_model(folder / "pretrain").backbone
    with torch.no_grad():
        next(backbone.parameters()).fill_(70_000)
    with pytest.raises(OpenfinoError, match=r"too large for float16: model\."):
        build_tiny.half_precision(backbone)
    monkeypatch.setattr(build_tiny, "MAX_BYTES", 1000)
    with pytest.raises(OpenfinoError, match="more than 1,000"):
        build_tiny.package(folder / "pretrain", tmp_path / "tiny")


def test_a_long_log_is_thinned(monkeypatch):
    monkeypatch.setattr(tiny_stages, "KEPT", 4)
    records = [{"step": step, "loss/total": 1.0} for step in range(10)]
    records.insert(5, {"step": 4, "probe/x": 1.0})
    kept = tiny_stages.thinned(records)
    assert [record["step"] for record in kept if "loss/total" in record] == [0, 3, 6, 9]
    assert {"step": 4, "probe/x": 1.0} in kept
    assert tiny_stages.thinned(records[:3]) == records[:3]


def test_the_whole_way_in_small(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(0)
    values = {"images-idx3": generator.integers(0, 256, (60, 28, 28)), "labels-idx1": np.arange(60) % 10}
    for name, array in values.items():
        head = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        content = gzip.compress(head + array.astype(np.uint8).tobytes())
        (source / f"train-{name}-ubyte.gz").write_bytes(content)
    monkeypatch.setattr(tiny_data, "REFERENCE", {"digits": 50, "fashion": 50})
    monkeypatch.setattr(tiny_data, "QUERIES", {"digits": 8, "fashion": 8})
    train = {"steps": 2, "batch_size": 4, "workers": 0, "warmup_steps": 0, "threads": 1}
    recipe = yaml.safe_load(build_tiny.RECIPES["pretrain"].read_text())
    recipe = {**recipe, "model": "of the first run", "objective": {**recipe["objective"], **GRAM}}
    (tmp_path / "refine-tiny.yaml").write_text(yaml.safe_dump({**recipe, "train": train}))
    monkeypatch.setitem(build_tiny.RECIPES, "refine", tmp_path / "refine-tiny.yaml")
    narrow = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=64"]
    overrides = [f"train.{key}={value}" for key, value in train.items()]
    overrides += [f"model.config.{setting}" for setting in narrow]

    def build(*, refine):
        work = tmp_path / "work"
        return build_tiny.build(work, refine=refine, source=source, images=12, overrides=tuple(overrides))

    def losses(run):
        return [line for line in (run / "metrics.jsonl").read_text().splitlines() if "loss/total" in line]

    run = build(refine=False)
    assert run == tmp_path / "work" / "pretrain"
    build_tiny.package(run, tmp_path / "tiny")
    assert load_model(tmp_path / "tiny").backbone.embed_dim == 32
    before = losses(run)
    refined = build(refine=True)
    assert refined == tmp_path / "work" / "refine"
    build_tiny.package(refined, tmp_path / "tiny")
    assert (tmp_path / "tiny" / "pretrain.recipe.yaml").is_file()
    assert before
    assert losses(run) == before  # the first run was done and is as it was
