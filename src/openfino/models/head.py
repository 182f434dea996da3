"""DINO and iBOT projection heads (dinov3.md section 2.1)."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from openfino.recipe import HeadSettings


class ProjectionHead(nn.Module):
    """MLP -> bottleneck -> L2 normalisation -> bias-free linear map to the prototypes.

    With ``unit_norm_prototypes`` every prototype is used at unit length, so that logits are cosines; that is what
    lets a small run learn from its first steps. Without (the paper) the last layer is a plain linear map.
    """

    def __init__(self, embed_dim: int, settings: HeadSettings) -> None:
        super().__init__()
        widths = [embed_dim, *[settings.hidden] * (settings.layers - 1), settings.bottleneck]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=settings.bias), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Linear(settings.bottleneck, settings.prototypes, bias=False)
        self.unit_norm_prototypes = settings.unit_norm_prototypes
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` [..., D] -> logits [..., K] and the bottleneck before its normalisation [..., b]."""
        bottleneck = self.mlp(tokens)
        return self.logits(F.normalize(bottleneck, dim=-1)), bottleneck

    def logits(self, features: Tensor) -> Tensor:
        """``features`` [..., b], which forward gives at unit length, -> their products with the prototypes [..., K]."""
        weight = self.last_layer.weight
        if self.unit_norm_prototypes:
            weight = F.normalize(weight, dim=-1)
        return F.linear(features, weight)
