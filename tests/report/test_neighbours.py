import base64
import io
import re

import numpy as np
import polars as pl
import pytest
from fake_demo import EVIL, LABELS, make_table
from PIL import Image

from openfino.evaluation.features import Features
from openfino.images.display import composite
from openfino.manifest import read_manifest
from openfino.models.store import save_backbone
from openfino.report import neighbours
from openfino.report.neighbours import (
    Gallery,
    choose_queries,
    find_neighbours,
    nearest,
    neighbour_section,
    picture_address,
)
from tiny_models import tiny_model


@pytest.fixture
def manifest(tmp_path):
    return read_manifest(make_table(tmp_path / "data"))


def features(rows, vectors):
    cls = np.array(vectors, dtype=np.float32)
    return Features(np.array(rows), cls, cls, None, [], [])


def test_every_label_is_asked_once_before_any_twice():
    labels = pl.Series(["a"] * 50 + ["b", "c", "d", None] * 3)
    rows = np.arange(len(labels))
    chosen = choose_queries(labels, rows, 0)
    found = [labels[int(row)] for row in chosen]
    assert sorted(found[:4]) == ["a", "b", "c", "d"]
    assert sorted(found[4:]) == ["a", "b", "c", "d"]
    assert len(set(chosen.tolist())) == 8
    np.testing.assert_array_equal(chosen, choose_queries(labels, rows, 0))
    assert set(choose_queries(labels, rows, 1)) != set(chosen)


def test_queries_come_from_the_given_rows():
    labels = pl.Series(["a", "b"] * 10)
    assert set(choose_queries(labels, np.array([3, 4, 5]), 0)) == {3, 4, 5}


def test_neighbours_are_the_most_similar_in_angle():
    # Row 11 is the longest and row 13 the closest in distance, row 12 points the same way.
    bank = features([11, 12, 13], [[9.0, 9.0], [0.1, 0.0], [1.0, 0.3]])
    assert nearest(features([5], [[1.0, 0.0]]), bank) == {5: [12, 13, 11]}


def test_at_most_five_are_kept():
    bank = features(range(20, 27), [[1.0, 0.1 * place] for place in range(7)])
    assert nearest(features([5], [[1.0, 0.0]]), bank) == {5: [20, 21, 22, 23, 24]}


def test_each_backbone_searches_the_same_labelled_training_images(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "BANK_ROWS", 20)
    models = {}
    for seed, arm in enumerate(("frozen", "fino")):
        model = tiny_model(channels=4, normalization="zscore", size=(16, 16), seed=seed)
        save_backbone(tmp_path / arm, model.backbone, model.preprocessing, {})
        models[arm] = tmp_path / arm
    tested, train = (manifest.rows_where("split", [name]) for name in ("test_ood", "train"))
    gallery = find_neighbours(manifest, models, "localization", tested, train, 0)
    assert len(gallery.bank) == 20
    assert set(gallery.bank) <= set(train)
    assert set(gallery.queries) <= set(tested)
    for found in gallery.found.values():
        assert list(found) == gallery.queries.tolist()
        assert all(len(set(rows)) == 5 and set(rows) <= set(gallery.bank) for rows in found.values())
    assert gallery.found["frozen"] != gallery.found["fino"]


def test_neighbours_of_the_same_pattern_are_marked_and_counted(manifest):
    labels = manifest.table["localization"].to_list()
    query = 4
    same = [row for row in range(60) if labels[row] == labels[query] and row != query][:2]
    other = [row for row in range(60) if labels[row] != labels[query]][:3]
    gallery = Gallery(
        np.array([query]),
        np.arange(60),
        {"frozen": {query: [*same, *other]}, "fino": {query: same}, "ssl": {}},
    )
    html = neighbour_section(manifest, gallery, "localization")
    assert re.findall("class='tile (right|wrong)'", html) == ["right"] * 2 + ["wrong"] * 3 + ["right"] * 2
    assert re.findall(r"<span>(\d of \d)</span>", html) == ["2 of 5", "2 of 2", "0 of 0"]
    assert "<b>frozen start 2 of 5, FINO 2 of 2, SSL 0 of 0</b>" in html
    assert html.count("<img") == html.count("src='data:image/jpeg;base64,") == 1 + 5 + 2


def test_captions_are_text_not_markup(manifest):
    row = manifest.table["antibody"].to_list().index(EVIL)
    html = neighbour_section(
        manifest, Gallery(np.array([row]), np.array([0]), {"ssl": {row: [row]}}), "localization"
    )
    assert "<script>" not in html
    assert "alert(&#x27;AB &amp; &quot;co&quot;&#x27;)" in html
    assert LABELS[0] in html


def test_the_picture_is_the_colour_composite(manifest):
    head, data = picture_address(manifest, 3).split(",")
    assert head == "data:image/jpeg;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)
    expected = composite(np.load(manifest.paths(3)[0])).astype(float)
    assert picture.shape == expected.shape
    assert np.corrcoef(picture.ravel(), expected.ravel())[0, 1] > 0.95
