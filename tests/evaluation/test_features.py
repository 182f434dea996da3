import numpy as np
import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.evaluation.features import extract_features, patch_grid
from openfino.manifest import read_manifest
from tiny_models import tiny_model, write_arrays, write_manifest


def expected(model, manifest, rows):
    """CLS, mean and patches straight from transformers, one image at a time."""
    outputs = []
    for row in rows:
        pixels = model.preprocessing.load(manifest.paths(row))[None]
        with torch.no_grad():
            outputs.append(model.backbone.model(pixel_values=pixels).last_hidden_state[0])
    hidden = torch.stack(outputs).numpy()
    return hidden[:, 0], hidden[:, 3:].mean(axis=1), hidden[:, 3:]  # CLS, 2 registers, patches


def close(found, wanted):
    return found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_the_tokens_of_the_final_norm(image_set, workers):
    model, manifest = tiny_model(), read_manifest(image_set)
    rows = [7, 3, 30, 11, 12]
    steps = []
    found = extract_features(
        model,
        manifest,
        rows,
        batch_size=2,
        tokens=("cls", "mean", "patches"),
        workers=workers,
        progress=lambda done, total: steps.append((done, total)),
    )
    cls, mean, patches = expected(model, manifest, rows)
    assert found.rows.tolist() == rows
    assert close(found.cls, cls)
    assert close(found.mean, mean)
    assert close(found.patches, patches)
    assert (found.unreadable, found.causes) == ([], [])
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_four_channels_with_z_score_and_a_size_that_is_not_square(tmp_path):
    names = write_arrays(tmp_path, 3, channels=4)
    model = tiny_model(4, "zscore", size=(16, 32))
    manifest = write_manifest(tmp_path, {"path": names})
    found = extract_features(model, manifest, range(3), tokens=("cls", "mean", "patches"))
    cls, mean, patches = expected(model, manifest, range(3))
    assert patch_grid(model) == (2, 4)
    assert found.patches.shape == (3, 8, 32)
    assert close(found.cls, cls)
    assert close(found.mean, mean)
    assert close(found.patches, patches)


@pytest.mark.parametrize("workers", [0, 3])
def test_unreadable_images_are_left_out_and_named(tmp_path, workers):
    names = write_arrays(tmp_path, 6, channels=3)
    (tmp_path / "01.npy").write_bytes(b"not an array")
    np.save(tmp_path / "02.npy", np.zeros((5, 8, 8), dtype=np.uint8))
    manifest = write_manifest(tmp_path, {"path": [*names[:3], "gone.npy", *names[4:]]})
    model = tiny_model()
    found = extract_features(model, manifest, range(6), batch_size=4, workers=workers)
    assert found.rows.tolist() == [0, 4, 5]
    assert close(found.cls, expected(model, manifest, [0, 4, 5])[0])
    assert found.unreadable == [1, 2, 3]
    assert [
        word in cause for word, cause in zip(["01.npy", "5 channels", "gone.npy"], found.causes, strict=True)
    ] == [True] * 3
    assert found.patches is None


def test_a_whole_batch_may_be_unreadable(tmp_path):
    names = write_arrays(tmp_path, 4, channels=3)
    manifest = write_manifest(tmp_path, {"path": ["a.npy", "b.npy", *names[2:]]})
    found = extract_features(tiny_model(), manifest, range(4), batch_size=2, tokens=("patches",))
    assert (found.rows.tolist(), found.unreadable) == ([2, 3], [0, 1])
    assert found.patches.shape == (2, 16, 32)


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    write_arrays(tmp_path, 2, channels=4)
    manifest = write_manifest(tmp_path, {"path": ["00.npy", "01.npy"]})
    with pytest.raises(OpenfinoError, match=r"none of the 2 images.*00\.npy.*4 channels"):
        extract_features(tiny_model(3), manifest, range(2))


def test_features_that_are_not_finite_are_left_out(image_set):
    model, manifest = tiny_model(), read_manifest(image_set)
    poisoned = float(model.preprocessing.load(manifest.paths(5)).sum())
    forward = model.backbone.model.forward

    def poison(pixel_values, **options):
        out = forward(pixel_values=pixel_values, **options)
        bad = (pixel_values.sum(dim=(1, 2, 3)) - poisoned).abs() < 1e-3
        out.last_hidden_state[bad, 0, 0] = float("nan")
        return out

    model.backbone.model.forward = poison
    found = extract_features(model, manifest, range(4, 8))
    assert (found.rows.tolist(), found.unreadable) == ([4, 6, 7], [5])
    assert np.isfinite(found.cls).all()
    assert found.causes == ["line 7: its features are not finite"]  # line 1 is the header


def test_the_model_is_left_in_its_mode_and_evaluated_without_drop_path(image_set):
    model, manifest = tiny_model(), read_manifest(image_set)
    wanted = extract_features(model, manifest, range(4)).cls
    model.backbone.model.config.pos_embed_rescale = 2.0  # random positions in training mode
    model.backbone.train()
    model.backbone.model.norm.eval()
    assert close(extract_features(model, manifest, range(4)).cls, wanted)
    modes = {name for name, part in model.backbone.named_modules() if not part.training}
    assert modes == {"model.norm"}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_no_rows_and_unknown_tokens(image_set):
    model, manifest = tiny_model(), read_manifest(image_set)
    empty = extract_features(model, manifest, [])
    assert (len(empty), empty.cls.shape) == (0, (0, 32))
    with pytest.raises(OpenfinoError, match="there is no avg"):
        extract_features(model, manifest, [0], tokens=("cls", "avg"))


def test_an_error_that_is_no_fault_of_the_image_is_not_hidden(image_set, monkeypatch):
    model, manifest = tiny_model(), read_manifest(image_set)

    def broken(self, paths):
        raise RuntimeError("a defect")

    monkeypatch.setattr(type(model.preprocessing), "load", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        extract_features(model, manifest, range(8), batch_size=2, workers=2)


def test_selection_by_row(image_set):
    found = extract_features(tiny_model(), read_manifest(image_set), [9, 2, 5, 7])
    part = found.at(np.array([5, 9, 100]))
    assert part.rows.tolist() == [9, 5]
    assert (part.cls == found.cls[[0, 2]]).all()
    both = found.side_by_side(np.array([3, 0]))
    assert (both == np.hstack([found.cls[[3, 0]], found.mean[[3, 0]]])).all()
