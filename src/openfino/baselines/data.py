"""Domains, batches of augmented training images, and whole validation images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.evaluation.splits import Rows, encode_column
from openfino.images.loader import ViewBatch, ViewLoader, build_loader, finish_views
from openfino.images.preprocess import Preprocessing
from openfino.manifest import Manifest
from openfino.recipe import Recipe

KEPT_BYTES = 1 << 28  # validation images are read once if they fit into so much memory


@dataclass(frozen=True)
class Domains:
    """The domain of every row of the manifest.

    Attributes:
        codes: int64 [rows of the manifest]; numbers from 0 for the domains of the training rows, -1 for a missing value
            and for a domain that does not train.
        count: G.
        column: that names it; None without domains.
    """

    codes: NDArray[np.int64]
    count: int
    column: str | None = None

    @classmethod
    def none(cls, rows: int) -> "Domains":
        """For methods that know of no domain."""
        return cls(np.full(rows, -1, dtype=np.int64), 0)

    @classmethod
    def of(cls, table: pl.DataFrame, column: str, train_rows: Rows) -> "Domains":
        """The domains of a column.

        Raises:
            OpenfinoError: for a column of lists or structures.
        """
        codes = encode_column(table[column])
        trained = np.unique(codes[train_rows])
        trained = trained[trained >= 0]
        place = np.searchsorted(trained, codes)
        known = np.isin(codes, trained)
        return cls(np.where(known, place, -1).astype(np.int64), len(trained), column)


def training_batches(
    recipe: Recipe,
    manifest: Manifest,
    rows: Rows,
    *,
    channels: list[str],
    patch_size: int,
    seed: int,
    steps: int,
    batch_size: int,
    pin_memory: bool = False,
    runs: tuple[NDArray[np.int64], int] | None = None,
) -> ViewLoader:
    """Batches of ``steps`` steps; :func:`finish_images` makes of each one crop per image."""
    return build_loader(
        manifest,
        rows,
        images=recipe.images,
        views=recipe.views.model_copy(update={"local_count": 0}),
        ibot=recipe.objective.ibot.model_copy(update={"mask_fraction": 0.0}),
        channels=channels,
        patch_size=patch_size,
        seed=seed,
        start_step=0,
        stop_step=steps,
        batch_size=batch_size,
        workers=recipe.train.workers,
        pin_memory=pin_memory,
        runs=runs,
    )


def finish_images(batch: ViewBatch, recipe: Recipe, device: torch.device) -> Tensor:
    """One crop of every image, distorted and normalised, float32 [B, C, H, W] on ``device``.

    It is the second of the global crops of self-supervised training: the first is always blurred, the second one time
    in ten, and validation images never are.
    """
    parameters: dict[str, Any] = {name: value[1:] for name, value in batch.photometric["global"].items()}
    one = replace(
        batch,
        global_crops=batch.global_crops[1:],
        photometric={"global": parameters, "local": batch.photometric["local"]},
    )
    return finish_views(one.to(device), recipe.views, recipe.images.normalization)[0][0]


class WholeImages:
    """Images as they are evaluated: whole, resized, normalised, in batches; kept in memory where they fit.

    Attributes:
        unreadable: rows that could not be read so far, and why.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: Rows,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        workers: int = 0,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.workers = workers
        self.unreadable: dict[int, str] = {}
        self._batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        height, width = preprocessing.size
        self._keeps = len(rows) * len(preprocessing.channels) * height * width * 4 <= kept_bytes
        self._kept: list[tuple[Rows, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Rows, Tensor]]:
        """Rows [m] and their pixels float32 [m, C, H, W]; a batch of which nothing can be read is left out."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        with ThreadPoolExecutor(max(self.workers, 1)) as pool:
            for rows in self._batches:
                images = list(pool.map(self._read, rows) if self.workers else map(self._read, rows))
                usable = [image for image in images if image is not None]
                if not usable:
                    continue
                read = rows[[image is not None for image in images]], torch.stack(usable)
                if self._keeps:
                    kept.append(read)
                yield read
        if self._keeps:
            self._kept = kept

    def _read(self, row: int) -> Tensor | None:
        try:
            return self.preprocessing.load(self.manifest.paths(int(row)))
        except OpenfinoError as error:
            self.unreadable[int(row)] = f"{self.manifest.locate(int(row))}: {error}"
            return None
