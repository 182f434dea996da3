import pytest
import torch
from torch.nn import functional as F

from golden_data import golden_cases
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


@pytest.mark.golden
def test_the_head_agrees_with_the_authors():
    compared = 0
    for case in golden_cases("dino_head.safetensors"):
        hparams = case.hparams
        if hparams["nlayers"] < 2 or not hparams.get("mlp_bias", True):
            continue  # our heads are the released ones: several layers, with biases
        settings = HeadSettings(
            prototypes=hparams["out_dim"],
            hidden=hparams["hidden_dim"],
            bottleneck=hparams["bottleneck_dim"],
            layers=hparams["nlayers"],
        )
        head = ProjectionHead(hparams["in_dim"], settings)
        prefix = f"{case.name}/params/"
        head.load_state_dict(
            {
                key[len(prefix) :]: case[key[len(case.name) + 1 :]]
                for key in case.tensors
                if key.startswith(prefix)
            }
        )
        tokens = case["x"].requires_grad_()
        logits, bottleneck = head(tokens)
        torch.testing.assert_close(logits, case["out"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(bottleneck, case["bottleneck"], rtol=1e-5, atol=1e-6)
        (logits * case["probe"]).sum().backward()
        torch.testing.assert_close(tokens.grad, case["grad_x"], rtol=1e-4, atol=1e-6)
        compared += 1
    assert compared
