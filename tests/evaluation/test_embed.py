import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import openfino
from openfino.errors import OpenfinoError
from openfino.evaluation import embed as embed_module
from openfino.evaluation.embed import embed, weights_hash
from openfino.evaluation.features import extract_features
from openfino.manifest import read_manifest
from tiny_models import tiny_model, write_arrays, write_manifest

EVERYTHING = ("cls", "mean", "patches")


@pytest.fixture
def screen(tmp_path):
    """Ten four-channel images, the third absent and the seventh corrupt; typed columns with missing values."""
    names = write_arrays(tmp_path, 10, channels=4)
    (tmp_path / names[6]).write_bytes(b"corrupt")
    columns = {
        "path": [*names[:2], "gone.npy", *names[3:]],
        "plate": pl.Series([None, *"abcabcabc"]),
        "dose": pl.Series([0.5, None, *range(8)], dtype=pl.Float64),
        "count": pl.Series(range(10), dtype=pl.Int16),
    }
    return write_manifest(tmp_path, columns)


@pytest.fixture
def model():
    parent = {"source": "facebook/dinov3-vits16-pretrain-lvd1689m", "licence": "dinov3-license"}
    return tiny_model(4, "zscore", {"parent": parent, "steps": 5})


def test_every_row_keeps_its_columns_and_gets_its_features(screen, model, tmp_path):
    out = tmp_path / "deep" / "features.parquet"
    steps = []
    report = embed(
        model,
        screen,
        out,
        tokens=EVERYTHING,
        batch_size=4,
        workers=2,
        progress=lambda *step: steps.append(step),
    )
    table = pl.read_parquet(out)
    assert table.select(screen.table.columns).equals(screen.table)
    assert table.columns == [*screen.table.columns, "cls", "mean", "patches", "patch_h", "patch_w"]
    expected = extract_features(model, screen, range(10), tokens=EVERYTHING)
    assert [row for row, cls in enumerate(table["cls"]) if cls is None] == [2, 6] == expected.unreadable
    assert table.select(pl.col("cls", "mean", "patches").null_count()).row(0) == (2, 2, 2)
    known = table[expected.rows.tolist()]
    for name in ("cls", "mean", "patches"):
        assert np.allclose(np.array(known[name].to_list()), getattr(expected, name), atol=1e-6)
    assert table["patch_h"].to_list() == table["patch_w"].to_list() == [4] * 10
    assert (report.rows, report.unreadable, report.dimensions, report.file) == (10, 2, 32, out)
    assert "gone.npy" in report.causes[0]
    assert steps == [(4, 10), (8, 10), (10, 10)]


def test_types_and_metadata_are_those_of_the_documentation(screen, model, tmp_path):
    embed(model, screen, tmp_path / "f.parquet", tokens=EVERYTHING)
    schema = pq.read_schema(tmp_path / "f.parquet")
    vector = pa.list_(pa.float32(), 32)
    assert schema.field("cls").type == schema.field("mean").type == vector
    assert schema.field("patches").type.value_type == vector
    assert schema.field("count").type == pa.int16()
    facts = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert facts["openfino.licence"] == "dinov3-license"
    assert facts["openfino.parent"] == "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert facts["openfino.weights_sha256"] == weights_hash(model.backbone)
    assert json.loads(facts["openfino.transform"])["normalization"] == "zscore"
    assert (facts["openfino.dtype"], facts["openfino.version"]) == ("float32", openfino.__version__)


def test_row_groups_are_bounded_whatever_the_number_of_rows(image_set, tmp_path, monkeypatch):
    model, manifest = tiny_model(), read_manifest(image_set)
    embed(model, manifest, tmp_path / "one.parquet")
    monkeypatch.setattr(embed_module, "ROW_GROUP_BYTES", 12 * 2 * 32 * 4)  # twelve rows of CLS and mean
    embed(model, manifest, tmp_path / "many.parquet", batch_size=5)
    file = pq.ParquetFile(tmp_path / "many.parquet")
    assert max(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)) <= 12
    assert file.num_row_groups >= 4
    one, many = pl.read_parquet(tmp_path / "one.parquet"), pl.read_parquet(tmp_path / "many.parquet")
    assert one.drop("cls", "mean").equals(many.drop("cls", "mean"))
    assert np.allclose(one["cls"].to_numpy(), many["cls"].to_numpy(), atol=1e-5)


def test_only_the_tokens_asked_for(image_set, tmp_path):
    embed(tiny_model(), read_manifest(image_set), tmp_path / "f.parquet", tokens=("mean",))
    assert pl.read_parquet(tmp_path / "f.parquet").columns[-2:] == ["split", "mean"]


def test_an_existing_file_is_replaced_only_when_allowed_and_only_when_complete(screen, model, tmp_path):
    out = tmp_path / "f.parquet"
    out.write_text("precious")
    with pytest.raises(OpenfinoError, match="exists already"):
        embed(model, screen, out)
    with pytest.raises(OpenfinoError, match="there is no avg"):
        embed(model, screen, out, tokens=("avg",), overwrite=True)
    with pytest.raises(OpenfinoError, match="none of the 10 images"):
        embed(tiny_model(3), screen, out, overwrite=True)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".partial") == []
    embed(model, screen, out, overwrite=True)
    assert len(pl.read_parquet(out)) == 10


def test_a_column_with_the_name_of_a_feature_is_refused(model, tmp_path):
    names = write_arrays(tmp_path, 2, channels=4)
    manifest = write_manifest(tmp_path, {"path": names, "mean": [1.0, 2.0]})
    with pytest.raises(OpenfinoError, match="columns mean have the names of features"):
        embed(model, manifest, tmp_path / "f.parquet")
    embed(model, manifest, tmp_path / "f.parquet", tokens=("cls",))


def test_the_hash_names_the_weights_and_nothing_else():
    assert weights_hash(tiny_model(seed=1).backbone) == weights_hash(tiny_model(seed=1).backbone)
    changed = tiny_model(seed=1)
    changed.backbone.model.norm.bias.data[3] += 1e-6
    assert weights_hash(changed.backbone) != weights_hash(tiny_model(seed=1).backbone)
