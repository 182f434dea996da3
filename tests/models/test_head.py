import pytest
import torch
from torch.nn import functional as F

from openfino.models.head import ProjectionHead
from openfino.recipe import HeadSettings


def small_head(**settings):
    return ProjectionHead(6, HeadSettings(prototypes=5, hidden=8, bottleneck=4, **settings)).double()


def test_logits_are_products_of_the_unit_bottleneck_with_the_prototypes():
    head = small_head()
    tokens = torch.randn(2, 3, 6, dtype=torch.float64)
    logits, bottleneck = head(tokens)
    hidden = tokens
    for index in (0, 2, 4):
        hidden = hidden @ head.mlp[index].weight.T + head.mlp[index].bias
        hidden = F.gelu(hidden) if index < 4 else hidden
    torch.testing.assert_close(bottleneck, hidden)
    unit = hidden / hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(logits, unit @ head.last_layer.weight.T)


def test_unit_norm_prototypes_give_cosines_whatever_their_length():
    head = small_head(unit_norm_prototypes=True)
    tokens = torch.randn(7, 6, dtype=torch.float64)
    before = head(tokens)[0]
    assert before.abs().max() <= 1 + 1e-12
    head.last_layer.weight.data *= 3
    torch.testing.assert_close(head(tokens)[0], before)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_layers_and_biases_are_as_asked(layers):
    for bias in (True, False):
        head = small_head(layers=layers, bias=bias)
        linears = [module for module in head.mlp if isinstance(module, torch.nn.Linear)]
        assert [linear.bias is not None for linear in linears] == [bias] * layers
        assert (linears[0].in_features, linears[-1].out_features) == (6, 4)
        assert not isinstance(head.mlp[-1], torch.nn.GELU)
    tokens = torch.randn(2, 6, dtype=torch.float64)
    assert head(0 * tokens)[1].abs().max() == 0  # without biases nothing comes of nothing


def test_gradients_are_those_of_differences():
    head = small_head(layers=2)
    parameters = dict(head.named_parameters())

    def run(tokens, *values):
        return torch.func.functional_call(head, dict(zip(parameters, values, strict=True)), (tokens,))

    tokens = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    head.mlp[0].weight.data.normal_()
    assert torch.autograd.gradcheck(run, (tokens, *parameters.values()))
