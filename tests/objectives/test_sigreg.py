import math
from pathlib import Path

import pytest
import torch
from make_views import make_views, take_images
from torch import Tensor

from openfino.distributed import current_world, sum_over_ranks
from openfino.objectives.sigreg import SigregTerm, random_directions, sigreg
from ranks import run_on_ranks


def naive(samples: Tensor, directions: Tensor, knots: int, limit: float) -> float:
    """Trapezoid rule over all knots, both signs."""
    grid = [-limit + 2 * limit * k / (knots - 1) for k in range(knots)]
    total = 0.0
    for direction in directions.T:
        projected = [float(sample @ direction) for sample in samples]
        heights = []
        for w in grid:
            real = sum(math.cos(w * p) for p in projected) / len(projected) - math.exp(-w * w / 2)
            imaginary = sum(math.sin(w * p) for p in projected) / len(projected)
            heights.append((real**2 + imaginary**2) * math.exp(-w * w / 2))
        total += sum(
            (a + b) / 2 * (v - u) for a, b, u, v in zip(heights, heights[1:], grid, grid[1:], strict=False)
        )
    return total / directions.shape[1]


@pytest.mark.parametrize(("knots", "limit"), [(17, 5.0), (9, 3.0), (8, 2.0), (3, 1.0)])
def test_matches_loops_over_all_knots(knots: int, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(
        torch.randn(4, 5, generator=generator, dtype=torch.float64), dim=0
    )
    expected = naive(samples, directions, knots, limit)
    assert sigreg(samples, directions, knots, limit).item() == pytest.approx(expected, rel=1e-12)


def test_gradient() -> None:
    directions = random_directions(3, 4, seed=0, step=0).double()
    samples = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: sigreg(z, directions), samples)


def test_float32_under_autocast() -> None:
    samples = torch.randn(12, 8, generator=torch.Generator().manual_seed(5), requires_grad=True)
    directions = random_directions(8, 16, seed=0, step=0)
    expected = sigreg(samples, directions)
    (gradient,) = torch.autograd.grad(expected, samples)
    with torch.autocast("cpu", torch.bfloat16):
        value = sigreg(samples, directions)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(value, samples)[0], gradient, rtol=0, atol=1e-6)


def test_normal_samples_score_below_shifted_wide_and_collapsed_ones() -> None:
    samples = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
    directions = random_directions(8, 64, seed=0, step=0)
    normal = sigreg(samples, directions)
    for other in (samples + 0.5, samples * 2, samples * 0.1, torch.zeros_like(samples)):
        assert sigreg(other, directions) > 5 * normal


def test_descending_moves_samples_towards_the_normal_spread() -> None:
    samples = 3 * torch.randn(256, 4, generator=torch.Generator().manual_seed(2))
    samples.requires_grad_()
    (gradient,) = torch.autograd.grad(sigreg(samples, random_directions(4, 64, 0, 0)), samples)
    assert (gradient * samples).sum() > 0


def test_directions_are_unit_and_keyed() -> None:
    before = torch.random.get_rng_state()
    directions = random_directions(5, 7, seed=3, step=11)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(7))
    assert torch.equal(directions, random_directions(5, 7, seed=3, step=11))
    assert not torch.equal(directions, random_directions(5, 7, seed=3, step=12))
    assert not torch.equal(directions, random_directions(5, 7, seed=4, step=11))


def test_term_is_the_mean_over_crops_with_shared_directions() -> None:
    views = make_views(step=5)
    directions = random_directions(views.bottleneck.shape[-1], 16, seed=2, step=5)
    expected = (sigreg(views.bottleneck[0], directions) + sigreg(views.bottleneck[1], directions)) / 2
    torch.testing.assert_close(SigregTerm(directions=16, seed=2)(views), expected)


def test_term_may_sum_the_crops() -> None:
    views = make_views(step=5)
    summed = SigregTerm(directions=16, sum_crops=True)(views)
    torch.testing.assert_close(summed, 2 * SigregTerm(directions=16)(views))


def sigreg_with_a_reduction_without_gradient(samples: Tensor, directions: Tensor) -> Tensor:
    """As the authors' code behaves on several ranks: autograd takes the sum over ranks for this rank's own summand."""
    frequencies = torch.linspace(-5, 5, 17, dtype=samples.dtype)
    normal = (-(frequencies**2) / 2).exp()
    angles = (samples @ directions)[:, :, None] * frequencies
    moments = torch.stack([angles.cos().mean(dim=0), angles.sin().mean(dim=0)])
    moments = (moments + (sum_over_ranks(moments) - moments).detach()) / current_world().size
    heights = ((moments[0] - normal) ** 2 + moments[1] ** 2) * normal
    return torch.trapezoid(heights, frequencies).mean()


def gradients_on_ranks() -> dict[str, Tensor]:
    """Value and gradient of this rank's share of 12 samples, averaged over ranks as DDP does."""
    world = current_world()
    own = torch.arange(12).chunk(world.size)[world.rank]
    samples = torch.randn(12, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    directions = random_directions(4, 8, seed=0, step=0).double()
    results = {}
    for name, function in (("ours", sigreg), ("theirs", sigreg_with_a_reduction_without_gradient)):
        mine = samples[own].requires_grad_()
        value = function(mine, directions)
        (gradient,) = torch.autograd.grad(value, mine)
        results |= {f"{name} value": value.detach(), f"{name} gradient": gradient / world.size}
    return results


@pytest.mark.parametrize("ranks", [2, 3])
def test_on_several_ranks_the_gradient_is_that_of_one_and_not_a_part_of_it(
    tmp_path: Path, ranks: int
) -> None:
    """A reduction without derivative gives the right value with a gradient ``ranks`` times too small."""
    one, several = gradients_on_ranks(), run_on_ranks(gradients_on_ranks, ranks, tmp_path)
    torch.testing.assert_close(one["theirs gradient"], one["ours gradient"])
    for name in ("ours value", "theirs value"):
        for rank in several:
            torch.testing.assert_close(rank[name], one[name])
    ours, theirs = (torch.cat([rank[f"{name} gradient"] for rank in several]) for name in ("ours", "theirs"))
    torch.testing.assert_close(ours, one["ours gradient"])
    torch.testing.assert_close(theirs * ranks, one["ours gradient"])


def test_pieces_of_a_step_share_the_directions_and_steps_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    term, drawn = SigregTerm(directions=16), []

    def count(*key: int) -> Tensor:
        drawn.append(key)
        return random_directions(*key)

    monkeypatch.setattr("openfino.objectives.sigreg.random_directions", count)
    values = [term(make_views(step=step)).item() for step in (0, 0, 1, 0)]
    assert len(drawn) == 3
    assert values[0] == values[1] == values[3] != values[2]


def test_order_of_images_does_not_matter() -> None:
    views = make_views(images=5)
    shuffled = take_images(views, torch.tensor([4, 0, 3, 1, 2]))
    torch.testing.assert_close(SigregTerm()(shuffled), SigregTerm()(views))
