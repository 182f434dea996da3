"""Models on disk: a Hugging Face folder plus ``openfino.json`` (preprocessing and provenance).

``MODEL`` on the command line is a run folder (its best model, else its last), a model folder, or a hub name.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers.utils import logging as hf_logging

from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Backbone
from openfino.models.loading import OWN_WEIGHTS, pretrained_backbone

SIDECAR = "openfino.json"
FORMAT = 1
RUN_MODELS = ("best", "model")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen backbone with what is needed to feed it and to say where it comes from."""

    backbone: Backbone
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    folder: Path | None

    @property
    def name(self) -> str:
        """The folder or hub name it was loaded from."""
        return str(self.folder) if self.folder else str(self.provenance.get("source", "model"))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars of ``transformers`` for a moment."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()


def save_backbone(
    folder: Path, backbone: Backbone, preprocessing: Preprocessing, provenance: Mapping[str, Any]
) -> None:
    """Write config.json, model.safetensors and openfino.json; an existing folder is replaced in one step.

    Parameters that the transformers model does not have (a SigLIP's mask token) go into openfino.safetensors.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with quiet_transformers():
        backbone.model.save_pretrained(partial)
    if own := backbone.own_state():
        save_file({name: value.contiguous() for name, value in own.items()}, partial / OWN_WEIGHTS)
    sidecar = {"format": FORMAT, "preprocessing": preprocessing.to_json(), "provenance": dict(provenance)}
    (partial / SIDECAR).write_text(json.dumps(sidecar, indent=1), encoding="utf-8")
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old)
    else:
        os.replace(partial, folder)


def model_folder(source: str | Path) -> Path | None:
    """The folder that holds the weights of ``source``; None when ``source`` is no folder (a hub name).

    Raises:
        OpenfinoError: for a run without a model yet, or a folder without a config.
    """
    folder = Path(source)
    if not folder.is_dir():
        return None
    if (folder / "config.json").is_file():
        return folder
    for name in RUN_MODELS:
        if (folder / name / "config.json").is_file():
            return folder / name
    raise OpenfinoError(
        f"{folder} holds no model: there is neither config.json nor a run's best/ or model/ folder. "
        "An interrupted run gets one with 'openfino adapt RECIPE --resume'"
    )


def load_model(source: str | Path) -> LoadedModel:
    """Load a backbone in evaluation mode and float32, with its preprocessing.

    A model without ``openfino.json`` (any Hugging Face DINOv3) gets its configuration's image size and ImageNet
    normalisation, or per-image z-scores when it has other than three channels.

    Raises:
        OpenfinoError: if there is nothing to load.
    """
    folder = model_folder(source)
    with quiet_transformers():
        backbone, _ = pretrained_backbone(str(folder or source))
    backbone.requires_grad_(False).eval()
    sidecar = folder / SIDECAR if folder else None
    if sidecar is not None and sidecar.is_file():
        stored = json.loads(sidecar.read_text(encoding="utf-8"))
        return LoadedModel(
            backbone, Preprocessing.from_json(stored["preprocessing"]), stored["provenance"], folder
        )
    return LoadedModel(backbone, default_preprocessing(backbone), {"source": str(source)}, folder)


def default_preprocessing(backbone: Backbone) -> Preprocessing:
    """Preprocessing for a model that carries none."""
    size = backbone.config.image_size
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    names = ["red", "green", "blue"] if backbone.channels == 3 else None
    return Preprocessing(
        size=(height, width),
        normalization="imagenet" if backbone.channels == 3 else "zscore",
        channels=names or [f"channel_{index}" for index in range(backbone.channels)],
    )
