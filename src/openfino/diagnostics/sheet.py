"""The sheet: a row for each image, with the image, its PCA and both similarity maps."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from openfino.diagnostics.colours import colour_map, unit_colours
from openfino.diagnostics.diagnosis import Diagnosis, Grid

Pixels = NDArray[np.uint8]

PANELS = ("image", "pca", "similarity", "cls")
SIDE = 256
_GAP, _CAPTION, _HEADING = 4, 20, 156  # the longest heading fits


def draw_panels(diagnosis: Diagnosis, position: int, image: Pixels, side: int = SIDE) -> dict[str, Pixels]:
    """The panels of one image by name, RGB [h, w, 3] and of one size.

    Every patch is a square of whole pixels; the longer side of a panel is about ``side`` pixels, never less than one
    for each patch. The reference patch is framed in the image and in the map of similarities to it.

    Args:
        diagnosis: of the image and others.
        position: of the image in it.
        image: for the eye, RGB of any size; stretched to the panel, as the model's preprocessing does.
        side: of a panel, in pixels.
    """
    height, width = diagnosis.similarity.shape[1:]
    cell = max(round(side / max(height, width)), 1)
    resized = Image.fromarray(image).resize((width * cell, height * cell), Image.Resampling.BICUBIC)
    maps = {
        "pca": unit_colours(diagnosis.colours[position]),
        "similarity": colour_map(diagnosis.similarity[position], *diagnosis.scales["similarity"]),
        "cls": colour_map(diagnosis.cls[position], *diagnosis.scales["cls"]),
    }
    panels = {"image": np.asarray(resized)}
    panels |= {name: own.repeat(cell, axis=0).repeat(cell, axis=1) for name, own in maps.items()}
    framed = {name: _framed(panels[name], diagnosis.patch, cell) for name in ("image", "similarity")}
    return panels | framed


def draw_sheet(
    diagnosis: Diagnosis, rows: Sequence[dict[str, Pixels]], names: Sequence[str], title: str
) -> Pixels:
    """All panels under their headings, RGB [h, w, 3].

    Args:
        diagnosis: what the panels show.
        rows: of each image, its panels.
        names: of each image.
        title: the first line.
    """
    height, width = rows[0]["image"].shape[:2]
    across, down = max(width, _HEADING) + _GAP, height + _CAPTION
    sheet = Image.new("RGB", (len(PANELS) * across + _GAP, 3 * _CAPTION + len(rows) * down + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((_GAP, 3), title, fill="black", font=font)
    for column, lines in enumerate(_headings(diagnosis)):
        for line, text in enumerate(lines, start=1):
            pen.text((_GAP + column * across, line * _CAPTION + 1), text, fill="black", font=font)
    for row, (panels, name) in enumerate(zip(rows, names, strict=True)):
        top = 3 * _CAPTION + row * down
        pen.text((_GAP, top + 2), name, fill="dimgray", font=font)
        for column, panel in enumerate(PANELS):
            sheet.paste(Image.fromarray(panels[panel]), (_GAP + column * across, top + _CAPTION))
    return np.asarray(sheet)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write RGB [h, w, 3]; a kill leaves the old file or the new one."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(file.getvalue())
    os.replace(partial, path)


def _headings(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """What each panel shows, and what its colours mean."""

    def scale(name: str) -> str:
        low, high = diagnosis.scales[name]
        return f"{low:.2f} to {high:.2f}"

    row, column = diagnosis.patch
    return [
        ("image", ""),
        ("PCA", f"{diagnosis.explained.sum():.0%} of the variance"),
        (f"cosine to patch {row},{column}", scale("similarity")),
        ("cosine to CLS", scale("cls")),
    ]


def _framed(panel: Pixels, patch: Grid, cell: int) -> Pixels:
    """The panel with a white frame in a black one around the patch; clipped at the edge."""
    picture = Image.fromarray(panel)
    pen = ImageDraw.Draw(picture)
    (top, left), last = (place * cell for place in patch), cell - 1
    for distance, colour in ((2, "black"), (1, "white")):
        corners = (left - distance, top - distance, left + last + distance, top + last + distance)
        pen.rectangle(corners, outline=colour)
    return np.asarray(picture)
