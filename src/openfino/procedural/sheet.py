"""``python -m openfino.procedural.sheet OUT.png``: the contact sheet of the procedural images, a row per family."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from openfino.procedural.draw import FAMILIES, draw_of_family

_COLUMNS, _SIDE, _GAP, _LEFT = 11, 80, 3, 76
_COLOURS = 256


def contact_sheet(out_png: Path, seed: int = 0) -> Path:
    """Draw the first eleven images of every family of ``seed``, 80 pixels wide, as a PNG file of 256 colours."""
    out_png = Path(out_png)
    sheet = Image.new("RGB", (_LEFT + _COLUMNS * (_SIDE + _GAP), len(FAMILIES) * (_SIDE + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, name in enumerate(FAMILIES):
        top = row * (_SIDE + _GAP)
        pen.text((6, top + _SIDE // 2 - 8), name, fill="black", font=font)
        for column in range(_COLUMNS):
            image = np.moveaxis(draw_of_family(name, seed, column, _SIDE), 0, 2)
            sheet.paste(Image.fromarray(image), (_LEFT + column * (_SIDE + _GAP), top))
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(out_png, optimize=True)
    return out_png


def main(arguments: list[str]) -> None:
    """The command; exits with a message when it is misused."""
    if len(arguments) != 1:
        sys.exit("usage: python -m openfino.procedural.sheet OUT.png")
    contact_sheet(Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
