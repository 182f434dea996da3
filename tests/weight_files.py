"""Random DINOv3 weights under Meta's names, written out by hand from dinov3.md 1.6."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False
    bias: bool = True
    local_norm: bool = False
    registers: int = 4
    channels: int = 3
    patch: int = 16


TINY = Size(width=32, depth=2, heads=2, hidden=48, patch=8)


def meta_shapes(size):
    """Names and shapes of a hub-style state dict."""
    width, hidden = size.width, size.hidden
    shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, size.registers, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, size.channels, size.patch, size.patch),
        "patch_embed.proj.bias": (width,),
        "rope_embed.periods": (width // size.heads // 4,),
    }
    norms = ["norm", *(["local_cls_norm"] if size.local_norm else [])]
    for index in range(size.depth):
        block = f"blocks.{index}."
        norms += [f"{block}norm1", f"{block}norm2"]
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if size.gated:
            linear |= {"mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden)}
        else:
            linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for name, shape in linear.items():
            shapes[f"{block}{name}.weight"] = shape
            if size.bias or name != "attn.qkv":
                shapes[f"{block}{name}.bias"] = shape[:1]
        if size.bias:
            shapes[f"{block}attn.qkv.bias_mask"] = (3 * width,)
        shapes |= {f"{block}ls{branch}.gamma": (width,) for branch in (1, 2)}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def random_meta(size=TINY, seed=0):
    """A hub-style state dict with random values, a masked key bias and the periods of the released models."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in meta_shapes(size).items():
        state[name] = 0.05 * torch.randn(shape, generator=generator)
        if ("norm" in name and name.endswith("weight")) or "gamma" in name:
            state[name] += 1
    third = torch.ones(size.width)
    mask = torch.cat([third, torch.zeros_like(third), third])
    for name in state:
        if name.endswith("bias_mask"):
            state[name] = mask.clone()
        elif name.endswith("qkv.bias"):
            state[name] *= mask
    half = size.width // size.heads // 2
    state["rope_embed.periods"] = torch.tensor([100 ** (2 * k / half) for k in range(half // 2)])
    return state
