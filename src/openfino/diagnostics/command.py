"""``openfino viz``: from the words on the command line to pictures in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from openfino.diagnostics.diagnosis import Diagnosis, Grid, diagnose
from openfino.diagnostics.maps import PCA_RECIPE
from openfino.diagnostics.sheet import draw_panels, draw_sheet, write_png
from openfino.distributed import choose_device
from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.evaluation.command import open_model, read_table_for, shown_progress
from openfino.evaluation.features import Rows, extract_features, patch_grid
from openfino.images.display import as_colours
from openfino.images.read import read_image
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel
from openfino.procedural import is_image_name
from openfino.runfolder import write_whole
from openfino.tables import TABLE_EXTENSIONS

SHEET_FILE, NUMBERS_FILE, PANEL_FOLDER = "sheet.png", "viz.json", "panels"
DEFAULT_LIMIT = 16
READERS = 2


@dataclass(frozen=True)
class VizReport:
    """What was drawn.

    Attributes:
        out: the folder.
        model: as it was named.
        size: height and width in pixels at which the model saw the images.
        diagnosis: the maps.
        names: of each image, its (first) file.
        found: how many images there were to choose from.
        causes: why images were left out, one sentence each.
    """

    out: Path
    model: str
    size: tuple[int, int]
    diagnosis: Diagnosis
    names: list[str]
    found: int
    causes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The content of ``viz.json``."""
        images = [
            {"number": number, "image": name, **self.diagnosis.numbers_of(number)}
            for number, name in enumerate(self.names)
        ]
        return {
            "model": self.model,
            "size": list(self.size),
            **self.diagnosis.to_json(),
            "pca": PCA_RECIPE,
            "images": images,
            "images_found": self.found,
            "left_out": self.causes,
        }

    def __str__(self) -> str:
        height, width = self.diagnosis.similarity.shape[1:]
        row, column = self.diagnosis.patch
        ranks = self.diagnosis.ranks
        cls = "" if ranks["cls"] is None else f"CLS {ranks['cls']:.1f} (at most {len(self.names) - 1}), "
        lines = [
            f"wrote {self.out / SHEET_FILE}, {PANEL_FOLDER}/ and {NUMBERS_FILE}: {len(self.names)} of {self.found} "
            f"images at {self.size[0]} x {self.size[1]} pixels, {height} x {width} patches, reference patch "
            f"{row},{column}",
            f"RankMe: {cls}patches {ranks['patches']:.1f}",
            f"cosine to the reference patch: mean {self.diagnosis.similarity.mean():.3f}; "
            f"of CLS to the patches: mean {self.diagnosis.cls.mean():.3f}",
            f"PCA: {PCA_RECIPE}",
        ]
        if self.causes:
            lines.append(f"{len(self.causes)} images were left out, such as: {self.causes[0]}")
        return "\n".join(lines)


def viz_command(
    model: str,
    images: Sequence[Path],
    out: Path,
    *,
    size: int | None = None,
    patch: str | None = None,
    limit: int | None = None,
    path_columns: Sequence[str] = (),
    batch_size: int = 8,
    device: str = "auto",
    overwrite: bool = False,
) -> VizReport:
    """Draw what ``model`` sees in ``images`` into the folder ``out``.

    Args:
        model: as :func:`openfino.models.store.load_model` takes it.
        images: image files, or one folder, or one table.
        out: gets ``sheet.png``, ``panels/`` and ``viz.json``.
        size: side in pixels to which the images are resized; the model's own when not given.
        patch: ``ROW,COLUMN`` of the reference patch, from 0; that at the centre when not given.
        limit: how many images to draw, evenly spaced; when not given, 16 of a folder or table, and every named file.
        path_columns: columns of the table with image paths, in place of those of the model's recipe.
        batch_size: images per forward pass.
        device: where the model runs.
        overwrite: replace what an earlier call left in ``out``.

    Raises:
        InputProblemsError: with everything that is wrong with size, patch and files.
        OpenfinoError: if the model cannot be read, no image is usable, or ``out`` may not be written.
    """
    _refuse_foreign(out, overwrite=overwrite)
    loaded = open_model(model)
    problems = _file_problems(images)
    sized, size_problems = _at_size(loaded, size)
    reference, patch_problems = parse_patch(patch, patch_grid(sized))
    if problems := [*problems, *size_problems, *patch_problems]:
        raise InputProblemsError(problems)
    one_source = len(images) == 1 and _is_table_or_folder(images[0])
    manifest = read_table_for(loaded, images[0], path_columns) if one_source else files_manifest(images)
    rows = spaced_rows(len(manifest), limit or (DEFAULT_LIMIT if one_source else len(manifest)))
    with shown_progress("reading features") as progress:
        features = extract_features(
            sized,
            manifest,
            rows,
            batch_size=batch_size,
            device=choose_device(device),
            tokens=("patches",),
            workers=READERS,
            progress=progress,
        )
    diagnosis = diagnose(features, patch_grid(sized), reference)
    names = [str(manifest.table[manifest.path_columns[0]][int(row)]) for row in diagnosis.rows]
    report = VizReport(
        out, loaded.name, sized.preprocessing.size, diagnosis, names, len(manifest), features.causes
    )
    _write(report, manifest)
    return report


