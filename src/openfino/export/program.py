"""A ``torch.export`` program of a model: pixels in [0, 1] in, named tokens out, the normalisation inside."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from openfino.errors import OpenfinoError
from openfino.export.compare import fixed_images
from openfino.export.door import Door, Opened, Written, uncovered
from openfino.export.usage import torch_usage
from openfino.images.normalize import MIN_STD, channel_statistics
from openfino.models.backbone import Tokens
from openfino.models.store import SIDECAR, LoadedModel, sidecar_text

PROGRAM = "model.pt2"


class TorchProgram(Door):
    """model.pt2: opens without openfino and without transformers."""

    name = "torch"
    library = "pytorch"
    opened_with = "torch.export.load"
    normalizes = True

    def problems(self, model: LoadedModel) -> list[str]:
        """See :meth:`Door.problems`."""
        return uncovered(model)

    def write(self, model: LoadedModel, folder: Path) -> Written:
        """See :meth:`Door.write`."""
        traced = trace(model)
        facts = {SIDECAR: sidecar_text(model.preprocessing, model.provenance)}
        with torch_may_warn():
            torch.export.save(traced.program, folder / PROGRAM, extra_files=facts)
        return Written(traced.notes, traced.any_size)

    def open(self, model: LoadedModel, folder: Path) -> Opened:
        """See :meth:`Door.open`."""
        with torch_may_warn():
            run = torch.export.load(folder / PROGRAM).module()
        return lambda images: as_tokens(run(images))

    def usage(self, model: LoadedModel, written: Written) -> str:
        """See :meth:`Door.usage`."""
        return torch_usage(model, output_names(model), sizes_taken(model, written.any_size))


class PixelModel(nn.Module):
    """A backbone behind its normalisation: [B, C, H, W] in [0, 1] -> tokens by name.

    The arithmetic of :func:`openfino.images.normalize.normalize`, without numbers that depend on the image's size:
    they would be frozen into the program.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.backbone = model.backbone
        normalization = model.preprocessing.normalization
        self.zscore = normalization == "zscore"
        mean, std = channel_statistics(normalization, model.backbone.channels)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """``cls`` [B, D], ``patches`` [B, P, D] row by row and, where there are any, ``registers`` [B, R, D]."""
        if self.zscore:
            centred = pixels - pixels.mean(dim=(-2, -1), keepdim=True)
            spread = centred.square().mean(dim=(-2, -1), keepdim=True).sqrt()
            normal = centred / spread.clamp(min=MIN_STD)
        else:
            normal = (pixels - self.mean) / self.std
        tokens = self.backbone(normal)
        named = {"cls": tokens.cls, "patches": tokens.patches}
        return named | {"registers": tokens.registers} if self.backbone.registers else named


def output_names(model: LoadedModel) -> list[str]:
    """Keys of :class:`PixelModel`'s output, in order."""
    return ["cls", "patches", *(["registers"] if model.backbone.registers else [])]


def as_tokens(named: dict[str, Tensor]) -> Tokens:
    """The inverse of what :meth:`PixelModel.forward` does with them."""
    return Tokens(named["cls"], named.get("registers", named["patches"][:, :0]), named["patches"])


def sizes_taken(model: LoadedModel, any_size: bool) -> str:
    """Which images a program takes, as a sentence."""
    height, width = model.preprocessing.size
    patch = model.backbone.patch_size
    if any_size:
        return f"Batch, height and width are free; both sides must be multiples of {patch}, and at least {2 * patch}."
    return f"The batch is free; images must be {height} x {width}."


@dataclass(frozen=True)
class Traced:
    """A program of :class:`PixelModel`.

    Attributes:
        program: what ``torch.export`` made.
        dynamic_shapes: which of its input's dimensions are free, as ``torch.export`` takes it.
        any_size: whether height and width are among them.
        notes: what to say about it.
    """

    program: ExportedProgram
    dynamic_shapes: dict[str, dict[int, Any]]
    any_size: bool
    notes: list[str]


def trace(model: LoadedModel) -> Traced:
    """The program of a model; of the preprocessing's size alone where the architecture ties itself to a size.

    Raises:
        OpenfinoError: if ``torch.export`` cannot follow the model at all.
    """
    module = PixelModel(model).eval().requires_grad_(False)
    patch = model.backbone.patch_size
    height, width = model.preprocessing.size
    batch = Dim("batch", min=1)
    free = {"pixels": {0: batch, 2: patch * Dim("rows", min=2), 3: patch * Dim("columns", min=2)}}
    # Neither square nor of the model's own size, so that nothing is taken for granted.
    program, reason = _attempt(module, (3 * patch, 5 * patch), free, model)
    if program is not None:
        return Traced(program, free, True, [])
    fixed = {"pixels": {0: batch}}
    program, other = _attempt(module, (height, width), fixed, model)
    if program is None:
        raise OpenfinoError(
            f"torch.export cannot follow this {model.backbone.family} model: {other}. Export with '--to hf'"
        )
    note = (
        f"images of {height} x {width} alone: this architecture cannot be traced for all sizes at once (torch.export: "
        f"{reason}). For another size, set preprocessing.size in openfino.json of the model and export again"
    )
    return Traced(program, fixed, False, [note])


def _attempt(
    module: PixelModel, size: tuple[int, int], free: dict[str, dict[int, Any]], model: LoadedModel
) -> tuple[ExportedProgram | None, str]:
    """The program, or None and why: it could not be traced, or computes something else at other sizes."""
    example = torch.rand(2, model.backbone.channels, *size)
    try:
        with torch_may_warn(), torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=free)
            run = program.module()
            for images in fixed_images(model, any_size=2 in free["pixels"]):
                ours, theirs = module(images), run(images)
                if not all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3) for name in ours):
                    return None, f"the program differs on images of {tuple(images.shape[-2:])}"
    except Exception as error:  # whatever the tracer stumbles over: the caller has another way
        return None, next(iter(str(error).strip().splitlines()), type(error).__name__)
    _forget_places(program)
    return program, ""


def _forget_places(program: ExportedProgram) -> None:
    """Take out of every node where on the disk of whoever exports the code lies that made it."""
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


@contextmanager
def torch_may_warn() -> Iterator[None]:
    """Silence what torch's exporters say about their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
