"""Real images for `openfino compare`: Fashion-MNIST through simulated scanners.

    python benchmarks/fashion.py runs/fashion
    openfino compare recipes/compare-fashion.yaml --jobs 2

The images are real and so are the factors measured on them (brightness, coverage, orientation); the batch effect is
simulated, so that it is known: every image passes one of eight scanners, the same eight in ``test_id``, four others
with stronger effects in ``test_ood``. The scanner is drawn independently of everything in the picture. A fifth of the
training files' images that were drawn is split ``val``.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from fashion_mnist import LABELS, SOURCE, read_source
from openfino.errors import OpenfinoError
from openfino.keyed import Purpose, keyed_generator
from openfino.runfolder import claim_workspace
from openfino.sampledata.textures import blur

SIZE = 28
TESTS = ("test_id", "test_ood")
# The data are the same for every training seed.
DATA_SEED = 0
STREAMS = {"train": 1, "val": 1, "test_id": 2, "test_ood": 3}
VAL_SHARE = 5  # one in so many

COVERED_FROM = 0.1  # pixel value from which a pixel belongs to the object
# Below this (largest - smallest) / sum of the second moments the principal axis is an accident of a few pixels.
LEAST_ELONGATION = 0.1


@dataclass(frozen=True)
class Scanner:
    """What a scanner does to every image.

    Attributes:
        gain: factor on the light.
        gamma: exponent of the response.
        direction: of the brighter side, degrees anticlockwise from the right.
        tilt: the light at the brighter edge is 1 + tilt, at the other 1 - tilt.
        blur: sigma in pixels.
        noise: standard deviation, share of full scale, before the response.
    """

    gain: float
    gamma: float
    direction: float
    tilt: float
    blur: float
    noise: float


KNOWN_SCANNERS = {
    "A": Scanner(0.70, 0.80, 0, 0.30, 0.0, 0.02),
    "B": Scanner(0.80, 1.30, 45, 0.15, 0.5, 0.03),
    "C": Scanner(0.90, 1.00, 90, 0.35, 0.3, 0.01),
    "D": Scanner(1.00, 0.75, 135, 0.20, 0.6, 0.04),
    "E": Scanner(1.00, 1.20, 180, 0.40, 0.2, 0.03),
    "F": Scanner(1.10, 0.90, 225, 0.10, 0.7, 0.02),
    "G": Scanner(1.20, 1.40, 270, 0.25, 0.4, 0.01),
    "H": Scanner(1.30, 1.10, 315, 0.30, 0.1, 0.04),
}
# Every effect lies outside its range among the known scanners; the directions lie between theirs.
NEW_SCANNERS = {
    "W": Scanner(0.50, 1.70, 22, 0.60, 0.9, 0.06),
    "X": Scanner(1.60, 0.55, 112, 0.70, 1.1, 0.05),
    "Y": Scanner(0.55, 0.60, 202, 0.55, 1.0, 0.08),
    "Z": Scanner(1.50, 1.60, 292, 0.65, 0.8, 0.07),
}
SCANNERS = {
    "train": KNOWN_SCANNERS,
    "val": KNOWN_SCANNERS,
    "test_id": KNOWN_SCANNERS,
    "test_ood": NEW_SCANNERS,
}


def measure(image: np.ndarray) -> dict[str, float | None]:
    """Factors of an image [H, W] in [0, 1].

    Returns:
        ``brightness``: mean. ``coverage``: share of the pixels that belong to the object. ``orientation``: principal
        axis of the second moments of the light, degrees anticlockwise from the horizontal, [0, 180); None where the
        object is nearly as wide as long, or there is no light.
    """
    rows, columns = np.indices(image.shape)
    light = image / max(float(image.sum()), 1e-12)
    x = columns - (columns * light).sum()
    y = (rows * light).sum() - rows
    difference = float(((x**2 - y**2) * light).sum())
    product = 2.0 * float((x * y * light).sum())
    size = float(((x**2 + y**2) * light).sum())
    elongated = math.hypot(difference, product) > LEAST_ELONGATION * size
    angle = math.degrees(0.5 * math.atan2(product, difference)) % 180.0
    return {
        "brightness": round(float(image.mean()), 4),
        "coverage": round(float((image > COVERED_FROM).mean()), 4),
        "orientation": round(angle, 2) % 180.0 if elongated else None,
    }


def scan(image: np.ndarray, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """What ``scanner`` makes of ``image`` [H, W] in [0, 1]: blur, light, noise, response, 8 bits."""
    height, width = image.shape
    right = np.linspace(-1.0, 1.0, width)[None, :]
    up = np.linspace(1.0, -1.0, height)[:, None]
    angle = math.radians(scanner.direction)
    light = scanner.gain * (1.0 + scanner.tilt * (math.cos(angle) * right + math.sin(angle) * up))
    seen = blur(image, scanner.blur) * light + scanner.noise * rng.standard_normal(image.shape)
    response = np.clip(seen, 0.0, 1.0) ** scanner.gamma
    return np.rint(255.0 * response).astype(np.uint8)


@dataclass(frozen=True)
class Split:
    """Images [n, H, W] uint8 of one split, their labels [n] and their numbers in the source [n]."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


