"""A folder for timm: ``timm.create_model("local-dir:FOLDER", pretrained=True)``, or from the hub."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.export.door import Door, Opened, Written, uncovered
from openfino.export.plain import NO_LOCAL_NORM, foreign_variants, has_local_norm
from openfino.export.usage import timm_usage
from openfino.images.normalize import channel_statistics, normalize
from openfino.models.backbone import Tokens
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.formats.timm import ARCHITECTURES, EPSILON, to_timm
from openfino.models.licence import parent_of
from openfino.models.loading import MASK_TOKEN, pretrained_backbone
from openfino.models.store import LoadedModel

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What timm's DINOv3 architectures have in common.
PATCH, REGISTERS, THETA = 16, 4, 100.0
ALIGNED = 64  # the coarsest step to which one of them rounds the width of its SwiGLU

NO_MASK_TOKEN = (
    "timm has no mask token: it is left out (features do not need it; training on from this folder would start a new "
    "one)"
)
NO_ZSCORE = (
    "timm's configuration cannot say per-image z-score: mean 0 and standard deviation 1 stand there, so z-score the "
    "pixels yourself (openfino.json names the preprocessing)"
)


class Timm(Door):
    """model.safetensors and config.json of timm's ``Eva`` class; re-opened without timm."""

    name = "timm"
    library = "timm"
    opened_with = "openfino's reader of timm's format"

    def problems(self, model: LoadedModel) -> list[str]:
        """See :meth:`Door.problems`."""
        backbone = model.backbone
        if not isinstance(backbone, Dinov3Backbone):
            return [f"it is of type {backbone.family}, and only DINOv3 vision transformers go to timm"]
        return [*uncovered(model), *foreign_variants(backbone), *_foreign_settings(backbone.config)]

    def write(self, model: LoadedModel, folder: Path) -> Written:
        """See :meth:`Door.write`."""
        config: Any = model.backbone.config
        state = to_timm(model.backbone.model.state_dict(), config)
        save_file(
            {name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, {"format": "pt"}
        )
        (folder / CONFIG).write_text(json.dumps(timm_config(model), indent=2) + "\n", encoding="utf-8")
        notes = [NO_MASK_TOKEN]
        if has_local_norm(model.backbone):
            notes.append(NO_LOCAL_NORM)
        if model.preprocessing.normalization == "zscore":
            notes.append(NO_ZSCORE)
        return Written(notes)

    def open(self, model: LoadedModel, folder: Path) -> Opened:
        """See :meth:`Door.open`."""
        opened, report = pretrained_backbone(str(folder))
        strays = [*(set(report.missing) - {MASK_TOKEN}), *report.unexpected]
        if strays:
            raise OpenfinoError(
                f"the export does not open as it was written: {', '.join(sorted(strays)[:5])}"
            )

        def run(images: Tensor) -> Tokens:
            tokens: Tokens = opened(normalize(images, model.preprocessing.normalization))
            return tokens

        return run

    def usage(self, model: LoadedModel, written: Written) -> str:
        """See :meth:`Door.usage`."""
        return timm_usage(model)


def _foreign_settings(config: Any) -> list[str]:
    """What timm's constructor has no argument for (in JSON), or computes in another way."""
    problems = []
    if config.layer_norm_eps != EPSILON:
        problems.append(f"layer_norm_eps {config.layer_norm_eps}, there always {EPSILON}")
    activation = "silu" if config.use_gated_mlp else "gelu"
    if config.hidden_act != activation:
        problems.append(
            f"hidden_act {config.hidden_act}, there always {activation} in this feed-forward layer"
        )
    if config.key_bias:
        problems.append("a bias of the keys")
    return problems


def timm_config(model: LoadedModel) -> dict[str, Any]:
    """``config.json`` as ``timm.models.save_for_hf`` writes it."""
    config = model.backbone.config
    preprocessing = model.preprocessing
    channels = model.backbone.channels
    name, arguments = architecture_of(config)
    mean, std = channel_statistics(preprocessing.normalization, channels)
    licence = parent_of(model.provenance, config).licence
    if channels != 3:
        arguments["in_chans"] = channels
    pretrained: dict[str, Any] = {
        "custom_load": False,
        "input_size": [channels, *preprocessing.size],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # the whole image, whatever its shape
        "mean": mean,
        "std": std,
        "num_classes": 0,
        "pool_size": None,
        # Older versions of timm would turn RGB filters into others wherever there are not three channels.
        "first_conv": "patch_embed.proj" if channels == 3 else None,
        "classifier": "head",
    }
    if licence is not None:
        pretrained["license"] = licence
    if preprocessing.normalization == "zscore":
        pretrained["notes"] = [NO_ZSCORE]
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": config.hidden_size,
        "global_pool": "token",
        # timm's own default is the mean of all tokens.
        "model_args": {"global_pool": "token", **arguments},
        "pretrained_cfg": pretrained,
    }


def architecture_of(config: Any) -> tuple[str, dict[str, Any]]:
    """The architecture's name in timm, and the arguments that make it this one where timm has no name for it.

    Args:
        config: a ``DINOv3ViTConfig``.
    """
    gated = bool(config.use_gated_mlp)
    shape = (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
    )
    alike = {name: known for name, known in ARCHITECTURES.items() if known.gated == gated}
    name = min(
        alike,
        key=lambda name: (
            (alike[name].width, alike[name].depth, alike[name].heads, alike[name].hidden) != shape,
            abs(math.log(alike[name].width / config.hidden_size)),
        ),
    )
    known = alike[name]
    differing = (
        ("patch_size", config.patch_size, PATCH),
        ("embed_dim", config.hidden_size, known.width),
        ("depth", config.num_hidden_layers, known.depth),
        ("num_heads", config.num_attention_heads, known.heads),
        ("num_reg_tokens", config.num_register_tokens, REGISTERS),
        ("rope_temperature", config.rope_theta, THETA),
    )
    arguments: dict[str, Any] = {key: here for key, here, there in differing if here != there}
    if config.intermediate_size * known.width != known.hidden * config.hidden_size:
        arguments["mlp_ratio"] = _ratio(config.intermediate_size, config.hidden_size)
    if gated and config.intermediate_size % ALIGNED:
        arguments["swiglu_align_to"] = 1
    if config.query_bias or config.value_bias:
        if known.qkvb:
            name += "_qkvb"
        else:
            arguments["qkv_bias"] = True
    return name, arguments


def _ratio(hidden: int, width: int) -> float:
    """A ratio of which timm, which cuts the product off, makes ``hidden`` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
