"""Features of a frozen backbone for the images of a manifest."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from openfino.errors import OpenfinoError
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
Image = TypeVar("Image")

TOKENS = ("cls", "mean", "patches")
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Features:
    """Features of the images that could be read, in the order in which the rows were asked for.

    Attributes:
        rows: row numbers of the manifest, int64 [n].
        cls: CLS token after the final norm, float32 [n, D].
        mean: mean of the patch tokens after the final norm, float32 [n, D].
        patches: patch tokens, row by row, float32 [n, P, D]; None unless asked for.
        unreadable: rows that were asked for and left out, because their image cannot be read, has another
            channel count than the model, or gives features that are not finite.
        causes: why, one sentence for each of ``unreadable``.
    """

    rows: Rows
    cls: NDArray[np.float32]
    mean: NDArray[np.float32]
    patches: NDArray[np.float32] | None
    unreadable: list[int]
    causes: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def side_by_side(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """CLS and mean of some rows, by their position here: the input of a linear probe [m, 2 D]."""
        return np.concatenate([self.cls[positions], self.mean[positions]], axis=1)

    def at(self, rows: Rows) -> "Features":
        """The part of these features that belongs to ``rows`` of the manifest."""
        kept = np.flatnonzero(np.isin(self.rows, rows))
        patches = self.patches[kept] if self.patches is not None else None
        return Features(self.rows[kept], self.cls[kept], self.mean[kept], patches, [], [])


def extract_features(
    model: LoadedModel,
    manifest: Manifest,
    rows: Sequence[int] | Rows,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    tokens: Sequence[str] = ("cls", "mean"),
    workers: int = 0,
    progress: Progress | None = None,
) -> Features:
    """Run the backbone over the images of ``rows``, in evaluation mode, float32 and without gradient.

    Args:
        model: its backbone is moved to ``device`` and stays there.
        manifest: the table.
        rows: row numbers, in any order.
        batch_size: images per forward pass; the result does not depend on it beyond rounding.
        device: where the backbone runs; the features come back to the CPU.
        tokens: ``cls`` and ``mean`` always come; ``patches`` when named.
        workers: threads that read images ahead; 0 reads between the forward passes.
        progress: called with (rows done, rows in all) after every batch.

    Raises:
        OpenfinoError: for an unknown token, or when not one of the images is usable.
    """
    check_tokens(tokens)
    rows = np.asarray(rows, dtype=np.int64)
    width = model.backbone.embed_dim
    cls = np.empty((len(rows), width), dtype=np.float32)
    mean = np.empty((len(rows), width), dtype=np.float32)
    patches: NDArray[np.float32] | None = None
    if "patches" in tokens:
        height, breadth = patch_grid(model)
        patches = np.empty((len(rows), height * breadth, width), dtype=np.float32)
    usable = np.empty(len(rows), dtype=np.int64)
    count = 0
    unreadable: list[int] = []
    causes: list[str] = []
    chunks = stream_features(
        model, manifest, rows, batch_size=batch_size, device=device, tokens=tokens, workers=workers
    )
    for chunk in chunks:
        stop = count + len(chunk)
        usable[count:stop], cls[count:stop], mean[count:stop] = chunk.rows, chunk.cls, chunk.mean
        if patches is not None:
            patches[count:stop] = chunk.patches
        unreadable += chunk.unreadable
        causes += chunk.causes
        count = stop
        if progress is not None:
            progress(count + len(unreadable), len(rows))
    require_usable(count, len(rows), causes)
    kept_patches = patches[:count] if patches is not None else None
    return Features(usable[:count], cls[:count], mean[:count], kept_patches, unreadable, causes)


def stream_features(
    model: LoadedModel,
    manifest: Manifest,
    rows: Rows,
    *,
    batch_size: int,
    device: torch.device | str,
    tokens: Sequence[str],
    workers: int,
) -> Iterator[Features]:
    """The features of :func:`extract_features` batch by batch, so that memory does not grow with ``rows``."""
    backbone = model.backbone.to(device)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for batch, images in read_ahead(lambda row: _read(model, manifest, row), batches, workers):
        with evaluation_mode(backbone):
            chunk = _forward(model, manifest, batch, images, device, "patches" in tokens)
        yield chunk


def patch_grid(model: LoadedModel) -> tuple[int, int]:
    """Rows and columns of patches of an image at the model's evaluation size."""
    height, width = model.preprocessing.size
    return height // model.backbone.patch_size, width // model.backbone.patch_size


