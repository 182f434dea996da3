"""Small models with the traits of the released ones, and of none."""

import torch

from openfino.images.preprocess import Preprocessing
from openfino.models.loading import random_backbone
from openfino.models.store import LoadedModel

GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "key_bias": False, "value_bias": False}
FOUR = {"num_register_tokens": 4, "patch_size": 16, "image_size": 64, "num_hidden_layers": 2}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, **FOUR}
SHAPES = {
    "S": SMALL,
    "S without biases": SMALL | NO_BIAS,
    "S+": SMALL | GATED,
    "L": {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, **FOUR},
    "7B": {
        "hidden_size": 256,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        **FOUR,
        **GATED,
        **NO_BIAS,
    },
    "7B with biases": {
        "hidden_size": 256,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        **FOUR,
        **GATED,
    },
    "odd": {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "intermediate_size": 101,
        "num_hidden_layers": 3,
        "num_register_tokens": 0,
        "patch_size": 8,
        "image_size": 32,
        "rope_theta": 50.0,
    },
    "odd and gated": {
        "hidden_size": 48,
        "num_attention_heads": 3,
        "intermediate_size": 101,
        "num_hidden_layers": 3,
        "num_register_tokens": 1,
        "patch_size": 8,
        "image_size": 32,
        **GATED,
    },
}


def shaped_model(name, channels=4, normalization="zscore", patches=(2, 3)):
    """A model of this shape whose every parameter is random (biases, norms and layer scales too)."""
    settings = SHAPES[name]
    backbone = random_backbone(settings, channels, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    size = tuple(settings["patch_size"] * count for count in patches)
    names = [f"channel_{index}" for index in range(channels)]
    return LoadedModel(
        backbone.requires_grad_(False).eval(),
        Preprocessing(size=size, normalization=normalization, channels=names),
        {},
        None,
    )
