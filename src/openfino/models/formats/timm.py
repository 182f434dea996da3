"""timm's names of a DINOv3 ViT (its ``Eva`` class), both ways, without timm (dinov3.md 1.5 and 1.6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTConfig

from openfino.errors import OpenfinoError
from openfino.models.formats.converted import (
    LAYER,
    Converted,
    State,
    fill_absent,
    for_every_part,
    put_projections,
    rename,
    rename_back,
    shapes_of,
    split_blocks,
    thirds,
)

EPSILON = 1e-5
IMAGE_SIZE = 256

TOP = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
}
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
}
PLAIN_MLP = {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
GATED_MLP = {"mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}


@dataclass(frozen=True)
class Architecture:
    """A DINOv3 ViT that timm has a name for.

    Attributes:
        width: D.
        depth: blocks.
        heads: of the attention.
        hidden: width of the feed-forward layer.
        gated: SwiGLU.
        qkvb: whether there is a variant ``_qkvb`` with biases of queries and values.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool
    qkvb: bool


ARCHITECTURES = {
    "vit_small_patch16_dinov3": Architecture(384, 12, 6, 1536, False, True),
    "vit_small_plus_patch16_dinov3": Architecture(384, 12, 6, 1536, True, True),
    "vit_base_patch16_dinov3": Architecture(768, 12, 12, 3072, False, True),
    "vit_large_patch16_dinov3": Architecture(1024, 24, 16, 4096, False, True),
    "vit_huge_plus_patch16_dinov3": Architecture(1280, 32, 20, 5120, True, True),
    "vit_7b_patch16_dinov3": Architecture(4096, 40, 32, 8192, True, False),
}


def from_timm(state: Mapping[str, Tensor], config_json: Mapping[str, Any] | None = None) -> Converted:
    """timm's state dict in the names of transformers.

    Args:
        state: tensors by name; a classifier's ``head`` is left out.
        config_json: the content of timm's ``config.json``, where at hand: it names the architecture, hence the number
            of heads, and the size of the images.

    Raises:
        OpenfinoError: if this is not the state dict of a DINOv3 ViT, or the configuration is none of timm's.
    """
    if "pos_embed" in state:
        raise OpenfinoError(
            "the state dict has absolute position embeddings (pos_embed): this is another vision transformer than "
            "DINOv3, which has none. Start from its Hugging Face folder or hub name"
        )
    outside, blocks = split_blocks(state)
    target: State = {}
    left = rename(outside, TOP, "", target)
    notes = []
    head = [name for name in left if name.startswith("head.")]
    if head:
        notes.append(f"{len(head)} tensors of the classifier left out")
    unexpected = [name for name in left if name not in head and not name.startswith("rope.")]
    for index, block in enumerate(blocks):
        place = f"{LAYER}.{index}."
        names = BLOCK | (GATED_MLP if "mlp.fc1_g.weight" in block else PLAIN_MLP)
        rest = rename(block, names, place, target)
        _take_attention(rest, f"blocks.{index}.attn", place, target)
        unexpected += [f"blocks.{index}.{name}" for name in rest]
    notes += fill_absent(target, len(blocks))
    shapes = shapes_of(target, len(blocks))
    try:
        heads, guessed = _heads(shapes["hidden_size"], config_json or {})
        theta = float(_arguments(config_json or {}).get("rope_temperature", 100.0))
        image_size = _image_size(config_json or {})
    except (AttributeError, TypeError, ValueError) as error:
        raise OpenfinoError(f"its config.json cannot be understood ({error})") from None
    if guessed:
        notes.append(
            f"no configuration names the number of heads: {heads}, as the released models of this width have"
        )
    config = {
        **shapes,
        "num_attention_heads": heads,
        "rope_theta": theta,
        "layer_norm_eps": EPSILON,
        "image_size": image_size,
    }
    return Converted(config, target, sorted(unexpected), notes)


