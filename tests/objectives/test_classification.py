import math

import pytest
import torch
from torch import Tensor

from openfino.objectives.guidance.classification import (
    Classifier,
    binary_cross_entropy,
    class_cross_entropy,
)

VALUES = torch.tensor([2, 0, 1, 3])
VALID = torch.tensor([True, True, False, True])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_softmax_loss(logits: list[float], value: int) -> float:
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[value]


def naive_binary_loss(logits: list[float], labels: list[int]) -> float:
    losses = [
        -math.log(1 / (1 + math.exp(-logit))) if label else -math.log(1 - 1 / (1 + math.exp(-logit)))
        for logit, label in zip(logits, labels, strict=True)
    ]
    return sum(losses) / len(losses)


def test_softmax_loss_matches_loops() -> None:
    logits = 3 * draw(2, 4, 4)
    losses = class_cross_entropy(logits, VALUES, VALID)
    for crop in range(2):
        for image in range(4):
            expected = naive_softmax_loss(logits[crop, image].tolist(), int(VALUES[image]))
            assert losses[crop, image].item() == pytest.approx(expected if VALID[image] else 0.0)


def test_binary_loss_matches_loops_for_any_number_of_ones() -> None:
    logits, labels = 3 * draw(2, 3, 4), torch.tensor([[0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]])
    losses = binary_cross_entropy(logits, labels)
    for crop in range(2):
        for image in range(3):
            expected = naive_binary_loss(logits[crop, image].tolist(), labels[image].tolist())
            assert losses[crop, image].item() == pytest.approx(expected)


@pytest.mark.parametrize("binary", [False, True])
def test_a_head_judges_by_its_own_loss(binary: bool) -> None:
    head, logits = Classifier(4, 3, binary=binary), 3 * draw(2, 4, 4)
    logits[:, 2, VALUES[2]] = 9.0  # as if right about the image that has no value
    losses, correct = head.judge(logits, VALUES, VALID)
    for crop in range(2):
        for image in range(4):
            row, value = logits[crop, image].tolist(), int(VALUES[image])
            one_hot = [int(other == value) for other in range(4)]
            loss = naive_binary_loss(row, one_hot) if binary else naive_softmax_loss(row, value)
            assert losses[crop, image].item() == pytest.approx(loss if VALID[image] else 0.0)
            assert bool(correct[crop, image]) == (bool(VALID[image]) and row.index(max(row)) == value)


@pytest.mark.parametrize("binary", [False, True])
def test_gradient_of_the_whole_head(binary: bool) -> None:
    head = Classifier(4, 3, hidden=[5, 6], dropout=0.5, binary=binary).double()
    parameters = tuple(parameter.detach().requires_grad_() for parameter in head.parameters())
    names = [name for name, _ in head.named_parameters()]

    def losses(features: Tensor, *values: Tensor) -> Tensor:
        arguments = (features, 7, torch.tensor([3, 0, 1, 6]), 8)
        logits = torch.func.functional_call(head, dict(zip(names, values, strict=True)), arguments)
        return head.judge(logits, VALUES, VALID)[0]

    assert torch.autograd.gradcheck(losses, (draw(2, 4, 3).requires_grad_(), *parameters))


def test_weights_and_dropout_are_keyed_by_slot() -> None:
    first, same, other = Classifier(4, 3, index=1), Classifier(4, 3, index=1), Classifier(4, 3, index=2)
    features = draw(2, 8, 3)
    whole = first(features, 4, torch.arange(8), 8)
    assert torch.equal(whole, same(features, 4, torch.arange(8), 8))
    assert not torch.equal(whole, other(features, 4, torch.arange(8), 8))
    slots = torch.tensor([7, 3])
    torch.testing.assert_close(same(features[:, slots], 4, slots, 8), whole[:, slots])


def test_float32_under_autocast() -> None:
    head, features = Classifier(4, 3).eval(), draw(2, 4, 3).float()
    expected = head(features, 0, torch.arange(4), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features, 0, torch.arange(4), 4), expected)
