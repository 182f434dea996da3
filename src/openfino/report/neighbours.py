"""Nearest training images of test images under each backbone, as pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from openfino.evaluation.features import Features, extract_features
from openfino.evaluation.splits import encode_column, probe_generator
from openfino.images.display import composite
from openfino.images.read import read_image
from openfino.manifest import Manifest
from openfino.models.store import load_model
from openfino.report.curves import ARM_NAMES

QUERIES, NEIGHBOURS, BANK_ROWS = 8, 5, 600
_QUALITY = 85  # of the JPEG files
_MARKS = {"right": "<i>&#10003;</i>", "wrong": "<i>&#10007;</i>", "": ""}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """Queries and what was found.

    Attributes:
        queries: rows of the manifest [q].
        bank: rows that were searched [n].
        found: per arm and query, rows of the nearest bank images, nearest first; a query without features
            under an arm is absent.
    """

    queries: Rows
    bank: Rows
    found: dict[str, dict[int, list[int]]]


def find_neighbours(
    manifest: Manifest, models: Mapping[str, Path], label: str, tested: Rows, train: Rows, seed: int
) -> Gallery:
    """Search a keyed draw of training images for the neighbours of test images of different labels.

    Args:
        manifest: the table.
        models: per arm, what :func:`openfino.models.store.load_model` takes.
        label: the column that says what an image shows; rows without it take no part.
        tested: rows to draw queries from.
        train: rows to draw the bank from.
        seed: of both draws.

    Raises:
        OpenfinoError: if a model cannot be loaded or no image is usable.
    """
    labels = manifest.table[label]
    queries = choose_queries(labels, tested, seed)
    labelled = train[encode_column(labels)[train] >= 0]
    bank = np.sort(probe_generator(seed, "neighbours bank").permutation(labelled)[:BANK_ROWS])
    found = {}
    for arm, source in models.items():
        model = load_model(source)
        found[arm] = nearest(
            extract_features(model, manifest, queries), extract_features(model, manifest, bank)
        )
    return Gallery(queries, bank, found)


def choose_queries(labels: pl.Series, rows: Rows, seed: int) -> Rows:
    """``QUERIES`` of ``rows``: a keyed draw, every label once before any comes twice."""
    codes = encode_column(labels)
    generator = probe_generator(seed, "neighbours queries")
    order = generator.permutation(codes.max(initial=-1) + 1)
    drawn = generator.permutation(rows[codes[rows] >= 0])
    drawn_codes = codes[drawn]
    turns = [int((drawn_codes[:place] == code).sum()) for place, code in enumerate(drawn_codes)]
    return drawn[np.lexsort([order[drawn_codes], turns])][:QUERIES]


def nearest(queries: Features, bank: Features) -> dict[int, list[int]]:
    """Per query row, rows of the bank images with the most similar CLS (cosine), nearest first."""
    asked, searched = (F.normalize(torch.from_numpy(part.cls), dim=1) for part in (queries, bank))
    places = (asked @ searched.T).argsort(dim=1, descending=True, stable=True)[:, :NEIGHBOURS].numpy()
    return {int(row): bank.rows[own].tolist() for row, own in zip(queries.rows, places, strict=True)}


def neighbour_section(manifest: Manifest, gallery: Gallery, label: str) -> str:
    """One card for each query, and how many neighbours have its label."""
    labels = manifest.table[label]
    captions = [name for name in (label, "antibody", "plate") if name in manifest.table.columns]
    picture = cache(lambda row: picture_address(manifest, row))

    def tile(row: int, verdict: str = "") -> str:
        values = [manifest.table[name][row] for name in captions]
        title = escape(", ".join(str(value) for value in values if value is not None))
        text = escape(str(labels[row]).replace("_", " "))
        return (
            f"<li class='tile {verdict}' title='{title}'><img src='{picture(row)}' alt='{title}'>"
            f"{_MARKS[verdict]}<span>{text}</span></li>"
        )

    def line(arm: str, query: int) -> str:
        rows = gallery.found[arm].get(query, [])
        tiles = [tile(row, "right" if labels[row] == labels[query] else "wrong") for row in rows]
        count = f"{_right(labels, query, rows)} of {len(rows)}"
        return f"<h4>{ARM_NAMES[arm]} <span>{count}</span></h4><ul class='tiles'>{''.join(tiles)}</ul>"

    cards = [
        f"<article class='card'><ul class='tiles query'>{tile(query)}</ul>"
        f"<div>{''.join(line(arm, query) for arm in gallery.found)}</div></article>\n"
        for query in gallery.queries.tolist()
    ]
    totals = [
        f"{ARM_NAMES[arm]} {sum(_right(labels, query, rows) for query, rows in found.items())} of "
        f"{sum(map(len, found.values()))}"
        for arm, found in gallery.found.items()
    ]
    return (
        f"<p>Neighbours with the pattern of their query: <b>{', '.join(totals)}</b>.</p>\n"
        f"<div class='cards'>{''.join(cards)}</div>"
    )


def picture_address(manifest: Manifest, row: int) -> str:
    """The image of ``row`` as a colour composite, a JPEG file in a ``data:`` address."""
    file = io.BytesIO()
    picture = Image.fromarray(composite(read_image(manifest.paths(row))))
    picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)  # the structure is in the colours
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _right(labels: pl.Series, query: int, rows: Sequence[int]) -> int:
    """How many of ``rows`` have the label of ``query``."""
    return sum(labels[row] == labels[query] for row in rows)
