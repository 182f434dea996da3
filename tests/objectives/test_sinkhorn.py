import math

import pytest
import torch

from openfino.objectives.sinkhorn import sinkhorn


def naive(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """The textbook form in Python floats, on logarithms."""
    samples, prototypes = logits.shape
    table = [[value / temperature for value in row] for row in logits.double().tolist()]

    def log_sum(values: list[float]) -> float:
        largest = max(values)
        return largest + math.log(sum(math.exp(value - largest) for value in values))

    for _ in range(iterations):
        for k in range(prototypes):
            mass = log_sum([table[i][k] for i in range(samples)]) + math.log(prototypes)
            for i in range(samples):
                table[i][k] -= mass
        for i in range(samples):
            mass = log_sum(table[i]) + math.log(samples)
            table[i] = [value - mass for value in table[i]]
    return torch.tensor(table, dtype=torch.float64).exp() * samples


@pytest.mark.parametrize("iterations", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(5, 8), (12, 3)])
def test_matches_the_textbook_form(shape: tuple[int, int], iterations: int) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(iterations))
    expected = naive(logits, 0.07, iterations)
    torch.testing.assert_close(sinkhorn(logits, 0.07, iterations).double(), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_stay_finite(scale: float) -> None:
    """exp(logit / temperature) overflows float32 above 88; whole rows vanish beside rows that do not."""
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)) * scale
    logits[0] -= 10 * scale
    probs = sinkhorn(logits, 0.04)
    assert probs.isfinite().all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(6))
    if scale == 1e2:
        torch.testing.assert_close(probs.double(), naive(logits, 0.04, 3), atol=1e-3, rtol=0)


def without_logarithms(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The textbook form in float32, as the authors' code has it."""
    masses = (logits / temperature).exp()
    masses /= masses.sum()
    for _ in range(3):
        masses /= masses.sum(dim=0) * masses.shape[1]
        masses /= masses.sum(dim=1, keepdim=True) * masses.shape[0]
    return masses * masses.shape[0]


@pytest.mark.parametrize(
    "rows",
    [
        [[4.0, 0.0, 1.0], [0.5, 1.0, 0.0]],  # exp(100) is infinite in float32
        [[3.0, 3.0, 2.9], [-3.0, -2.9, -3.0]],  # beside exp(75), the whole row of exp(-75) becomes zero
    ],
    ids=["overflow", "underflow"],
)
def test_stays_finite_where_the_textbook_form_does_not(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    assert not without_logarithms(logits, 0.04).isfinite().all()
    assert without_logarithms(logits, 1.0).isfinite().all()
    torch.testing.assert_close(sinkhorn(logits, 0.04).double(), naive(logits, 0.04, 3), atol=1e-4, rtol=0)


def test_rows_sum_to_one_and_prototypes_share_the_samples() -> None:
    logits = torch.randn(32, 8, generator=torch.Generator().manual_seed(2))
    probs = sinkhorn(logits, 0.1, iterations=200)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(32))
    torch.testing.assert_close(probs.sum(dim=0), torch.full((8,), 4.0), atol=1e-3, rtol=0)


def test_order_of_samples_does_not_matter() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(sinkhorn(logits[order], 0.05), sinkhorn(logits, 0.05)[order])


def test_constant_shift_does_not_matter() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(sinkhorn(logits + 2, 0.1), sinkhorn(logits, 0.1), atol=1e-5, rtol=0)


def test_no_samples() -> None:
    assert sinkhorn(torch.zeros(0, 5), 0.1).shape == (0, 5)


def test_half_precision_in_float32_without_gradient_out() -> None:
    logits = torch.randn(4, 5, dtype=torch.bfloat16).requires_grad_()
    probs = sinkhorn(logits, 0.1)
    assert probs.dtype == torch.float32
    assert not probs.requires_grad
    torch.testing.assert_close(probs, sinkhorn(logits.float(), 0.1))


def test_input_is_left_alone() -> None:
    logits = torch.randn(4, 5)
    before = logits.clone()
    sinkhorn(logits, 1.0)
    assert torch.equal(logits, before)


def test_needs_an_iteration() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sinkhorn(torch.zeros(2, 2), 0.1, iterations=0)
