"""What the comparison shows of images: UMAP of features, nearest neighbours, and patch tokens as colours.

Each helper gives a part of ``compare.json``, in which pictures have names; their ``data:`` addresses go into
``gallery.json``.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from openfino.diagnostics.colours import unit_colours
from openfino.diagnostics.maps import PCA_RECIPE, PatchColours
from openfino.errors import OpenfinoError
from openfino.evaluation.features import Features, Rows, extract_features, patch_grid
from openfino.evaluation.splits import encode_column, probe_generator
from openfino.images.display import as_colours
from openfino.images.read import read_image
from openfino.manifest import Manifest
from openfino.models.store import LoadedModel
from openfino.report.neighbours import BANK_ROWS, choose_queries, nearest

SIDE = 128  # of a picture, in pixels
MAPPED, MOST_POINTS = 6, 2_000
NEIGHBOURS = 15  # of UMAP
NO_UMAP = "umap-learn is not installed (pip install 'openfino[report]')"
_QUALITY = 85  # of the JPEG files

Task = Literal["single", "multi", "regression"]
Section = dict[str, Any]
Pictures = dict[str, str]


class HasCls(Protocol):
    """Features of some rows, such as those that :mod:`openfino.evaluation.cache` keeps."""

    @property
    def rows(self) -> Rows:
        """Rows of the manifest [n]."""

    def cls(self) -> NDArray[np.float32]:
        """CLS tokens [n, D]."""


def umap_points(features: NDArray[np.floating], seed: int) -> NDArray[np.float64]:
    """Features [n, D] in the plane [n, 2] by UMAP (cosine, 15 neighbours); the same for the same seed.

    Raises:
        OpenfinoError: without umap-learn, or for fewer than 3 rows.
    """
    if find_spec("umap") is None:
        raise OpenfinoError(NO_UMAP)
    if len(features) < 3:
        raise OpenfinoError(f"UMAP needs at least 3 images; there are {len(features)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that are absent, and of rows without neighbours
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(NEIGHBOURS, len(features) - 1),
            metric="cosine",
            init="pca",  # the spectral start fails on few rows
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(reducer.fit_transform(np.asarray(features, dtype=np.float32)), dtype=np.float64)


def umap_section(
    sources: Mapping[str, HasCls],
    table: pl.DataFrame,
    rows: Rows,
    label: str,
    *,
    seed: int,
    spurious: str | None = None,
) -> Section:
    """``umap`` of ``compare.json``: the same rows under every arm, coloured by two columns.

    Args:
        sources: per arm, features that hold ``rows``; a row that one of them lacks is left out under all.
        table: the manifest's.
        rows: of which a keyed draw of at most ``MOST_POINTS`` is shown.
        label: a column.
        seed: of the draw and of UMAP.
        spurious: another column.

    Raises:
        OpenfinoError: see :func:`umap_points`.
    """
    for source in sources.values():
        rows = np.intersect1d(rows, source.rows)
    rows = np.sort(probe_generator(seed, "umap").permutation(rows)[:MOST_POINTS])
    section = {}
    for arm, source in sources.items():
        points = umap_points(_of_rows(source, rows).cls, seed)
        section[arm] = {"points": points.round(4).tolist(), "label": _values(table[label], rows)}
        if spurious is not None:
            section[arm]["spurious"] = _values(table[spurious], rows)
    return section


def gallery(
    manifest: Manifest,
    sources: Mapping[str, HasCls],
    label: str,
    tested: Rows,
    train: Rows,
    *,
    seed: int,
    kind: Task = "single",
    spurious: str | None = None,
) -> tuple[Section, Pictures]:
    """``gallery`` of ``compare.json``: nearest training images of test images under each arm, and the pictures.

    Args:
        manifest: the table.
        sources: per arm, features that hold rows of ``tested`` and ``train``.
        label: the column that says what an image shows; rows without it take no part.
        tested: rows to draw queries from, every label once before any comes twice.
        train: rows of which a keyed draw is searched.
        seed: of both draws.
        kind: for ``single`` a neighbour is right or wrong.
        spurious: a column to show beside the label.
    """
    for source in sources.values():
        tested, train = np.intersect1d(tested, source.rows), np.intersect1d(train, source.rows)
    labels = pl.Series(label, [_text(value) for value in manifest.table[label].to_list()], dtype=pl.String)
    queries = choose_queries(labels, tested, seed)
    known = train[encode_column(labels)[train] >= 0]
    bank = np.sort(probe_generator(seed, "neighbours bank").permutation(known)[:BANK_ROWS])
    found = {arm: nearest(_of_rows(own, queries), _of_rows(own, bank)) for arm, own in sources.items()}

    def tile(row: int, query: int | None = None) -> Section:
        shown = {"row": row, "image": picture_name(row), "label": labels[row]}
        shown |= {"spurious": _text(manifest.table[spurious][row])} if spurious is not None else {}
        if query is not None and kind == "single":
            shown["right"] = labels[row] == labels[query]
        return shown

    entries = [
        {**tile(row), "found": {arm: [tile(near, row) for near in own[row]] for arm, own in found.items()}}
        for row in queries.tolist()
    ]
    section: Section = {"bank": len(bank), "queries": entries}
    if kind == "single":
        tiles = {arm: [near for entry in entries for near in entry["found"][arm]] for arm in sources}
        section["right"] = {arm: sum(near["right"] for near in own) for arm, own in tiles.items()}
        section["shown"] = {arm: len(own) for arm, own in tiles.items()}
    seen = {*queries.tolist(), *(row for own in found.values() for rows in own.values() for row in rows)}
    return section, {picture_name(row): picture_address(manifest, row) for row in sorted(seen)}


def maps(
    manifest: Manifest,
    models: Mapping[str, LoadedModel],
    rows: Sequence[int] | Rows,
    *,
    label: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Section, Pictures]:
    """``maps`` of ``compare.json``: the first principal components of patch tokens as colours, and the pictures.

    Args:
        manifest: the table.
        models: per arm.
        rows: images, a few; one that an arm cannot use is left out under that arm.
        label: a column to show beside the image.
        device: where the models run.
    """
    rows = np.asarray(rows, dtype=np.int64)
    pictures = {picture_name(row): picture_address(manifest, row) for row in rows.tolist()}
    entries: list[Section] = [
        {"row": row, "image": picture_name(row), "pca": {}}
        | ({} if label is None else {"label": _text(manifest.table[label][row])})
        for row in rows.tolist()
    ]
    explained = {}
    for arm, model in models.items():
        features = extract_features(model, manifest, rows, device=device, tokens=("patches",))
        assert features.patches is not None
        fitted = PatchColours.fit(features.patches)
        colours = fitted(features.patches).reshape(len(features), *patch_grid(model), 3)
        explained[arm] = fitted.explained.tolist()
        drawn = dict(zip(features.rows.tolist(), colours, strict=True))
        for entry in entries:
            if entry["row"] in drawn:
                name = f"pca/{arm}/{entry['row']}"
                entry["pca"][arm] = name
                pictures[name] = _address(unit_colours(drawn[entry["row"]]), "PNG")
    return {"recipe": PCA_RECIPE, "explained": explained, "images": entries}, pictures


def map_rows(manifest: Manifest, label: str, tested: Rows, seed: int) -> Rows:
    """``MAPPED`` rows for :func:`maps`, drawn as the queries of :func:`gallery` are."""
    labels = pl.Series(label, [_text(value) for value in manifest.table[label].to_list()], dtype=pl.String)
    return choose_queries(labels, tested, seed)[:MAPPED]


def picture_name(row: int) -> str:
    """By which the image of a row is named."""
    return f"row{row}"


def picture_address(manifest: Manifest, row: int) -> str:
    """The image of ``row`` for the eye, at most ``SIDE`` pixels, as a JPEG file in a ``data:`` address."""
    pixels = as_colours(read_image(manifest.paths(row)))
    return _address(pixels, "JPEG", quality=_QUALITY, subsampling=0)  # the structure is in the colours


def _address(pixels: NDArray[np.uint8], form: str, **options: Any) -> str:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _of_rows(source: HasCls, rows: Rows) -> Features:
    """CLS of ``rows``, which ``source`` has."""
    order = np.argsort(source.rows, kind="stable")
    places = order[np.searchsorted(source.rows, rows, sorter=order)]
    cls = np.asarray(source.cls()[places], dtype=np.float32)
    return Features(np.asarray(rows), cls, cls, None, [], [])


def _values(column: pl.Series, rows: Rows) -> list[Any]:
    """Numbers as numbers, anything else as text, missing as None."""
    if column.dtype.is_numeric():
        return [
            value if value is None or np.isfinite(value) else None for value in column.gather(rows).to_list()
        ]
    return [_text(value) for value in column.gather(rows).to_list()]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
