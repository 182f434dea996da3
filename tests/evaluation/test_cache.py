import os
import signal
import subprocess
import sys
import tracemalloc
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.evaluation import cachefolder
from openfino.evaluation.cache import cached_features
from openfino.evaluation.sources import FeatureSource
from openfino.evaluation.taps import tapped_tokens
from openfino.evaluation.windows import plan_windows, stitch
from openfino.images.preprocess import Preprocessing
from openfino.images.read import as_unit_float, read_image
from openfino.manifest import read_manifest
from openfino.models.store import LoadedModel, load_model, save_backbone
from tiny_models import TINY_FAMILIES, tiny_family, tiny_model, write_arrays, write_manifest

TESTS = Path(__file__).parent.parent


def deep_model(seed=0, **options):
    """Three blocks are there, so that L = 2 leaves one out."""
    found = tiny_model(seed=seed, **options)
    return LoadedModel(
        tiny_family("dinov3_vit", num_hidden_layers=3, seed=seed), found.preprocessing, {}, None
    )


def cached(model, manifest, rows, folder, **options):
    settings = {"layers": 2, "patches": True, "dtype": "float32", "batch_size": 3}
    return cached_features(model, manifest, rows, folder=folder, **{**settings, **options})


def naive(model, manifest, rows, layers=2):
    with torch.no_grad():
        taps = [
            tapped_tokens(model.backbone, model.preprocessing.load(manifest.paths(row))[None], layers)
            for row in rows
        ]
    linear = torch.cat([torch.cat([each.cls.flatten(1), each.mean], dim=1) for each in taps])
    return linear, torch.cat([each.patches for each in taps])


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(cachefolder, "CHUNK_IMAGES", 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_come_in_the_order_asked_for(image_set, tmp_path, small_chunks, workers):
    model, manifest = deep_model(), read_manifest(image_set)
    rows = [7, 3, 30, 11, 12, 0, 39, 5, 6]
    steps = []
    source: FeatureSource = cached(
        model, manifest, rows, tmp_path / "cache", workers=workers, progress=lambda *step: steps.append(step)
    )
    linear, patches = naive(model, manifest, rows)
    assert source.rows.tolist() == rows
    asked = [8, 0, 4, 4]
    close(source.take(asked, "linear"), linear[asked])
    close(source.take(np.array(asked), "patches"), patches[asked])
    close(torch.from_numpy(source.cls()), linear[:, 32:64])  # of the later of two blocks
    assert source.take([], "patches").shape == (0, 16, 64)
    assert (len(source), source.layers, source.computed) == (9, 2, 9)
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == ((0, 9), (9, 9))


def test_half_precision_costs_a_rounding(image_set, tmp_path):
    model, manifest = deep_model(), read_manifest(image_set)
    source = cached(model, manifest, range(6), tmp_path, dtype="float16")
    linear, patches = naive(model, manifest, range(6))
    found = source.take(range(6), "patches")
    assert found.dtype == torch.float32
    assert torch.equal(found, found.half().float())  # what is stored is half as long
    torch.testing.assert_close(found, patches, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(source.take(range(6), "linear"), linear, atol=1e-4, rtol=1e-3)


def test_only_what_is_missing_is_computed(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(), read_manifest(image_set)
    cached(model, manifest, range(10), tmp_path)
    again = cached(model, manifest, range(10), tmp_path)
    assert again.computed == 0
    part = cached(model, manifest, [9, 2, 2], tmp_path)  # some of them, in another order, one twice
    assert part.computed == 0
    close(part.take([0, 1, 2], "linear"), naive(model, manifest, [9, 2, 2])[0])
    more = cached(model, manifest, [20, *range(10), 21, 21], tmp_path)
    assert more.computed == 2
    close(more.take(range(13), "linear"), naive(model, manifest, more.rows.tolist())[0])
    without = cached(model, manifest, range(10), tmp_path, patches=False)
    assert without.computed == 0
    with pytest.raises(ValueError, match="no patch tokens"):
        without.take([0], "patches")


def test_patch_tokens_are_computed_when_they_are_asked_for_later(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(), read_manifest(image_set)
    assert cached(model, manifest, range(6), tmp_path, patches=False).computed == 6
    both = cached(model, manifest, range(6), tmp_path)
    assert both.computed == 6
    close(both.take(range(6), "patches"), naive(model, manifest, range(6))[1])


def test_a_changed_image_is_computed_again(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(), read_manifest(image_set)
    cached(model, manifest, range(6), tmp_path)
    changed = manifest.paths(2)[0]
    changed.write_bytes(manifest.paths(30)[0].read_bytes())
    source = cached(model, manifest, range(6), tmp_path)
    assert source.computed == 1
    close(source.take([2], "linear"), naive(model, manifest, [30])[0])
    before = changed.stat()
    changed.write_bytes(manifest.paths(31)[0].read_bytes())
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert cached(model, manifest, range(6), tmp_path).computed == 1


def another_weight(model):
    with torch.no_grad():
        model.backbone.model.norm.bias[0] += 1e-3
    return model


def another_configuration(model):
    model.backbone.config.rope_theta = 50.0  # no weight changes by it
    return model


def another_preprocessing(model):
    preprocessing = Preprocessing(size=(32, 32), normalization="zscore", channels=["r", "g", "b"])
    return LoadedModel(model.backbone, preprocessing, {}, None)


@pytest.mark.parametrize("change", [another_weight, another_configuration, another_preprocessing])
def test_another_model_has_features_of_its_own(image_set, tmp_path, change):
    manifest = read_manifest(image_set)
    first = cached(deep_model(), manifest, range(4), tmp_path)
    assert cached(deep_model(), manifest, range(4), tmp_path).computed == 0
    other = change(deep_model())
    second = cached(other, manifest, range(4), tmp_path)
    assert second.computed == 4
    assert not torch.equal(first.take([0], "linear"), second.take([0], "linear"))
    if change is not another_configuration:  # read when the model is built
        close(second.take(range(4), "linear"), naive(other, manifest, range(4))[0])
    assert cached(deep_model(), manifest, range(4), tmp_path).computed == 0  # both are kept


@pytest.mark.parametrize("options", [{"layers": 1}, {"windows": 2}, {"dtype": "float16"}])
def test_other_options_have_features_of_their_own(image_set, tmp_path, options):
    manifest = read_manifest(image_set)
    cached(deep_model(), manifest, range(4), tmp_path)
    assert cached(deep_model(), manifest, range(4), tmp_path, **options).computed == 4


def test_unreadable_images_are_left_out_counted_and_remembered(tmp_path, small_chunks):
    names = write_arrays(tmp_path, 7, channels=3)
    (tmp_path / names[1]).write_bytes(b"not an array")
    np.save(tmp_path / names[2], np.zeros((5, 8, 8), dtype=np.uint8))
    manifest = write_manifest(tmp_path, {"path": [*names[:3], "gone.npy", None, *names[5:]]})
    model = deep_model()
    for computed in (6, 0):  # a row without a path is not even tried
        found = cached(model, manifest, range(7), tmp_path / "cache")
        assert found.rows.tolist() == [0, 5, 6]
        close(found.take(range(3), "linear"), naive(model, manifest, [0, 5, 6])[0])
        assert found.unreadable == [1, 2, 3, 4]
        words = ["row 2: ", "5 channels", "no such file", "row 5: there is no path"]
        assert [word in cause for word, cause in zip(words, found.causes, strict=True)] == [True] * 4
        assert found.computed == computed
    np.save(tmp_path / "gone.npy", np.full((3, 24, 24), 200, dtype=np.uint8))
    mended = cached(model, manifest, range(7), tmp_path / "cache")
    assert (mended.rows.tolist(), mended.computed) == ([0, 3, 5, 6], 1)


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    write_arrays(tmp_path, 2, channels=4)
    manifest = write_manifest(tmp_path, {"path": ["00.npy", "01.npy"]})
    with pytest.raises(OpenfinoError, match=r"none of the 2 images.*00\.npy.*4 channels"):
        cached(deep_model(), manifest, range(2), tmp_path / "cache")
    assert len(cached(deep_model(), manifest, [], tmp_path / "cache")) == 0


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e5, "float16")])
def test_numbers_that_cannot_be_kept_are_left_out(image_set, tmp_path, value, dtype):
    model, manifest = deep_model(), read_manifest(image_set)
    poisoned = float(model.preprocessing.load(manifest.paths(2)).sum())
    forward = model.backbone.model.forward

    def poison(pixel_values, **options):
        out = forward(pixel_values=pixel_values, **options)
        bad = (pixel_values.sum(dim=(1, 2, 3)) - poisoned).abs() < 1e-3
        out.last_hidden_state[bad, -1, 0] = value  # of one patch
        return out

    model.backbone.model.forward = poison
    found = cached(model, manifest, range(4), tmp_path, dtype=dtype)
    assert (found.rows.tolist(), found.unreadable) == ([0, 1, 3], [2])
    reason = "are not finite" if dtype == "float32" else "are too large for float16"
    assert found.causes == [f"line 4: its features {reason}"]
    assert found.take(range(3), "patches").isfinite().all()


def test_a_damaged_chunk_is_computed_again(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(), read_manifest(image_set)
    cached(model, manifest, range(8), tmp_path)
    damaged = sorted(tmp_path.glob("*/*.patches.npy"))[0]
    os.truncate(damaged, damaged.stat().st_size // 2)
    found = cached(model, manifest, range(8), tmp_path)
    assert found.computed == 4
    close(found.take(range(8), "patches"), naive(model, manifest, range(8))[1])


def test_features_cut_short_behind_our_back_are_an_error(image_set, tmp_path):
    source = cached(deep_model(), read_manifest(image_set), range(3), tmp_path)
    (damaged,) = tmp_path.glob("*/*.patches.npy")
    os.truncate(damaged, damaged.stat().st_size - 4)
    assert source.take([0, 1], "patches").shape == (2, 16, 64)
    with pytest.raises(OpenfinoError, match="cut short"):
        source.take([2], "patches")


def test_too_little_room_is_said_before_anything_is_read(image_set, tmp_path, monkeypatch):
    monkeypatch.setattr(cachefolder.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(OpenfinoError, match=r"features of 40 images take .* has 0\.0 GB left"):
        cached(deep_model(), read_manifest(image_set), range(40), tmp_path)


def test_a_disk_that_fills_up_is_no_traceback(image_set, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OpenfinoError, match="cannot be written: No space left"):
        cached(deep_model(), read_manifest(image_set), range(4), tmp_path)
    monkeypatch.undo()
    assert cached(deep_model(), read_manifest(image_set), range(4), tmp_path).computed == 4


def test_memory_does_not_grow_with_the_images(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(size=(64, 64)), read_manifest(image_set)
    numbers = 64 * 64  # patches and their width
    tracemalloc.start()
    try:
        source = cached(model, manifest, range(40), tmp_path, batch_size=2)
        for position in range(40):
            source.take([position], "patches")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 4 * numbers / 2  # half of what all of them take


@pytest.mark.parametrize("name", ["dinov3_convnext", "siglip2_vision_model"])
def test_other_families(image_set, tmp_path, name):
    preprocessing = Preprocessing(size=(64, 64), normalization="imagenet", channels=["r", "g", "b"])
    model, manifest = LoadedModel(tiny_family(name), preprocessing, {}, None), read_manifest(image_set)
    source = cached(model, manifest, range(4), tmp_path, layers=4)
    assert source.layers == (1 if name == "dinov3_convnext" else 2)
    linear, patches = naive(model, manifest, range(4), layers=4)
    close(source.take(range(4), "linear"), linear)
    close(source.take(range(4), "patches"), patches)
    close(torch.from_numpy(source.cls()), linear[:, -64:-32])


def test_sliding_windows_are_naive_cuts_averaged(tmp_path):
    names = write_arrays(tmp_path, 3, channels=3, size=50)  # 50 x 54 pixels, the crop is 32 x 32
    manifest = write_manifest(tmp_path, {"path": names})
    model = deep_model()
    source = cached(model, manifest, range(3), tmp_path / "cache", windows=3, batch_size=5)
    rows, columns = plan_windows((50, 54), (32, 32), 3)
    assert len(rows.starts) * len(columns.starts) == 4
    for position, row in enumerate(range(3)):
        pixels = torch.from_numpy(as_unit_float(read_image(manifest.paths(row))))
        taps = []
        for top in (0, 18):
            for left in (0, 22):
                cut = model.preprocessing.apply(pixels[:, top : top + 32, left : left + 32])
                with torch.no_grad():
                    taps.append(tapped_tokens(model.backbone, cut[None], 2))
        close(source.take([position], "linear"), torch.stack([each.linear for each in taps]).mean(dim=0))
        map_ = stitch(torch.cat([each.patches for each in taps]), rows, columns, (4, 4))
        close(source.take([position], "patches")[0], map_)


# Several processes

CALL = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/evaluation")
from openfino.evaluation import cachefolder
from openfino.manifest import read_manifest
from test_cache import cached, deep_model
cachefolder.CHUNK_IMAGES = 4
def progress(done, total):
    if done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
found = cached(deep_model(), read_manifest(sys.argv[2]), range(40), Path(sys.argv[3]), progress=progress)
print(found.computed)
"""


def call(image_set, folder, killed_at=10_000):
    command = [sys.executable, "-c", CALL, str(TESTS), str(image_set), str(folder), str(killed_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_loses_one_chunk_at_most(image_set, tmp_path, small_chunks):
    model, manifest = deep_model(), read_manifest(image_set)
    with call(image_set, tmp_path / "cache", killed_at=22) as process:
        _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    assert list((tmp_path / "cache").glob("*/.*.partial"))  # it was in the middle of a chunk
    found = cached(model, manifest, range(40), tmp_path / "cache")
    assert found.computed == 20
    linear, patches = naive(model, manifest, range(40))
    close(found.take(range(40), "linear"), linear)
    close(found.take(range(40), "patches"), patches)
    assert not list((tmp_path / "cache").glob("*/.*.partial"))


def test_two_processes_share_the_work(image_set, tmp_path):
    model, manifest = deep_model(), read_manifest(image_set)
    processes = [call(image_set, tmp_path / "cache") for _ in range(2)]
    outcomes = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert sum(int(output) for output, _ in outcomes) == 40  # no image twice
    found = cached(model, manifest, range(40), tmp_path / "cache")
    assert found.computed == 0
    close(found.take(range(40), "linear"), naive(model, manifest, range(40))[0])


def test_what_another_process_computes_is_waited_for(image_set, tmp_path, small_chunks, monkeypatch):
    """Another holder of a lock makes the call go on elsewhere, and come back."""
    model, manifest = deep_model(), read_manifest(image_set)
    taken, finished = [], []
    real = cachefolder.lock

    def lock(path, **options):
        if len(taken) < 3 and path.name not in finished:  # busy for the first three attempts
            taken.append(path.name)
            return nullcontext(False)
        finished.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(cachefolder, "lock", lock)
    monkeypatch.setattr(cachefolder, "POLL", 0.0)
    found = cached(model, manifest, range(8), tmp_path)  # two chunks
    assert len(taken) == 3
    assert found.computed == 8
    close(found.take(range(8), "linear"), naive(model, manifest, range(8))[0])


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_a_model_that_was_saved_and_opened_is_the_same_model(image_set, tmp_path, name):
    preprocessing = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
    model, manifest = LoadedModel(tiny_family(name), preprocessing, {}, None), read_manifest(image_set)
    save_backbone(tmp_path / "model", model.backbone, preprocessing, {})
    cached(model, manifest, range(2), tmp_path / "cache")
    assert cached(load_model(tmp_path / "model"), manifest, range(2), tmp_path / "cache").computed == 0
