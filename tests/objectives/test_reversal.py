import math

import pytest
import torch

from openfino.objectives.guidance.reversal import ramp, scale_gradient


@pytest.mark.parametrize("factor", [1.0, -0.25, 0.0])
def test_forward_is_the_identity_and_backward_is_scaled(factor: float) -> None:
    features = torch.randn(3, 4, requires_grad=True)
    scaled = scale_gradient(features, factor)
    assert torch.equal(scaled, features)
    (scaled**2).sum().backward()
    torch.testing.assert_close(features.grad, 2 * factor * features.detach())


@pytest.mark.parametrize("kind", ["dann", "linear", "constant"])
def test_no_guidance_while_frozen_and_a_steady_end(kind: str) -> None:
    assert [ramp(kind, step, 100) for step in (-100, -1)] == [0.0, 0.0]
    assert ramp(kind, 250, 100) == ramp(kind, 100, 100)
    values = [ramp(kind, step, 100) for step in range(101)]
    assert values == sorted(values)


def test_shapes_of_the_ramps() -> None:
    assert ramp("dann", 0, 100) == 0.0
    assert ramp("dann", 10, 100) == pytest.approx(2 / (1 + math.exp(-1)) - 1)
    assert ramp("linear", 25, 100) == 0.25
    assert ramp("linear", 100, 100) == 1.0
    assert ramp("constant", 0, 100) == 1.0
