"""Purity and segmentation of patches, with features whose answer is known."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import patch_consistency as bench
from openfino.errors import OpenfinoError
from openfino.models.store import save_backbone
from tiny_models import tiny_model

CLASSES = np.random.default_rng(0).integers(0, 3, (4, 6, 6))


def one_hot(classes):
    """Features that hold the class and nothing else."""
    return np.eye(3, dtype=np.float32)[classes.reshape(len(classes), -1)]


def naive_purity(features, classes, k):
    """Features [n, P, D], classes [n, P], with loops."""
    shares = {kind: [] for kind in range(3)}
    for image, own in zip(features.astype(np.float64), classes, strict=True):
        for patch in range(len(image)):
            cosine = [
                image[patch] @ other / np.linalg.norm(image[patch]) / np.linalg.norm(other) for other in image
            ]
            cosine[patch] = -np.inf
            nearest = np.argsort(cosine)[::-1][:k]
            shares[own[patch]].append(np.mean(own[nearest] == own[patch]))
    return np.mean([np.mean(values) for values in shares.values()])


def test_purity_is_what_a_loop_finds():
    features = np.random.default_rng(1).standard_normal((4, 36, 5)).astype(np.float32)
    features[..., :3] += one_hot(CLASSES)
    found = bench.within_images(bench.cosines(features), CLASSES, 5)
    assert found == pytest.approx(naive_purity(features, CLASSES.reshape(4, -1), 5), abs=1e-9)
    assert bench.chance_within(CLASSES) < found < 1


def test_features_that_hold_the_class_are_pure_and_segment_perfectly():
    images, others = np.zeros((4, 3, 48, 48), dtype=np.uint8), np.rot90(CLASSES, axes=(1, 2)).copy()
    fit, scored = bench.Scenes(images, CLASSES), bench.Scenes(images, others)
    scores = bench.measure(one_hot(CLASSES), one_hot(others), fit, scored, 3, 0)
    assert scores == {"within": 1.0, "across": 1.0, "miou": 1.0}


def test_across_images_looks_into_the_bank_alone():
    queries, bank = np.eye(3, dtype=np.float32), np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    own, known = np.arange(3), np.repeat([0, 1, 0], 4)
    assert bench.across_images(queries, own, bank, known, 4) == pytest.approx(2 / 3)


def test_chance_is_the_mean_over_random_neighbours():
    classes = np.array([[[0, 0, 1, 1]]])
    assert bench.chance_within(classes) == pytest.approx(1 / 3)
    skewed = np.array([[[0, 0, 0, 1]]])
    assert bench.chance_within(skewed) == pytest.approx((2 / 3 + 0) / 2)


def test_neighbours_in_space_are_the_adjacent_patches():
    (similarity, _) = bench.nearness(np.zeros((2, 3, 4)))
    assert similarity.shape == (12, 12)
    similarity.fill_diagonal_(-torch.inf)
    assert set(similarity[5].topk(4).indices.tolist()) == {1, 4, 6, 9}


def test_scenes_are_keyed_and_show_the_stains_asked_for():
    one, again = (bench.draw_scenes("train", 3, 32, 8, 0) for _ in range(2))
    np.testing.assert_array_equal(one.images, again.images)
    assert (one.images.shape, one.classes.shape) == ((3, 3, 32, 32), (3, 4, 4))
    other = bench.draw_scenes("train", 3, 32, 8, 0, ("nucleus", "protein", "er"))
    np.testing.assert_array_equal(other.images[:, 1:], one.images[:, 1:])
    # Nuclei are bright in the first channel now.
    means = [
        other.images[:, 0].reshape(3, 4, 8, 4, 8).mean(axis=(2, 4))[one.classes == kind].mean()
        for kind in (0, 2)
    ]
    assert means[1] > 2 * means[0]
    assert not np.array_equal(bench.draw_scenes("test_ood", 3, 32, 8, 0).images, one.images)
    with pytest.raises(OpenfinoError, match="9999 images wanted, split train has"):
        bench.draw_scenes("train", 9999, 32, 8, 0)


def test_pixel_rows_are_the_patches_row_by_row():
    model = tiny_model(normalization="zscore", size=(16, 16))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    rows = bench.pixel_rows(model, images)
    seen = bench.as_seen(model, images).numpy()
    np.testing.assert_array_equal(rows["pixels"][1, 1], seen[1, :, :8, 8:].ravel())
    assert rows["mean and sd"].shape == (2, 4, 6)
    np.testing.assert_allclose(rows["mean and sd"][0, 2, :3], seen[0, :, 8:, :8].mean(axis=(1, 2)), atol=1e-6)


def test_the_command_compares_models(tmp_path, monkeypatch, capsys):
    names = []
    for seed in (0, 1):
        model = tiny_model(seed=seed)
        names.append(str(tmp_path / f"model-{seed}"))
        save_backbone(Path(names[-1]), model.backbone, model.preprocessing, {})
    options = ["--out", str(tmp_path / "out.json"), "--seeds", "2", "--images", "4", "--sizes", "32", "48"]
    monkeypatch.setattr(sys, "argv", ["patch_consistency.py", *names, *options])
    bench.main()
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert list(figures["sizes"]) == ["32", "48"]
    rows = figures["sizes"]["32"]
    assert list(rows) == [*names, "random", "pixels", "mean and sd", "neighbours in space", "chance"]
    assert rows[names[0]]["miou"]["values"] != rows[names[1]]["miou"]["values"]
    assert set(figures["models"]) == set(names)
    assert f"| {names[0]} | {rows[names[0]]['within']['mean']:.3f} +- " in shown
    assert shown.rstrip().endswith("|  |  |")


def test_models_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
    for channels in (3, 4):
        model = tiny_model(channels=channels, normalization="zscore")
        save_backbone(tmp_path / str(channels), model.backbone, model.preprocessing, {})
    for models, options, said in (
        (["3", "4"], [], "that take three channels"),
        (["3"], ["--sizes", "60"], "60 pixels are not a multiple of the patch of 8"),
    ):
        argv = ["patch_consistency.py", *(str(tmp_path / name) for name in models), *options]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit, match=said):
            bench.main()
