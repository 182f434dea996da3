"""The table from which ``tiny`` is pretrained: names of procedural images, and small real images to watch it learn.

    python benchmarks/tiny_data.py runs/tiny/data

The rows of split ``procedural`` train; they name images that the loader draws, so they need no files. The real images
never train. They are scikit-learn's digits and images of Fashion-MNIST's training file (its test file is kept for the
final figures): ``reference`` holds both, for kNN; ``digits`` and ``fashion`` are the images that are classified.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from sklearn.datasets import load_digits

from fashion_mnist import LABELS, SOURCE, read_source
from openfino.errors import OpenfinoError
from openfino.keyed import Purpose, keyed_generator
from openfino.procedural import image_name
from openfino.runfolder import claim_workspace

SIZE = 96
IMAGES = 1_000_000
REFERENCE, QUERIES = {"digits": 800, "fashion": 2000}, {"digits": 400, "fashion": 800}


def real_images(source: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Grey images uint8 [n, H, W] of the two kinds, and their labels."""
    digits = load_digits()
    fashion, numbers = read_source(source, "train")
    return {
        "digits": (
            np.rint(digits.images * (255 / 16)).astype(np.uint8),
            [f"digit {n}" for n in digits.target],
        ),
        "fashion": (fashion, [LABELS[n] for n in numbers]),
    }


def write_tiny_data(out: Path, source: Path, images: int = IMAGES) -> Path:
    """Write ``out/manifest.parquet`` and the real images that it names.

    Raises:
        OpenfinoError: if Fashion-MNIST is not at ``source``.
    """
    kinds = real_images(source)
    rows = []
    for stream, (kind, (pictures, labels)) in enumerate(kinds.items()):
        (out / kind).mkdir(parents=True)
        order = keyed_generator(0, Purpose.SAMPLE, stream).permutation(len(pictures))
        wanted = {"reference": REFERENCE[kind], kind: QUERIES[kind]}
        splits = [split for split, count in wanted.items() for _ in range(count)]
        for split, number in zip(splits, order.tolist(), strict=False):
            path = f"{kind}/{number:05d}.png"
            Image.fromarray(pictures[number]).convert("RGB").save(out / path)
            rows.append({"path": path, "split": split, "label": labels[number]})
    names = [image_name(0, index, SIZE) for index in range(images)]
    drawn = pl.DataFrame({"path": names}).with_columns(
        split=pl.lit("procedural"), label=pl.lit(None, dtype=pl.String)
    )
    manifest = out / "manifest.parquet"
    pl.concat([drawn, pl.DataFrame(rows)]).write_parquet(manifest)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--images", type=int, default=IMAGES, help="procedural images in the table")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    try:
        claim_workspace(arguments.out, overwrite=arguments.overwrite)
        sys.stdout.write(f"{write_tiny_data(arguments.out, arguments.source, arguments.images)}\n")
    except OpenfinoError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
