"""Mask files: which numbers are classes, and how pixels and patches are scored."""

import numpy as np
import polars as pl
import pytest
import tifffile
import torch
from sklearn.metrics import jaccard_score

from openfino.errors import OpenfinoError
from openfino.evaluation.heads import LinearHead
from openfino.evaluation.mask_probe import fit_masks, open_masks, score_masks
from openfino.evaluation.segmentation import FittedSegmentation, patch_classes, pixel_classes
from openfino.evaluation.sources import ArraySource
from openfino.manifest import read_manifest
from tiny_models import tiny_model

SIDE = 32  # of the evaluation size of tiny_model: 4 x 4 patches of 8


def masked(folder, arrays, names=None):
    """A manifest whose column ``mask`` names these masks; None names none."""
    folder.mkdir(exist_ok=True)
    listed = []
    for number, array in enumerate(arrays):
        listed.append(None if array is None else f"{number}.mask.tif")
        if array is not None:
            tifffile.imwrite(folder / f"{number}.mask.tif", array)
    paths = [f"{number}.tif" for number in range(len(arrays))]
    pl.DataFrame({"path": paths, "mask": names or listed}).write_parquet(folder / "m.parquet")
    return read_manifest(folder / "m.parquet")


def opened(manifest, train=(0,), test=(1,)):
    return open_masks(manifest, "mask", {"train": np.array(train), "test": np.array(test)})


def block(*numbers, dtype=np.uint8):
    return np.array([numbers], dtype=dtype)


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        (block(0, 3), block(7, 255), (0, 3, 7)),
        (block(0, 255), block(255, 255), (0, 255)),
        (block(0, 255), block(1, 1), (0, 1)),
        (block(0, 255, dtype=np.uint16), block(1, 1), (0, 1, 255)),
        (block(-1, 5, dtype=np.int32), block(5, 6), (5, 6)),
    ],
)
def test_which_numbers_are_classes(tmp_path, first, second, values):
    masks, problems = opened(masked(tmp_path, [first, second]))
    assert (masks.values, problems) == (values, [])


def test_a_class_is_its_place_among_the_numbers(tmp_path):
    masks, _ = opened(masked(tmp_path, [block(9, 4, 255), block(7, 7, 7)]))
    np.testing.assert_array_equal(masks.classes(0, (1, 3)), [[2, 0, -1]])
    np.testing.assert_array_equal(masks.classes(1, (2, 2)), [[1, 1], [1, 1]])


def test_every_problem_of_the_masks_is_told(tmp_path):
    manifest = masked(tmp_path, [block(0, 1), block(0, 1)], names=["0.mask.tif", "gone.png"])
    _, problems = open_masks(
        manifest, "mask", {"train": np.array([0]), "val": np.zeros(0, dtype=int), "test": np.array([1])}
    )
    assert [problem.where for problem in problems] == ["column mask, val", "column mask"]
    assert "row 2" in problems[1].what
    assert "gone.png: there is no such file" in problems[1].what
    _, (problem,) = opened(masked(tmp_path / "one", [block(3, 3), block(255, 3)]))
    assert "1 different class numbers" in problem.what
    many = np.arange(1500, dtype=np.uint16)[None]
    _, (problem,) = opened(masked(tmp_path / "many", [many, many]))
    assert "1500 different class numbers" in problem.what


def random_masks(count, seed=0):
    """Blocks of 4 x 4 pixels, some of them not known."""
    numbers = np.random.default_rng(seed).choice([0, 2, 5, 255], (count, 8, 8), p=[0.4, 0.3, 0.2, 0.1])
    return numbers.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)


def test_scores_are_those_of_scikit_learn(tmp_path):
    arrays = random_masks(9)
    masks, _ = opened(masked(tmp_path, list(arrays)), train=range(3), test=range(3, 9))
    tokens = np.random.default_rng(1).normal(size=(9, 16, 3)).astype(np.float32)
    source = ArraySource(np.arange(9), np.zeros((9, 5), dtype=np.float32), tokens)
    head = LinearHead(3, 3)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
        head.bias.zero_()
    fitted = FittedSegmentation(1.0, 0.0, head, ((1.0, 0.0),), (1.0,), 1, 4, source, "cpu")
    positions = np.array([3, 5, 4, 8, 6])
    found = score_masks(masks, tiny_model(), fitted, source, positions, None, seed=0)

    truth = np.searchsorted([0, 2, 5], arrays[positions])
    logits = torch.from_numpy(tokens[positions])
    pixels, known = pixel_classes(logits, (4, 4), (SIDE, SIDE)), truth < 3
    ious = jaccard_score(truth[known], pixels[known], average=None)
    assert list(found.ious) == ["0", "2", "5"]
    np.testing.assert_allclose(list(found.ious.values()), ious)
    assert (found.images, found.miou) == (5, pytest.approx(ious.mean()))
    own = np.stack([patch_classes(np.where(each < 3, each, -1), 8, 3).ravel() for each in truth])
    said = logits.argmax(dim=2).numpy()
    expected = jaccard_score(own[own >= 0], said[own >= 0], average="macro")
    assert found.patch_miou == pytest.approx(expected)
    for name, value in (("miou", found.miou), ("patch_miou", found.patch_miou)):
        low, high = found.intervals[name]
        assert low < value < high

    whole = score_masks(masks, tiny_model(), fitted, source, positions, np.zeros(9, dtype=int), seed=0)
    assert whole.intervals["miou"] == pytest.approx((found.miou, found.miou))
    assert whole.ious == found.ious


def test_a_layer_finds_what_patches_show(tmp_path):
    """Each token says its class; images without a mask train nothing, and are not asked for theirs."""
    arrays = list(random_masks(24, seed=2).repeat(2, axis=1).repeat(2, axis=2)[:, :SIDE, :SIDE])
    manifest = masked(tmp_path, [*arrays, None])
    masks, problems = opened(manifest, train=range(12), test=range(12, 24))
    assert problems == []
    classes = np.stack(
        [patch_classes(masks.classes(row, (SIDE, SIDE)), 8, len(masks.values)).ravel() for row in range(24)]
    )
    tokens = np.zeros((25, 16, 4), dtype=np.float32)
    tokens[:24] = np.eye(4)[classes]
    source = ArraySource(np.arange(25), np.zeros((25, 5), dtype=np.float32), tokens)
    train, val = np.array([*range(12), 24]), np.arange(12, 18)
    fitted = fit_masks(masks, tiny_model(), source, train, val, seed=0, device="cpu")
    assert max(fitted.val_scores) == 1.0
    found = score_masks(masks, tiny_model(), fitted, source, np.arange(18, 24), None, seed=0)
    assert found.patch_miou == 1.0


def test_masks_without_a_known_pixel_cannot_be_scored(tmp_path):
    masks, _ = opened(masked(tmp_path, [block(0, 1), block(255, 255)]))
    source = ArraySource(np.arange(2), np.zeros((2, 5), dtype=np.float32), np.zeros((2, 16, 2), np.float32))
    fitted = FittedSegmentation(1.0, 0.0, LinearHead(2, 2), ((1.0, 0.0),), (1.0,), 1, 4, source, "cpu")
    with pytest.raises(OpenfinoError, match="no usable image with a known pixel"):
        score_masks(masks, tiny_model(), fitted, source, np.array([1]), None, seed=0)
