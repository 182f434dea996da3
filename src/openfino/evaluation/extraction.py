"""From images to what a feature cache keeps of them, batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.evaluation.chunks import Dtype, Layout, Matrix
from openfino.evaluation.features import evaluation_mode, patch_grid, read_ahead
from openfino.evaluation.sources import Part, Rows
from openfino.evaluation.taps import tapped_tokens
from openfino.evaluation.windows import Windows, load_windows, stitch
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel


@dataclass(frozen=True)
class TapOptions:
    """What is taken from an image.

    Attributes:
        layers: L, how many blocks really (:func:`openfino.evaluation.taps.tap_layers`).
        patches: whether the patch tokens are kept.
        windows: per side, at most; 1 is the whole image.
        dtype: of what is kept.
    """

    layers: int
    patches: bool
    windows: int
    dtype: Dtype

    def layout(self, model: LoadedModel) -> Layout:
        """What one image gives."""
        width = model.backbone.embed_dim
        height, breadth = patch_grid(model)
        shapes: dict[Part, tuple[int, ...]] = {"linear": (self.layers * width + width,)}
        if self.patches:
            shapes["patches"] = (height * breadth, self.layers * width)
        return Layout(shapes, self.dtype)


@dataclass(frozen=True)
class Extraction:
    """The features of a batch.

    Attributes:
        parts: [m, ...] each; zeros for an image that gave none.
        causes: why it gave none, for each image; None where it gave some.
    """

    parts: dict[Part, Matrix]
    causes: list[str | None]


def extract_taps(
    model: LoadedModel,
    manifest: Manifest,
    rows: Rows,
    options: TapOptions,
    *,
    batch_size: int,
    device: torch.device | str,
    workers: int,
) -> Iterator[Extraction]:
    """The features of all ``rows`` in their order, in evaluation mode, computed in float32 and without gradient.

    Args:
        model: its backbone is moved to ``device`` and stays there.
        manifest: the table.
        rows: row numbers.
        options: what to take.
        batch_size: images per forward pass; windows count as images.
        device: where the backbone runs.
        workers: threads that read images ahead; 0 reads between the forward passes.
    """

    def read(row: int) -> Windows | str:
        try:
            return load_windows(model.preprocessing, manifest.paths(row), options.windows)
        except OpenfinoError as error:
            return str(error)

    backbone = model.backbone.to(device)
    images = max(1, batch_size // options.windows**2)
    batches = [rows[start : start + images] for start in range(0, len(rows), images)]
    for _, batch in read_ahead(read, batches, workers):
        with evaluation_mode(backbone):
            extraction = _extract(model, batch, options, batch_size, device)
        yield extraction


def _extract(
    model: LoadedModel,
    images: Sequence[Windows | str],
    options: TapOptions,
    batch_size: int,
    device: torch.device | str,
) -> Extraction:
    layout = options.layout(model)
    parts = {part: np.zeros((len(images), *shape), options.dtype) for part, shape in layout.shapes.items()}
    causes = [image if isinstance(image, str) else None for image in images]
    usable = [image for image in images if isinstance(image, Windows)]
    positions = [position for position, cause in enumerate(causes) if cause is None]
    if not usable:  # attention does not take an empty batch
        return Extraction(parts, causes)
    found = _tapped(model, usable, options, batch_size, device)
    stored = {part: values.to(getattr(torch, options.dtype)) for part, values in found.items()}
    finite = _finite(found)
    for position, is_finite, fits in zip(positions, finite, _finite(stored), strict=True):
        if not is_finite:
            causes[position] = "its features are not finite"
        elif not fits:
            causes[position] = f"its features are too large for {options.dtype}"
    kept = np.array([causes[position] is None for position in positions], dtype=bool)
    for part, values in stored.items():
        parts[part][np.array(positions)[kept]] = values.cpu().numpy()[kept]
    return Extraction(parts, causes)


def _finite(parts: dict[Part, Tensor]) -> list[bool]:
    """Whether every number of an image is finite."""
    each = [values.isfinite().flatten(1).all(dim=1) for values in parts.values()]
    finite: list[bool] = torch.stack(each).all(dim=0).tolist()
    return finite


@torch.inference_mode()
def _tapped(
    model: LoadedModel,
    images: Sequence[Windows],
    options: TapOptions,
    batch_size: int,
    device: torch.device | str,
) -> dict[Part, Tensor]:
    """Parts [m, ...] of whole images, float32 on ``device``."""
    pixels = torch.cat([image.pixels for image in images])
    counts = [len(image.pixels) for image in images]
    found: list[Any] = []
    with torch.autocast(torch.device(device).type, enabled=False):
        for some in pixels.split(batch_size):
            taps = tapped_tokens(model.backbone, some.to(device), options.layers)
            found.append((taps.linear.float(), taps.patches.float() if options.patches else None))
    linear, patches = zip(*found, strict=True)
    parts: dict[Part, Tensor] = {
        "linear": torch.stack([image.mean(dim=0) for image in torch.cat(linear).split(counts)])
    }
    if options.patches:
        grid = patch_grid(model)
        maps = zip(images, torch.cat(patches).split(counts), strict=True)
        parts["patches"] = torch.stack(
            [
                stitch(tokens, image.rows, image.columns, grid) if len(tokens) > 1 else tokens[0]
                for image, tokens in maps
            ]
        )
    return parts
