"""What a model was fed with before it came here: its own file says so, or else its family."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from openfino.images.normalize import IMAGENET_MEAN, IMAGENET_STD
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Backbone
from openfino.models.checkpoints import open_checkpoint
from openfino.models.families import family_of
from openfino.models.loading import read_config
from openfino.recipe import GivenNormalization, Normalization

PROCESSOR_FILE = "preprocessor_config.json"


def read_processor(source: str) -> dict[str, Any]:
    """The content of ``preprocessor_config.json`` at a folder or hub name, or what a weights file or a timm model says
    in its stead; empty where there is none."""
    checkpoint = open_checkpoint(source)
    if checkpoint is not None:
        return checkpoint.processor
    if Path(source).is_dir():
        path = Path(source) / PROCESSOR_FILE
        found = str(path) if path.is_file() else None
    else:
        found = cached_file(
            source,
            PROCESSOR_FILE,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if found is None:
        return {}
    try:
        content = json.loads(Path(found).read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def default_preprocessing(backbone: Backbone, source: str) -> Preprocessing:
    """Preprocessing for a model that carries none of ours.

    Size and normalisation are those of the source's ``preprocessor_config.json`` (the crop's size where it crops: we
    take the whole image), else the configuration's size and the family's normalisation. A model of other than three
    channels, of which the file says nothing, gets per-image z-scores.
    """
    processor = read_processor(source)
    count = backbone.channels
    names = ["red", "green", "blue"] if count == 3 else [f"channel_{index}" for index in range(count)]
    return Preprocessing(
        size=_size(processor) or backbone.image_size_of(backbone.config),
        normalization=_normalization(processor, type(backbone), count),
        channels=names,
    )


def pretraining_normalization(source: str) -> Normalization:
    """How the images of the model at a folder or hub name were normalised, found without opening its weights.

    Raises:
        OpenfinoError: if there is no configuration, or if it is of no family that we know.
    """
    config = read_config(source)
    return _normalization(read_processor(source), family_of(config).backbone, config.num_channels)


def _normalization(processor: Mapping[str, Any], backbone: type[Backbone], channels: int) -> Normalization:
    mean, std = (processor.get(key) for key in ("image_mean", "image_std"))
    if processor.get("do_normalize") is False:
        mean, std = [0.0] * channels, [1.0] * channels
    if not (isinstance(mean, list) and isinstance(std, list)):
        mean, std = [], []
    if not len(mean) == len(std) == channels:
        return backbone.normalization if channels == 3 else "zscore"
    if (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return "imagenet"
    return GivenNormalization(mean=mean, std=std)


def _size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    crops = processor.get("do_center_crop") and processor.get("crop_size")
    size = processor.get("crop_size") if crops else processor.get("size")
    if isinstance(size, int):
        return size, size
    if not isinstance(size, Mapping):
        return None
    if {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    edge = size.get("shortest_edge")
    return (int(edge), int(edge)) if edge else None
