"""Features of a frozen backbone, computed once and kept on a disk, in chunks that need not fit into memory together.

``FOLDER/KEY/``: the key is the hash of everything that the numbers depend on but the images (weights, configuration,
preprocessing, layers, windows, precision). Images are known by path, size and time of change, so one that changes is
computed again. A folder may be deleted whenever nobody uses it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openfino.evaluation.cachefolder import (
    Present,
    fill,
    image_stamps,
    keyed_folder,
    planned_chunks,
    present_chunks,
)
from openfino.evaluation.chunks import Chunk, ChunkWriter, Dtype, Layout, part_file, read_slots
from openfino.evaluation.extraction import TapOptions, extract_taps
from openfino.evaluation.features import Progress, require_usable
from openfino.evaluation.sources import Part, Rows
from openfino.evaluation.taps import LAYERS, tap_layers
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel

AT_ONCE = 4096
"""Rows of CLS that are read at once."""


@dataclass(frozen=True)
class CachedFeatures:
    """A :class:`openfino.evaluation.sources.FeatureSource` on a disk; only what is taken is read.

    Attributes:
        rows: row numbers of the manifest whose images gave features, in the order asked for, int64 [n].
        layers: L.
        layout: what is kept of each image.
        stems: what the files of each chunk begin with.
        chunk_of: index into ``stems`` of each position, int64 [n].
        slot_of: slot in that chunk of each position, int64 [n].
        unreadable: rows that were asked for and left out: no readable image, another channel count than the model,
            or features that are not finite.
        causes: why, one sentence for each of ``unreadable``.
        computed: images that this call read; the others were there, or another process read them.
    """

    rows: Rows
    layers: int
    layout: Layout
    stems: list[Path]
    chunk_of: NDArray[np.int64]
    slot_of: NDArray[np.int64]
    unreadable: list[int] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    computed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Sequence[int] | Rows, part: Part) -> Tensor:
        """See :meth:`openfino.evaluation.sources.FeatureSource.take`.

        Raises:
            ValueError: if ``part`` is ``patches`` and they were not asked for.
        """
        if part not in self.layout.shapes:
            raise ValueError("these features hold no patch tokens")
        shape = self.layout.shapes[part]
        return torch.from_numpy(self._gather(np.asarray(positions, dtype=np.int64), part, shape))

    def cls(self) -> NDArray[np.float32]:
        """See :meth:`openfino.evaluation.sources.FeatureSource.cls`."""
        width = self.layout.shapes["linear"][0] // (self.layers + 1)
        found = np.empty((len(self), width), dtype=np.float32)
        for start in range(0, len(self), AT_ONCE):
            positions = np.arange(start, min(start + AT_ONCE, len(self)))
            found[positions] = self._gather(positions, "linear", (width,), first=(self.layers - 1) * width)
        return found

    def _gather(
        self, positions: Rows, part: Part, shape: tuple[int, ...], first: int = 0
    ) -> NDArray[np.float32]:
        """``shape`` of the numbers of each slot, from number ``first`` on, [m, *shape]."""
        gathered = np.empty((len(positions), *shape), dtype=np.float32)
        rows = np.empty(gathered.shape, dtype=self.layout.dtype)
        numbers = int(np.prod(self.layout.shapes[part]))
        chunk_of, slot_of = self.chunk_of[positions], self.slot_of[positions]
        order = np.lexsort((slot_of, chunk_of))  # each file once, from front to back
        edges = np.flatnonzero(np.diff(chunk_of[order], prepend=-1, append=-1))
        for begin, end in itertools.pairwise(edges.tolist()):
            some = order[begin:end]
            file = part_file(self.stems[int(chunk_of[some[0]])], part)
            read_slots(file, slot_of[some].tolist(), rows[begin:end], numbers=numbers, first=first)
        gathered[order] = rows
        return gathered


def cached_features(
    model: LoadedModel,
    manifest: Manifest,
    rows: Sequence[int] | Rows,
    *,
    folder: Path,
    patches: bool,
    layers: int = LAYERS,
    windows: int | None = None,
    dtype: Dtype = "float16",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Progress | None = None,
) -> CachedFeatures:
    """The features of ``rows``; only those that are not in ``folder`` yet are computed.

    A process that is killed loses the chunk that it was at (64 MB or 1,024 images). Several processes, also of several
    machines, may ask at once: they share the work. Memory grows with ``rows`` by some hundred bytes each.

    Args:
        model: its backbone is moved to ``device`` if anything is to be computed.
        manifest: the table.
        rows: row numbers, in any order.
        folder: of the cache, for any number of models and manifests.
        patches: whether patch tokens are needed, which take hundreds of times the room.
        layers: how many of the last blocks, at most (:func:`openfino.evaluation.taps.tap_layers`).
        windows: an image larger than the model's evaluation size is read as overlapping windows at its own scale, at
            most this many per side (:mod:`openfino.evaluation.windows`). CLS and mean patch token are averaged over
            them, patch tokens stitched to a map with the grid of one window. None resizes the whole image.
        dtype: of the stored numbers. What is taken is float32 either way.
        batch_size: images per forward pass; windows count as images.
        device: where the backbone runs.
        workers: threads that read images ahead.
        progress: called with (rows done, rows in all).

    Raises:
        OpenfinoError: if not one of the images is usable, the disk has too little room, or ``folder`` is on a file
            system without locks.
    """
    asked = np.asarray(rows, dtype=np.int64)
    options = TapOptions(tap_layers(model.backbone, layers), patches, windows or 1, dtype)
    layout, place = options.layout(model), keyed_folder(folder, model, options)
    stamps = image_stamps(manifest, asked)
    row_of = {stamp: int(row) for stamp, row in zip(stamps, asked, strict=True) if stamp is not None}
    present = present_chunks(place, layout)
    missing = [stamp for stamp in row_of if stamp not in present.places]
    computed, left = 0, len(missing)

    def tell(ready: int) -> None:
        if progress is not None:
            progress(len(asked) - left + ready, len(asked))

    def compute(chunk: Chunk) -> Chunk:
        nonlocal computed
        own = np.array([row_of[stamp] for stamp in chunk.stamps], dtype=np.int64)
        with ChunkWriter(chunk) as writer:
            for batch in extract_taps(
                model, manifest, own, options, batch_size=batch_size, device=device, workers=workers
            ):
                writer.write(batch.parts, batch.causes)
                computed += len(batch.causes)
                tell(writer.written)
            return writer.finish()

    tell(0)
    for chunk in fill(planned_chunks(place, missing, layout), compute):
        present.add(chunk)
        left -= len(chunk.stamps)
        tell(0)
    return _found(manifest, asked, stamps, present, options, layout, computed)


def _found(
    manifest: Manifest,
    asked: Rows,
    stamps: Sequence[str | None],
    present: Present,
    options: TapOptions,
    layout: Layout,
    computed: int,
) -> CachedFeatures:
    """The features of the rows that have some, and the causes of the others."""
    places: list[tuple[int, int]] = []
    usable, unreadable, causes = [], [], []
    for row, stamp in zip(asked.tolist(), stamps, strict=True):
        place, cause = (-1, -1), "there is no path"
        if stamp is not None:
            place = present.places[stamp]
            cause = present.chunks[place[0]].causes.get(place[1], "")
        if cause:
            unreadable.append(row)
            causes.append(f"{manifest.locate(row)}: {cause}")
        else:
            usable.append(row)
            places.append(place)
    require_usable(len(usable), len(asked), causes)
    chunk_of, slot_of = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return CachedFeatures(
        np.array(usable, dtype=np.int64),
        options.layers,
        layout,
        [chunk.stem for chunk in present.chunks],
        chunk_of,
        slot_of,
        unreadable,
        causes,
        computed,
    )
