"""Draw the sample data set: images and manifest."""

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from openfino.errors import OpenfinoError
from openfino.keyed import Purpose, keyed_generator
from openfino.sampledata.cells import FIELD, Scene, build_scene
from openfino.sampledata.microscope import CHANNELS, Optics, acquire, lamp_output, plate_optics, warm_up
from openfino.sampledata.screen import CELL_LINES, LOCALIZATIONS, Screen, Shot, Stream, plan_screen
from openfino.sampledata.stains import draw_protein, draw_references
from openfino.sampledata.textures import Array

COLUMNS = (
    "path",
    "antibody",
    "localization",
    "cell_line",
    "plate",
    "well",
    "acquired",
    "operator",
    "split",
)
INCOMPLETE_COLUMNS = ("antibody", "cell_line", "plate", "acquired", "operator")
MISSING_SHARE = 0.10
MIN_IMAGES, MIN_SIZE = 20, 16
# Drawn at twice the resolution and averaged: fibres thinner than a pixel stay smooth.
_OVERSAMPLING = 2
_CHUNK = 32
MASK_CLASSES = ("background", "cytoplasm", "nucleus")


def draw_sample(
    out: Path,
    *,
    images: int = 2400,
    size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
    masks: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write four-channel TIFF files (uint8 [4, size, size]) to ``out/images``, and ``out/manifest.csv``.

    The same ``seed``, ``images`` and ``size`` give the same bytes, whatever the number of workers.

    Args:
        out: folder to write to; created when absent.
        images: number of images. Under about 500 not every antibody occurs in every split.
        size: height and width in pixels; the field of view is the same at every size.
        seed: of antibodies, plates and images.
        progress: called with (images written, images).
        workers: processes; more than one needs an importable main module (``if __name__ == "__main__":``).
        masks: also write what every pixel shows: PNG files of indices into ``MASK_CLASSES`` in ``out/masks``, and their
            names in a last column ``mask``.
        overwrite: replace the sample that ``out`` holds.

    Returns:
        Path of the manifest.

    Raises:
        OpenfinoError: if ``out`` is not empty and ``overwrite`` is not set, or a number is out of range.
    """
    out = Path(out)
    _check_numbers(images, size, seed, workers)
    _prepare_folder(out, masks=masks, overwrite=overwrite)
    screen = plan_screen(images, seed)
    names = _file_names(images, seed)
    for done, _ in enumerate(_write_images(_Job(out, screen, names, size, masks), workers), start=1):
        if progress is not None:
            progress(done, images)
    return _write_manifest(out, screen, names, masks=masks)


def render(screen: Screen, shot: Shot, size: int) -> npt.NDArray[np.uint8]:
    """The image of ``shot``, [4, size, size]: nucleus, protein, microtubules, ER."""
    return _render(screen, shot, size)[0]


def render_with_mask(
    screen: Screen, shot: Shot, size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The image of :func:`render`, and what fills most of every pixel: index into ``MASK_CLASSES`` [size, size]."""
    image, scene = _render(screen, shot, size)
    areas = np.stack([1.0 - scene.cell, scene.cytoplasm, scene.nucleus])
    return image, _shrink(areas, size).argmax(axis=0).astype(np.uint8)


def _render(screen: Screen, shot: Shot, size: int) -> tuple[npt.NDArray[np.uint8], Scene]:
    """The image of ``shot``, and the scene that it shows, oversampled."""
    plate = screen.plates[shot.plate]
    antibody = screen.antibodies[shot.antibody]
    rng = keyed_generator(screen.seed, Purpose.SAMPLE, Stream.IMAGE, shot.number)
    scene = build_scene(rng, CELL_LINES[plate.cell_line], _OVERSAMPLING * size)
    references = draw_references(rng, scene)
    protein = draw_protein(rng, scene, references, antibody)
    protein = protein * np.float32(_expression(screen.seed, shot.antibody, plate.cell_line))
    stains = np.stack([references.nucleus, protein, references.microtubules, references.er])
    stains = stains * _well_staining(screen.seed, shot)[:, None, None]
    stains = _shrink(stains, size)
    elapsed = (shot.acquired - plate.started).total_seconds() / 60.0
    image = acquire(
        rng,
        stains,
        _optics(screen.seed, shot.plate, size),
        pixel=FIELD / size,
        lamp=lamp_output(shot.acquired),
        drift=warm_up(elapsed),
    )
    return image, scene


def _shrink(layers: Array, size: int) -> Array:
    """Average the oversampled pixels: [n, S, S] -> [n, size, size]."""
    fine = layers.reshape(len(layers), size, _OVERSAMPLING, size, _OVERSAMPLING)
    shrunk: Array = fine.mean(axis=(2, 4))
    return shrunk


def _expression(seed: int, antibody: int, cell_line: int) -> float:
    """How strongly a cell line expresses the antibody's protein, 1 = typical."""
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.EXPRESSION, antibody, cell_line)
    return float(np.exp(rng.normal(0.0, 0.18)))


