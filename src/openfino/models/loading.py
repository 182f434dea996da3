"""Opening weights: from wherever they come, into a :class:`Backbone`, with a report of every parameter."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone
from openfino.models.channels import expand_channels
from openfino.models.families import backbone_config, family_of, vision_part

MIN_MATCHED = 0.99
OWN_WEIGHTS = "openfino.safetensors"
"""Beside the transformers weights: parameters that their model does not have (:meth:`Backbone.own_state`)."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter when the weights were loaded."""

    source: str
    matched: int
    total: int
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def fraction(self) -> float:
        """Matched share of the model's parameters."""
        return self.matched / max(self.total, 1)

    def __str__(self) -> str:
        lines = [
            f"weights from {self.source}: {self.matched:,} of {self.total:,} parameters matched "
            f"({self.fraction:.2%}), {len(self.missing)} tensors missing, {len(self.unexpected)} unexpected, "
            f"{len(self.reshaped)} reshaped"
        ]
        for title in ("missing", "unexpected", "reshaped"):
            names = getattr(self, title)
            if names:
                shown = ", ".join(names[:5]) + (f" ... and {len(names) - 5} more" if len(names) > 5 else "")
                lines.append(f"  {title}: {shown}")
        return "\n".join(lines)


def random_backbone(settings: Mapping[str, Any], channels: int, seed: int) -> Backbone:
    """A backbone with random weights that depend on ``seed`` alone."""
    config = backbone_config(settings, channels)
    family = family_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.backbone(family.model_class(config).float().eval())


def read_config(source: str) -> PreTrainedConfig:
    """The configuration at a Hugging Face hub name or folder; of a model with a text tower, its image tower's.

    Raises:
        OpenfinoError: if there is none, or if it is of no family that we know.
    """
    try:
        return vision_part(AutoConfig.from_pretrained(source))
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _cannot_load(source, error) from None


def pretrained_backbone(source: str, *, allow_partial: bool = False) -> tuple[Backbone, LoadReport]:
    """Load a backbone from a Hugging Face hub name or folder, in float32, with its own channel count.

    Raises:
        OpenfinoError: if nothing is there, if it is of no family that we know, or if under 99 % of the parameters
            matched.
    """
    config = read_config(source)
    family = family_of(config)
    try:
        loaded: Any = family.model_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from None
    model, info = loaded
    backbone = family.backbone(model.eval())
    # A mismatched tensor is listed as (name, shape there, shape here) and keeps its random values: not a match.
    mismatched = sorted(str(item[0]) for item in info.get("mismatched_keys", ()))
    missing = sorted({*map(str, info["missing_keys"]), *mismatched, *_load_own(backbone, source)})
    sizes = {name.removeprefix("model."): value.numel() for name, value in backbone.named_parameters()}
    lost = sum(sizes.get(name, 0) for name in missing)
    total = sum(sizes.values())
    unexpected = sorted(map(str, info["unexpected_keys"]))
    report = LoadReport(source, total - lost, total, missing, unexpected, [])
    if report.fraction < MIN_MATCHED and not allow_partial:
        raise OpenfinoError(
            f"{report}\nUnder {MIN_MATCHED:.0%} of the parameters matched: this is not the model that its "
            "configuration describes. Mend the source, or set model.allow_partial: true"
        )
    return backbone, report


def _load_own(backbone: Backbone, source: str) -> list[str]:
    """Fill the parameters that the transformers model does not have; returns those that the source lacks."""
    path = Path(source) / OWN_WEIGHTS
    stored = load_file(path) if path.is_file() else {}
    lacking = []
    for name, value in backbone.own_state().items():
        if name in stored and stored[name].shape == value.shape:
            value.copy_(stored[name])
        else:
            lacking.append(name)
    return lacking


def _cannot_load(source: str, error: Exception) -> OpenfinoError:
    kind = "folder" if Path(source).is_dir() else "hub name or folder"
    return OpenfinoError(f"model.source: cannot load {source!r} from this {kind}: {error}")


def fit_channels(backbone: Backbone, report: LoadReport, channels: int) -> LoadReport:
    """Expand the patch embedding to ``channels`` where it differs, and say so in the report."""
    old = backbone.channels
    if channels == old:
        return report
    expand_channels(backbone, channels)
    note = f"{backbone.patch_embedding_name}.weight ({old} -> {channels} channels)"
    return dataclasses.replace(report, reshaped=[*report.reshaped, note])
