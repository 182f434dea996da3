"""The heads of a probe on frozen features, and of the supervised baselines (fino.md section 7).

A head is a module, and a pure function of its parameters (``logits_of``) that takes the parameters of G heads stacked
in a leading dimension: a grid of heads costs one pass over the features, and a head of a grid computes what it would
compute alone.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadKind = Literal["linear", "attentive"]
Parameters = Mapping[str, Tensor]

WIDTH = 512
HEADS = 8


class LinearHead(nn.Module):
    """One linear layer. Its input is the CLS token of the last blocks and the mean patch token of the last.

    Weights start from N(0, 0.01^2) and biases from 0 (dinov3.md section 6.1).

    Args:
        in_dim: F, numbers per image.
        outputs: t.
    """

    def __init__(self, in_dim: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, in_dim) * 0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., F] -> logits [..., t]."""
        return F.linear(features, self.weight, self.bias)

    @staticmethod
    def logits_of(parameters: Parameters, features: Tensor) -> Tensor:
        """Logits of G heads [G, B, t]; parameters have a leading dimension G, ``features`` [B, F] have not."""
        return _shared_input(features, parameters["weight"], parameters["bias"])


class AttentiveHead(nn.Module):
    """Tokens -> Linear to ``width`` -> LayerNorm -> one learned query, one cross-attention -> linear.

    The input is the patch tokens of the last blocks side by side. The attention is that of
    ``torch.nn.MultiheadAttention`` with biases. Its key bias is left out: it adds the same number to every token's
    score and no softmax sees it. With a single query neither keys nor values of the tokens have to be computed:
    the query goes through the key matrix to the tokens, and the mean of the tokens through the value matrix.

    Args:
        token_dim: T, numbers per token (blocks x D).
        outputs: t.
        width: of the projected tokens and the query.
        heads: of the attention; a divisor of ``width``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.
    """

    def __init__(self, token_dim: int, outputs: int, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        bound = 1 / math.sqrt(token_dim)
        self.project_weight = nn.Parameter(torch.empty(width, token_dim).uniform_(-bound, bound))
        self.project_bias = nn.Parameter(torch.zeros(width))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.02)
        self.query_weight = nn.Parameter(_xavier(width, width))
        self.query_bias = nn.Parameter(torch.zeros(heads, width // heads))
        self.key_weight = nn.Parameter(_xavier(width, width).unflatten(0, (heads, -1)))
        self.value_weight = nn.Parameter(_xavier(width, width).unflatten(0, (heads, -1)))
        self.value_bias = nn.Parameter(torch.zeros(heads, width // heads))
        self.attention_weight = nn.Parameter(_xavier(width, width))
        self.attention_bias = nn.Parameter(torch.zeros(width))
        self.weight = nn.Parameter(torch.randn(outputs, width) * 0.01)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, P, T] -> logits [B, t]."""
        return self.logits_of({name: value[None] for name, value in self.named_parameters()}, tokens)[0]

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, P, T] -> what the last linear layer reads, [B, width]."""
        return self._pooled({name: value[None] for name, value in self.named_parameters()}, tokens)[0]

    def read(self, pooled: Tensor) -> Tensor:
        """What :meth:`pool` gives [B, width] -> logits [B, t]."""
        return F.linear(pooled, self.weight, self.bias)

    @staticmethod
    def logits_of(parameters: Parameters, tokens: Tensor) -> Tensor:
        """Logits of G heads [G, B, t]; parameters have a leading dimension G, ``tokens`` [B, P, T] have not."""
        return _each_input(
            AttentiveHead._pooled(parameters, tokens), parameters["weight"], parameters["bias"]
        )

    @staticmethod
    def _pooled(parameters: Parameters, tokens: Tensor) -> Tensor:
        width = parameters["project_weight"].shape[1]
        projected = _shared_input(
            tokens.flatten(0, 1), parameters["project_weight"], parameters["project_bias"]
        )
        # The LayerNorm's gain and bias are applied to the query and to the pooled token, not to every token: the same
        # numbers, and two copies of the projected tokens less.
        normed = F.layer_norm(projected, (width,)).unflatten(1, tokens.shape[:2])
        gain, shift = parameters["norm_weight"], parameters["norm_bias"]
        query = parameters["query"].flatten(1)
        query = torch.einsum("gof,gf->go", parameters["query_weight"], query)
        query = query.unflatten(1, parameters["query_bias"].shape[1:]) + parameters["query_bias"]
        asked = torch.einsum("ghd,ghdw->ghw", query, parameters["key_weight"]) * gain[:, None]
        scores = normed @ (asked / math.sqrt(query.shape[-1])).mT[:, None]
        attention = scores.softmax(dim=2)
        pooled = (attention.mT @ normed) * gain[:, None, None] + shift[:, None, None]
        values = torch.einsum("gbhw,ghdw->gbhd", pooled, parameters["value_weight"])
        values = (values + parameters["value_bias"][:, None]).flatten(2)
        return _each_input(values, parameters["attention_weight"], parameters["attention_bias"])


def new_head(
    kind: HeadKind, in_dim: int, outputs: int, *, seed: int, width: int = WIDTH, heads: int = HEADS
) -> LinearHead | AttentiveHead:
    """A head with weights that depend on ``seed`` alone; the global generator of torch stays where it was.

    Args:
        kind: ``linear`` or ``attentive``.
        in_dim: numbers per image, or per token.
        outputs: t.
        seed: as :func:`openfino.keyed.keyed_seed` makes it.
        width: attentive. heads: attentive.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear":
            return LinearHead(in_dim, outputs)
        return AttentiveHead(in_dim, outputs, width, heads)


def _shared_input(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """G linear maps [G, O, F] of the same rows [N, F] -> [G, N, O]."""
    return torch.baddbmm(bias[:, None], rows.expand(len(weight), *rows.shape), weight.mT)


def _each_input(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """G linear maps [G, O, F] of their own rows [G, N, F] -> [G, N, O]."""
    return torch.baddbmm(bias[:, None], rows, weight.mT)


def _xavier(outputs: int, inputs: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(outputs, inputs))
