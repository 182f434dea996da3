import base64
import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from openfino.diagnostics.colours import unit_colours
from openfino.diagnostics.diagnosis import diagnose
from openfino.errors import OpenfinoError
from openfino.evaluation.features import extract_features, patch_grid
from openfino.evaluation.sources import ArraySource
from openfino.manifest import read_manifest
from openfino.report import compare_pictures
from openfino.report.compare_gallery import map_section, neighbour_section
from openfino.report.compare_pictures import gallery, map_rows, maps, umap_points, umap_section
from openfino.report.compare_result import Comparison
from openfino.report.neighbours import NEIGHBOURS, QUERIES
from tiny_models import tiny_model


def source_of(rows, cls):
    return ArraySource(rows, np.concatenate([cls, cls], axis=1).astype(np.float32), layers=1)


def pixels_of(address):
    assert address.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))))


@pytest.fixture
def manifest(image_set):
    return read_manifest(image_set)


@pytest.fixture
def planted(manifest):
    """Features of the rows in another order: one arm knows the label, the other the site."""
    rows = np.random.default_rng(3).permutation(40)
    noise = 0.01 * np.random.default_rng(4).normal(size=(40, 4))
    label, site = rows % 2, rows % 4
    return {
        "frozen": source_of(rows, np.eye(4)[site] + noise),
        "fino": source_of(rows, np.eye(4)[label] + noise),
    }


class TestUmap:
    def test_without_it_the_reason_is_given(self, monkeypatch):
        monkeypatch.setattr(compare_pictures, "find_spec", lambda name: None)
        with pytest.raises(
            OpenfinoError, match=r"umap-learn is not installed \(pip install 'openfino\[report\]'\)"
        ):
            umap_points(np.zeros((9, 4)), 0)

    def test_two_images_are_too_few(self):
        pytest.importorskip("umap")
        with pytest.raises(OpenfinoError, match="at least 3 images; there are 2"):
            umap_points(np.zeros((2, 4)), 0)

    def test_clusters_stay_apart_and_a_seed_repeats(self):
        pytest.importorskip("umap")
        generator = np.random.default_rng(0)
        codes = np.arange(60) % 3
        features = 5 * np.eye(8)[codes] + 0.1 * generator.normal(size=(60, 8))
        points = umap_points(features, 1)
        assert points.shape == (60, 2)
        np.testing.assert_array_equal(points, umap_points(features, 1))
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        np.fill_diagonal(distances, np.inf)
        np.testing.assert_array_equal(codes[distances.argmin(axis=1)], codes)

    def test_the_section_is_of_the_same_rows_for_all_arms(self, monkeypatch):
        seen = {}

        def fake(features, seed):
            seen[len(seen)] = features
            return features[:, :2].astype(float)

        monkeypatch.setattr(compare_pictures, "umap_points", fake)
        table = pl.DataFrame(
            {
                "label": ["a", "b", None, "a", "b"],
                "dose": [0.5, float("nan"), None, 2.0, 3.0],
                "more": [["x", "y"]] * 5,
            }
        )
        first = source_of(np.array([4, 0, 1, 3]), np.arange(8).reshape(4, 2))
        second = source_of(np.array([0, 1, 2, 3]), 10 * np.arange(8).reshape(4, 2))
        sources = {"frozen": first, "fino": second}
        section = umap_section(sources, table, np.arange(5), "label", seed=0, spurious="dose")
        assert section["frozen"] == {
            "points": [[2, 3], [4, 5], [6, 7]],
            "label": ["a", "b", "a"],
            "spurious": [0.5, None, 2],
        }
        assert section["fino"]["points"] == [[0, 10], [20, 30], [60, 70]]
        other = umap_section({"frozen": first}, table, np.arange(5), "more", seed=0)
        assert other["frozen"]["label"] == ["x, y"] * 4
        assert "spurious" not in other["frozen"]


