"""Opening weights: from wherever they come, into a :class:`Backbone`, with a report of every parameter."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from openfino import tiny
from openfino.errors import OpenfinoError
from openfino.models.backbone import Backbone
from openfino.models.channels import expand_channels
from openfino.models.checkpoints import (
    UNREADABLE,
    Checkpoint,
    kind_of_file,
    open_checkpoint,
    transformers_source,
    why_unreadable,
)
from openfino.models.families import backbone_config, family_of, vision_part

MIN_MATCHED = 0.99
OWN_WEIGHTS = "openfino.safetensors"
"""Beside the transformers weights: parameters that their model does not have (:meth:`Backbone.own_state`)."""
MASK_TOKEN = "embeddings.mask_token"


@dataclass(frozen=True)
class LoadReport:
    """What became of every parameter when the weights were loaded."""

    source: str
    matched: int
    total: int
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    notes: list[str] = field(default_factory=list)

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
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def random_backbone(settings: Mapping[str, Any], channels: int, seed: int) -> Backbone:
    """A backbone with random weights that depend on ``seed`` alone."""
    config = backbone_config(settings, channels)
    family = family_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.backbone(family.model_class(config).float().eval())


def read_config(source: str) -> PreTrainedConfig:
    """The configuration at a Hugging Face hub name or folder (of a model with a text tower, its image tower's), or of
    a weights file or timm model, as its shapes tell.

    Raises:
        OpenfinoError: if there is none, or if it is of no family that we know.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint is not None:
        return vision_part(checkpoint.config)
    try:
        return vision_part(AutoConfig.from_pretrained(transformers_source(source)))
    except (OSError, ValueError, StrictDataclassError) as error:
        raise _cannot_load(source, error) from None


def pretrained_backbone(
    source: str, *, allow_partial: bool = False, layer_norm_eps: float | None = None
) -> tuple[Backbone, LoadReport]:
    """Load a backbone in float32, with its own channel count.

    Args:
        source: a Hugging Face hub name or folder, a timm hub name or folder, or a file of DINOv3 weights.
        allow_partial: go on when under 99 % of the parameters matched.
        layer_norm_eps: of the norms in a file of Meta, which does not say; 1e-5 when not given.

    Raises:
        OpenfinoError: if nothing is there, if it is of no family that we know, or if under 99 % of the parameters
            matched.
    """
    checkpoint = open_checkpoint(source, layer_norm_eps=layer_norm_eps)
    if checkpoint is not None:
        vision_part(checkpoint.config)
        model, missing, unexpected, notes = _filled(checkpoint)
        backbone = family_of(checkpoint.config).backbone(model.eval())
    else:
        if layer_norm_eps is not None:
            raise OpenfinoError(
                f"model.layer_norm_eps is for weights files that do not say; {source}'s config.json does"
            )
        backbone, missing, unexpected, notes = _opened_by_transformers(transformers_source(source))
    sizes = {name.removeprefix("model."): value.numel() for name, value in backbone.named_parameters()}
    lost = sum(sizes.get(name, 0) for name in missing)
    total = sum(sizes.values())
    shown = tiny.shown_name(source)
    if shown == tiny.NAME and Path(shown).exists():
        notes = [
            *notes,
            "this is the backbone that comes with openfino; the folder here of that name is ./tiny",
        ]
    report = LoadReport(shown, total - lost, total, missing, unexpected, [], notes)
    if report.fraction < MIN_MATCHED and not allow_partial:
        raise OpenfinoError(
            f"{report}\nUnder {MIN_MATCHED:.0%} of the parameters matched: this is not the model that its "
            "configuration describes. Mend the source, or set model.allow_partial: true"
        )
    _refuse_broken_values(backbone, source)
    return backbone, report


def _refuse_broken_values(backbone: Backbone, source: str) -> None:
    broken = [name for name, value in backbone.named_parameters() if not bool(value.isfinite().all())]
    if broken:
        raise OpenfinoError(
            f"model.source: {source} holds values that are no numbers (NaN or infinite) in {len(broken)} tensors "
            f"({', '.join(broken[:3])}): its training diverged, or the file is damaged"
        )


def _opened_by_transformers(source: str) -> tuple[Backbone, list[str], list[str], list[str]]:
    """A backbone, the names of missing parameters and of unexpected tensors, and notes."""
    config = read_config(source)
    family = family_of(config)
    try:
        loaded: Any = family.model_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from None
    except UNREADABLE as error:
        raise OpenfinoError(
            f"model.source: cannot load the weights in {source}: {_why_in(Path(source), error)}"
        ) from None
    model, info = loaded
    backbone = family.backbone(model.eval())
    # A mismatched tensor is listed as (name, shape there, shape here) and keeps its random values: not a match.
    mismatched = {str(name): shapes for name, *shapes in info.get("mismatched_keys", ())}
    missing = sorted({*map(str, info["missing_keys"]), *mismatched, *_load_own(backbone, source)})
    notes = [_shapes_differ(name, *shapes) for name, shapes in sorted(mismatched.items())[:5]]
    return backbone, missing, sorted(map(str, info["unexpected_keys"])), notes


def _shapes_differ(name: str, there: Iterable[int], here: Iterable[int]) -> str:
    return f"{name}: {tuple(there)} in the file, {tuple(here)} in the model"


def _why_in(folder: Path, error: Exception) -> str:
    """Why the weights of a folder cannot be read: what is wrong with the first bad file, else what was raised."""
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        try:
            kind_of_file(path)
        except OpenfinoError as found:
            return f"{path.name}: {found}"
    return why_unreadable(error)


def _filled(checkpoint: Checkpoint) -> tuple[Any, list[str], list[str], list[str]]:
    """A model with the tensors of ``checkpoint``, the names of missing parameters and of unexpected tensors, notes.

    Room is made for each parameter once and nothing is drawn, unless something is missing. A mask token, which some
    formats do not have, is then zero.
    """
    model_class, state = family_of(checkpoint.config).model_class, checkpoint.state
    with torch.device("meta"):
        model = model_class(checkpoint.config)
    missing = [
        name
        for name, value in model.named_parameters()
        if value.numel() and (name not in state or state[name].shape != value.shape)
    ]
    if set(missing) <= {MASK_TOKEN}:
        model.to_empty(device="cpu")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class(checkpoint.config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            if name in state and name not in missing:
                value.copy_(state[name])
            elif name == MASK_TOKEN:
                value.zero_()
    unexpected = sorted({*checkpoint.unexpected, *(state.keys() - parameters.keys())})
    misshapen = [name for name in sorted(missing) if name in state][:5]
    differ = [_shapes_differ(name, state[name].shape, parameters[name].shape) for name in misshapen]
    return model, sorted(missing), unexpected, [*checkpoint.notes, *differ]


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
    if Path(source).exists():
        return OpenfinoError(f"model.source: cannot load {source!r} from this folder: {_in_a_line(error)}")
    try:
        validate_repo_id(source)
    except HFValidationError:
        return OpenfinoError(
            f"model.source: cannot load {source!r}: there is no such folder or file, and no model of the hub can have "
            "this name"
        )
    return OpenfinoError(
        f"model.source: cannot load {source!r} as a hub name, folder or file: {_in_a_line(error)}"
    )


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def fit_channels(
    backbone: Backbone, report: LoadReport, channels: int, *, keep_grey_response: bool = True
) -> LoadReport:
    """Expand the patch embedding to ``channels`` where it differs, and say so in the report."""
    old = backbone.channels
    if channels == old:
        return report
    expand_channels(backbone, channels, keep_grey_response=keep_grey_response)
    note = f"{backbone.patch_embedding_name}.weight ({old} -> {channels} channels)"
    return dataclasses.replace(report, reshaped=[*report.reshaped, note])
