import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openfino.evaluation.heads import AttentiveHead, LinearHead, new_head


def randomised(head):
    """Every parameter away from 0 and 1, so that each has to be used rightly."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in head.parameters():
            value += 0.3 * torch.randn(value.shape, generator=generator)
    return head


def with_multihead_attention(head, tokens):
    """The same head with the modules of torch, for tokens [B, P, T]."""
    width = len(head.project_bias)
    heads = len(head.query_bias)
    attention = nn.MultiheadAttention(width, heads, batch_first=True, dtype=tokens.dtype)
    key_bias = torch.randn(width, dtype=tokens.dtype)  # no softmax sees it
    with torch.no_grad():
        attention.in_proj_weight.copy_(
            torch.cat([head.query_weight, head.key_weight.flatten(0, 1), head.value_weight.flatten(0, 1)])
        )
        attention.in_proj_bias.copy_(
            torch.cat([head.query_bias.flatten(), key_bias, head.value_bias.flatten()])
        )
        attention.out_proj.weight.copy_(head.attention_weight)
        attention.out_proj.bias.copy_(head.attention_bias)
    projected = F.linear(tokens, head.project_weight, head.project_bias)
    normed = F.layer_norm(projected, (width,), head.norm_weight, head.norm_bias)
    query = head.query.flatten().expand(len(tokens), 1, width)
    attended, _ = attention(query, normed, normed)
    return F.linear(attended[:, 0], head.weight, head.bias)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_attentive_head_is_one_query_of_multihead_attention(heads):
    head = randomised(AttentiveHead(10, 3, width=16, heads=heads)).double()
    tokens = torch.randn(5, 7, 10, dtype=torch.float64)
    torch.testing.assert_close(head(tokens), with_multihead_attention(head, tokens), rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_multihead_attention():
    head = randomised(AttentiveHead(6, 2, width=8, heads=2)).double()
    tokens = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    parameters = dict(head.named_parameters())
    # Through torch's module only what is not copied into it has a gradient.
    reachable = ["project_weight", "project_bias", "norm_weight", "norm_bias", "query", "weight", "bias"]
    ours = torch.autograd.grad(head(tokens).sin().sum(), [tokens, *(parameters[name] for name in reachable)])
    theirs = torch.autograd.grad(
        with_multihead_attention(head, tokens).sin().sum(),
        [tokens, *(parameters[name] for name in reachable)],
    )
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
    assert torch.autograd.gradcheck(head, tokens)


def test_the_order_of_the_patches_does_not_matter():
    head = randomised(AttentiveHead(6, 2, width=8, heads=2)).double()
    tokens = torch.randn(3, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(head(tokens), head(tokens[:, torch.randperm(9)]))


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_stacked_heads_are_the_heads(kind):
    heads = [randomised(new_head(kind, 6, 3, seed=seed, width=8, heads=2)) for seed in range(4)]
    inputs = torch.randn(5, 6) if kind == "linear" else torch.randn(5, 7, 6)
    every = [dict(head.named_parameters()) for head in heads]
    stacked = {name: torch.stack([own[name] for own in every]) for name in every[0]}
    found = type(heads[0]).logits_of(stacked, inputs)
    assert found.shape == (4, 5, 3)
    for head, logits in zip(heads, found, strict=True):
        torch.testing.assert_close(head(inputs), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_new_head_depends_on_its_seed_alone(kind):
    before = torch.random.get_rng_state()
    first, again, other = (new_head(kind, 6, 3, seed=seed, width=8, heads=2) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.named_parameters():
        assert torch.equal(value, dict(again.named_parameters())[name])
    assert not torch.equal(first.weight, other.weight)


def test_the_linear_head_is_a_linear_layer():
    head = randomised(LinearHead(6, 3))
    features = torch.randn(5, 6)
    torch.testing.assert_close(head(features), features @ head.weight.T + head.bias)


def test_pooling_then_reading_is_the_head():
    head = randomised(AttentiveHead(6, 2, width=8, heads=2))
    tokens = torch.randn(3, 9, 6)
    assert head.pool(tokens).shape == (3, 8)
    torch.testing.assert_close(head.read(head.pool(tokens)), head(tokens))


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        AttentiveHead(6, 2, width=10, heads=4)
