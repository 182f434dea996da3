"""What a feature cache holds, by what its images are known by, and who computes what is missing.

Processes that want the same chunk see each other by a lock, which ends with the process: one computes, the others go
on to another chunk and come back.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openfino.errors import OpenfinoError
from openfino.evaluation.chunks import Chunk, Layout, about_file, complete_chunk, write_atomically
from openfino.evaluation.embed import weights_hash
from openfino.evaluation.extraction import TapOptions
from openfino.evaluation.sources import Rows
from openfino.locks import lock
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel
from openfino.procedural import is_image_name

FORMAT = 1
CHUNK_BYTES = 64 * 2**20
CHUNK_IMAGES = 1024
POLL = 0.2
"""Seconds between looks at what other processes compute."""
# Of a configuration: these say nothing about the numbers.
_IRRELEVANT = {"transformers_version", "_name_or_path", "dtype", "architectures"}


def keyed_folder(root: Path, model: LoadedModel, options: TapOptions) -> Path:
    """The folder below ``root`` for everything that the numbers depend on but the images; ``about.txt`` says it.

    With patch tokens or without is the same folder: who needs none takes what is there.
    """
    config = model.backbone.config.to_dict()
    facts = {
        "format": FORMAT,
        "weights": weights_hash(model.backbone),
        "config": {key: value for key, value in config.items() if key not in _IRRELEVANT},
        "preprocessing": model.preprocessing.to_json(),
        "layers": options.layers,
        "windows": options.windows,
        "dtype": options.dtype,
    }
    text = json.dumps(facts, sort_keys=True, default=str, indent=1)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "about.txt", f"Features of {model.name}\n{text}\n")
    return folder


def image_stamps(manifest: Manifest, rows: Rows) -> list[str | None]:
    """What the image of each row is known by: path, size and time of change of its files; None without a path.

    An absent file has a stamp too, which changes when the file appears.
    """
    return [_stamp(manifest, int(row)) for row in rows]


def _stamp(manifest: Manifest, row: int) -> str | None:
    try:
        paths = manifest.paths(row)
    except OpenfinoError:
        return None
    return hashlib.sha256("\n".join(map(_file_stamp, paths)).encode()).hexdigest()[:32]


def _file_stamp(path: Path) -> str:
    if is_image_name(path):  # drawn from its name
        return str(path)
    try:
        found = path.stat()
    except OSError:
        return f"{path} absent"
    return f"{path} {found.st_size} {found.st_mtime_ns}"


@dataclass
class Present:
    """What is there.

    Attributes:
        chunks: that are whole.
        places: stamp of an image -> index into ``chunks``, and slot.
    """

    chunks: list[Chunk] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """The images of one more chunk."""
        number = len(self.chunks)
        self.chunks.append(chunk)
        self.places.update((stamp, (number, slot)) for slot, stamp in enumerate(chunk.stamps))


def present_chunks(folder: Path, layout: Layout) -> Present:
    """The chunks of a folder that keep what ``layout`` asks for, at least."""
    present = Present()
    for file in sorted(folder.glob("*.json")):
        chunk = complete_chunk(file)
        if chunk is not None and layout.shapes.keys() <= chunk.layout.shapes.keys():
            present.add(chunk)
    return present


def planned_chunks(folder: Path, stamps: Sequence[str], layout: Layout) -> list[Chunk]:
    """Chunks for images that are missing.

    Raises:
        OpenfinoError: if the disk has too little room.
    """
    needed, free = len(stamps) * layout.image_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise OpenfinoError(
            f"the features of {len(stamps):,} images take {needed / 1e9:,.1f} GB, and {folder} has "
            f"{free / 1e9:,.1f} GB left: choose another folder, fewer images, or no patch tokens"
        )
    size = min(max(CHUNK_BYTES // layout.image_bytes, 1), CHUNK_IMAGES)
    return [Chunk(folder, stamps[start : start + size], layout, {}) for start in range(0, len(stamps), size)]


def fill(chunks: Sequence[Chunk], compute: Callable[[Chunk], Chunk]) -> Iterator[Chunk]:
    """Have every chunk computed, here or by another process that is at it; yields each when it is there."""
    waiting = list(chunks)
    while waiting:
        later = []
        for chunk in waiting:
            with lock(chunk.folder / "locks" / chunk.stem.name) as held:
                done = complete_chunk(about_file(chunk.stem))
                if done is None and held:
                    done = compute(chunk)
            if done is None:
                later.append(chunk)
            else:
                yield done
        if len(later) == len(waiting):
            time.sleep(POLL)
        waiting = later
