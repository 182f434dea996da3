"""Batches of views: one item of the stream is one rank's whole batch of one step (DESIGN decisions 8 and 9).

Workers decode each image once, cut all its crops, draw its photometric parameters and its masks. Everything
is keyed by (seed, epoch, row) or (seed, step, slot), so batches do not depend on the number of workers, the
step a run starts from, or the number of ranks.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openfino.errors import OpenfinoError
from openfino.images.crops import as_source, cut, sample_crop_box, sample_turn
from openfino.images.masks import block_mask, mask_plan
from openfino.images.normalize import channel_statistics, normalize
from openfino.images.order import in_runs
from openfino.images.photometric import CropKind, apply_photometric, draw_parameters
from openfino.images.preprocess import require_channels
from openfino.images.read import ImageReadError, read_image
from openfino.keyed import Purpose, keyed_generator
from openfino.recipe import GramSettings, IbotSettings, ImageSettings, Normalization, ViewSettings

if TYPE_CHECKING:
    from openfino.manifest import Manifest

_ATTEMPTS = 10
_PREFETCH = 2


@dataclass
class ViewBatch:
    """The views of one rank's images in one step.

    Attributes:
        step: the step of the run.
        rows: manifest rows really used, int64 [B].
        global_crops: [2, B, C, Hg, Wg], uint8 or float32 in [0, 1].
        local_crops: [N, B, C, Hl, Wl], of the same type.
        masks: bool [2, B, P], True = masked patch of a global crop, row-major.
        photometric: ``global`` and ``local``: parameter name -> [2 or N, B] or [2 or N, B, C] float32.
        unreadable: rows that were due but could not be read; others took their places.
        gram_crops: the regions of the global crops, turned alike, for the Gram teacher [2, B, C, H, W]; None at
            steps at which it sees the global crops themselves, or nothing.
    """

    step: int
    rows: Tensor
    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    photometric: dict[str, dict[str, Tensor]]
    unreadable: list[int]
    gram_crops: Tensor | None = None

    def to(self, device: torch.device | str) -> "ViewBatch":
        """The batch on ``device`` (asynchronously if pinned); ``rows`` index host tables and stay."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ViewBatch":
        """The batch in page-locked memory, ``rows`` excepted."""
        return self._map(lambda tensor: tensor.pin_memory())

    def slice(self, start: int, stop: int) -> "ViewBatch":
        """Images ``start`` to ``stop`` of the batch, without copying; ``unreadable`` goes with the first."""
        part = self._map(lambda tensor: tensor[:, start:stop])
        return replace(part, rows=self.rows[start:stop], unreadable=self.unreadable if start == 0 else [])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ViewBatch":
        photometric = {
            kind: {name: change(values) for name, values in parameters.items()}
            for kind, parameters in self.photometric.items()
        }
        return replace(
            self,
            global_crops=change(self.global_crops),
            local_crops=change(self.local_crops),
            masks=change(self.masks),
            photometric=photometric,
            gram_crops=None if self.gram_crops is None else change(self.gram_crops),
        )


def finish_views(
    batch: ViewBatch, views: ViewSettings, normalization: Normalization
) -> tuple[Tensor, Tensor]:
    """Turn a batch into what the model sees: float, photometric operations, normalised; on its device.

    Returns:
        global crops [2, B, C, Hg, Wg] and local crops [N, B, C, Hl, Wl], float32.

    Raises:
        OpenfinoError: if the normalisation has another number of channels.
    """
    finished = []
    for kind, crops in (("global", batch.global_crops), ("local", batch.local_crops)):
        changed = apply_photometric(crops, batch.photometric[kind], views.preset)
        finished.append(normalize(changed, normalization))
    return finished[0], finished[1]


def finish_gram_views(batch: ViewBatch, normalization: Normalization) -> Tensor | None:
    """The Gram teacher's crops, float32 and normalised but not distorted [2, B, C, H, W]; None where there are none."""
    crops = batch.gram_crops
    if crops is None:
        return None
    return normalize(crops.float().div_(255) if crops.dtype == torch.uint8 else crops, normalization)


