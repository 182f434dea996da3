import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openfino.evaluation.windows import OVERLAP, Side, cut_windows, load_windows, plan_windows, stitch
from openfino.images.normalize import normalize
from openfino.images.preprocess import Preprocessing

CROP = (16, 24)


def transform(normalization="zscore", channels=2):
    return Preprocessing(size=CROP, normalization=normalization, channels=[str(i) for i in range(channels)])


def image(height, width, channels=2):
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("size", [(17, 24), (40, 25), (33, 100), (64, 64), (61, 97), (16, 24)])
def test_windows_cover_every_pixel_and_overlap(size):
    sides = plan_windows(size, CROP, 20)
    for side, length, window in zip(sides, size, CROP, strict=True):
        assert side.length == length  # its own scale
        assert side.starts[0] == 0
        assert side.starts[-1] == length - window
        seen = np.zeros(length, dtype=int)
        for start in side.starts:
            seen[start : start + window] += 1
        assert seen.min() >= 1
        gaps = np.diff(side.starts)
        assert (gaps <= np.floor((1 - OVERLAP) * window) + 1).all()
        # Not one window more than it takes.
        assert len(side.starts) == 1 or (len(side.starts) - 2) * np.floor(0.75 * window) < length - window


def test_a_large_image_shrinks_until_the_windows_suffice():
    rows, columns = plan_windows((1000, 1000), CROP, 3)
    assert rows == Side(16 + 2 * 12, (0, 12, 24))  # the height decides the scale
    assert columns == Side(40, (0, 16))
    rows, columns = plan_windows(
        (32, 4000), CROP, 4
    )  # a strip: it shrinks to 78 pixels, its height to the crop's
    assert columns == Side(24 + 3 * 18, (0, 18, 36, 54))
    assert rows == Side(16, (0,))


def test_a_short_side_is_stretched_to_the_crop():
    assert plan_windows((5, 30), CROP, 4) == (Side(16, (0,)), Side(30, (0, 6)))


@pytest.mark.parametrize("size", [(10, 12), (16, 24), (100, 30), (333, 801)])
def test_one_window_is_the_whole_image_as_ever(size):
    preprocessing = transform()
    found = cut_windows(image(*size), preprocessing, 1)
    assert torch.equal(found.pixels, preprocessing.apply(image(*size))[None])
    with pytest.raises(ValueError, match="1 or more"):
        plan_windows(size, CROP, 0)


@pytest.mark.parametrize("normalization", ["zscore", {"mean": [0.1, 0.4], "std": [0.3, 0.2]}])
def test_windows_are_naive_cuts_normalised_one_by_one(tmp_path, normalization):
    preprocessing = transform(normalization)
    pixels = image(40, 70)
    np.save(tmp_path / "image.npy", pixels.numpy())
    found = load_windows(preprocessing, [tmp_path / "image.npy"], 8)
    cuts = []
    for top in (0, 12, 24):
        for left in (0, 15, 31, 46):
            cut = pixels[:, top : top + 16, left : left + 24]
            cuts.append(normalize(cut, preprocessing.normalization))
    torch.testing.assert_close(found.pixels, torch.stack(cuts), atol=1e-5, rtol=1e-5)


def test_a_shrunk_image_is_resized_once():
    pixels = image(100, 100)
    found = cut_windows(pixels, transform(), 2)
    resized = F.interpolate(pixels[None], (28, 28), mode="bilinear", antialias=True, align_corners=False)[0]
    assert (found.rows, found.columns) == (Side(28, (0, 12)), Side(28, (0, 4)))
    torch.testing.assert_close(found.pixels[3], normalize(resized[:, 12:, 4:], "zscore"))


def test_stitching_is_the_mean_over_shared_pixels():
    rows, columns, grid = plan_windows((40, 60), CROP, 8)[0], plan_windows((40, 60), CROP, 8)[1], (2, 3)
    count = len(rows.starts) * len(columns.starts)
    tokens = torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(0))
    total, weight = np.zeros((2, 3, 5)), np.zeros((2, 3, 1))
    number = 0
    for top in rows.starts:
        for left in columns.starts:
            for y in range(
                16
            ):  # every pixel of the window belongs to one token of it and one cell of the map
                for x in range(24):
                    cell = (top + y) // 20, (left + x) // 20
                    total[cell] += tokens[number, y // 8 * 3 + x // 8].numpy()
                    weight[cell] += 1
            number += 1
    wanted = (total / weight).reshape(6, 5)
    np.testing.assert_allclose(stitch(tokens, rows, columns, grid), wanted, atol=1e-5)


def test_stitching_cells_that_cut_through_pixels():
    """A token that says where it is comes out where it is, up to the blur of a token."""
    rows, columns = plan_windows((37, 53), CROP, 8)
    centre = torch.tensor([[top + 4.0 + 8 * y for y in range(2)] for top in rows.starts])
    tokens = centre[:, None, :, None].expand(-1, len(columns.starts), -1, 3).reshape(-1, 6, 1)
    found = stitch(tokens, rows, columns, (2, 3)).view(2, 3)
    assert torch.allclose(found[:, :1], found)
    assert (found[:, 0] - 37 * torch.tensor([0.25, 0.75])).abs().max() < 3
    same = torch.full((len(tokens), 6, 2), 7.0)
    torch.testing.assert_close(stitch(same, rows, columns, (2, 3)), torch.full((6, 2), 7.0))


def test_stitching_one_window_changes_nothing():
    tokens = torch.randn(1, 6, 4)
    rows, columns = plan_windows(CROP, CROP, 5)
    torch.testing.assert_close(stitch(tokens, rows, columns, (2, 3)), tokens[0])