def files_manifest(files: Sequence[Path]) -> Manifest:
    """Image files as a table, in the order in which they are named."""
    table = pl.DataFrame({"path": [str(file) for file in files]}, schema={"path": pl.String})
    return Manifest(None, Path.cwd(), table, ("path",))


def spaced_rows(count: int, limit: int) -> Rows:
    """At most ``limit`` of ``count`` rows, evenly spaced from the first to the last -> int64 [n]."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def parse_patch(text: str | None, grid: Grid) -> tuple[Grid | None, list[Problem]]:
    """Row and column in ``ROW,COLUMN``, and what is wrong with them on a grid of patches."""
    if text is None:
        return None, []
    remedy = (
        f"Write --patch ROW,COLUMN with a row from 0 to {grid[0] - 1} and a column from 0 to {grid[1] - 1}"
    )
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        return None, [Problem("--patch", f"{text!r} is not a row and a column", remedy)]
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        what = f"there is no patch {row},{column} in a grid of {grid[0]} x {grid[1]} patches"
        return None, [Problem("--patch", what, remedy)]
    return (row, column), []


def _at_size(model: LoadedModel, size: int | None) -> tuple[LoadedModel, list[Problem]]:
    """The model with square images of ``size`` pixels, as far as its patches allow."""
    if size is None:
        return model, []
    patch = model.backbone.patch_size
    if size % patch:
        what = f"{size} pixels are not divisible by the patch size {patch}"
        remedy = f"Write --size {max(round(size / patch), 1) * patch}"
        return model, [Problem("--size", what, remedy)]
    return replace(model, preprocessing=model.preprocessing.model_copy(update={"size": (size, size)})), []


def _file_problems(images: Sequence[Path]) -> list[Problem]:
    problems = []
    for image in images:
        if not image.exists() and not is_image_name(image):
            problems.append(Problem(str(image), "there is no such file or folder", "Check the path"))
        elif len(images) > 1 and _is_table_or_folder(image):
            what = "a folder or a table stands alone, and other images are named beside it"
            problems.append(Problem(str(image), what, "Name image files, or one folder, or one table"))
    return problems


def _is_table_or_folder(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in TABLE_EXTENSIONS


def _refuse_foreign(out: Path, *, overwrite: bool) -> None:
    """Write only into a new folder, or over an earlier call."""
    if not (out.exists() and any(out.iterdir())):
        return
    if not (out / NUMBERS_FILE).is_file():
        raise OpenfinoError(
            f"{out} is not empty and was not written by 'openfino viz'; nothing in it was touched. "
            "Choose another folder with --out"
        )
    if not overwrite:
        raise OpenfinoError(f"{out} holds earlier pictures; write --overwrite to replace them")


def _write(report: VizReport, manifest: Manifest) -> None:
    """All files of the folder, ``viz.json`` last; those of an earlier call go when everything is drawn."""
    drawn = []
    for number, row in enumerate(report.diagnosis.rows):
        image = as_colours(read_image(manifest.paths(int(row))))
        drawn.append(draw_panels(report.diagnosis, number, image))
    title = f"{report.model}, {report.size[0]} x {report.size[1]} pixels"
    sheet = draw_sheet(report.diagnosis, drawn, report.names, title)
    folder = report.out / PANEL_FOLDER
    for old in folder.glob("*.png"):
        old.unlink()
    write_png(report.out / SHEET_FILE, sheet)
    for number, panels in enumerate(drawn):
        for name, panel in panels.items():
            write_png(folder / f"{number:02d}_{name}.png", panel)
    write_whole(report.out / NUMBERS_FILE, json.dumps(report.to_json(), indent=1))
