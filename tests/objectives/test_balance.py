import math

import pytest
import torch

from golden_data import Case, golden_cases
from openfino.objectives.guidance.balance import GradientBalance, escaped, gradient_norms


def test_scales_make_the_smoothed_norms_equal() -> None:
    balance = GradientBalance(["a", "b", "c"])
    norms = torch.tensor([1.0, 4.0, 0.25])
    scales = balance.scales(norms)
    torch.testing.assert_close(scales * norms, torch.full((3,), math.exp(sum(map(math.log, norms)) / 3)))


def naive_scales(
    steps: list[list[float]], momentum: float, threshold: float, epsilon: float
) -> list[list[float]]:
    """Alg. A.3 in loops, for a factor or two that are absent at times."""
    smoothed: dict[int, float] = {}
    scales = []
    for norms in steps:
        active = [factor for factor, norm in enumerate(norms) if norm > threshold]
        for factor in active:
            old = smoothed.get(factor)
            new = norms[factor]
            smoothed[factor] = new if old is None else momentum * old + (1 - momentum) * new
        logs = [math.log(smoothed[factor]) for factor in active]
        own = [1.0] * len(norms)
        if len(active) > 1:
            target = math.exp(sum(logs) / len(logs))
            for factor in active:
                own[factor] = target / (smoothed[factor] + epsilon)
        scales.append(own)
    return scales


@pytest.mark.parametrize(
    ("momentum", "threshold", "epsilon"), [(0.99, 0.0, 0.0), (0.0, 0.5, 1e-2), (0.7, 0.3, 0.0)]
)
def test_scales_match_loops(momentum: float, threshold: float, epsilon: float) -> None:
    steps = [[1.0, 0.4, 2.0], [3.0, 0.0, 0.2], [0.1, 0.1, 5.0], [0.6, 4.0, 0.9]]
    balance = GradientBalance(["a", "b", "c"], momentum, threshold=threshold, epsilon=epsilon)
    for norms, expected in zip(steps, naive_scales(steps, momentum, threshold, epsilon), strict=True):
        assert balance.scales(torch.tensor(norms)).tolist() == pytest.approx(expected)
        balance.commit(torch.tensor(norms))


def test_without_momentum_only_the_step_counts() -> None:
    balance = GradientBalance(["a", "b"], momentum=0.0)
    balance.commit(torch.tensor([100.0, 0.01]))
    norms = torch.tensor([1.0, 4.0])
    assert torch.equal(balance.scales(norms), GradientBalance(["a", "b"]).scales(norms))


def test_the_order_of_factors_does_not_matter() -> None:
    norms, order = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([2, 0, 1])
    scales = GradientBalance(["a", "b", "c"]).scales(norms)
    torch.testing.assert_close(GradientBalance(["c", "a", "b"]).scales(norms[order]), scales[order])


def golden_case(name: str) -> Case:
    return next(case for case in golden_cases("grad_norm_equalization.safetensors") if case.name == name)


@pytest.mark.golden
@pytest.mark.parametrize("case", ["three_guides", "two_guides_equal_weight", "one_unused_guide"])
def test_pulls_of_the_authors_losses_are_in_the_ratio_of_their_weights(case: str) -> None:
    """At the first step there is no smoothing; their norms are ours times the weight, which we keep out."""
    golden = golden_case(case)
    weights = torch.tensor(golden.hparams["weights"])
    norms = golden["norms"] / weights
    scales = GradientBalance([str(number) for number in range(len(weights))]).scales(norms)
    target = norms[norms > 0].log().mean().exp()
    torch.testing.assert_close(weights * scales * norms, torch.where(norms > 0, weights * target, 0.0))
    if case == "two_guides_equal_weight":  # then both ways are one
        torch.testing.assert_close(scales, golden["scales"], rtol=1e-5, atol=0)


@pytest.mark.golden
def test_ours_keeps_the_users_weights_and_theirs_cancels_them() -> None:
    """Ten times the weight of one guide: in the authors' code all pulls stay alike, in ours its own grows."""
    ours, theirs = [], []
    for name in ("three_guides", "three_guides_weights_x10_on_first"):
        golden = golden_case(name)
        weights = torch.tensor(golden.hparams["weights"])
        norms = golden["norms"] / weights
        ours.append(weights * GradientBalance(["a", "b", "c"]).scales(norms) * norms)
        theirs.append(golden["scales"] * golden["norms"])
    torch.testing.assert_close(ours[1] / ours[0], torch.tensor([10.0, 1.0, 1.0]))
    torch.testing.assert_close(theirs[1], theirs[1][:1].expand(3), rtol=1e-3, atol=0)


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
