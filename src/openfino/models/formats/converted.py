"""What every format is turned into, and what the formats of vision transformers have in common."""

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTConfig

from openfino.errors import OpenfinoError

State = dict[str, Tensor]

LAYER = "model.layer"  # where DINOv3ViTModel keeps its blocks
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass
class Converted:
    """A state dict in the names of transformers.

    Attributes:
        config: keywords for ``DINOv3ViTConfig``.
        state: tensors under the names of ``DINOv3ViTModel``; parts of a fused tensor are views of it.
        unexpected: tensors of the source that have no place in the model.
        notes: what was assumed or dropped, for the report.
    """

    config: dict[str, Any]
    state: State
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def split_blocks(state: Mapping[str, Tensor]) -> tuple[State, list[State]]:
    """Tensors outside the blocks, and those of every block under their names within it.

    Raises:
        OpenfinoError: if there is no block, or one of them has no tensors.
    """
    outside: State = {}
    blocks: dict[int, State] = {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            outside[name] = tensor
        else:
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
    absent = sorted(set(range(max(blocks, default=0) + 1)) - set(blocks))
    if absent:
        shown = ", ".join(f"blocks.{index}" for index in absent[:5])
        raise OpenfinoError(f"the state dict has no tensor of {shown}: the file is not whole")
    return outside, [blocks[index] for index in range(len(blocks))]


def rename(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], place: str, target: State
) -> dict[str, Tensor]:
    """Move tensors whose module is in ``modules`` to ``target`` under their new name; return the others.

    Args:
        tensors: under their names in the source.
        modules: name of a module or parameter in the source -> in ours.
        place: put before every new name.
        target: receives them.
    """
    left = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if name in modules:
            target[place + modules[name]] = tensor
        elif module in modules and leaf in ("weight", "bias"):
            target[f"{place}{modules[module]}.{leaf}"] = tensor
        else:
            left[name] = tensor
    return left


def rename_back(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], optional: Container[str] = ()
) -> State:
    """The other way: every module of ``modules``, from our names to the source's.

    Args:
        tensors: under our names.
        modules: name of a module or parameter in the source -> in ours.
        optional: names in the source that may be absent.

    Raises:
        KeyError: with the name of what is missing.
    """
    result: State = {}
    for name, ours in modules.items():
        if ours in tensors:
            result[name] = tensors[ours]
        elif f"{ours}.weight" in tensors:
            result[f"{name}.weight"] = tensors[f"{ours}.weight"]
            if f"{ours}.bias" in tensors:
                result[f"{name}.bias"] = tensors[f"{ours}.bias"]
        elif name not in optional:
            raise KeyError(ours)
    return result


def thirds(fused: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a fused tensor [3 D, ...].

    Raises:
        OpenfinoError: if its length is no multiple of 3.
    """
    if fused.shape[0] % 3:
        raise OpenfinoError(
            f"{name} has {fused.shape[0]} rows: these are not queries, keys and values of one size"
        )
    query, key, value = fused.chunk(3)
    return query, key, value


def put_projections(
    target: State, place: str, weights: Iterable[Tensor], biases: Iterable[Tensor | None]
) -> None:
    """Store queries, keys and values of the attention below ``place``."""
    for letter, weight, bias in zip("qkv", weights, biases, strict=True):
        target[f"{place}attention.{letter}_proj.weight"] = weight
        if bias is not None:
            target[f"{place}attention.{letter}_proj.bias"] = bias


def fill_absent(state: State, blocks: int) -> list[str]:
    """Give a model without registers or layer scale the empty tensor or the ones that mean the same; notes of it."""
    norm = state.get("norm.weight")
    if norm is None:
        return []
    state.setdefault("embeddings.register_tokens", norm.new_zeros(1, 0, len(norm)))
    if f"{LAYER}.0.layer_scale1.lambda1" in state:
        return []
    for index in range(blocks):
        for branch in (1, 2):
            state[f"{LAYER}.{index}.layer_scale{branch}.lambda1"] = torch.ones_like(norm)
    return ["no layer scale in the file: ones, which mean the same"]


def shapes_of(state: Mapping[str, Tensor], blocks: int) -> dict[str, Any]:
    """Keywords for ``DINOv3ViTConfig`` that the shapes of a state dict in our names tell.

    Raises:
        OpenfinoError: if a tensor is missing that tells a size, or the patch embedding is no convolution.
    """
    first = f"{LAYER}.0."
    for name in ("embeddings.patch_embeddings.weight", f"{first}mlp.up_proj.weight", "norm.weight"):
        if name not in state:
            raise OpenfinoError(
                f"the state dict has nothing for {name}: this is no DINOv3 vision transformer"
            )
    patches = state["embeddings.patch_embeddings.weight"]
    if patches.ndim != 4:
        raise OpenfinoError(
            f"the patch embedding has shape {tuple(patches.shape)}; a convolution [D, C, p, p] is needed"
        )
    width, channels, height, breadth = patches.shape
    registers = state["embeddings.register_tokens"]
    if registers.ndim != 3:
        raise OpenfinoError(f"the registers have shape {tuple(registers.shape)}; [1, R, D] is needed")
    gated = f"{first}mlp.gate_proj.weight" in state
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": height if height == breadth else [height, breadth],
        "num_hidden_layers": blocks,
        "intermediate_size": state[f"{first}mlp.up_proj.weight"].shape[0],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "num_register_tokens": registers.shape[1],
        "query_bias": f"{first}attention.q_proj.bias" in state,
        "key_bias": f"{first}attention.k_proj.bias" in state,
        "value_bias": f"{first}attention.v_proj.bias" in state,
        "proj_bias": f"{first}attention.o_proj.bias" in state,
        "mlp_bias": f"{first}mlp.up_proj.bias" in state,
        "layerscale_value": 1e-5,
        "pos_embed_rescale": 2.0,
    }


def for_every_part(
    config: DINOv3ViTConfig,
    state: Mapping[str, Tensor],
    top: Callable[[Mapping[str, Tensor]], State],
    block: Callable[[Mapping[str, Tensor]], State],
) -> State:
    """``top(state)`` and, under ``blocks.i.``, ``block(tensors of block i under their names within it)``.

    Raises:
        OpenfinoError: if ``state`` lacks a tensor, or a block cannot be expressed.
    """
    place = ""
    try:
        result = top(state)
        for index in range(config.num_hidden_layers):
            place = f"{LAYER}.{index}."
            own = {name.removeprefix(place): state[name] for name in state if name.startswith(place)}
            result |= {f"blocks.{index}.{name}": tensor for name, tensor in block(own).items()}
    except KeyError as error:
        raise OpenfinoError(f"the state dict has no {place}{error.args[0]}") from None
    return result
