import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openfino.errors import OpenfinoError
from openfino.images.loader import ViewBatch, build_loader, finish_views
from openfino.images.masks import block_mask, mask_plan
from openfino.images.normalize import normalize
from openfino.images.photometric import apply_photometric
from openfino.keyed import Purpose, keyed_generator
from openfino.manifest import read_manifest
from openfino.recipe import IbotSettings, ImageSettings, ViewSettings

VIEWS = ViewSettings(global_size=(32, 48), local_size=(16, 8), local_count=3)
RGB = ["red", "green", "blue"]
IMAGES = 11


def write_images(folder, count=IMAGES, channels=3, dtype=np.uint8):
    """Images of many sizes, the first smaller than every crop."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (5, 6) if number == 0 else (40 + 3 * number, 70 - 2 * number)
        pixels = rng.integers(0, np.iinfo(dtype).max, (channels, height, width)).astype(dtype)
        np.save(folder / f"{number:02d}.npy", pixels)
    return read_manifest(folder)


def loader(manifest, views=VIEWS, **options):
    settings = {
        "rows": np.arange(len(manifest)),
        "images": ImageSettings(normalization="zscore"),
        "views": views,
        "ibot": IbotSettings(),
        "channels": RGB,
        "patch_size": 8,
        "seed": 7,
        "start_step": 0,
        "stop_step": 4,
        "batch_size": 6,
        **options,
    }
    return build_loader(manifest, settings.pop("rows"), **settings)


def tensors(batch):
    """Every tensor of a batch, by name, with the images on the first axis."""
    named = {"rows": batch.rows, "global": batch.global_crops.transpose(0, 1)}
    named |= {"local": batch.local_crops.transpose(0, 1), "masks": batch.masks.transpose(0, 1)}
    for kind, parameters in batch.photometric.items():
        named |= {f"{kind} {name}": values.transpose(0, 1) for name, values in parameters.items()}
    return named


def assert_same(one, other):
    assert one.step == other.step
    assert one.unreadable == other.unreadable
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert values.dtype == second[name].dtype, name
        assert torch.equal(values, second[name]), name


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


def test_shapes_and_types(manifest):
    batches = list(loader(manifest))
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    assert len(loader(manifest)) == 4
    batch = batches[0]
    assert batch.global_crops.shape == (2, 6, 3, 32, 48)
    assert batch.local_crops.shape == (3, 6, 3, 16, 8)
    assert batch.masks.shape == (2, 6, 4 * 6)
    assert batch.masks.dtype == torch.bool
    assert batch.rows.dtype == torch.int64
    assert batch.global_crops.dtype == batch.local_crops.dtype == torch.uint8
    assert batch.photometric["global"]["blur_sigma"].shape == (2, 6)
    assert batch.photometric["local"]["blur_sigma"].shape == (3, 6)
    assert batch.unreadable == []
    # The crops of an image differ from each other.
    assert not torch.equal(batch.global_crops[0], batch.global_crops[1])
    assert not torch.equal(batch.local_crops[0], batch.local_crops[1])


def test_each_epoch_uses_each_row_once_in_an_order_of_its_own(manifest):
    rows = np.array([1, 3, 4, 8, 10])
    drawn = torch.cat([batch.rows for batch in loader(manifest, rows=rows, stop_step=10, batch_size=3)])
    epochs = drawn.view(6, 5).tolist()
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_a_batch_may_be_larger_than_the_data_set(manifest):
    batch = next(iter(loader(manifest, rows=np.array([2, 5, 6]), batch_size=10)))
    assert sorted(batch.rows.tolist()[:9]) == [2, 2, 2, 5, 5, 5, 6, 6, 6]
    # The same image in another epoch has other views.
    first, second = (batch.rows == 2).nonzero().flatten()[:2]
    assert not torch.equal(batch.global_crops[:, first], batch.global_crops[:, second])


def test_views_depend_on_seed_epoch_and_row_alone(manifest):
    """Whatever the batch size, the start and the place in the batch."""

    def views_of(**options):
        found = {}
        for batch in loader(manifest, **options):
            size, named = batch.rows.shape[0], tensors(batch)
            del named["masks"]  # of a slot, not of an image
            for place, row in enumerate(batch.rows.tolist()):
                epoch = (batch.step * size + place) // len(manifest)
                found[epoch, row] = {name: values[place] for name, values in named.items()}
        return found

    whole = views_of(stop_step=11, batch_size=2)
    assert set(whole) == {(epoch, row) for epoch in range(2) for row in range(IMAGES)}
    for other in (views_of(stop_step=4, batch_size=5), views_of(start_step=5, stop_step=22, batch_size=1)):
        assert len(other) >= 17
        for key, views in other.items():
            for name, values in views.items():
                assert torch.equal(values, whole[key][name]), (key, name)
    for row in range(1, IMAGES):
        for name in ("global", "local", "global brightness", "local brightness"):
            assert not torch.equal(whole[0, row][name], whole[1, row][name]), name
    other_seed = views_of(stop_step=11, batch_size=2, seed=8)
    assert not torch.equal(whole[0, 1]["global"], other_seed[0, 1]["global"])
    # A subset of the rows shuffles differently but cuts the same views.
    subset = views_of(rows=np.arange(1, IMAGES), stop_step=1, batch_size=10)
    for row in range(1, IMAGES):
        assert torch.equal(subset[0, row]["local"], whole[0, row]["local"])


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_share_the_batch_of_one_process(manifest, world_size):
    alone = list(loader(manifest))
    parts = [list(loader(manifest, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        whole = tensors(batch)
        pieces = [tensors(part[step]) for part in parts]
        for name, values in whole.items():
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), values), name


def test_a_resumed_run_sees_the_same_batches(manifest):
    through = list(loader(manifest, stop_step=6))
    for one, other in zip(through[3:], loader(manifest, start_step=3, stop_step=6), strict=True):
        assert_same(one, other)


def test_masks_follow_the_plan_of_the_step(manifest):
    ibot = IbotSettings(mask_fraction=0.5, mask_ratio=(0.2, 0.6))
    for batch in loader(manifest, ibot=ibot):
        plan = mask_plan(7, batch.step, 12, 24, 0.5, (0.2, 0.6))
        assert (plan > 0).sum() == 6
        for view in range(2):
            for slot in range(6):
                number = view * 6 + slot
                rng = keyed_generator(7, Purpose.MASK, batch.step, number)
                expected = block_mask(rng, (4, 6), plan[number]).ravel()
                assert batch.masks[view, slot].tolist() == expected.tolist()


def test_no_masks_when_none_are_wanted(manifest):
    assert not next(iter(loader(manifest, ibot=IbotSettings(mask_fraction=0.0)))).masks.any()


def test_workers_make_the_same_batches_and_leave_the_random_state_alone(tmp_path):
    manifest = write_images(tmp_path / "images")
    (tmp_path / "images" / "03.npy").write_bytes(b"broken")
    alone = list(loader(manifest))
    state = torch.random.get_rng_state()
    for workers in (1, 2):
        for one, other in zip(alone, loader(manifest, workers=workers), strict=True):
            assert_same(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(len(batch.unreadable) for batch in alone) > 0


def test_workers_end_when_the_run_stops_early(manifest):
    for batch in loader(manifest, workers=2, stop_step=1000):
        assert batch.step == 0
        assert len(multiprocessing.active_children()) >= 2
        break
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


KILLED_RUN = """
import multiprocessing, os, signal, sys
sys.path.insert(0, sys.argv[1])

