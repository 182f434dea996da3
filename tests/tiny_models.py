"""Tiny models and manifests for the tests of evaluation and export."""

import numpy as np
import polars as pl
import torch

from conftest import TINY
from openfino.images.preprocess import Preprocessing
from openfino.manifest import read_manifest
from openfino.models.loading import random_backbone
from openfino.models.store import LoadedModel


def tiny_model(channels=3, normalization="imagenet", provenance=None, size=(32, 32), seed=0):
    """An untrained backbone, 32 wide, patches of 8."""
    names = [f"channel_{index}" for index in range(channels)]
    preprocessing = Preprocessing(size=size, normalization=normalization, channels=names)
    return LoadedModel(random_backbone(TINY, channels, seed), preprocessing, provenance or {}, None)


def write_arrays(folder, count, channels, size=24):
    """16-bit images [channels, size, size + 4] as .npy files; returns their names."""
    generator = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:02d}.npy" for index in range(count)]
    for name in names:
        np.save(folder / name, generator.integers(0, 65536, (channels, size, size + 4), dtype=np.uint16))
    return names


def write_manifest(folder, columns):
    """A Parquet manifest of these columns, as read back."""
    pl.DataFrame(columns).write_parquet(folder / "manifest.parquet")
    return read_manifest(folder / "manifest.parquet")


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
# One configuration per family of backbones, as model.config takes it; patches of 8 (32 for the convolutions).
TINY_FAMILIES = {
    "dinov3_vit": {"model_type": "dinov3_vit", **TINY},
    "dinov3_convnext": {
        "model_type": "dinov3_convnext",
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 2, 1],
        "image_size": 64,
        "layer_scale_init_value": 0.5,
    },
    "dinov2": {"model_type": "dinov2", **VIT, "mlp_ratio": 2, "image_size": 32},
    "dinov2_with_registers": {
        "model_type": "dinov2_with_registers",
        **VIT,
        "mlp_ratio": 2,
        "image_size": 32,
        "num_register_tokens": 3,
    },
    "siglip_vision_model": {
        "model_type": "siglip_vision_model",
        **VIT,
        "intermediate_size": 64,
        "image_size": 32,
    },
    "siglip2_vision_model": {
        "model_type": "siglip2_vision_model",
        **VIT,
        "intermediate_size": 64,
        "num_patches": 16,
    },
}
MASKABLE = [name for name in TINY_FAMILIES if name != "dinov3_convnext"]


def tiny_family(name, channels=3, seed=0, **changes):
    """An untrained backbone of a family; no parameter is left at zero or one."""
    backbone = random_backbone({**TINY_FAMILIES[name], **changes}, channels, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone
