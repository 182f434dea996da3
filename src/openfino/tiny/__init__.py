"""``tiny``: the backbone that comes with openfino, in this folder beside this file.

``model.safetensors`` (float16), ``config.json``, ``openfino.json``, ``SHA256SUMS``, the card ``README.md``, and of each
run that made it the recipe, the log and the probes. ``python benchmarks/build_tiny.py`` makes them.

The bare word ``tiny`` names it wherever a model is named, whatever lies in the working folder; a folder of one's own
that has this name is ``./tiny``. Opening it never touches the network.
"""

import hashlib
from pathlib import Path

from openfino.errors import OpenfinoError

NAME = "tiny"
PUBLIC_NAME = "openfino/tiny"
"""As what it stands in the records of what was made from it, where a folder is named without its place."""
NAMES = (NAME, PUBLIC_NAME)
LICENCE = "apache-2.0"
FOLDER = Path(__file__).parent
WEIGHTS = "model.safetensors"
SUMS = "SHA256SUMS"


def is_tiny(source: object) -> bool:
    """Whether ``source`` is the name of the shipped backbone; a ``Path`` is always a place."""
    return isinstance(source, str) and source in NAMES


def as_source(place: str | Path) -> str:
    """The text that names a place; ``./tiny`` where the bare word would name the shipped backbone."""
    return f"./{place}" if isinstance(place, Path) and str(place) in NAMES else str(place)


def checked_folder() -> Path:
    """The folder of the shipped backbone, whose weights are those that were packed.

    Raises:
        OpenfinoError: if the weights are absent, or not those of ``SHA256SUMS``.
    """
    weights, sums = FOLDER / WEIGHTS, FOLDER / SUMS
    if not (weights.is_file() and sums.is_file()):
        raise OpenfinoError(
            f"model.source: 'tiny' is not in this installation: {weights} or {SUMS} beside it is missing. Install "
            "openfino again, or make it with 'python benchmarks/build_tiny.py'; a folder of your own is './tiny'"
        )
    packed = sums.read_text(encoding="utf-8").split()[0]
    if sha256(weights) != packed:
        raise OpenfinoError(
            f"model.source: the weights of 'tiny' are damaged: {weights} has another SHA-256 than {SUMS} says. "
            "Install openfino again"
        )
    return FOLDER


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shown_name(place: str | Path) -> str:
    """``tiny`` for the folder of the shipped backbone; any other place as it is."""
    return NAME if Path(place) == FOLDER else str(place)
