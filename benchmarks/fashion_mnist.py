"""Fashion-MNIST from the idx files of Debian's package: 28 x 28 grey images of ten kinds of clothing."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from openfino.errors import OpenfinoError

SOURCE = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes, compressed or not, as a uint8 array.

    Raises:
        OpenfinoError: if the file is damaged or holds something else.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise OpenfinoError(f"{path}: damaged gzip file ({error})") from None
    start = 4 + 4 * data[3] if len(data) > 3 else 4
    if len(data) < start or data[:3] != b"\x00\x00\x08":
        raise OpenfinoError(f"{path} is no idx file of unsigned bytes")
    shape = np.frombuffer(data[4:start], dtype=">u4").astype(int).tolist()
    if len(data) != start + math.prod(shape):
        raise OpenfinoError(f"{path}: {len(data) - start:,} bytes of values, its header says {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def read_source(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] of the idx files ``PREFIX-images-...`` and ``PREFIX-labels-...``.

    Raises:
        OpenfinoError: if a file is absent or damaged.
    """
    found = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        paths = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not paths:
            raise OpenfinoError(
                f"{folder} has no {name} or {name}.gz. Install Debian's package: apt-get install {PACKAGE}; "
                "or name the folder of the four idx files with --source"
            )
        found.append(read_idx(paths[0]))
    return found[0], found[1]