def check_tokens(tokens: Sequence[str]) -> None:
    """Refuse tokens that do not exist.

    Raises:
        OpenfinoError: naming those that do.
    """
    unknown = [token for token in tokens if token not in TOKENS]
    if unknown:
        raise OpenfinoError(f"tokens: there is no {', '.join(unknown)}; there are {', '.join(TOKENS)}")


def require_usable(usable: int, asked: int, causes: Sequence[str]) -> None:
    """Refuse to go on with nothing.

    Raises:
        OpenfinoError: if images were asked for and none was usable.
    """
    if asked and not usable:
        raise OpenfinoError(f"none of the {asked} images is usable. The first one: {causes[0]}")


def _read(model: LoadedModel, manifest: Manifest, row: int) -> Tensor | str:
    """The image of ``row`` ready for the backbone [C, h, w], or why there is none."""
    try:
        return model.preprocessing.load(manifest.paths(row))
    except OpenfinoError as error:
        return f"{manifest.locate(row)}: {error}"


def read_ahead(
    read: Callable[[int], Image], batches: Sequence[Rows], workers: int
) -> Iterator[tuple[Rows, list[Image]]]:
    """Every batch with what ``read`` makes of its rows; threads read up to two batches ahead of the one in use.

    Threads, because decoding and resizing release Python's lock and tensors then need no copy between
    processes.
    """
    if workers == 0:
        for batch in batches:
            yield batch, [read(int(row)) for row in batch]
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: list[list[Future[Image]]] = []
        try:
            for number, batch in enumerate(batches):
                pending += [
                    [pool.submit(read, int(row)) for row in ahead]
                    for ahead in batches[number + len(pending) : number + 1 + BATCHES_AHEAD]
                ]
                yield batch, [future.result() for future in pending.pop(0)]
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a moment: a probe during training must leave every part of the model as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _forward(
    model: LoadedModel,
    manifest: Manifest,
    rows: Rows,
    images: list[Tensor | str],
    device: torch.device | str,
    patches: bool,
) -> Features:
    """Features of one batch."""
    read = np.array([isinstance(image, Tensor) for image in images], dtype=bool)
    causes: list[str | None] = [image if isinstance(image, str) else None for image in images]
    usable = [image for image in images if isinstance(image, Tensor)]
    cls, mean, all_patches = _tokens(model, usable, device)
    finite = np.isfinite(cls).all(axis=1) & np.isfinite(mean).all(axis=1)
    for position in np.flatnonzero(read)[~finite]:
        causes[position] = f"{manifest.locate(int(rows[position]))}: its features are not finite"
    left_out = np.array([cause is not None for cause in causes], dtype=bool)
    return Features(
        rows[~left_out],
        cls[finite],
        mean[finite],
        all_patches.float().cpu().numpy()[finite] if patches else None,
        rows[left_out].tolist(),
        [cause for cause in causes if cause is not None],
    )


@torch.inference_mode()
def _tokens(
    model: LoadedModel, images: list[Tensor], device: torch.device | str
) -> tuple[NDArray[np.float32], NDArray[np.float32], Tensor]:
    """CLS [n, D] and mean patch [n, D] on the CPU, and the patches [n, P, D] on ``device``."""
    if not images:  # attention does not take an empty batch
        height, width = patch_grid(model)
        empty = np.zeros((0, model.backbone.embed_dim), dtype=np.float32)
        return empty, empty, torch.zeros(0, height * width, model.backbone.embed_dim)
    with torch.autocast(torch.device(device).type, enabled=False):
        tokens = model.backbone(torch.stack(images).to(device))
        mean = tokens.patches.float().mean(dim=1)
    return tokens.cls.float().cpu().numpy(), mean.cpu().numpy(), tokens.patches
