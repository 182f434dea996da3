"""The contact sheet of a sample: what every localisation pattern looks like on different plates."""

from pathlib import Path

import numpy as np
import polars as pl
import tifffile
from PIL import Image, ImageDraw, ImageFont

from openfino.images.display import composite
from openfino.sampledata.screen import LOCALIZATIONS

_PANELS = ("protein", "nucleus", "microtubules", "ER")
_PANEL_CHANNELS = (1, 0, 2, 3)
_COMPOSITES = 5
_STEP = np.array([16, 8, 16], dtype=np.uint8)  # of red, green, blue in the file
_TILE, _GAP, _LEFT, _TOP = 128, 3, 132, 34


def contact_sheet(manifest_path: Path, out_png: Path) -> Path:
    """Draw examples of every localisation as a PNG file.

    A row is a localisation. Its first tiles are colour composites of different plates and, as far as
    possible, cell lines; the last four show the channels of the first one. The pixels are as stored: the
    differences between plates are the data's own.
    """
    manifest_path, out_png = Path(manifest_path), Path(out_png)
    table = pl.read_csv(manifest_path, infer_schema_length=0)
    columns = _COMPOSITES + len(_PANELS)
    width = _LEFT + columns * (_TILE + _GAP)
    sheet = Image.new("RGB", (width, _TOP + len(LOCALIZATIONS) * (_TILE + _GAP)), "black")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate(_PANELS, start=_COMPOSITES):
        pen.text((_LEFT + column * (_TILE + _GAP) + 4, 10), name, fill="white", font=font)
    pen.text((_LEFT + 4, 10), "composites of different plates", fill="white", font=font)
    for row, localization in enumerate(LOCALIZATIONS):
        top = _TOP + row * (_TILE + _GAP)
        pen.text((6, top + _TILE // 2 - 8), localization.replace("_", " "), fill="white", font=font)
        images = [tifffile.imread(manifest_path.parent / path) for path in _examples(table, localization)]
        if not images:  # a small sample need not hold every localisation
            continue
        tiles = [composite(image) for image in images]
        panels = [np.repeat(image[..., None], 3, axis=2) for image in images[0][list(_PANEL_CHANNELS)]]
        for column, tile in [*enumerate(tiles), *enumerate(panels, start=_COMPOSITES)]:
            picture = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(picture, (_LEFT + column * (_TILE + _GAP), top))
    out_png.parent.mkdir(parents=True, exist_ok=True)
    # Noise does not compress: four or five bits per colour halve the file and cannot be told by eye.
    levels = np.asarray(sheet) // _STEP * 255.0 / (255 // _STEP)
    Image.fromarray(np.rint(levels).astype(np.uint8)).save(out_png, optimize=True)
    return out_png


def _examples(table: pl.DataFrame, localization: str) -> list[str]:
    """Paths of images of different plates; cell lines repeat only when all have been shown."""
    rows = table.filter(pl.col("localization") == localization).drop_nulls(["plate", "cell_line", "antibody"])
    rows = rows.unique("plate", keep="first", maintain_order=True)
    turn = pl.int_range(pl.len()).over("cell_line")
    again = pl.int_range(pl.len()).over("antibody")
    return rows.sort([turn, again, "path"])["path"].to_list()[:_COMPOSITES]
