"""Meta's own names of a DINOv3 ViT (``.pth`` files of torch.hub and of training), both ways (dinov3.md 1.6)."""

from collections.abc import Mapping

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
from openfino.models.rope import periods_of, rope_periods
from openfino.models.variants import Variants

EPSILON = 1e-5  # of the norms of every released model; the file does not say
IMAGE_SIZE = 224
PERIODS = "rope_embed.periods"

TOP = {
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
    "cls_norm": "cls_norm",
    "local_cls_norm": "local_cls_norm",
}
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
PLAIN_MLP = {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
GATED_MLP = {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj"}


def from_meta(
    state: Mapping[str, Tensor], *, layer_norm_eps: float = EPSILON, image_size: int = IMAGE_SIZE
) -> Converted:
    """A hub-style state dict (``cls_token``, ``blocks.0...``) in the names of transformers.

    The fused qkv is cut in thirds and its bias multiplied by its mask; a masked key bias is gone. The sizes come
    from the shapes, the number of heads from the rotary periods, of which each head holds four times as many
    dimensions. Absent layer scales become ones.

    Args:
        state: tensors by name, without any prefix.
        layer_norm_eps: of all norms; the file does not hold it.
        image_size: recorded in the configuration; the model takes any size.

    Raises:
        OpenfinoError: if this is not the state dict of a DINOv3 ViT.
    """
    outside, blocks = split_blocks(state)
    target: State = {}
    left = rename(outside, TOP, "", target)
    periods = left.pop(PERIODS, None)
    if periods is None:
        raise OpenfinoError(f"the state dict has no {PERIODS}: this is no DINOv3 vision transformer")
    if "embeddings.mask_token" in target:
        target["embeddings.mask_token"] = target["embeddings.mask_token"].reshape(1, 1, -1)
    unexpected = list(left)
    for index, block in enumerate(blocks):
        place = f"{LAYER}.{index}."
        rest = rename(block, BLOCK | PLAIN_MLP | GATED_MLP, place, target)
        _take_attention(rest, f"blocks.{index}.attn.qkv", place, target)
        unexpected += [f"blocks.{index}.{name}" for name in rest]
    notes = fill_absent(target, len(blocks))
    base, bounds = periods_of(periods)
    shapes = shapes_of(target, len(blocks))
    width, head = shapes["hidden_size"], 4 * len(periods)
    if not head or width % head:
        raise OpenfinoError(
            f"{len(periods)} rotary periods mean heads of {head}, which do not divide {width}"
        )
    variants = Variants(
        rope_periods=bounds,
        norm="layernorm" if "norm.bias" in target else "rmsnorm",
        cls_norm="cls_norm.weight" in target,
        local_cls_norm="local_cls_norm.weight" in target,
    )
    config = {
        **shapes,
        "num_attention_heads": width // head,
        "rope_theta": base,
        "layer_norm_eps": layer_norm_eps,
        "image_size": image_size,
        **variants.as_config(),
    }
    return Converted(config, target, sorted(unexpected), notes)


def _take_attention(rest: State, name: str, place: str, target: State) -> None:
    """Move the fused projection out of ``rest``."""
    fused = rest.pop("attn.qkv.weight", None)
    bias, mask = rest.pop("attn.qkv.bias", None), rest.pop("attn.qkv.bias_mask", None)
    if fused is None:
        return
    biases: tuple[Tensor | None, ...] = (None, None, None)
    if bias is not None:
        biases = (
            thirds(bias, f"{name}.bias") if mask is None else masked_biases(bias, mask, f"{name}.bias_mask")
        )
    put_projections(target, place, thirds(fused, f"{name}.weight"), biases)


def masked_biases(bias: Tensor, mask: Tensor, name: str) -> tuple[Tensor | None, ...]:
    """Biases of queries, keys and values where the mask [3 D] lets them through; None for masked keys.

    Raises:
        OpenfinoError: for a mask of anything but zeros and ones.
    """
    if mask.shape != bias.shape or not bool(((mask == 0) | (mask == 1)).all()):
        raise OpenfinoError(
            f"{name} must be zeros and ones, as many as there are biases. Files written by training before "
            "September 2025 may hold a mask that was never initialised: set it to 1, 0, 1 over its thirds"
        )
    # Not a product: where the mask is 0 the bias may hold anything.
    query, key, value = thirds(torch.where(mask == 0, torch.zeros_like(bias), bias), name)
    return query, key if bool(thirds(mask, name)[1].any()) else None, value


def to_meta(state: Mapping[str, Tensor], config: DINOv3ViTConfig) -> State:
    """The hub-style state dict of a model in the names of transformers: what :func:`from_meta` takes.

    Without a bias of the keys the fused bias carries the mask 1, 0, 1; ``rope_embed.periods`` is float32 (rounded
    to bfloat16 where the model computes in it).

    Raises:
        OpenfinoError: if a tensor is missing.
    """
    return for_every_part(
        config, state, lambda whole: _to_top(whole, config), lambda own: _to_block(own, config)
    )


def _to_top(state: Mapping[str, Tensor], config: DINOv3ViTConfig) -> State:
    """What is outside the blocks, under Meta's names."""
    result = rename_back(state, TOP, ("mask_token", "storage_tokens", "cls_norm", "local_cls_norm"))
    if "mask_token" in result:
        result["mask_token"] = result["mask_token"].reshape(1, -1)
    if "storage_tokens" in result and result["storage_tokens"].shape[1] == 0:
        del result["storage_tokens"]
    variants = Variants.of(config)
    head = config.hidden_size // config.num_attention_heads
    dtype = getattr(torch, variants.rope_dtype)
    device = result["cls_token"].device
    result[PERIODS] = rope_periods(head, config.rope_theta, variants.rope_periods, dtype, device).float()
    return result


def _to_block(own: Mapping[str, Tensor], config: DINOv3ViTConfig) -> State:
    """One block, under Meta's names."""
    scales = ("ls1.gamma", "ls2.gamma")
    result = rename_back(own, BLOCK | (GATED_MLP if config.use_gated_mlp else PLAIN_MLP), scales)
    weights = [own[f"attention.{letter}_proj.weight"] for letter in "qkv"]
    result["attn.qkv.weight"] = torch.cat(weights)
    biases = [own.get(f"attention.{letter}_proj.bias") for letter in "qkv"]
    if any(bias is not None for bias in biases):
        zeros = weights[0].new_zeros(weights[0].shape[0])
        result["attn.qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases])
        if any(bias is None for bias in biases):
            masks = [torch.full_like(zeros, 0.0 if bias is None else 1.0) for bias in biases]
            result["attn.qkv.bias_mask"] = torch.cat(masks)
    return result
