"""The benchmark on Fashion-MNIST, with idx files that are written here."""

import gzip
import math
import struct
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fashion
import fashion_mnist
from openfino.check import check_source
from openfino.errors import OpenfinoError

NEUTRAL = fashion.Scanner(gain=1.0, gamma=1.0, direction=0.0, tilt=0.0, blur=0.0, noise=0.0)
EFFECTS = ("gain", "gamma", "tilt", "blur", "noise")


def scanner(**changes):
    return fashion.Scanner(**{**vars(NEUTRAL), **changes})


def scan(image, **changes):
    return fashion.scan(np.asarray(image, dtype=np.float32), scanner(**changes), np.random.default_rng(0))


def idx(values):
    values = np.asarray(values, dtype=np.uint8)
    return (
        b"\x00\x00\x08"
        + bytes([values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def bar(angle, *, length=20.4, width=5.2):
    """A bright bar at ``angle`` degrees anticlockwise from the horizontal."""
    y, x = np.mgrid[13.5:-14.5:-1, -13.5:14.5:1]
    turn = math.radians(angle)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    return ((np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """60 train images (compressed) and 40 test images (not); pixel 0 is the image's number, the rest a bar."""
    folder = tmp_path_factory.mktemp("source")
    for prefix, count, squeeze in (("train", 60, True), ("t10k", 40, False)):
        images = np.stack([200 * bar(7 * number, length=10 + number % 12) for number in range(count)])
        images[:, 0, 0] = np.arange(count)
        for name, values in (
            ("images-idx3-ubyte", images),
            ("labels-idx1-ubyte", np.arange(count) % 10),
        ):
            data = idx(values)
            name = f"{prefix}-{name}"
            if squeeze:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion") / "data"
    fashion.write_data(fashion.choose_images(source, train=50, test=20), folder)
    return folder


@pytest.fixture(scope="module")
def table(data):
    return pl.read_csv(data / "manifest.csv")


# ---------------------------------------------------------------- idx files


def test_idx_is_read_compressed_or_not(source):
    images, labels = fashion_mnist.read_source(source, "train")
    assert images.shape == (60, 28, 28)
    assert images.dtype == np.uint8
    assert images[:, 0, 0].tolist() == list(range(60))
    assert labels.tolist() == [number % 10 for number in range(60)]
    images, labels = fashion_mnist.read_source(source, "t10k")
    assert (images.shape, labels.shape) == ((40, 28, 28), (40,))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no idx file"),
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"\x00" * 4, "no idx file of unsigned bytes"),
        (idx(np.zeros((2, 3)))[:-1], r"5 bytes of values, its header says \[2, 3\]"),
        (idx(np.zeros((2, 3)))[:6], "no idx file"),
        (gzip.compress(idx(np.arange(99)))[:-12], "damaged gzip"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content, cause):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(OpenfinoError, match=cause):
        fashion_mnist.read_idx(tmp_path / "file")


def test_an_absent_source_names_the_package_and_leaves_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ["fashion.py", str(out), "--source", str(tmp_path / "absent")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        fashion.main()
    assert not out.exists()


def test_more_images_than_there_are_is_refused(source):
    with pytest.raises(OpenfinoError, match="42 t10k images wanted, there are 40"):
        fashion.choose_images(source, train=10, test=21)


# ---------------------------------------------------------------- factors


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135, 170])
def test_orientation_is_the_angle_of_the_long_axis(angle):
    measured = fashion.measure(bar(angle))["orientation"]
    off = (measured - angle + 90) % 180 - 90
    assert abs(off) < 2


def test_orientation_stays_below_its_period():
    rising = bar(0)
    rising[12, 0:4] = 1e-4
    assert fashion.measure(rising)["orientation"] < 180


def test_orientation_is_missing_where_there_is_no_axis():
    assert fashion.measure(bar(0, length=11, width=11))["orientation"] is None
    assert fashion.measure(np.zeros((28, 28), dtype=np.float32)) == {
        "brightness": 0.0,
        "coverage": 0.0,
        "orientation": None,
    }


def test_brightness_is_the_mean_and_coverage_a_share():
    image = np.zeros((28, 28), dtype=np.float32)
    image[:7] = 0.5
    image[7:14] = 0.05
    measured = fashion.measure(image)
    assert measured["brightness"] == pytest.approx(0.1375, abs=1e-4)
    assert measured["coverage"] == 0.25


# ---------------------------------------------------------------- scanner


def test_a_neutral_scanner_changes_nothing():
    image = np.random.default_rng(1).integers(0, 256, (28, 28))
    np.testing.assert_array_equal(scan(image / 255), image)


def test_gain_and_gamma_are_as_declared():
    grey = np.full((28, 28), 0.4)
    assert (scan(grey, gain=0.5) == 51).all()
    assert (scan(grey, gain=3.0) == 255).all()
    assert (scan(grey, gamma=2.0) == round(255 * 0.16)).all()
    assert (scan(grey, gain=0.5, gamma=2.0) == round(255 * 0.04)).all()


@pytest.mark.parametrize(
    ("direction", "bright", "dark"),
    [(0, (14, 27), (14, 0)), (90, (0, 14), (27, 14)), (180, (14, 0), (14, 27)), (270, (27, 14), (0, 14))],
)
def test_light_is_brighter_on_the_declared_side(direction, bright, dark):
    lit = scan(np.full((28, 28), 0.5), tilt=0.4, direction=direction) / 255
    assert lit[bright] == pytest.approx(0.5 * 1.4, abs=0.012)
    assert lit[dark] == pytest.approx(0.5 * 0.6, abs=0.012)
    assert lit.mean() == pytest.approx(0.5, abs=0.004)


def test_blur_has_the_declared_width():
    point = np.zeros((28, 28))
    point[14, 14] = 1.0
    seen = scan(point, blur=1.1, gain=4.0).astype(float)
    columns = np.arange(28) - 14
    variance = (seen.sum(0) * columns**2).sum() / seen.sum()
    assert math.sqrt(variance) == pytest.approx(1.1, abs=0.05)


def test_noise_has_the_declared_strength_and_its_key():
    grey = np.full((28, 28), 0.5)
    seen = scan(grey, noise=0.05) / 255
    assert seen.std() == pytest.approx(0.05, rel=0.1)
    assert seen.mean() == pytest.approx(0.5, abs=0.006)
    np.testing.assert_array_equal(seen, scan(grey, noise=0.05) / 255)


def test_new_scanners_lie_outside_the_known_ones():
    assert (len(fashion.KNOWN_SCANNERS), len(fashion.NEW_SCANNERS)) == (8, 4)
    assert not set(fashion.KNOWN_SCANNERS) & set(fashion.NEW_SCANNERS)
    for effect in EFFECTS:
        known = [getattr(each, effect) for each in fashion.KNOWN_SCANNERS.values()]
        new = [getattr(each, effect) for each in fashion.NEW_SCANNERS.values()]
        assert all(value < min(known) or value > max(known) for value in new), effect
    directions = {each.direction for each in fashion.KNOWN_SCANNERS.values()}
    assert not directions & {each.direction for each in fashion.NEW_SCANNERS.values()}


# ---------------------------------------------------------------- manifest


def test_the_manifest_holds_every_image_once(data, table):
    assert table.columns == [
        *("path", "split", "label", "scanner"),
        *("brightness", "coverage", "orientation"),
    ]
    assert dict(table["split"].value_counts().iter_rows()) == {
        **{"train": 40, "val": 10},
        **{"test_id": 20, "test_ood": 20},
    }
    assert table["path"].n_unique() == 90
    numbers = (
        table.filter(pl.col("split").str.starts_with("test"))["path"].str.extract(r"_(\d+)\.png").to_list()
    )
    assert len(set(numbers)) == 40
    with Image.open(data / table["path"][0]) as image:
        assert (image.size, image.mode) == ((28, 28), "L")


def test_scanners_of_the_splits(table):
    used = {split: set(rows["scanner"]) for (split,), rows in table.group_by("split")}
    assert used["train"] == set(fashion.KNOWN_SCANNERS)
    assert used["test_id"] <= set(fashion.KNOWN_SCANNERS)
    assert used["test_ood"] == set(fashion.NEW_SCANNERS)


def test_rows_describe_the_image_before_the_scanner(source, data, table):
    for row in table.head(20).iter_rows(named=True):
        number = int(row["path"][-9:-4])
        images, labels = fashion_mnist.read_source(source, "train")
        clean = images[number].astype(np.float32) / 255
        assert {name: row[name] for name in ("brightness", "coverage", "orientation")} == fashion.measure(
            clean
        )
        assert row["label"] == fashion.LABELS[labels[number]]
        seen = np.asarray(Image.open(data / row["path"]))
        assert not np.array_equal(seen, images[number])


def test_the_subset_is_keyed(source, table, tmp_path):
    again = fashion.write_data(fashion.choose_images(source, train=50, test=20), tmp_path / "data")
    assert pl.read_csv(again).equals(table)
    fewer = fashion.choose_images(source, train=30, test=5)[0].numbers
    assert fewer.tolist() == fashion.choose_images(source, train=50, test=20)[0].numbers[:24].tolist()


def test_the_recipe_passes_the_check(source, tmp_path):
    manifest = fashion.write_data(fashion.choose_images(source, train=50, test=20), tmp_path / "data")
    recipe = Path(fashion.__file__).parents[1] / "recipes" / "compare-fashion.yaml"
    assert check_source(recipe, [f"manifest={manifest}", f"out={tmp_path / 'run'}"])[0] == []
