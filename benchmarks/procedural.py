"""Procedural images per second on one core, of every family and as ``draw_image`` mixes them, as JSON.

``training`` is the whole work on an image of 96 pixels: drawing it and cutting 2 x 64^2 and 6 x 32^2 crops. The time
is that of the process, the best of repeated passes: others on the machine matter little.

Run: OMP_NUM_THREADS=1 python benchmarks/procedural.py [--seconds 2]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from openfino.images.crops import as_source, cut, sample_crop_box
from openfino.keyed import keyed_generator
from openfino.procedural import FAMILIES, draw_image, draw_of_family

IMAGES, SIZES = 64, (64, 96, 128)
CROPS = [((64, 64), (0.4, 1.0))] * 2 + [((32, 32), (0.05, 0.4))] * 6


def rate(work: Callable[[int], object], seconds: float) -> float:
    """Images per second of processor time: the best of passes over the same images."""
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.process_time()
        for index in range(IMAGES):
            work(index)
        best = max(best, IMAGES / (time.process_time() - start))
    return round(best)


def draw(name: str | None, size: int, index: int) -> None:
    if name is None:
        draw_image(0, index, size)
    else:
        draw_of_family(name, 0, index, size)


def draw_and_cut(index: int) -> None:
    source = as_source(draw_image(0, index, 96))
    rng = keyed_generator(1, index)
    for size, scale in CROPS:
        cut(source, sample_crop_box(rng, 96, 96, scale, (3 / 4, 4 / 3)), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each figure")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    figures: dict[str, object] = {
        "unit": "images/s of one core",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "numpy": np.__version__,
    }
    for size in SIZES:
        drawn = {"all": rate(partial(draw, None, size), seconds)}
        drawn |= {name: rate(partial(draw, name, size), seconds) for name in FAMILIES}
        figures[f"{size} pixels"] = drawn
    figures["training"] = rate(draw_and_cut, seconds)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