def choose_images(source: Path, *, train: int, test: int) -> list[Split]:
    """Draw ``train`` images of the training files, the last fifth for ``val``, and ``test`` of the test files for each
    test split, none twice.

    Raises:
        OpenfinoError: if the source is absent or holds too few images.
    """
    held_out = train // VAL_SHARE
    wanted = {
        "train": {"train": train - held_out, "val": held_out},
        "t10k": dict.fromkeys(TESTS, test),
    }
    splits = []
    for prefix, sizes in wanted.items():
        images, labels = read_source(source, prefix)
        if sum(sizes.values()) > len(images):
            raise OpenfinoError(
                f"{source}: {sum(sizes.values()):,} {prefix} images wanted, there are {len(images):,}"
            )
        order = keyed_generator(DATA_SEED, Purpose.SAMPLE, STREAMS[next(iter(sizes))]).permutation(
            len(images)
        )
        for name, size in sizes.items():
            numbers, order = order[:size], order[size:]
            splits.append(Split(name, images[numbers], labels[numbers], numbers))
    return splits


def write_data(splits: list[Split], folder: Path) -> Path:
    """Write every image, scanned, as PNG, and a manifest with its factors, measured before the scanner."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for split in splits:
        scanners = SCANNERS[split.name]
        for image, label, number in zip(split.images, split.labels, split.numbers.tolist(), strict=True):
            rng = keyed_generator(DATA_SEED, Purpose.SAMPLE, STREAMS[split.name], number)
            scanner = list(scanners)[rng.integers(len(scanners))]
            clean = image.astype(np.float32) / 255.0
            path = f"images/{split.name}_{number:05d}.png"
            Image.fromarray(scan(clean, scanners[scanner], rng)).save(folder / path)
            named = {"path": path, "split": split.name, "label": LABELS[label], "scanner": scanner}
            rows.append(named | measure(clean))
    manifest = folder / "manifest.csv"
    pl.DataFrame(rows, infer_schema_length=None).write_csv(manifest)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=SOURCE, help=f"folder of the idx files ({SOURCE})")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier data in OUT")
    parser.add_argument("--train", type=int, default=3000, help="images of the splits train and val")
    parser.add_argument("--test", type=int, default=1000, help="images in each test split")
    arguments = parser.parse_args()
    try:
        splits = choose_images(arguments.source, train=arguments.train, test=arguments.test)
        claim_workspace(arguments.out, overwrite=arguments.overwrite)
        sys.stdout.write(f"{write_data(splits, arguments.out)}\n")
    except OpenfinoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