def build_loader(
    manifest: "Manifest",
    rows: np.ndarray,
    *,
    images: ImageSettings,
    views: ViewSettings,
    ibot: IbotSettings,
    channels: Sequence[str],
    patch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    gram: GramSettings | None = None,
    runs: tuple[np.ndarray, int] | None = None,
) -> "ViewLoader":
    """The batches of steps ``start_step`` to ``stop_step`` of an endless, shuffled stream of images.

    Position p = step * batch_size + slot; epoch = p // n; the row is the (p mod n)-th of a permutation keyed
    by (seed, epoch). Rank r owns the r-th contiguous part of the slots.

    Args:
        manifest: where the images are.
        rows: the manifest rows that train, int [n].
        images: for the normalisation, whose channels are checked.
        views: crops and photometric operations.
        ibot: the share of crops and patches to mask.
        channels: names of the C channels; an image with another number counts as unreadable.
        patch_size: of the backbone, in pixels.
        seed: of the run.
        start_step: first step.
        stop_step: one past the last step.
        batch_size: images per step over all ranks.
        rank: of this process.
        world_size: number of processes.
        workers: processes that make batches; 0 makes them in this process.
        pin_memory: page-lock the batches, for a GPU.
        gram: whether, when and how large to cut crops for a Gram teacher; no other draw depends on it.
        runs: the group of every training row, int64 [n], and how many images of one group come one after the other
            (:func:`openfino.images.order.in_runs`); plainly shuffled when not given.

    Raises:
        OpenfinoError: if there is no row, the batch cannot be shared among the ranks, the global crop is no
            multiple of the patch, the protein channel is unknown, or the normalisation is for other channels.
    """
    _check_sizes(len(rows), views, patch_size, batch_size, world_size)
    channel_statistics(images.normalization, len(channels))
    dataset = _StepDataset(
        paths=_PathTable(manifest, rows),
        rows=torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
        views=views,
        ibot=ibot,
        gram=gram or GramSettings(),
        channels=tuple(channels),
        protein=_protein_index(views, channels),
        grid=(views.global_size[0] // patch_size, views.global_size[1] // patch_size),
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        runs=runs,
    )
    return ViewLoader(dataset, range(start_step, stop_step), workers, pin_memory)


def _protein_index(views: ViewSettings, channels: Sequence[str]) -> int | None:
    if views.protein_channel is None:
        return None
    if views.protein_channel not in channels:
        raise OpenfinoError(
            f"views.protein_channel: there is no channel {views.protein_channel!r}. "
            f"The channels are {', '.join(channels)}"
        )
    return list(channels).index(views.protein_channel)


def _check_sizes(rows: int, views: ViewSettings, patch_size: int, batch_size: int, world_size: int) -> None:
    if rows == 0:
        raise OpenfinoError("there is no image to train on: no row of the manifest is in the training split")
    if batch_size % world_size:
        raise OpenfinoError(
            f"train.batch_size: {batch_size} images cannot be shared equally among {world_size} processes"
        )
    if views.global_size[0] % patch_size or views.global_size[1] % patch_size:
        height, width = (max(1, round(side / patch_size)) * patch_size for side in views.global_size)
        raise OpenfinoError(
            f"views.global_size: {list(views.global_size)} is no multiple of the patch size {patch_size}. "
            f"Write [{height}, {width}]"
        )


class ViewLoader:
    """The batches of a range of steps, made ahead by worker processes; iterate once or again."""

    def __init__(self, dataset: "_StepDataset", steps: range, workers: int, pin_memory: bool) -> None:
        self._steps = steps
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context=_process_context() if workers else None,
            worker_init_fn=_follow_parent if workers else None,
            pin_memory=pin_memory,
            # Without its own it would advance the global stream.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[ViewBatch]:
        batches = iter(self._loader)
        try:
            for _ in self._steps:
                batch = _next_batch(batches) if self._loader.num_workers else next(batches)
                if isinstance(batch, OpenfinoError):
                    raise OpenfinoError(str(batch))
                yield batch
        finally:
            # This ends the workers. Left to the garbage collector it would take them seconds.
            del batches


def _next_batch(batches: Iterator[Any]) -> Any:
    """The next batch from a worker; a worker that died is reported as such."""
    try:
        return next(batches)
    except (RuntimeError, EOFError, OSError) as error:
        # Death shows as a RuntimeError, or as a broken connection while a batch is sent. An error that a worker
        # caught and passed on is none. The traceback would keep the other workers alive; the worker's own one is
        # in the message.
        error.with_traceback(None)
        if str(error).startswith("Caught "):
            raise error
        raise OpenfinoError(
            f"a process that reads images died ({type(error).__name__}: {error}). Usually memory or shared "
            "memory ran out: lower train.workers or train.batch_size, or give the container more shared memory"
        ) from error


def _as_it_is(item: Any) -> Any:
    return item


def _process_context() -> Any:
    """How workers start.

    Never by forking this process: it has threads (PyTorch's, polars') whose locks a fork copies in whatever
    state they are. A fork server, started fresh, imports PyTorch once for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _follow_parent(_worker: int) -> None:
    """End this worker when the run's process is gone, even killed: PyTorch watches the fork server instead."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers call this

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _PathTable:
    """The image paths of the training rows as two tensors per column, which workers share, not copy."""

    def __init__(self, manifest: "Manifest", rows: np.ndarray) -> None:
        # Not at the top: importing polars starts threads, and the fork server imports this module.
        from polars import CompatLevel

        self._root = manifest.root
        self._columns: list[tuple[Tensor, Tensor]] = []
        for column in manifest.path_columns:
            texts = manifest.table[column].gather(rows)
            if texts.null_count():
                manifest.paths(int(rows[int(texts.is_null().arg_max() or 0)]))  # says which row has no path
            arrow = texts.rechunk().to_arrow(compat_level=CompatLevel.oldest())
            _, ends, text = arrow.buffers()
            bounds = np.frombuffer(ends, dtype=np.int64)[arrow.offset : arrow.offset + len(arrow) + 1]
            letters = np.frombuffer(text, dtype=np.uint8)
            self._columns.append((torch.from_numpy(letters.copy()), torch.from_numpy(bounds.copy())))

    def __getitem__(self, index: int) -> tuple[Path, ...]:
        paths = []
        for letters, bounds in self._columns:
            start, stop = bounds[index : index + 2].tolist()
            paths.append(self._root / letters[start:stop].numpy().tobytes().decode())
        return tuple(paths)


@dataclass
class _ImageViews:
    """The views of one image."""

    row: int
    global_crops: list[Tensor]
    local_crops: list[Tensor]
    global_parameters: list[dict[str, np.ndarray]]
    local_parameters: list[dict[str, np.ndarray]]
    gram_crops: list[Tensor]


@dataclass
class _StepDataset(Dataset[Any]):
    """Item ``step`` is this rank's batch of that step, or the error that makes it impossible."""

    paths: _PathTable
    rows: Tensor
    views: ViewSettings
    ibot: IbotSettings
    gram: GramSettings
    channels: tuple[str, ...]
    protein: int | None
    grid: tuple[int, int]
    seed: int
    batch_size: int
    rank: int
    world_size: int
    runs: tuple[np.ndarray, int] | None = None

    def __post_init__(self) -> None:
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> ViewBatch | OpenfinoError:
        # An exception would reach the user wrapped in the worker's traceback.
        try:
            return self._batch(step)
        except OpenfinoError as error:
            return OpenfinoError(str(error))

    def _batch(self, step: int) -> ViewBatch:
        local = self.batch_size // self.world_size
        slots = range(self.rank * local, (self.rank + 1) * local)
        made: list[_ImageViews] = []
        unreadable: list[int] = []
        gram_size = self.gram.crop_size if self.gram.weight_at(step) > 0 else None
        for slot in slots:
            epoch, place = divmod(step * self.batch_size + slot, len(self.rows))
            index = int(self._order(epoch)[place])
            made.append(self._image_views(epoch, index, gram_size, unreadable))
        rows = torch.tensor([image.row for image in made], dtype=torch.int64)
        globals_, locals_ = [image.global_crops for image in made], [image.local_crops for image in made]
        grams = [image.gram_crops for image in made]
        return ViewBatch(
            step=step,
            rows=rows,
            global_crops=_stack_crops(globals_, (len(self.channels), *self.views.global_size)),
            local_crops=_stack_crops(locals_, (len(self.channels), *self.views.local_size)),
            masks=self._masks(step, slots),
            photometric={
                "global": _stack_parameters([image.global_parameters for image in made]),
                "local": _stack_parameters([image.local_parameters for image in made]),
            },
            unreadable=unreadable,
            gram_crops=_stack_crops(grams, (len(self.channels), *gram_size)) if gram_size else None,
        )

    def _order(self, epoch: int) -> np.ndarray:
        """Training rows' places in the order of an epoch; the last two epochs are kept."""
        if epoch not in self._orders:
            if len(self._orders) == 2:
                del self._orders[min(self._orders)]
            rng = keyed_generator(self.seed, Purpose.ORDER, epoch)
            order = rng.permutation(len(self.rows))
            self._orders[epoch] = order if self.runs is None else in_runs(order, *self.runs, rng)
        return self._orders[epoch]

    def _image_views(
        self, epoch: int, index: int, gram_size: Sequence[int] | None, unreadable: list[int]
    ) -> _ImageViews:
        """Views of training row number ``index``, or of a replacement when it cannot be read."""
        first = int(self.rows[index])
        causes: list[str] = []
        for attempt in range(_ATTEMPTS + 1):
            row = int(self.rows[index])
            try:
                image = read_image(self.paths[index])
                require_channels(image.shape[0], len(self.channels), self.paths[index])
                return self._cut(image, epoch, row, gram_size)
            except ImageReadError as error:
                causes.append(str(error))
                unreadable.append(row)
            rng = keyed_generator(self.seed, Purpose.REPLACEMENT, epoch, first, attempt)
            index = int(rng.integers(len(self.rows)))
        listed = "\n  ".join(dict.fromkeys(causes))
        raise OpenfinoError(
            f"row {first} and the {_ATTEMPTS} rows drawn in its place cannot be read:\n  {listed}\n"
            "Check the manifest's images with 'openfino check'"
        )

    def _cut(self, image: np.ndarray, epoch: int, row: int, gram_size: Sequence[int] | None) -> _ImageViews:
        source = as_source(image)
        geometry = keyed_generator(self.seed, Purpose.CROPS, epoch, row)
        photometric = keyed_generator(self.seed, Purpose.PHOTOMETRIC, epoch, row)
        views = self.views
        crops, parameters, grams = [], [], []
        for number in range(2 + views.local_count):
            is_local = number >= 2
            kind: CropKind = "local" if is_local else ("global_1", "global_2")[number]
            size = views.local_size if is_local else views.global_size
            scale = views.local_scale if is_local else views.global_scale
            turn = sample_turn(geometry, views.preset)
            # ``aspect`` is the distortion: relative to the shape of the crop as it lies in the image.
            shape = size[1] / size[0] if turn.quarter_turns % 2 == 0 else size[0] / size[1]
            aspect = (views.aspect[0] * shape, views.aspect[1] * shape)
            box = sample_crop_box(geometry, source.shape[1], source.shape[2], scale, aspect)
            crops.append(cut(source, box, size, *turn))
            if gram_size is not None and not is_local:
                grams.append(cut(source, box, gram_size, *turn))
            parameters.append(
                draw_parameters(
                    photometric, views.preset, kind, self.channels, self.protein, views.blur_sigma
                )
            )
        return _ImageViews(row, crops[:2], crops[2:], parameters[:2], parameters[2:], grams)

    def _masks(self, step: int, slots: range) -> Tensor:
        patches = self.grid[0] * self.grid[1]
        plan = mask_plan(
            self.seed, step, 2 * self.batch_size, patches, self.ibot.mask_fraction, self.ibot.mask_ratio
        )
        masks = np.zeros((2, len(slots), patches), dtype=bool)
        for view in range(2):
            for place, slot in enumerate(slots):
                number = view * self.batch_size + slot
                if plan[number]:
                    rng = keyed_generator(self.seed, Purpose.MASK, step, number)
                    masks[view, place] = block_mask(rng, self.grid, int(plan[number])).ravel()
        return torch.from_numpy(masks)


def _stack_crops(crops: Sequence[Sequence[Tensor]], shape: tuple[int, ...]) -> Tensor:
    """B lists of V crops of one shape -> [V, B, *shape]; 8-bit crops become float32 beside float ones."""
    is_float = any(crop.is_floating_point() for image in crops for crop in image)
    stacked = torch.empty(len(crops[0]), len(crops), *shape, dtype=torch.float32 if is_float else torch.uint8)
    for place, image in enumerate(crops):
        for view, crop in enumerate(image):
            stacked[view, place] = crop.float().div_(255) if is_float and crop.dtype == torch.uint8 else crop
    return stacked


def _stack_parameters(parameters: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, Tensor]:
    """B lists of V dictionaries -> name -> [V, B, ...]; no crops have no parameters."""
    names = parameters[0][0] if parameters[0] else ()
    return {
        name: torch.from_numpy(
            np.stack([[crop[name] for crop in image] for image in parameters], axis=1, dtype=np.float32)
        )
        for name in names
    }
