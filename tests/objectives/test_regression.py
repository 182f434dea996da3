import math

import pytest
import torch
from torch import Tensor

from openfino.objectives.guidance.regression import Regressor, squared_errors, target_map


def run(regressor: Regressor, features: Tensor, step: int = 0) -> Tensor:
    """The outputs for a whole batch [V, B, D]."""
    images = features.shape[1]
    outputs: Tensor = regressor(features, step, torch.arange(images), images)
    return outputs


@pytest.mark.parametrize(
    ("kind", "output", "values", "targets"),
    [
        ("continuous", "sigmoid", [0.0, 0.25, 1.0], [0.0, 0.25, 1.0]),
        ("continuous", "tanh", [0.0, 0.25, 1.0], [-1.0, -0.5, 1.0]),
        ("vector", "tanh", [0.0, 0.25, 1.0], [-1.0, -0.5, 1.0]),
        ("continuous", "identity", [0.0, 0.25, 1.0], [0.0, 0.25, 1.0]),
        ("cyclic", "tanh", [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]),
        ("cyclic", "sigmoid", [-1.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
    ],
)
def test_targets_fill_the_range_of_the_output(
    kind: str, output: str, values: list[float], targets: list[float]
) -> None:
    assert target_map(kind, output)(torch.tensor(values)).tolist() == targets


@pytest.mark.parametrize("kind", ["continuous", "vector", "cyclic"])
@pytest.mark.parametrize("output", ["sigmoid", "tanh", "identity"])
def test_decoding_undoes_the_map(kind: str, output: str) -> None:
    values = torch.linspace(-1, 1, 5, dtype=torch.float64)
    mapped = target_map(kind, output)
    torch.testing.assert_close(mapped.decode(mapped(values)), values)


def test_squared_errors_match_loops() -> None:
    outputs, targets = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    errors = squared_errors(outputs, targets)
    for crop in range(2):
        for image in range(3):
            pairs = zip(outputs[crop, image].tolist(), targets[image].tolist(), strict=True)
            assert errors[crop, image].item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 4)


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "identity"])
def test_gradient_of_the_whole_head(output: str) -> None:
    head = Regressor(3, 2, hidden=[5, 4], output=output).double()
    names = [name for name, _ in head.named_parameters()]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in head.parameters())
    features = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(3, 2, dtype=torch.float64)

    def losses(features: Tensor, *values: Tensor) -> Tensor:
        arguments = (features, 7, torch.tensor([3, 0, 1]), 4)
        outputs = torch.func.functional_call(head, dict(zip(names, values, strict=True)), arguments)
        return squared_errors(outputs, targets)

    assert torch.autograd.gradcheck(losses, (features, *parameters))


def test_layers_match_loops() -> None:
    regressor = Regressor(3, 2, hidden=[4, 5], output="sigmoid").eval()
    features = torch.randn(2, 3, 3)
    outputs = run(regressor, features, step=0)
    for crop in range(2):
        for image in range(3):
            row = features[crop, image].tolist()
            for number, layer in enumerate(regressor.layers):
                row = [
                    sum(w * x for w, x in zip(weights.tolist(), row, strict=True)) + bias
                    for weights, bias in zip(layer.weight, layer.bias.tolist(), strict=True)
                ]
                if number < 2:
                    row = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in row]
            expected = [1 / (1 + math.exp(-x)) for x in row]
            assert outputs[crop, image].tolist() == pytest.approx(expected, abs=1e-6)


def test_paper_widths() -> None:
    widths = [(layer.in_features, layer.out_features) for layer in Regressor(7, 2).layers]
    assert widths == [(7, 512), (512, 512), (512, 256), (256, 2)]


@pytest.mark.parametrize(("output", "low", "high"), [("sigmoid", 0, 1), ("tanh", -1, 1)])
def test_outputs_are_bounded(output: str, low: float, high: float) -> None:
    outputs = run(Regressor(3, 2, output=output).eval(), 1e4 * torch.randn(2, 50, 3))
    assert outputs.min() >= low
    assert outputs.max() <= high


def test_weights_and_dropout_are_keyed() -> None:
    before = torch.random.get_rng_state()
    first, same, other = Regressor(3, 1, index=1), Regressor(3, 1, index=1), Regressor(3, 1, index=2)
    features = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    outputs = run(first, features, step=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(outputs, run(same, features, step=4))
    assert not torch.equal(outputs, run(same, features, step=5))
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_dropout_keeps_the_mean_and_drops_the_given_share() -> None:
    regressor = Regressor(4, 1, hidden=[64], dropout=0.25)
    scales = regressor._dropout_scale(torch.ones(2, 200, 64), 0, 0, torch.arange(200), 200)
    assert scales.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (scales == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(scales[0], scales[1])


def test_layers_factors_and_steps_drop_different_units() -> None:
    ones = torch.ones(2, 8, 16)
    masks = [
        Regressor(3, 1, hidden=[16, 16], index=index)._dropout_scale(ones, step, layer, torch.arange(8), 8)
        for index, step, layer in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4


def test_a_piece_drops_what_its_images_drop_in_the_whole_batch() -> None:
    regressor = Regressor(3, 1)
    features = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    whole = run(regressor, features)
    for slots in (torch.tensor([0, 1, 2]), torch.tensor([7, 3])):
        torch.testing.assert_close(regressor(features[:, slots], 0, slots, 8), whole[:, slots])


def test_no_dropout_in_evaluation_mode() -> None:
    regressor = Regressor(3, 1).eval()
    features = torch.randn(2, 8, 3)
    assert torch.equal(run(regressor, features, step=0), run(regressor, features, step=1))


def test_float32_under_autocast() -> None:
    regressor = Regressor(3, 1)
    features = torch.randn(2, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = run(regressor, features, step=0)
    assert torch.equal(outputs, run(regressor, features, step=0))
