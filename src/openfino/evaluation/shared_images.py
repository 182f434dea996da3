"""An image that trains and is scored too makes every number a lie: found by its path, or by its bytes."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openfino.errors import Problem
from openfino.manifest import Manifest

Rows = NDArray[np.int64]

FIRST_BYTES = 1 << 16
SHOWN = 5
READERS = 8


def shared_images(manifest: Manifest, parts: Mapping[str, Rows]) -> list[Problem]:
    """A problem for each two of ``parts`` that share an image: the same files, or files of the same bytes.

    Of an image in several files all must be the same. Only files of equal size are read, and to the end only those
    whose first 64 KiB agree. Missing files are left to the check of the manifest.

    Args:
        manifest: the table.
        parts: rows by what they are used for.
    """
    part_of = {int(row): name for name, rows in parts.items() for row in rows}
    files = {row: found for row in part_of if (found := _files(manifest, row)) is not None}
    same: list[list[int]] = []
    alike = _apart(part_of, _grouped(files, lambda row: files[row]))
    same += alike
    of_one_file = {row for group in alike for row in group[1:]}
    left = _apart(part_of, _grouped(files.keys() - of_one_file, lambda row: _sizes(files[row])))
    for limit in (FIRST_BYTES, None):
        left = [smaller for group in left for smaller in _apart(part_of, _same_bytes(group, files, limit))]
    return _problems(manifest, parts, part_of, [*same, *left])


def _files(manifest: Manifest, row: int) -> tuple[str, ...] | None:
    """The files of an image, wherever links lead; None where one is missing."""
    if any(manifest.table[column][row] is None for column in manifest.path_columns):
        return None
    found = tuple(os.path.realpath(path) for path in manifest.paths(row))
    return found if all(os.path.isfile(path) for path in found) else None


def _sizes(files: Sequence[str]) -> tuple[int, ...]:
    return tuple(os.path.getsize(path) for path in files)


def _same_bytes(
    rows: list[int], files: Mapping[int, tuple[str, ...]], limit: int | None
) -> Iterator[list[int]]:
    """The rows by the first ``limit`` bytes of their files, or by all."""
    with ThreadPoolExecutor(READERS) as pool:
        hashes = dict(zip(rows, pool.map(lambda row: _hash(files[row], limit), rows), strict=True))
    return _grouped(rows, lambda row: hashes[row])


def _hash(files: Sequence[str], limit: int | None) -> bytes:
    """Of the first ``limit`` bytes of each file, or of all."""
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        with Path(path).open("rb") as stream:
            if limit is not None:
                found.update(stream.read(limit))
            else:
                while block := stream.read(1 << 20):
                    found.update(block)
    return found.digest()


def _grouped(rows: Iterable[int], key: Callable[[int], Hashable]) -> Iterator[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return (sorted(group) for group in groups.values() if len(group) > 1)


def _apart(part_of: Mapping[int, str], groups: Iterable[list[int]]) -> list[list[int]]:
    """The groups whose rows are not all of one part."""
    return [group for group in groups if len({part_of[row] for row in group}) > 1]


def _problems(
    manifest: Manifest, parts: Mapping[str, Rows], part_of: Mapping[int, str], groups: Sequence[list[int]]
) -> list[Problem]:
    problems = []
    for first, second in combinations(parts, 2):
        pairs = []
        for group in groups:
            own = {name: [row for row in group if part_of[row] == name] for name in (first, second)}
            if own[first]:
                pairs += [(own[first][0], row) for row in own[second]]
        if not pairs:
            continue
        shown = "; ".join(f"{manifest.locate(a)} and {manifest.locate(b)}" for a, b in pairs[:SHOWN])
        more = f" and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
        what = f"{first} and {second} share {len(pairs)} images: {shown}{more} are the same image"
        remedy = f"Take them out of {first}, or put every copy of an image into one split"
        problems.append(Problem(manifest.name, what, remedy))
    return problems
