import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from conftest import TINY
from openfino.cli import app
from openfino.diagnostics.command import parse_patch, spaced_rows, viz_command
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.loading import random_backbone
from openfino.models.store import save_backbone
from tiny_models import TINY_FAMILIES, tiny_family, tiny_model, write_arrays

PANELS = ("cls", "image", "pca", "similarity")


def saved(folder, model):
    save_backbone(folder, model.backbone, model.preprocessing, {"source": "random weights"})
    return str(folder)


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "model", tiny_model())


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(1)
    folder = tmp_path / "photos"
    folder.mkdir()
    files = [folder / f"{name}.png" for name in "abc"]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    return files


def test_the_command_writes_a_sheet_panels_and_numbers(model, photos, tmp_path):
    out = tmp_path / "viz"
    arguments = ["viz", model, *map(str, photos), "--out", str(out), "--patch", "0,3", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((out / "viz.json").read_text())
    found = json.loads(result.stdout)
    assert [image["image"] for image in found["images"]] == [str(file) for file in photos]
    assert (found["size"], found["grid"], found["reference_patch"]) == ([32, 32], [4, 4], [0, 3])
    assert found["images"][0]["similarity_to_patch"]["p95"] <= 1
    assert 1 < found["rankme"]["cls"] <= 2.001  # three images span two directions
    assert "CLS and registers dropped" in found["pca"]
    names = sorted(path.name for path in (out / "panels").iterdir())
    assert names == [f"{number:02d}_{panel}.png" for number in range(3) for panel in PANELS]
    assert {opened(out / "panels" / name).shape for name in names} == {(256, 256, 3)}
    height, width, _ = opened(out / "sheet.png").shape
    assert height > 3 * 256
    assert width > 4 * 256


def test_without_json_it_says_what_it_did(model, photos, tmp_path):
    result = CliRunner().invoke(app, ["viz", model, str(photos[0].parent), "--out", str(tmp_path / "viz")])
    assert result.exit_code == 0, result.output
    for words in (
        "3 of 3 images at 32 x 32 pixels",
        "reference patch 2,2",
        "RankMe: CLS",
        "PCA: PCA of the patch",
    ):
        assert words in result.stdout


def test_the_maps_are_those_of_the_backbone(model, photos, tmp_path):
    own = tiny_model()
    report = viz_command(model, photos, tmp_path / "viz", patch="1,0")
    with torch.no_grad():
        for place, file in enumerate(photos):
            tokens = own.backbone.eval()(own.preprocessing.load([file])[None])
            patches, cls = tokens.patches[0].double(), tokens.cls[0].double()
            for row in range(4):
                for column in range(4):
                    token = patches[4 * row + column]
                    expected = float(token @ patches[4] / token.norm() / patches[4].norm())
                    assert report.diagnosis.similarity[place, row, column] == pytest.approx(
                        expected, abs=1e-5
                    )
                    expected = float(token @ cls / token.norm() / cls.norm())
                    assert report.diagnosis.cls[place, row, column] == pytest.approx(expected, abs=1e-5)


def test_two_calls_write_the_same_files(model, photos, tmp_path):
    for name in ("one", "two"):
        viz_command(model, photos, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 14
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_larger_size_gives_finer_maps(model, photos, tmp_path):
    report = viz_command(model, photos, tmp_path / "viz", size=96)
    assert report.diagnosis.similarity.shape == (3, 12, 12)
    assert report.diagnosis.patch == (6, 6)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_is_drawn_at_a_larger_size_than_its_own(family, photos, tmp_path):
    backbone = tiny_family(family)
    preprocessing = Preprocessing(size=(64, 64), normalization="imagenet", channels=list("rgb"))
    save_backbone(tmp_path / "model", backbone, preprocessing, {})
    report = viz_command(str(tmp_path / "model"), photos, tmp_path / "viz", size=96)
    side = 96 // backbone.patch_size
    assert report.diagnosis.colours.shape == (3, side, side, 3)
    assert np.isfinite(report.diagnosis.similarity).all()


def test_a_table_is_drawn_in_evenly_spaced_rows(model, image_set, tmp_path):
    report = viz_command(model, [image_set], tmp_path / "viz")
    assert (len(report.names), report.found) == (16, 40)
    assert (report.names[0], report.names[-1]) == ("images/000.png", "images/039.png")
    assert "16 of 40 images" in str(report)
    assert len(viz_command(model, [image_set], tmp_path / "two", limit=2).names) == 2
    assert spaced_rows(40, 3).tolist() == [0, 20, 39]
    assert spaced_rows(3, 40).tolist() == [0, 1, 2]
    assert spaced_rows(5, 1).tolist() == [0]


def test_images_of_four_channels_are_coloured(tmp_path):
    model = saved(tmp_path / "model", tiny_model(4, "zscore"))
    names = write_arrays(tmp_path / "arrays", 2, 4)
    viz_command(model, [tmp_path / "arrays" / name for name in names], tmp_path / "viz")
    image = opened(tmp_path / "viz" / "panels" / "00_image.png").astype(int)
    assert (image.max(axis=2) - image.min(axis=2)).mean() > 10


def test_procedural_images_are_named_without_files(model, tmp_path):
    names = ["0-3-40.procedural", "0-4-40.procedural"]
    report = viz_command(model, [Path(name) for name in names], tmp_path / "viz")
    assert report.names == names


# What is refused


def test_everything_wrong_is_said_at_once(model, photos, image_set, tmp_path):
    images = [*photos, tmp_path / "absent.png", image_set, photos[0].parent]
    with pytest.raises(InputProblemsError) as caught:
        viz_command(model, images, tmp_path / "viz", size=33, patch="1,2,3")
    text = str(caught.value)
    for words in (
        "--size 32",
        "--patch ROW,COLUMN",
        "absent.png",
        "manifest.csv",
        f"{photos[0].parent}: a folder",
    ):
        assert words in text, words
    assert len(caught.value.problems) == 5
    assert not (tmp_path / "viz").exists()


@pytest.mark.parametrize("text", ["4,0", "0,5", "-1,0", "3", "a,b", "1.5,2", ""])
def test_a_patch_outside_the_grid_is_refused(text):
    patch, (problem,) = parse_patch(text, (4, 5))
    assert patch is None
    assert "from 0 to 3" in problem.remedy
    assert "from 0 to 4" in problem.remedy
    assert parse_patch("3,4", (4, 5)) == ((3, 4), [])


def test_no_images_and_unusable_images(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenfinoError, match="there is no image in this folder"):
        viz_command(model, [tmp_path / "empty"], tmp_path / "viz")
    (name,) = write_arrays(tmp_path / "arrays", 1, 4)
    four = tmp_path / "arrays" / name
    with pytest.raises(OpenfinoError, match=r"the image has 4 channels, the model expects 3"):
        viz_command(model, [four], tmp_path / "viz")
    assert not (tmp_path / "viz").exists()
    report = viz_command(model, [photos[0], four, photos[2]], tmp_path / "viz")
    assert report.names == [str(photos[0]), str(photos[2])]
    assert "1 images were left out" in str(report)
    assert len(report.to_json()["left_out"]) == 1


def test_only_an_earlier_call_is_replaced(model, photos, tmp_path):
    out = tmp_path / "viz"
    viz_command(model, photos, out)
    kept = out / "note.txt"
    kept.write_text("mine")
    with pytest.raises(OpenfinoError, match="--overwrite"):
        viz_command(model, photos[:1], out)
    viz_command(model, photos[:1], out, overwrite=True)
    assert len(list((out / "panels").iterdir())) == 4
    assert kept.read_text() == "mine"
    for overwrite in (False, True):
        with pytest.raises(OpenfinoError, match="nothing in it was touched"):
            viz_command(model, photos, photos[0].parent, overwrite=overwrite)


def test_a_run_without_preprocessing_of_its_own_is_drawn_too(photos, tmp_path):
    backbone = random_backbone(TINY, 3, 0)
    backbone.model.save_pretrained(tmp_path / "hf")
    assert len(viz_command(str(tmp_path / "hf"), photos, tmp_path / "viz").names) == 3
