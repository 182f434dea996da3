"""A folder of idx files that stands in for Fashion-MNIST."""

import struct

import numpy as np


def idx(values):
    """An idx file of unsigned bytes."""
    values = np.asarray(values, dtype=np.uint8)
    head = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


def write_source(folder, train, test, seed=0):
    """``train`` and ``test`` images of noise, with a bright bar whose height tells the label."""
    generator = np.random.default_rng(seed)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        rows = np.arange(28)[None, :] // 2 - 2
        images = generator.integers(0, 100, (count, 28, 28)) + 150 * (rows == labels[:, None])[:, :, None]
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder
