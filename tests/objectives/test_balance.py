import math

import pytest
import torch

from openfino.objectives.guidance.balance import GradientBalance, escaped, gradient_norms


def test_scales_make_the_smoothed_norms_equal() -> None:
    balance = GradientBalance(["a", "b", "c"])
    norms = torch.tensor([1.0, 4.0, 0.25])
    scales = balance.scales(norms)
    torch.testing.assert_close(scales * norms, torch.full((3,), math.exp(sum(map(math.log, norms)) / 3)))


def test_first_norm_is_taken_whole_then_smoothed() -> None:
    balance = GradientBalance(["a", "b"], momentum=0.9)
    balance.commit(torch.tensor([2.0, 3.0]))
    assert balance.smoothed.tolist() == [2.0, 3.0]
    balance.commit(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(balance.smoothed, torch.tensor([1.9, 3.0]))


def test_scales_use_the_norms_of_this_step() -> None:
    balance = GradientBalance(["a", "b"], momentum=0.5)
    balance.commit(torch.tensor([1.0, 1.0]))
    scales = balance.scales(torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(scales, torch.tensor([2**0.5 / 2, 2**0.5]))


def test_asking_for_scales_stores_nothing() -> None:
    balance = GradientBalance(["a", "b"])
    balance.scales(torch.tensor([1.0, 2.0]))
    assert balance.smoothed.tolist() == [0.0, 0.0]


def test_one_factor_is_left_as_it_is() -> None:
    assert GradientBalance(["a"]).scales(torch.tensor([0.3])).tolist() == [1.0]


def test_a_factor_without_gradient_is_left_out_and_keeps_its_state() -> None:
    balance = GradientBalance(["a", "b", "c"], momentum=0.5)
    balance.commit(torch.tensor([1.0, 4.0, 7.0]))
    norms = torch.tensor([1.0, 4.0, 0.0])
    torch.testing.assert_close(balance.scales(norms), torch.tensor([2.0, 0.5, 1.0]))
    balance.commit(norms)
    assert balance.smoothed.tolist() == [1.0, 4.0, 7.0]
    assert balance.scales(torch.tensor([0.0, 4.0, 0.0])).tolist() == [1.0, 1.0, 1.0]


def test_state_is_stored_by_name() -> None:
    source = GradientBalance(["a", "b.c", "type"])
    source.commit(torch.tensor([1.0, 2.0, 3.0]))
    target = GradientBalance(["type", "a", "b.c"])
    target.load_state_dict(source.state_dict())
    assert target.smoothed.tolist() == [3.0, 1.0, 2.0]


def test_escaped_names_are_distinct() -> None:
    names = ["a.b", "a%2Eb", "a%252Eb", "training"]
    assert len({escaped(name) for name in names}) == len(names)
    assert not any("." in escaped(name) for name in names)


def test_norms() -> None:
    gradients = [torch.tensor([[3.0, 4.0]]), torch.zeros(2, 2)]
    assert gradient_norms(gradients).tolist() == pytest.approx([5.0, 0.0])
