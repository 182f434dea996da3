"""Frozen networks on images in memory, their random twins, and what the figures of a command are kept with."""

import copy
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openfino.evaluation.embed import weights_hash
from openfino.keyed import Purpose, keyed_seed
from openfino.models.backbone import Tokens
from openfino.models.channels import expand_channels
from openfino.models.families import family_of
from openfino.models.store import LoadedModel

Images = NDArray[np.uint8]
Matrix = NDArray[np.float32]

BATCH = 64


@dataclass(frozen=True)
class Pooled:
    """Features of images, float32 [n, D] each, ``placed`` [n, P D]."""

    cls: Matrix
    mean: Matrix
    placed: Matrix
    """All patch tokens side by side, each in its place as a pixel of a raw image is in its own."""

    @property
    def both(self) -> Matrix:
        """CLS and mean patch side by side, as the linear probe takes them [n, 2 D]."""
        return np.concatenate([self.cls, self.mean], axis=1)


def as_seen(model: LoadedModel, images: Images) -> Tensor:
    """Images [n, C, H, W] as ``model`` takes them; one channel stands for all that the model has."""
    unit = torch.from_numpy(images).float() / 255
    if unit.shape[1] == 1:
        unit = unit.expand(-1, model.backbone.channels, -1, -1)
    return torch.stack([model.preprocessing.apply(image) for image in unit])


@torch.inference_mode()
def stream_tokens(model: LoadedModel, images: Images) -> Iterator[Tokens]:
    """Tokens of images [n, C, H, W], batch by batch."""
    for start in range(0, len(images), BATCH):
        yield model.backbone(as_seen(model, images[start : start + BATCH]))


def pooled_features(model: LoadedModel, images: Images) -> Pooled:
    """CLS, mean patch and all patches of images [n, C, H, W]."""
    parts = [
        (tokens.cls, tokens.patches.mean(dim=1), tokens.patches.flatten(1))
        for tokens in stream_tokens(model, images)
    ]
    return Pooled(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def patch_features(model: LoadedModel, images: Images) -> Matrix:
    """Patch tokens of images [n, C, H, W], row by row: [n, P, D]."""
    return torch.cat([tokens.patches for tokens in stream_tokens(model, images)]).numpy()


def random_twin(model: LoadedModel, seed: int) -> LoadedModel:
    """The same network with the random weights from which a run with ``seed`` would start."""
    config = copy.deepcopy(model.backbone.config)
    family = family_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, Purpose.INIT))
        backbone = family.backbone(family.model_class(config).float())
    return replace(model, backbone=backbone.requires_grad_(False).eval())


def with_channels(model: LoadedModel, names: list[str]) -> LoadedModel:
    """``model`` with its patch embedding expanded to other channels, as a run on them would start from it.

    Fixed means and deviations do not fit other channels: the images are then normalised each by its own.
    """
    if model.backbone.channels == len(names):
        return model
    backbone = copy.deepcopy(model.backbone)
    expand_channels(backbone, len(names))
    changes = {"normalization": "zscore", "channels": names}
    return replace(model, backbone=backbone, preprocessing=model.preprocessing.model_copy(update=changes))


def at_size(model: LoadedModel, size: int) -> LoadedModel:
    """``model`` on images of ``size`` x ``size`` pixels."""
    return replace(model, preprocessing=model.preprocessing.model_copy(update={"size": (size, size)}))


def write_figures(
    file: Path, script: str, models: Mapping[str, LoadedModel], figures: Mapping[str, Any]
) -> None:
    """Write ``figures`` as JSON, with the command that made them, the models and the processor time."""
    facts = {
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "models": {name: {"weights_sha256": weights_hash(model.backbone)} for name, model in models.items()},
        "torch": torch.__version__,
        "processor_seconds": round(time.process_time()),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**facts, **figures}, indent=1) + "\n", encoding="utf-8")
