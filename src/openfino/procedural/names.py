"""Names of procedural images: a path that says which image to draw, so that a manifest can list them without files."""

import re
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from openfino.errors import OpenfinoError
from openfino.procedural.draw import draw_image

SUFFIX = ".procedural"
_NAME = re.compile(r"(\d{1,18})-(\d{1,18})-(\d{1,4})\.procedural")


def image_name(seed: int, index: int, size: int) -> str:
    """The name of the image that ``draw_image(seed, index, size)`` draws: ``0-17-96.procedural``."""
    return f"{seed}-{index}-{size}{SUFFIX}"


def is_image_name(path: PurePath | str) -> bool:
    """Whether ``path`` ends as the name of a procedural image does; its folder does not matter."""
    return str(path).endswith(SUFFIX)


def named_image(path: PurePath | str) -> npt.NDArray[np.uint8]:
    """The image that the last part of ``path`` names, uint8 [3, size, size].

    Raises:
        OpenfinoError: if it is no such name, or names an image that cannot be drawn.
    """
    found = _NAME.fullmatch(PurePath(path).name)
    if found is None:
        raise OpenfinoError(
            f"{path}: is no name of a procedural image. Write SEED-INDEX-SIZE{SUFFIX}, such as {image_name(0, 17, 96)}"
        )
    seed, index, size = map(int, found.groups())
    return draw_image(seed, index, size)
