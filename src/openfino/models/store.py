"""Models on disk: a Hugging Face folder plus ``openfino.json`` (preprocessing and provenance).

``MODEL`` on the command line is ``tiny``, a run folder (its best model, else its last), a model folder, a hub name, or
a file of weights.
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

from openfino import tiny
from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Backbone
from openfino.models.checkpoints import refuse_distributed, transformers_source
from openfino.models.loading import OWN_WEIGHTS, LoadReport, pretrained_backbone
from openfino.models.pretraining import default_preprocessing, pretraining_normalization
from openfino.recipe import Normalization

SIDECAR = "openfino.json"
FORMAT = 1
RUN_MODELS = ("best", "model")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen backbone with what is needed to feed it and to say where it comes from.

    Attributes:
        folder: where it lies; None for a model in memory or on a hub.
        report: what became of every parameter when it was opened; None for a model in memory.
    """

    backbone: Backbone
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    folder: Path | None
    report: LoadReport | None = None

    @property
    def name(self) -> str:
        """The folder or hub name it was loaded from, or ``tiny``."""
        return tiny.shown_name(self.folder) if self.folder else str(self.provenance.get("source", "model"))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and the load report of ``transformers`` for a moment: our report says it all."""
    enabled, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
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
    write_sidecar(partial, preprocessing, provenance)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old)
    else:
        os.replace(partial, folder)


def model_folder(source: str | Path) -> Path | None:
    """The folder that holds the weights of ``source``; None for a hub name, or a file with weights alone.

    Here the word ``tiny`` becomes the folder of the shipped backbone.

    Raises:
        OpenfinoError: for a run without a model yet, a folder without a config, or a damaged ``tiny``.
    """
    if tiny.is_tiny(source):
        return tiny.checked_folder()
    folder = Path(transformers_source(str(source)))
    if not folder.is_dir():
        return None
    refuse_distributed(folder)
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

    A model without ``openfino.json`` gets :func:`openfino.models.pretraining.default_preprocessing`.

    Raises:
        OpenfinoError: if there is nothing to load.
    """
    folder = model_folder(source)
    with quiet_transformers():
        backbone, report = pretrained_backbone(str(folder or source))
    backbone.requires_grad_(False).eval()
    stored = read_sidecar(folder)
    if stored is not None:
        return LoadedModel(
            backbone, Preprocessing.from_json(stored["preprocessing"]), stored["provenance"], folder, report
        )
    preprocessing = default_preprocessing(backbone, str(folder or source))
    return LoadedModel(backbone, preprocessing, {"source": tiny.as_source(source)}, folder, report)


def source_normalization(source: str | Path) -> Normalization:
    """How the images of a run, a model folder or a hub name were normalised, without opening the weights.

    Raises:
        OpenfinoError: if there is no model, or if it is of no family that we know.
    """
    folder = model_folder(source)
    sidecar = read_sidecar(folder)
    if sidecar is not None:
        return Preprocessing.from_json(sidecar["preprocessing"]).normalization
    return pretraining_normalization(str(folder or source))


def write_sidecar(folder: Path, preprocessing: Preprocessing, provenance: Mapping[str, Any]) -> None:
    """Write ``openfino.json`` into ``folder``."""
    (folder / SIDECAR).write_text(sidecar_text(preprocessing, provenance), encoding="utf-8")


def sidecar_text(preprocessing: Preprocessing, provenance: Mapping[str, Any]) -> str:
    """The content of ``openfino.json``."""
    sidecar = {"format": FORMAT, "preprocessing": preprocessing.to_json(), "provenance": dict(provenance)}
    return json.dumps(sidecar, indent=1)


def read_sidecar(folder: Path | None) -> dict[str, Any] | None:
    """The content of ``openfino.json``; None where there is none."""
    if folder is None or not (folder / SIDECAR).is_file():
        return None
    content: dict[str, Any] = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    return content
