"""What many tests need: a tiny backbone and a tiny data set. This folder is on the path of every test."""

import os

# Before torch is imported anywhere: two test processes must not fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
    "num_register_tokens": 2,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny_config():
    return dict(TINY)


@pytest.fixture
def image_set(tmp_path):
    """A folder with 40 RGB images of two shapes and a manifest with a discrete and a continuous factor."""
    return make_image_set(tmp_path / "data")


def make_image_set(folder, count=40, size=40):
    """Draw ``count`` images whose colour depends on ``site`` and whose brightness on ``dose``."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["path,site,dose,label,split"]
    for index in range(count):
        site, dose, label = index % 4, index / count, index % 2
        pixels = generator.integers(0, 60, (size, size + 8, 3)) + 40 * site * np.eye(3, dtype=int)[site % 3]
        start = 4 if label else 16
        pixels[start : start + 12, 8:24] += int(60 + 60 * dose)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index:03d}.png")
        split = ("train", "train", "val", "test")[index // 2 % 4]
        lines.append(f"images/{index:03d}.png,site{site},{dose},{'top' if label else 'middle'},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"