def _arguments(config_json: Mapping[str, Any]) -> Mapping[str, Any]:
    return config_json.get("model_args") or {}


def _heads(width: int, config_json: Mapping[str, Any]) -> tuple[int, bool]:
    """The number of heads, and whether nothing named it."""
    given = _arguments(config_json).get("num_heads")
    if given is not None:
        return int(given), False
    name = str(config_json.get("architecture", "")).removesuffix("_qkvb")
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].heads, False
    return max(width // (128 if width == 4096 else 64), 1), True


def _image_size(config_json: Mapping[str, Any]) -> int | list[int]:
    given = _arguments(config_json).get("img_size")
    if given is None:
        given = list(
            (config_json.get("pretrained_cfg") or {}).get("input_size", (3, IMAGE_SIZE, IMAGE_SIZE))
        )[1:]
    if isinstance(given, int):
        return given
    height, width = (int(side) for side in given)
    return height if height == width else [height, width]


def _take_attention(rest: State, name: str, place: str, target: State) -> None:
    """Move the projections out of ``rest``: a fused weight, with biases in one of timm's three ways."""
    fused = rest.pop("attn.qkv.weight", None)
    if fused is None:
        return
    biases: tuple[Tensor | None, ...] = tuple(rest.pop(f"attn.{letter}_bias", None) for letter in "qkv")
    whole = rest.pop("attn.qkv.bias", None)
    if whole is not None:
        biases = thirds(whole, f"{name}.qkv.bias")
    if biases[1] is not None and not biases[1].any():
        biases = (biases[0], None, biases[2])
    put_projections(target, place, thirds(fused, f"{name}.qkv.weight"), biases)


def to_timm(state: Mapping[str, Tensor], config: DINOv3ViTConfig) -> State:
    """timm's state dict of a model in the names of transformers.

    timm has no mask token and no norm for local crops: they are dropped. Biases that its class always has are
    written as zeros where the model has none. With biases of queries or values the result is the ``_qkvb`` variant.

    Raises:
        OpenfinoError: if the model has what timm's class cannot express: a bias of the keys, norms of another
            kind, a norm of its own for CLS and registers. Or if a tensor is missing.
    """
    if "norm.bias" not in state or "cls_norm.weight" in state:
        raise OpenfinoError(
            "timm's class has one LayerNorm at the end; this model has "
            + ("RMSNorm" if "norm.bias" not in state else "another one for CLS and registers (cls_norm)")
        )
    return for_every_part(config, state, _to_top, lambda own: _to_block(own, config))


def _to_top(state: Mapping[str, Tensor]) -> State:
    """What is outside the blocks, under timm's names."""
    result = rename_back(state, TOP, ("reg_token",))
    if "reg_token" in result and result["reg_token"].shape[1] == 0:
        del result["reg_token"]
    return result


def _to_block(own: Mapping[str, Tensor], config: DINOv3ViTConfig) -> State:
    """One block, under timm's names."""
    mlp = GATED_MLP if config.use_gated_mlp else PLAIN_MLP
    result = rename_back(own, BLOCK | mlp)
    for name in ("attn.proj", *mlp):
        weight = result[f"{name}.weight"]
        result.setdefault(f"{name}.bias", weight.new_zeros(weight.shape[0]))
    query, key, value = (own[f"attention.{letter}_proj.weight"] for letter in "qkv")
    result["attn.qkv.weight"] = torch.cat([query, key, value])
    query_bias, key_bias, value_bias = (own.get(f"attention.{letter}_proj.bias") for letter in "qkv")
    if key_bias is not None and bool(key_bias.any()):
        raise OpenfinoError("timm's class has no bias of the keys; this model has one")
    if query_bias is not None or value_bias is not None:
        zeros = query.new_zeros(query.shape[0])
        result["attn.q_bias"] = zeros if query_bias is None else query_bias
        result["attn.v_bias"] = zeros if value_bias is None else value_bias
    return result