def main():
    from test_loader import loader, read_manifest

    for batch in loader(read_manifest(sys.argv[2]), workers=2, stop_step=1000):
        print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table of Linux")
def test_no_worker_outlives_a_killed_run(tmp_path):
    write_images(tmp_path / "images")
    (tmp_path / "run.py").write_text(KILLED_RUN)
    command = [sys.executable, tmp_path / "run.py", Path(__file__).parent, tmp_path / "images"]
    # A file, not a pipe: reading a pipe would itself wait for the workers, which hold its other end.
    with (tmp_path / "out").open("w") as out:
        run = subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=False)
    assert run.returncode == -signal.SIGKILL
    workers = [int(number) for number in (tmp_path / "out").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "the workers are still there"
        time.sleep(0.1)


def is_running(process):
    """Not gone, and no zombie that nobody reaps."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_dead_worker_is_reported(manifest):
    batches = iter(loader(manifest, workers=1, stop_step=100_000))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(OpenfinoError, match=r"a process that reads images died .*train.workers"):
        for _ in batches:
            pass


def test_a_defect_in_a_worker_is_not_taken_for_its_death(manifest):
    views = VIEWS.model_copy(update={"local_size": (1 << 50, 8)})
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        list(loader(manifest, views, workers=1))


def test_an_unreadable_image_is_replaced_and_reported(tmp_path):
    manifest = write_images(tmp_path / "images")
    (tmp_path / "images" / "04.npy").write_bytes(b"broken")
    np.save(tmp_path / "images" / "05.npy", np.zeros((1, 50, 50), np.uint8))  # one channel instead of three
    (tmp_path / "images" / "06.npy").unlink()
    batches = list(loader(manifest, stop_step=11, batch_size=IMAGES))
    for batch in batches:
        assert set(batch.unreadable) == {4, 5, 6}
        assert not {4, 5, 6} & set(batch.rows.tolist())
        assert batch.rows.shape == (IMAGES,)
    for one, other in zip(batches, loader(manifest, stop_step=11, batch_size=IMAGES), strict=True):
        assert_same(one, other)
    # The replacement varies with the epoch, and rows that can be read are where they would be.
    whole = write_images(tmp_path / "whole")
    replacements = []
    for one, other in zip(batches, loader(whole, stop_step=11, batch_size=IMAGES), strict=True):
        good = ~torch.isin(other.rows, torch.tensor([4, 5, 6]))
        assert torch.equal(one.rows[good], other.rows[good])
        assert torch.equal(one.global_crops[:, good], other.global_crops[:, good])
        replacements.append(one.rows[~good].tolist())
    assert len({tuple(rows) for rows in replacements}) > 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_readable_images_ends_the_run(tmp_path, workers):
    manifest = write_images(tmp_path / "images", count=3)
    for number in range(3):
        (tmp_path / "images" / f"{number:02d}.npy").write_bytes(b"broken")
    with pytest.raises(OpenfinoError) as caught:
        list(loader(manifest, workers=workers))
    message = str(caught.value)
    assert type(caught.value) is OpenfinoError
    assert "the 10 rows drawn in its place cannot be read" in message
    assert "Traceback" not in message
    assert str(tmp_path / "images" / "00.npy") in message


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("preset", ["natural", "fluorescence", "overhead"])
def test_any_channel_count_and_preset(tmp_path, channels, preset):
    manifest = write_images(tmp_path / "images", count=4, channels=channels)
    views = VIEWS.model_copy(update={"preset": preset})
    names = [f"channel_{number}" for number in range(channels)]
    batch = next(iter(loader(manifest, views, channels=names)))
    for finished, count in zip(finish_views(batch, views, "zscore"), (2, 3), strict=True):
        assert finished.shape[:3] == (count, 6, channels)
        assert finished.dtype == torch.float32
        assert torch.isfinite(finished).all()


def test_bit_depth_makes_no_difference(tmp_path):
    for folder, factor, dtype in (("eight", 1, np.uint8), ("sixteen", 257, np.uint16)):
        (tmp_path / folder).mkdir()
        for number in range(6):
            # Smooth and off the limits: next to saturated edges the 8-bit resize clips between its passes.
            rows, columns = np.mgrid[:60, : 50 + number]
            waves = 128 + 60 * np.sin(rows / 5 + number) * np.cos(columns / 7)
            pixels = np.stack([waves, waves[::-1], waves[:, ::-1]]).round().astype(dtype)
            np.save(tmp_path / folder / f"{number}.npy", pixels * dtype(factor))
    for one, other in zip(
        loader(read_manifest(tmp_path / "eight")), loader(read_manifest(tmp_path / "sixteen")), strict=True
    ):
        assert one.global_crops.dtype == torch.uint8
        assert other.global_crops.dtype == torch.float32
        assert torch.equal(one.rows, other.rows)
        for eight, sixteen in (
            (one.global_crops, other.global_crops),
            (one.local_crops, other.local_crops),
        ):
            difference = (eight.float() / 255 - sixteen).abs() * 255
            assert (difference <= 1).float().mean() > 0.999
            assert difference.max() < 1.5


def test_types_may_be_mixed_in_a_data_set(tmp_path):
    write_images(tmp_path / "images", count=2)
    np.save(tmp_path / "images" / "02.npy", np.full((3, 40, 40), 65535, np.uint16))
    manifest = read_manifest(tmp_path / "images")
    batch = next(iter(loader(manifest, batch_size=3)))
    assert batch.global_crops.dtype == batch.local_crops.dtype == torch.float32
    white = batch.global_crops[:, batch.rows == 2]
    torch.testing.assert_close(white, torch.ones_like(white))
    assert 0.3 < batch.global_crops[:, batch.rows == 1].mean() < 0.7
    alone = next(iter(loader(manifest, rows=np.array([1]), batch_size=1)))
    assert alone.global_crops.dtype == torch.uint8
    assert torch.equal(alone.global_crops[:, 0].float() / 255, batch.global_crops[:, batch.rows == 1][:, 0])


@pytest.mark.parametrize("preset", ["natural", "overhead"])
def test_aspect_is_the_distortion_of_what_is_seen(tmp_path, preset):
    side = 600
    ramp = np.linspace(0, 65535, side).astype(np.uint16)
    across, down = np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side))
    np.save(tmp_path / "ramps.npy", np.stack([across, down]))
    views = ViewSettings(
        preset=preset, global_size=(32, 64), local_size=(48, 16), local_count=20, aspect=(0.8, 1.25)
    )
    batch = next(iter(loader(read_manifest(tmp_path), views, channels=["x", "y"], batch_size=6)))
    distortions = []
    for crop in [*batch.global_crops.flatten(0, 1), *batch.local_crops.flatten(0, 1)]:
        # Source pixels per pixel of the crop, along each of its axes; one of the two ramps runs along each.
        down, across = (crop.diff(dim=axis).abs().amax(0).mean() * side for axis in (1, 2))
        distortions.append((across / down).item())
    assert 0.77 < min(distortions) < 0.85
    assert 1.18 < max(distortions) < 1.3


def test_no_local_crops(manifest):
    views = VIEWS.model_copy(update={"local_count": 0})
    batch = next(iter(loader(manifest, views)))
    assert batch.local_crops.shape == (0, 6, 3, 16, 8)
    _, local_views = finish_views(batch, views, "zscore")
    assert local_views.shape == (0, 6, 3, 16, 8)


def test_several_files_per_image(tmp_path):
    for number in range(3):
        for channel in ("dna", "er"):
            value = 10 * number + (1 if channel == "er" else 0)
            Image.new("L", (40, 40), value).save(tmp_path / f"{number}_{channel}.png")
    lines = ["dna,er", *(f"{number}_dna.png,{number}_er.png" for number in range(3))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    manifest = read_manifest(tmp_path / "manifest.csv", path_columns=["dna", "er"])
    batch = next(iter(loader(manifest, channels=["dna", "er"])))
    for place, row in enumerate(batch.rows.tolist()):
        assert (batch.global_crops[:, place, 0] == 10 * row).all()
        assert (batch.global_crops[:, place, 1] == 10 * row + 1).all()


def test_paths_may_hold_any_letters(tmp_path):
    folder = tmp_path / "B\u00e4ume \u6a39"
    manifest = write_images(folder, count=2)
    (folder / "00.npy").rename(folder / "\u0142.npy")
    for workers in (0, 1):
        batch = next(iter(loader(read_manifest(folder), batch_size=2, workers=workers)))
        assert batch.unreadable == []
    assert len(manifest) == 2


def test_a_row_without_a_path_is_named(tmp_path):
    write_images(tmp_path, count=2)
    (tmp_path / "manifest.csv").write_text("path,label\n00.npy,a\n,b\n")
    with pytest.raises(OpenfinoError, match=r"manifest.csv line 3: there is no path in column path"):
        loader(read_manifest(tmp_path / "manifest.csv"))


def test_finished_views_are_photometric_then_normalised(manifest):
    batch = next(iter(loader(manifest)))
    before = batch.global_crops.clone()
    global_views, local_views = finish_views(batch, VIEWS, "imagenet")
    assert torch.equal(batch.global_crops, before)
    for finished, crops, parameters in (
        (global_views, batch.global_crops, batch.photometric["global"]),
        (local_views, batch.local_crops, batch.photometric["local"]),
    ):
        expected = normalize(apply_photometric(crops.float() / 255, parameters, "natural"), "imagenet")
        torch.testing.assert_close(finished, expected)
        assert not torch.equal(finished, normalize(crops.float() / 255, "imagenet"))


def test_slices_of_a_batch(manifest):
    batch = next(iter(loader(manifest)))
    batch.unreadable.append(3)
    parts = [batch.slice(0, 2), batch.slice(2, 6)]
    whole, pieces = tensors(batch), [tensors(part) for part in parts]
    for name, values in whole.items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), values), name
    assert [part.unreadable for part in parts] == [[3], []]
    finished = torch.cat([finish_views(part, VIEWS, "zscore")[0] for part in parts], dim=1)
    torch.testing.assert_close(finished, finish_views(batch, VIEWS, "zscore")[0])
    assert isinstance(parts[0], ViewBatch)


def test_a_batch_moves_whole(manifest):
    moved = next(iter(loader(manifest))).to("meta")
    named = tensors(moved)
    assert named.pop("rows").device.type == "cpu"
    assert {values.device.type for values in named.values()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": np.array([], dtype=int)}, "no image to train on"),
        ({"batch_size": 7, "world_size": 2}, "7 images cannot be shared equally among 2"),
        ({"patch_size": 10}, r"\[32, 48\] is no multiple of the patch size 10. Write \[30, 50\]"),
        ({"images": ImageSettings(), "channels": ["a", "b"]}, "3 means .* for 2 channels"),
        (
            {"views": VIEWS.model_copy(update={"protein_channel": "gfp"})},
            "no channel 'gfp'.*red, green, blue",
        ),
    ],
)
def test_impossible_settings_are_refused_before_any_image_is_read(manifest, options, message):
    with pytest.raises(OpenfinoError, match=message):
        loader(manifest, **options)


def test_the_protein_channel_is_kept(manifest):
    views = VIEWS.model_copy(update={"preset": "fluorescence", "protein_channel": "green"})
    keeps = torch.cat([batch.photometric["local"]["keep"].flatten(0, 1) for batch in loader(manifest, views)])
    assert (keeps[:, 1] == 1).all()
    assert (keeps[:, [0, 2]] == 0).any()
