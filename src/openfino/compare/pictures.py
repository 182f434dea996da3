"""The pictures of the comparison: UMAP, nearest neighbours and patch tokens as colours, before and after."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openfino.compare.arms import Trained
from openfino.compare.reading import SHOWN_ARMS
from openfino.compare.readings import Readings
from openfino.compare.result import plain
from openfino.compare.setup import Setup
from openfino.compare.working import RUN_FOLDER, starting_model
from openfino.distributed import choose_device
from openfino.errors import OpenfinoError
from openfino.jobs.folder import write_bytes
from openfino.models.store import LoadedModel, load_model
from openfino.report.compare_page import GALLERY_FILE
from openfino.report.compare_pictures import gallery, map_rows, maps, umap_section


@dataclass(frozen=True)
class _Shown:
    """CLS of the rows that pictures show."""

    rows: NDArray[np.int64]
    features: NDArray[np.float32]

    def cls(self) -> NDArray[np.float32]:
        return self.features


def with_pictures(result: Mapping[str, Any], readings: Readings) -> dict[str, Any]:
    """``result`` with ``umap``, ``gallery`` and ``maps``; the images go into ``gallery.json``.

    What cannot be drawn does not cost the table: ``not_drawn`` says why.
    """
    setup, sources = readings.setup, _sources(readings)
    column, drawn, pictures, reasons = _spurious_column(setup), {}, {}, {}
    tested, train = setup.shown
    common: dict[str, Any] = {"seed": setup.base.seed, "spurious": column}
    label = setup.task.label

    def put_umap() -> None:
        drawn["umap"] = umap_section(sources, setup.manifest.table, tested, label, **common)

    def put_gallery() -> None:
        drawn["gallery"], found = gallery(
            setup.manifest, sources, label, tested, train, kind=setup.task.kind, **common
        )
        pictures.update(found)

    def put_maps() -> None:
        rows = map_rows(setup.manifest, label, tested, setup.base.seed)
        device = choose_device(setup.base.train.device)
        drawn["maps"], found = maps(
            setup.manifest, _models(setup, list(sources)), rows, label=label, device=device
        )
        pictures.update(found)

    parts: dict[str, Callable[[], None]] = {"umap": put_umap, "gallery": put_gallery, "maps": put_maps}
    for name, put in parts.items():
        if not sources:
            reasons[name] = "none of the arms that are shown was run"
            continue
        if name == "umap" and not setup.base.compare.umap:
            reasons[name] = "compare.umap is false"
            continue
        try:
            put()
        except OpenfinoError as error:
            reasons[name] = str(error)
    write_bytes(setup.out / GALLERY_FILE, json.dumps(pictures).encode())
    return {**result, **plain(drawn), "not_drawn": reasons}


def _sources(readings: Readings) -> dict[str, _Shown]:
    rows = np.concatenate(readings.setup.shown)
    found = {}
    for arm in SHOWN_ARMS:
        features = readings.cls(arm) if arm in readings.setup.arms else None
        if features is not None:
            known = np.isfinite(features).all(axis=1)
            found[arm] = _Shown(rows[known], features[known])
    return found


def _spurious_column(setup: Setup) -> str | None:
    """The column by which points are coloured beside the label."""
    for name, spec in setup.factors.items():
        if setup.erased in (name, *spec.columns):
            return spec.columns[0]
    return None


def _models(setup: Setup, arms: list[str]) -> dict[str, LoadedModel]:
    models = {}
    for arm in arms:
        trained = Trained(arm, setup.base.seed)
        folder: Path = setup.place(trained) / RUN_FOLDER / "model"
        models[arm] = starting_model(setup, trained) if arm == "frozen" else load_model(folder)
    return models
