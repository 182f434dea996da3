"""A few shapes, drawn twice from one list: as inline SVG, and as pixels."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Anchor = Literal["start", "middle", "end"]
_ANCHORS: dict[Anchor, str] = {"start": "ls", "middle": "ms", "end": "rs"}
FONT_SIZE = 12
_OVERSAMPLED, _SCALE = 4, 2  # drawn at four times the size, kept at twice


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    left: float
    top: float
    right: float
    bottom: float
    style: str


@dataclass(frozen=True)
class Segment:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str


@dataclass(frozen=True)
class Dot:
    """A circle; ``hollow`` is drawn as a ring."""

    x: float
    y: float
    radius: float
    style: str
    title: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Label:
    """Text on its base line."""

    x: float
    y: float
    text: str
    style: str
    anchor: Anchor = "start"


Shape = Box | Segment | Dot | Label


@dataclass(frozen=True)
class Paint:
    """How a style looks in pixels."""

    colour: str
    width: float = 1.0


def text_width(text: str) -> float:
    """Width of a label in pixels."""
    return float(ImageFont.load_default(FONT_SIZE).getlength(text))


def as_svg(shapes: Sequence[Shape], width: int, height: int, name: str) -> str:
    """Inline SVG; the page gives every style its colour."""
    drawn = "".join(_svg(shape) for shape in shapes)
    return f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(name)}'>{drawn}</svg>"


def _svg(shape: Shape) -> str:
    if isinstance(shape, Box):
        size = f"width='{shape.right - shape.left:.1f}' height='{shape.bottom - shape.top:.1f}'"
        return f"<rect class='{shape.style}' x='{shape.left:.1f}' y='{shape.top:.1f}' {size}/>"
    if isinstance(shape, Segment):
        ends = f"x1='{shape.x1:.1f}' y1='{shape.y1:.1f}' x2='{shape.x2:.1f}' y2='{shape.y2:.1f}'"
        return f"<line class='{shape.style}' {ends}/>"
    if isinstance(shape, Dot):
        kind = f"{shape.style}{' hollow' if shape.hollow else ''}"
        title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
        return f"<circle class='{kind}' cx='{shape.x:.1f}' cy='{shape.y:.1f}' r='{shape.radius}'>{title}</circle>"
    place = f"x='{shape.x:.1f}' y='{shape.y:.1f}' text-anchor='{shape.anchor}'"
    return f"<text class='{shape.style}' {place}>{escape(shape.text)}</text>"


def as_pixels(
    shapes: Sequence[Shape], width: int, height: int, paints: dict[str, Paint]
) -> NDArray[np.uint8]:
    """RGB [2 height, 2 width, 3] on white."""
    picture = Image.new("RGB", (width * _OVERSAMPLED, height * _OVERSAMPLED), "white")
    pen = ImageDraw.Draw(picture)
    for shape in shapes:
        _draw(pen, shape, paints[shape.style])
    return np.asarray(picture.resize((width * _SCALE, height * _SCALE), Image.Resampling.LANCZOS))


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """RGB [h, w, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw(pen: ImageDraw.ImageDraw, shape: Shape, paint: Paint) -> None:
    def place(*numbers: float) -> tuple[float, ...]:
        return tuple(_OVERSAMPLED * number for number in numbers)

    width = round(_OVERSAMPLED * paint.width)
    if isinstance(shape, Box):
        pen.rectangle(place(shape.left, shape.top, shape.right, shape.bottom), fill=paint.colour)
    elif isinstance(shape, Segment):
        pen.line(place(shape.x1, shape.y1, shape.x2, shape.y2), fill=paint.colour, width=width)
    elif isinstance(shape, Dot):
        own, fill = shape.radius, "white" if shape.hollow else paint.colour
        corners = place(shape.x - own, shape.y - own, shape.x + own, shape.y + own)
        pen.ellipse(corners, fill=fill, outline=paint.colour, width=2 * _OVERSAMPLED)
    else:
        font = ImageFont.load_default(FONT_SIZE * _OVERSAMPLED)
        at = (_OVERSAMPLED * shape.x, _OVERSAMPLED * shape.y)
        pen.text(at, shape.text, fill=paint.colour, font=font, anchor=_ANCHORS[shape.anchor])