class TestGallery:
    def test_neighbours_are_those_of_the_features(self, manifest, planted):
        tested = np.arange(6, 40, 8)
        train = np.setdiff1d(np.arange(40), tested)
        section, _ = gallery(manifest, planted, "label", tested, train, seed=0, spurious="site")
        assert section["bank"] == len(train)
        assert len(section["queries"]) == min(QUERIES, len(tested))
        assert section["shown"] == dict.fromkeys(planted, NEIGHBOURS * len(section["queries"]))
        assert section["right"] == section["shown"]  # the site tells the label
        for query in section["queries"]:
            assert query["row"] in tested
            for arm, column, wanted in (("frozen", "spurious", True), ("fino", "label", True)):
                same = [near[column] == query[column] for near in query["found"][arm]]
                assert all(same) == wanted
            assert all(near["row"] in train for near in query["found"]["fino"])
            assert query["label"] == manifest.table["label"][query["row"]]
        assert len({near["spurious"] for query in section["queries"] for near in query["found"]["fino"]}) > 1

    def test_what_is_wrong_is_counted(self, manifest):
        rows = np.arange(40)
        swapped = {"frozen": source_of(rows, np.eye(2)[(rows + (rows < 30)) % 2])}
        section, _ = gallery(manifest, swapped, "label", np.arange(30, 40), np.arange(30), seed=0)
        assert section["right"] == {"frozen": 0}
        assert {near["right"] for query in section["queries"] for near in query["found"]["frozen"]} == {False}

    def test_every_named_picture_is_there_and_small(self, manifest, planted):
        section, pictures = gallery(manifest, planted, "label", np.arange(30, 40), np.arange(30), seed=0)
        tiles = [near for query in section["queries"] for own in query["found"].values() for near in own]
        tiles += section["queries"]
        assert {tile["image"] for tile in tiles} == set(pictures)
        assert all(pixels_of(address).shape == (40, 48, 3) for address in pictures.values())
        page = neighbour_section(
            Comparison({"gallery": section, "arms": {arm: {} for arm in planted}}), pictures
        )
        assert page.count("<img") == len(tiles)

    @pytest.mark.parametrize(("kind", "label"), [("regression", "dose"), ("multi", "label")])
    def test_only_classes_are_right_or_wrong(self, manifest, planted, kind, label):
        section, _ = gallery(manifest, planted, label, np.arange(30, 40), np.arange(30), seed=0, kind=kind)
        assert not {"right", "shown"} & set(section)
        assert all("right" not in near for query in section["queries"] for near in query["found"]["fino"])

    def test_rows_without_features_take_no_part(self, manifest, planted):
        kept = planted["fino"].rows < 35
        sources = planted | {"fino": source_of(planted["fino"].rows[kept], planted["fino"].cls()[kept])}
        section, _ = gallery(manifest, sources, "label", np.arange(30, 40), np.arange(30), seed=0)
        assert {query["row"] for query in section["queries"]} == set(range(30, 35))


def test_maps_are_those_of_the_diagnosis(manifest):
    models = {"frozen": tiny_model(seed=0), "fino": tiny_model(seed=1)}
    rows = map_rows(manifest, "label", np.arange(20, 40), 0)
    assert len(rows) == compare_pictures.MAPPED
    section, pictures = maps(manifest, models, rows, label="label")
    assert [image["row"] for image in section["images"]] == rows.tolist()
    for arm, model in models.items():
        features = extract_features(model, manifest, rows, tokens=("patches",))
        expected = diagnose(features, patch_grid(model))
        np.testing.assert_allclose(section["explained"][arm], expected.explained)
        for number, image in enumerate(section["images"]):
            drawn = pixels_of(pictures[image["pca"][arm]])
            np.testing.assert_array_equal(drawn, unit_colours(expected.colours[number]))
    comparison = Comparison({"maps": section, "arms": {arm: {} for arm in models}})
    assert map_section(comparison, pictures).count("<img") == 3 * len(rows)


def test_large_images_become_small(manifest, tmp_path):
    path = tmp_path / "data" / manifest.table["path"][0]
    Image.fromarray(np.zeros((300, 600, 3), dtype=np.uint8)).save(path)
    assert pixels_of(compare_pictures.picture_address(manifest, 0)).shape == (64, 128, 3)
