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


def read_part(stem: Path, part: Part) -> Matrix:
    """A part of the features of every slot of a chunk, memory-mapped, [slots, ...]."""
    mapped: Matrix = np.load(part_file(stem, part), mmap_mode="r")
    return mapped


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
            if read_part(file.with_suffix(""), part).shape != (len(chunk.stamps), *shape):
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
