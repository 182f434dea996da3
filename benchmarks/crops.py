"""Images per second on one core: 2 x 224^2 and 8 x 96^2 crops out of 512^2 images, as JSON.

``crops`` is cutting alone, ``loader`` the whole work on an image: reading ``.npy``, drawing geometry,
photometric parameters and masks, cutting, putting the batch together. ``pillow`` cuts with
``Image.resize(box=...)``, the alternative that was measured against.

Run: python benchmarks/crops.py [--seconds 3]
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openfino.images.crops import Box, as_source, cut, sample_crop_box
from openfino.images.loader import build_loader
from openfino.keyed import keyed_generator
from openfino.manifest import read_manifest
from openfino.recipe import IbotSettings, ImageSettings, ViewSettings

SIDE, IMAGES, BATCH = 512, 16, 16
VIEWS = ViewSettings(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32))
Plan = list[tuple[Box, tuple[int, int]]]


def draw_image(number: int, channels: int, dtype: type) -> np.ndarray:
    """Smooth structure and noise [channels, SIDE, SIDE]."""
    rng = keyed_generator(0, number)
    coarse = torch.from_numpy(rng.random((1, channels, 16, 16)))
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic")[0].numpy()
    image = np.clip(smooth + rng.normal(0, 0.05, smooth.shape), 0, 1)
    return (image * np.iinfo(dtype).max).astype(dtype)


def draw_plan(number: int) -> Plan:
    rng = keyed_generator(1, number)
    boxes = [(VIEWS.global_scale, VIEWS.global_size)] * 2
    boxes += [(VIEWS.local_scale, VIEWS.local_size)] * VIEWS.local_count
    return [(sample_crop_box(rng, SIDE, SIDE, scale, VIEWS.aspect), size) for scale, size in boxes]


def cut_with_torch(image: np.ndarray, plan: Plan) -> None:
    source = as_source(image)
    for box, size in plan:
        cut(source, box, size)


def cut_with_pillow(image: np.ndarray, plan: Plan) -> None:
    source = Image.fromarray(np.moveaxis(image, 0, 2))
    for box, (height, width) in plan:
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=corners))


def rate_of_cutting(
    function: Callable[[np.ndarray, Plan], None], images: Sequence[np.ndarray], seconds: float
) -> float:
    """The best rate over repeated passes, in images per second."""
    plans = [draw_plan(number) for number in range(len(images))]
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        for image, plan in zip(images, plans, strict=True):
            function(image, plan)
        best = max(best, len(images) / (time.perf_counter() - start))
    return best


def rate_of_loader(images: Sequence[np.ndarray], seconds: float) -> float:
    """The best rate over the batches of one process, in images per second."""
    channels = [f"channel_{number}" for number in range(images[0].shape[0])]
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            np.save(Path(folder) / f"{number:03d}.npy", image)
        loader = build_loader(
            read_manifest(folder),
            np.arange(len(images)),
            images=ImageSettings(normalization="zscore"),
            views=VIEWS,
            ibot=IbotSettings(),
            channels=channels,
            patch_size=16,
            seed=0,
            start_step=0,
            stop_step=1_000_000,
            batch_size=BATCH,
        )
        best, stop, clock = 0.0, time.perf_counter() + seconds, time.perf_counter()
        for _ in loader:
            now = time.perf_counter()
            best, clock = max(best, BATCH / (now - clock)), now
            if now > stop:
                break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each figure")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    rgb = [draw_image(number, 3, np.uint8) for number in range(IMAGES)]
    deep = [draw_image(number, 4, np.uint16) for number in range(IMAGES)]
    figures = {
        "unit": "images/s on one core",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "rgb_uint8": {
            "crops": rate_of_cutting(cut_with_torch, rgb, seconds),
            "loader": rate_of_loader(rgb, seconds),
            "pillow": rate_of_cutting(cut_with_pillow, rgb, seconds),
        },
        "four_channels_uint16": {
            "crops": rate_of_cutting(cut_with_torch, deep, seconds),
            "loader": rate_of_loader(deep, seconds),
        },
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
