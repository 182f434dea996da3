"""Tiny models and manifests for the tests of evaluation and export."""

import numpy as np
import polars as pl

from conftest import TINY
from openfino.images.preprocess import Preprocessing
from openfino.manifest import read_manifest
from openfino.models.loading import random_backbone
from openfino.models.store import LoadedModel


def tiny_model(channels=3, normalization="imagenet", provenance=None, size=(32, 32), seed=0):
    """An untrained backbone, 32 wide, patches of 8."""
    names = [f"channel_{index}" for index in range(channels)]
    preprocessing = Preprocessing(size=size, normalization=normalization, channels=names)
    return LoadedModel(random_backbone(TINY, channels, seed), preprocessing, provenance or {}, None)


def write_arrays(folder, count, channels, size=24):
    """16-bit images [channels, size, size + 4] as .npy files; returns their names."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:02d}.npy" for index in range(count)]
    for name in names:
        np.save(folder / name, generator.integers(0, 65536, (channels, size, size + 4), dtype=np.uint16))
    return names


def write_manifest(folder, columns):
    """A Parquet manifest of these columns, as read back."""
    pl.DataFrame(columns).write_parquet(folder / "manifest.parquet")
    return read_manifest(folder / "manifest.parquet")