def _well_staining(seed: int, shot: Shot) -> npt.NDArray[np.float32]:
    """Pipetting: how strongly each channel is stained in the well, [4]."""
    rng = keyed_generator(seed, Purpose.SAMPLE, Stream.WELL, shot.plate, shot.well_number)
    return np.exp(rng.normal(0.0, 0.08, len(CHANNELS))).astype(np.float32)


@lru_cache(maxsize=64)
def _optics(seed: int, plate: int, size: int) -> Optics:
    return plate_optics(seed, plate, size)


def _check_numbers(images: int, size: int, seed: int, workers: int) -> None:
    if images < MIN_IMAGES:
        raise OpenfinoError(
            f"images={images}: a sample needs at least {MIN_IMAGES} images to fill its splits"
        )
    if size < MIN_SIZE:
        raise OpenfinoError(
            f"size={size}: cells cannot be told apart under {MIN_SIZE} pixels; give at least that"
        )
    if seed < 0:
        raise OpenfinoError(f"seed={seed}: give 0 or more")
    if workers < 1:
        raise OpenfinoError(f"workers={workers}: give 1 or more")


def _prepare_folder(out: Path, *, masks: bool, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OpenfinoError(f"{out} is a file; name a folder for the sample")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise OpenfinoError(
                f"{out} is not empty; name another folder or ask to overwrite the sample in it"
            )
        # Only what a sample consists of: a folder named by mistake loses nothing else.
        for folder in ("images", "masks"):
            shutil.rmtree(out / folder, ignore_errors=True)
        (out / "manifest.csv").unlink(missing_ok=True)
    for folder in ("images", "masks") if masks else ("images",):
        (out / folder).mkdir(parents=True, exist_ok=True)


def _file_names(images: int, seed: int) -> tuple[str, ...]:
    """Numbered in no meaningful order: a name tells nothing about the plate."""
    order = keyed_generator(seed, Purpose.SAMPLE, Stream.MISSING, 0).permutation(images)
    return tuple(f"images/{number:05d}.tif" for number in order)


def _mask_name(image: str) -> str:
    """The mask of an image, both relative to the manifest."""
    return f"masks/{Path(image).stem}.png"


@dataclass(frozen=True)
class _Job:
    """What a process needs to draw any image of the sample."""

    out: Path
    screen: Screen
    names: tuple[str, ...]
    size: int
    masks: bool

    def write_image(self, number: int) -> None:
        image, mask = render_with_mask(self.screen, self.screen.shots[number], self.size)
        metadata = {"axes": "CYX", "channels": CHANNELS}
        path = self.out / self.names[number]
        tifffile.imwrite(path, image, photometric="minisblack", compression="zlib", metadata=metadata)
        if self.masks:
            Image.fromarray(mask).save(self.out / _mask_name(self.names[number]))


def _write_images(job: _Job, workers: int) -> Iterator[None]:
    """Write the images; yields after each."""
    numbers = range(len(job.screen.shots))
    if workers == 1:
        yield from map(job.write_image, numbers)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _join_pool, (job,)) as pool:
        yield from pool.map(_write_image, numbers, chunksize=_CHUNK)


_pool_job: _Job | None = None  # of this worker process


def _join_pool(job: _Job) -> None:
    global _pool_job
    _pool_job = job


def _write_image(number: int) -> None:
    assert _pool_job is not None
    _pool_job.write_image(number)


def _write_manifest(out: Path, screen: Screen, names: Sequence[str], *, masks: bool) -> Path:
    rng = keyed_generator(screen.seed, Purpose.SAMPLE, Stream.MISSING, 1)
    missing = rng.uniform(size=(len(screen.shots), len(INCOMPLETE_COLUMNS))) < MISSING_SHARE
    rows = []
    for shot, holes in zip(screen.shots, missing, strict=True):
        row = _manifest_row(screen, shot, names[shot.number])
        row.update({column: "" for column, hole in zip(INCOMPLETE_COLUMNS, holes, strict=True) if hole})
        if masks:
            row["mask"] = _mask_name(row["path"])
        rows.append(row)
    manifest = out / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "mask"] if masks else COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["path"]))
    return manifest


def _manifest_row(screen: Screen, shot: Shot, name: str) -> dict[str, str]:
    plate, antibody = screen.plates[shot.plate], screen.antibodies[shot.antibody]
    values = (
        name,
        antibody.name,
        LOCALIZATIONS[antibody.pattern],
        CELL_LINES[plate.cell_line].name,
        plate.name,
        shot.well,
        shot.acquired.isoformat(timespec="seconds"),
        shot.operator,
        shot.split,
    )
    return dict(zip(COLUMNS, values, strict=True))
