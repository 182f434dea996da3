"""The kNN figures of ``tiny``, with a small random network in its place."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import frozen
import tiny_knn
from idx_files import write_source
from openfino.errors import OpenfinoError
from openfino.models.store import save_backbone
from tiny_models import tiny_model

GREY = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
STAINED = np.random.default_rng(1).integers(0, 256, (5, 4, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def weights(model):
    return torch.cat([value.flatten() for value in model.backbone.parameters()])


# ---------------------------------------------------------------- frozen networks


def test_grey_stands_for_every_channel(model):
    seen = frozen.as_seen(model, GREY)
    assert seen.shape == (5, 3, 32, 32)
    assert torch.equal(seen, frozen.as_seen(model, np.repeat(GREY, 3, axis=1)))


def test_features_are_those_of_the_tokens_whatever_the_batch(model, monkeypatch):
    with torch.inference_mode():
        tokens = model.backbone(frozen.as_seen(model, GREY))
    monkeypatch.setattr(frozen, "BATCH", 2)
    features = frozen.pooled_features(model, GREY)
    np.testing.assert_allclose(features.cls, tokens.cls, atol=1e-5)
    np.testing.assert_allclose(features.mean, tokens.patches.mean(dim=1), atol=1e-5)
    np.testing.assert_array_equal(features.both, np.concatenate([features.cls, features.mean], axis=1))
    patches = frozen.patch_features(model, GREY)
    np.testing.assert_array_equal(features.placed, patches.reshape(len(GREY), -1))
    np.testing.assert_allclose(frozen.patch_features(model, GREY), tokens.patches, atol=1e-5)


def test_a_random_twin_is_the_same_network_with_the_weights_of_its_seed(model):
    one, again, other = (frozen.random_twin(model, seed) for seed in (1, 1, 2))
    assert one.backbone.config.to_dict() == model.backbone.config.to_dict()
    assert one.preprocessing == model.preprocessing
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), weights(model))


def test_more_channels_expand_a_copy(model):
    before = weights(model).clone()
    expanded = frozen.with_channels(model, ["a", "b", "c", "d"])
    assert (expanded.backbone.channels, expanded.preprocessing.channels) == (4, ["a", "b", "c", "d"])
    assert expanded.preprocessing.normalization == "zscore"
    assert torch.equal(weights(model), before)
    assert model.backbone.channels == 3
    assert frozen.with_channels(model, ["r", "g", "b"]) is model


# ---------------------------------------------------------------- rows


def test_rows_are_drawn_by_key_and_never_twice():
    rows = tiny_knn.draw_rows(np.arange(100, 150), 40, 0, "x")
    assert len(set(rows.tolist())) == 40
    assert set(rows.tolist()) <= set(range(100, 150))
    np.testing.assert_array_equal(rows, tiny_knn.draw_rows(np.arange(100, 150), 40, 0, "x"))
    assert rows.tolist() != tiny_knn.draw_rows(np.arange(100, 150), 40, 1, "x").tolist()
    with pytest.raises(OpenfinoError, match="x: 51 images wanted, there are 50"):
        tiny_knn.draw_rows(np.arange(50), 51, 0, "x")


def test_channel_by_channel_is_each_channel_as_grey(model):
    rows = tiny_knn.network_rows("net", model, STAINED)
    second = frozen.pooled_features(model, np.repeat(STAINED[:, 1:2], 3, axis=1))
    width = model.backbone.embed_dim
    np.testing.assert_allclose(
        rows["net, channel by channel, cls"][:, width : 2 * width], second.cls, atol=1e-5
    )
    assert rows["net, channel by channel, cls+mean"].shape == (5, 8 * width)
    assert rows["net, patch embedding expanded, cls+mean"].shape == (5, 2 * width)
    assert set(tiny_knn.network_rows("net", model, GREY)) == {
        f"net, {kind}" for kind in ("cls", "mean", "cls+mean", "patches in place")
    }


def test_untrained_rows(model):
    rows = tiny_knn.untrained_rows(model, STAINED, references=3)
    np.testing.assert_allclose(rows["raw pixels"], STAINED.reshape(5, -1) / 255, atol=1e-6)
    assert rows["raw pixels as the network sees them"].shape == (5, 4 * 32 * 32)
    assert rows["mean and sd"].shape == (5, 8)
    np.testing.assert_allclose(rows["mean and sd"][:3].mean(axis=0), 0, atol=1e-4)
    grey = tiny_knn.untrained_rows(model, GREY, references=3)
    assert grey["raw pixels"].shape == (5, 28 * 28)
    assert grey["HOG"].shape == (5, 6 * 6 * 36)


def test_a_row_that_knows_the_class_is_always_right_and_one_that_does_not_is_not():
    truth = np.arange(40) % 4
    images = np.zeros((40, 1, 4, 4), dtype=np.uint8)
    task = tiny_knn.Task(
        "sample", (images, truth), {"test_id": (images[:8], truth[:8]), "test_ood": (images[:4], truth[4:8])}
    )
    known = np.eye(4, dtype=np.float32)
    telling = known[np.concatenate([truth, truth[:8], truth[4:8]])]
    scores = tiny_knn.score_rows(task, {"telling": telling})
    assert set(scores["telling"].values()) == {1.0}
    mute = np.ones((52, 2), dtype=np.float32)
    assert tiny_knn.score_rows(task, {"mute": mute})["mute"]["test_id/k10/accuracy"] == 0.25


def test_margins_are_taken_seed_by_seed_and_to_the_better_raw_pixels():
    def row(*values):
        return {"test/k10/accuracy": {"values": list(values)}}

    summary = {
        "tiny, cls+mean": row(0.7, 0.8),
        "random, cls+mean": row(0.6, 0.6),
        "raw pixels": row(0.65, 0.5),
        "raw pixels as the network sees them": row(0.1, 0.9),
        "HOG": row(0.7, 0.7),
    }
    found = tiny_knn.margins("fashion", summary)["test/k10/accuracy"]
    assert found["random"] == {"mean": pytest.approx(0.15), "worst": pytest.approx(0.1), "beaten": True}
    assert found["raw pixels"] == {
        "mean": pytest.approx(-0.025),
        "worst": pytest.approx(-0.1),
        "beaten": False,
    }
    assert not found["HOG"]["beaten"]


# ---------------------------------------------------------------- the command


def test_the_command_writes_every_figure(model, tmp_path, monkeypatch, capsys):
    save_backbone(tmp_path / "model", model.backbone, model.preprocessing, {})
    source = write_source(tmp_path, train=60, test=30)
    options = ["--seeds", "2", "--references", "40", "--queries", "20", "--source", str(source)]
    options += [
        "--sample-images",
        "150",
        "--sample-references",
        "20",
        "--sample-queries",
        "8",
        "--size",
        "16",
    ]
    monkeypatch.setattr(tiny_knn, "SAMPLE_SIZE", 24)
    sizes, network_rows = set(), tiny_knn.network_rows
    monkeypatch.setattr(
        tiny_knn,
        "network_rows",
        lambda name, model, images: (
            sizes.add(tuple(model.preprocessing.size)) or network_rows(name, model, images)
        ),
    )
    monkeypatch.setattr(
        sys, "argv", ["tiny_knn.py", str(tmp_path / "model"), "--out", str(tmp_path / "out.json"), *options]
    )
    tiny_knn.main()
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert len(figures["models"]["tiny"]["weights_sha256"]) == 64
    rows = figures["tasks"]["fashion"]["rows"]
    assert rows["raw pixels"]["test/k10/accuracy"]["mean"] > 0.9
    assert rows["mean and sd"]["test/k10/accuracy"]["mean"] < 0.5
    assert len(rows["random, cls"]["test/k20/macro_f1"]["values"]) == 2
    assert f"| tiny, cls+mean | {rows['tiny, cls+mean']['test/k10/accuracy']['mean']:.3f} +- " in shown
    assert {"test_id/k10/accuracy", "test_ood/k20/macro_f1"} <= set(
        figures["tasks"]["sample"]["margins"]["patches in place"]
    )
    assert sizes == {(16, 16)}
    assert "| patches in place minus | random |" in shown
    assert "sample, test_ood:" in shown


def test_too_few_images_are_said(model, tmp_path, monkeypatch):
    save_backbone(tmp_path / "model", model.backbone, model.preprocessing, {})
    source = write_source(tmp_path, train=10, test=10)
    monkeypatch.setattr(
        sys,
        "argv",
        ["tiny_knn.py", str(tmp_path / "model"), "--source", str(source), "--out", str(tmp_path / "o")],
    )
    with pytest.raises(SystemExit, match="error: fashion train: 5,000 images wanted, there are 10"):
        tiny_knn.main()
    assert not (tmp_path / "o").exists()
