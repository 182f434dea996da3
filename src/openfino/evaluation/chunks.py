"""Chunks of a feature cache: files of the features of some images, which appear whole or not at all.

``NAME.linear.npy`` and ``NAME.patches.npy`` hold a slot for every image, also for one that gave no features;
``NAME.json``, written last, says which images and why not.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openfino.errors import OpenfinoError
from openfino.evaluation.sources import Part

Dtype = Literal["float16", "float32"]
Matrix = NDArray[Any]
_HEADER_LENGTH_AT = 8  # in a .npy file of version 1.0: two bytes, little endian; the header follows


@dataclass(frozen=True)
class Layout:
    """What the features of one image look like.

    Attributes:
        shapes: shape of each part that is kept.
        dtype: of the stored numbers.
    """

    shapes: Mapping[Part, tuple[int, ...]]
    dtype: Dtype

    @property
    def image_bytes(self) -> int:
        """What one image takes."""
        numbers = sum(int(np.prod(shape)) for shape in self.shapes.values())
        return numbers * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Chunk:
    """Some images and where their features are, or will be.

    Attributes:
        folder: of the cache.
        stamps: what each image is known by (:func:`openfino.evaluation.cache.image_stamp`), one per slot.
        layout: what is kept of each.
        causes: slot -> why its image gave no features.
    """

    folder: Path
    stamps: Sequence[str]
    layout: Layout
    causes: Mapping[int, str]

    @cached_property
    def stem(self) -> Path:
        """What its files begin with. Processes that plan the same work name it alike: by images and parts."""
        parts = " ".join(self.layout.shapes)
        return self.folder / hashlib.sha256(" ".join([parts, *self.stamps]).encode()).hexdigest()[:24]


def part_file(stem: Path, part: Part) -> Path:
    """Where a part of the features of a chunk lies."""
    return stem.with_name(f"{stem.name}.{part}.npy")


def read_slots(file: Path, slots: Sequence[int], into: Matrix, *, numbers: int, first: int = 0) -> None:
    """Fill ``into`` with the numbers of some slots.

    By seeking and not by a memory map: a batch is drawn from all over a cache, opening a file takes a seventh of the
    time that mapping it does, and no pages are left behind that count as memory of the process.

    Args:
        file: of one part of a chunk.
        slots: which.
        into: [m, ...] of the stored dtype, contiguous; a slot may have more numbers than fit into a row of it.
        numbers: how many a slot has.
        first: the first of them that is read.

    Raises:
        OpenfinoError: if the file ends too early.
    """
    with file.open("rb", buffering=0) as opened:
        opened.seek(_HEADER_LENGTH_AT)
        length = int.from_bytes(opened.read(2), "little")
        start = _HEADER_LENGTH_AT + 2 + length + first * into.itemsize
        for slot, row in zip(slots, into, strict=True):
            opened.seek(start + slot * numbers * into.itemsize)
            if opened.readinto(row.data) != row.nbytes:
                raise OpenfinoError(f"{file} is cut short: delete it, and its features are computed again")


def about_file(stem: Path) -> Path:
    """What says which images a chunk holds; it is there when the chunk is whole."""
    return stem.with_name(f"{stem.name}.json")


class ChunkWriter:
    """Writes the slots of a chunk in their order; nothing is there before :meth:`finish`.

    The caller holds the lock of the chunk, so what an earlier process left half written is overwritten.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.causes: dict[int, str] = {}
        self.written = 0
        self._files = {part: _partial(part_file(chunk.stem, part)).open("wb") for part in chunk.layout.shapes}
        for part, shape in chunk.layout.shapes.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(chunk.layout.dtype)),
                "fortran_order": False,
                "shape": (len(chunk.stamps), *shape),
            }
            np.lib.format.write_array_header_1_0(self._files[part], header)

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk says so once more
                file.close()
        if isinstance(error, OSError):
            raise OpenfinoError(f"{self.chunk.folder} cannot be written: {error.strerror or error}") from None

    def write(self, parts: Mapping[Part, Matrix], causes: Iterable[str | None]) -> None:
        """The next slots: each part [m, ...], and for each of them why there are no features, if so."""
        for slot, cause in enumerate(causes, start=self.written):
            self.written = slot + 1
            if cause is not None:
                self.causes[slot] = cause
        for part, file in self._files.items():
            file.write(np.ascontiguousarray(parts[part], dtype=self.chunk.layout.dtype).data)

    def finish(self) -> Chunk:
        """Put everything in its place; returns the chunk with its causes."""
        chunk = self.chunk
        for part, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            os.replace(_partial(part_file(chunk.stem, part)), part_file(chunk.stem, part))
        about = {
            "stamps": list(chunk.stamps),
            "shapes": chunk.layout.shapes,
            "dtype": chunk.layout.dtype,
            "causes": self.causes,
        }
        write_atomically(about_file(chunk.stem), json.dumps(about))
        return Chunk(chunk.folder, chunk.stamps, chunk.layout, self.causes)


def complete_chunk(file: Path) -> Chunk | None:
    """The chunk that ``NAME.json`` describes; None if it is not whole: absent, or its files have other sizes."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        layout = Layout({part: tuple(shape) for part, shape in about["shapes"].items()}, about["dtype"])
        causes = {int(slot): cause for slot, cause in about["causes"].items()}
        chunk = Chunk(file.parent, about["stamps"], layout, causes)
        for part, shape in layout.shapes.items():
            stored = np.load(
                part_file(file.with_suffix(""), part), mmap_mode="r"
            )  # the header; no number is read
            if stored.shape != (len(chunk.stamps), *shape):
                return None
    except (OSError, ValueError, KeyError):
        return None  # ValueError: a file is shorter than its header says
    return chunk


def write_atomically(path: Path, text: str) -> None:
    """Write so that a kill leaves the old file or the new one, and several processes do not disturb each other."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
