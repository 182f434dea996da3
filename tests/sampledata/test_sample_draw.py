"""The sample on disk: bytes, manifest, refusals."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from openfino.errors import OpenfinoError
from openfino.sampledata import draw_sample
from openfino.sampledata.draw import COLUMNS, INCOMPLETE_COLUMNS, MASK_CLASSES, render, render_with_mask
from openfino.sampledata.screen import plan_screen


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("sample") / "new", images=240, size=24, seed=5)


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    for workers in (1, 2):
        draw_sample(tmp_path / str(workers), images=40, size=20, seed=2, workers=workers)
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


def test_the_seed_changes_every_image(tmp_path: Path) -> None:
    one, two = plan_screen(40, 2), plan_screen(40, 3)
    for first, second in zip(one.shots[:5], two.shots[:5], strict=True):
        assert not np.array_equal(render(one, first, 20), render(two, second, 20))


def test_an_image_depends_on_its_key_alone(sample: Path) -> None:
    screen = plan_screen(240, 5)
    late = screen.shots[200]
    alone = render(screen, late, 24)
    on_disk = [tifffile.imread(path) for path in sorted((sample.parent / "images").iterdir())]
    assert sum(np.array_equal(alone, image) for image in on_disk) == 1


def test_images_are_four_channels_of_eight_bits(sample: Path) -> None:
    rows = read_rows(sample)
    assert len(rows) == 240
    assert len({row["path"] for row in rows}) == 240
    for row in rows[::30]:
        image = tifffile.imread(sample.parent / row["path"])
        assert image.shape == (4, 24, 24)
        assert image.dtype == np.uint8
        assert all(channel.std() > 2 for channel in image[[0, 2, 3]])
        assert (image == 255).mean() < 0.2


def test_pages_are_compressed_without_loss(sample: Path) -> None:
    with tifffile.TiffFile(next((sample.parent / "images").iterdir())) as file:
        assert len(file.pages) == 4
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE


def test_a_tenth_of_the_metadata_is_missing(sample: Path) -> None:
    rows = read_rows(sample)
    assert tuple(rows[0]) == COLUMNS
    for column in COLUMNS:
        share = np.mean([row[column] == "" for row in rows])
        if column in INCOMPLETE_COLUMNS:
            assert 0.04 < share < 0.17, column
        else:
            assert share == 0, column
    both = np.mean([row["plate"] == "" and row["antibody"] == "" for row in rows])
    assert both < 0.04  # holes of different columns are independent


def test_values_of_the_manifest_agree_with_each_other(sample: Path) -> None:
    label: dict[str, str] = {}
    line: dict[str, str] = {}
    for row in read_rows(sample):
        if row["antibody"]:
            assert label.setdefault(row["antibody"], row["localization"]) == row["localization"]
        if row["plate"] and row["cell_line"]:
            assert line.setdefault(row["plate"], row["cell_line"]) == row["cell_line"]
    assert len(set(label.values())) == 10


def test_rows_stand_in_no_order_of_plates_or_splits(sample: Path) -> None:
    first = read_rows(sample)[:40]
    assert len({row["split"] for row in first}) == 4
    assert len({row["plate"] for row in first}) > 10


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    draw_sample(tmp_path, images=20, size=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 20) for done in range(1, 21)]


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OpenfinoError, match="not empty"):
        draw_sample(tmp_path, images=20, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwriting_replaces_the_sample_and_nothing_else(tmp_path: Path) -> None:
    draw_sample(tmp_path, images=30, size=16)
    (tmp_path / "thesis.txt").write_text("mine")
    draw_sample(tmp_path, images=20, size=16, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert len(list((tmp_path / "images").iterdir())) == 20


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OpenfinoError, match="is a file"):
        draw_sample(tmp_path / "out", images=20, size=16)


@pytest.mark.parametrize("wrong", [{"images": 19}, {"size": 15}, {"workers": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(OpenfinoError, match=next(iter(wrong))):
        draw_sample(tmp_path / "out", **{"images": 20, "size": 16, **wrong})
    assert not (tmp_path / "out").exists()


def test_the_mask_comes_with_the_bytes_of_the_image() -> None:
    screen = plan_screen(40, 2)
    for shot in screen.shots[:6]:
        image, mask = render_with_mask(screen, shot, 48)
        np.testing.assert_array_equal(image, render(screen, shot, 48))
        assert (mask.shape, mask.dtype) == ((48, 48), np.uint8)
        assert mask.max() < len(MASK_CLASSES)


def test_the_mask_is_where_the_stains_are() -> None:
    """DNA is bright in nuclei, ER in the cytoplasm, and nothing is bright beside the cells."""
    screen = plan_screen(40, 2)
    means = np.zeros((len(MASK_CLASSES), 4))
    shares = np.zeros(len(MASK_CLASSES))
    for shot in screen.shots[::4]:
        image, mask = render_with_mask(screen, shot, 64)
        for kind in range(len(MASK_CLASSES)):
            means[kind] += image[:, mask == kind].sum(axis=1)
            shares[kind] += (mask == kind).sum()
    means /= shares[:, None]
    background, cytoplasm, nucleus = means
    assert (shares / shares.sum() > 0.08).all()
    assert nucleus[0] > 2 * cytoplasm[0]
    assert cytoplasm[3] > 1.2 * nucleus[3]
    assert cytoplasm[3] > 2 * background[3]
    assert nucleus[0] > 2 * background[0]


def test_the_mask_is_the_same_at_every_size_but_for_its_edges() -> None:
    screen = plan_screen(40, 2)
    _, small = render_with_mask(screen, screen.shots[3], 32)
    _, large = render_with_mask(screen, screen.shots[3], 96)
    assert (large[1::3, 1::3] == small).mean() > 0.95


def test_masks_are_written_on_request_and_change_nothing_else(tmp_path: Path) -> None:
    plain = draw_sample(tmp_path / "plain", images=20, size=16, seed=2)
    masked = draw_sample(tmp_path / "masked", images=20, size=16, seed=2, masks=True)
    assert not (tmp_path / "plain" / "masks").exists()
    screen = plan_screen(20, 2)
    drawn = [render_with_mask(screen, shot, 16)[1] for shot in screen.shots]
    for before, row in zip(read_rows(plain), read_rows(masked), strict=True):
        mask = np.asarray(Image.open(masked.parent / row.pop("mask")))
        assert row == before
        assert (masked.parent / row["path"]).read_bytes() == (plain.parent / row["path"]).read_bytes()
        assert sum(np.array_equal(mask, each) for each in drawn) == 1
    draw_sample(tmp_path / "masked", images=20, size=16, seed=2, overwrite=True)
    assert fingerprint(tmp_path / "masked") == fingerprint(tmp_path / "plain")
