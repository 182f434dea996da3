"""The way out, the same for every format: written beside its target, opened again, compared, moved into place."""

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfino.errors import OpenfinoError
from openfino.export.card import model_card
from openfino.export.compare import compare
from openfino.export.door import Door
from openfino.export.hf import HuggingFace
from openfino.export.onnx import Onnx
from openfino.export.program import TorchProgram
from openfino.export.timm import Timm
from openfino.models.licence import parent_of, public_provenance
from openfino.models.store import SIDECAR, load_model, write_sidecar

DOORS: dict[str, Door] = {door.name: door for door in (HuggingFace(), Timm(), Onnx(), TorchProgram())}
CARD = "README.md"
# What any export may have written: none of it may stay behind when another takes its place.
_OURS = (
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "model.onnx*",
    "model.pt2",
)


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it gives back the features.

    Attributes:
        folder: the folder.
        format: as ``--to`` takes it.
        files: its files.
        opened_with: what opened it again.
        images: the shapes [B, C, H, W] on which it was compared.
        max_abs: largest absolute difference of any output token's value between the folder, opened again, and the
            backbone in memory.
        min_cosine: smallest cosine similarity of two corresponding tokens.
        scale: root mean square of the tokens' values.
        licence: of the starting weights, as the hub writes it; None for random weights.
        notes: what the format cannot hold, or what was chosen.
        weights: what became of every parameter when the source was opened.
    """

    folder: str
    format: str
    files: list[str]
    opened_with: str
    images: list[tuple[int, ...]]
    max_abs: float
    min_cosine: float
    scale: float
    licence: str | None
    notes: list[str]
    weights: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.images)
        lines = [
            self.weights,
            f"wrote {self.folder} ({', '.join(self.files)})",
            f"re-opened with {self.opened_with}: largest difference {self.max_abs:.2g} at feature scale "
            f"{self.scale:.2g}, smallest cosine {self.min_cosine:.7f} (images of {shapes})",
            f"licence of the starting weights: {self.licence or 'none, they were random'}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export(source: Path | str, out: Path | str, *, to: str = "hf", overwrite: bool = False) -> ExportReport:
    """Write the backbone of a run or model folder in a format that other tools open.

    Beside the model every folder gets README.md (the model card, with the licence and how to use it) and openfino.json
    (preprocessing and provenance). The files are written beside ``out``, opened again and compared on fixed images,
    and take the name ``out`` only if the features are the same.

    Args:
        source: ``tiny``, a run, a model folder, a hub name or a weights file.
        out: the folder to write: absent, empty, or an earlier export where ``overwrite`` allows to replace it.
        to: ``hf`` (``AutoModel.from_pretrained``), ``timm`` (``timm.create_model("local-dir:...")``), ``onnx``
            (model.onnx) or ``torch`` (model.pt2 for ``torch.export.load``).
        overwrite: see ``out``.

    Raises:
        OpenfinoError: for an unknown format or one whose packages are missing; if ``source`` holds no model, or one
            that the format cannot hold; if ``out`` is in the way; or if the features differ by more than 1e-4
            (hf: 1e-5) of their root mean square.
    """
    out, door = Path(out), _door(to)
    door.require()
    model = load_model(source)
    model = dataclasses.replace(model, provenance=public_provenance(model.provenance, model.backbone.config))
    _refuse_occupied(out, model.folder, overwrite=overwrite)
    problems = door.problems(model)
    if problems:
        raise OpenfinoError(
            f"{source} cannot be exported to {door.name}: {'; '.join(problems)}. The formats are {', '.join(DOORS)}"
        )
    staging = out.with_name(f".{out.name}.export")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        written = door.write(model, staging)
        write_sidecar(staging, model.preprocessing, model.provenance)
        (staging / CARD).write_text(model_card(model, door, written), encoding="utf-8")
        found = compare(model, door.open(model, staging), any_size=written.any_size)
        if not found.within(door.tolerance):
            raise OpenfinoError(
                f"{out} was not written: opened with {door.opened_with}, the features of {source} differ by "
                f"{found.max_abs:.3g} (scale {found.scale:.3g}, smallest cosine {found.min_cosine:.6f}). "
                f"Check that the installed {door.library} opens this architecture"
            )
        files = _move_into_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ExportReport(
        folder=str(out),
        format=door.name,
        files=files,
        opened_with=door.opened_with,
        images=found.images,
        max_abs=found.max_abs,
        min_cosine=found.min_cosine,
        scale=found.scale,
        licence=parent_of(model.provenance, model.backbone.config).licence,
        notes=written.notes,
        weights=str(model.report),
    )


def _door(name: str) -> Door:
    """The format of this name.

    Raises:
        OpenfinoError: listing the formats.
    """
    if name not in DOORS:
        raise OpenfinoError(f"there is no export to {name!r}; the formats are {', '.join(DOORS)}")
    return DOORS[name]


def _refuse_occupied(out: Path, source: Path | None, *, overwrite: bool) -> None:
    """Only an empty folder is taken, or an earlier export when overwriting: nothing else is ever deleted.

    Raises:
        OpenfinoError: if ``out`` is a file, the source itself, or a folder that may not be replaced.
    """
    if out.is_file():
        raise OpenfinoError(f"{out} is a file; name a folder for the export")
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise OpenfinoError(f"{out} holds the model to export; choose another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    is_export = (out / CARD).is_file() and (out / SIDECAR).is_file()
    if not overwrite:
        remedy = "allow overwriting, or choose another folder" if is_export else "choose another folder"
        raise OpenfinoError(f"{out} is not empty; {remedy}")
    if not is_export:
        raise OpenfinoError(
            f"{out} is not empty and no earlier export; nothing in it was touched. Choose another"
        )


def _move_into_place(staging: Path, out: Path) -> list[str]:
    """Put the checked files under their name; files of others in an earlier export (such as .git) stay."""
    files = sorted(path.name for path in staging.iterdir())
    if not out.exists():
        os.replace(staging, out)
        return files
    for pattern in _OURS:
        for stale in out.glob(pattern):
            stale.unlink()
    for name in files:
        os.replace(staging / name, out / name)
    return files
