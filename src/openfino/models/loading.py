"""Opening weights: from wherever they come, into a :class:`Backbone`, with a report of every parameter."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, DINOv3ViTConfig, DINOv3ViTModel

from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone
from openfino.models.channels import expand_channels
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.families import family_of

MIN_MATCHED = 0.99


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


def backbone_config(settings: Mapping[str, Any], channels: int) -> DINOv3ViTConfig:
    """A configuration for random weights.

    Raises:
        OpenfinoError: for a key that ``DINOv3ViTConfig`` does not know, or sizes that do not fit together.
    """
    known = {field.name for field in dataclasses.fields(DINOv3ViTConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise OpenfinoError(f"model.config: DINOv3ViTConfig does not know {', '.join(unknown)}")
    config = DINOv3ViTConfig(**{**settings, "num_channels": channels})
    if (
        config.hidden_size % config.num_attention_heads
        or config.hidden_size // config.num_attention_heads % 4
    ):
        raise OpenfinoError(
            f"model.config: hidden_size {config.hidden_size} over {config.num_attention_heads} attention heads "
            "must give a head dimension divisible by 4 (rotary positions use two axes of pairs)"
        )
    return config


def random_backbone(settings: Mapping[str, Any], channels: int, seed: int) -> Backbone:
    """A backbone with random weights that depend on ``seed`` alone."""
    config = backbone_config(settings, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dinov3Backbone(DINOv3ViTModel(config).float().eval())


def pretrained_backbone(source: str, *, allow_partial: bool = False) -> tuple[Backbone, LoadReport]:
    """Load a backbone from a Hugging Face hub name or folder, in float32, with its own channel count.

    Raises:
        OpenfinoError: if nothing is there, if it is of no family that we know, or if under 99 % of the parameters
            matched.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        family = family_of(config)
        loaded: Any = family.model_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        kind = "folder" if Path(source).is_dir() else "hub name or folder"
        raise OpenfinoError(f"model.source: cannot load {source!r} from this {kind}: {error}") from None
    model, info = loaded
    # A mismatched tensor is listed as (name, shape there, shape here) and keeps its random values: not a match.
    mismatched = sorted(str(item[0]) for item in info.get("mismatched_keys", ()))
    missing = sorted({*map(str, info["missing_keys"]), *mismatched})
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lost = sum(sizes.get(name, 0) for name in missing)
    total = sum(sizes.values())
    unexpected = sorted(map(str, info["unexpected_keys"]))
    report = LoadReport(source, total - lost, total, missing, unexpected, [])
    if report.fraction < MIN_MATCHED and not allow_partial:
        raise OpenfinoError(
            f"{report}\nUnder {MIN_MATCHED:.0%} of the parameters matched: this is not the model that its "
            "configuration describes. Mend the source, or set model.allow_partial: true"
        )
    return family.backbone(model.eval()), report


def fit_channels(backbone: Backbone, report: LoadReport, channels: int) -> LoadReport:
    """Expand the patch embedding to ``channels`` where it differs, and say so in the report."""
    old = backbone.channels
    if channels == old:
        return report
    expand_channels(backbone, channels)
    note = f"{backbone.patch_embedding_name}.weight ({old} -> {channels} channels)"
    return dataclasses.replace(report, reshaped=[*report.reshaped, note])
