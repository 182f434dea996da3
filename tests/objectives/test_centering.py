import math
from pathlib import Path

import pytest
import torch
from make_views import EMBED
from torch import Tensor

from openfino.distributed import current_world
from openfino.objectives.centering import SinkhornCentering, SoftmaxCentering, build_centering
from openfino.objectives.objective import Objective, build_objective
from openfino.objectives.sinkhorn import sinkhorn
from openfino.recipe import ObjectiveSettings, build_recipe
from ranks import run_on_ranks

STEPS, ROWS, PROTOTYPES = 3, 5, 4


def batches(seed: int = 0) -> Tensor:
    """Logits of a few steps [STEPS, ROWS, PROTOTYPES]."""
    return torch.randn(STEPS, ROWS, PROTOTYPES, generator=torch.Generator().manual_seed(seed)) + 1


def naive(logits: Tensor, temperature: float, momentum: float) -> tuple[Tensor, Tensor]:
    """Targets of every step, and the last centre, in Python floats."""
    center = [0.0] * logits.shape[-1]
    targets = []
    for step in logits.double().tolist():
        for row in step:
            masses = [
                math.exp((value - middle) / temperature) for value, middle in zip(row, center, strict=True)
            ]
            targets.append([mass / sum(masses) for mass in masses])
        for k in range(len(center)):
            mean = sum(row[k] for row in step) / len(step)
            center[k] = momentum * center[k] + (1 - momentum) * mean
    return torch.tensor(targets, dtype=torch.float64).view_as(logits), torch.tensor(center).double()


def follow(centering: SoftmaxCentering, logits: Tensor, temperature: float = 0.3) -> Tensor:
    """Targets of every step, all accepted."""
    targets = []
    for step in logits:
        targets.append(centering(step, temperature))
        centering.commit()
    return torch.stack(targets)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_matches_loops(momentum: float) -> None:
    centering = SoftmaxCentering(PROTOTYPES, momentum).double()
    targets = follow(centering, batches())
    expected, center = naive(batches(), 0.3, momentum)
    torch.testing.assert_close(targets, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(centering.center, center, rtol=1e-6, atol=1e-7)


def test_a_prototype_that_all_samples_favour_loses_its_lead() -> None:
    logits = batches()[0]
    logits[:, 0] += 5
    centering = SoftmaxCentering(PROTOTYPES, momentum=0.5)
    first = centering(logits, 0.3)[:, 0].mean()
    for _ in range(20):
        centering.commit()
        last = centering(logits, 0.3)[:, 0].mean()
    assert first > 0.99
    assert last < 0.5


def test_a_skipped_step_leaves_no_trace() -> None:
    logits = batches()
    plain, skipping = SoftmaxCentering(PROTOTYPES), SoftmaxCentering(PROTOTYPES)
    plain(logits[0], 0.3)
    plain.commit()
    skipping(logits[0], 0.3)
    skipping.commit()
    skipping(logits[1] * torch.nan, 0.3)  # not committed
    assert torch.equal(skipping.center, plain.center)
    torch.testing.assert_close(follow(skipping, logits[2:]), follow(plain, logits[2:]), rtol=0, atol=0)
    assert torch.equal(skipping.center, plain.center)


def test_a_batch_is_taken_in_once() -> None:
    centering = SoftmaxCentering(PROTOTYPES)
    centering(batches()[0], 0.3)
    centering.commit()
    center = centering.center.clone()
    centering.commit()
    assert torch.equal(centering.center, center)


def test_order_of_samples_does_not_matter() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    plain, shuffled = SoftmaxCentering(PROTOTYPES), SoftmaxCentering(PROTOTYPES)
    torch.testing.assert_close(follow(shuffled, batches()[:, order]), follow(plain, batches())[:, order])
    torch.testing.assert_close(shuffled.center, plain.center)


def test_no_samples_leave_the_center() -> None:
    centering = SoftmaxCentering(PROTOTYPES)
    follow(centering, batches())
    center = centering.center.clone()
    assert centering(torch.zeros(0, PROTOTYPES), 0.3).shape == (0, PROTOTYPES)
    centering.commit()
    assert torch.equal(centering.center, center)


def test_large_logits_in_half_precision_stay_finite_float32_without_gradient() -> None:
    logits = (batches()[0] * 1e4).bfloat16().requires_grad_()
    targets = SoftmaxCentering(PROTOTYPES)(logits, 0.04)
    assert targets.dtype == torch.float32
    assert not targets.requires_grad
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(ROWS))


def on_ranks() -> dict[str, Tensor]:
    """Targets of this rank's rows and the centre; rows are split 2 and 3, then 0 and 5."""
    world = current_world()
    centering = SoftmaxCentering(PROTOTYPES)
    results = {}
    for step, (logits, cut) in enumerate(zip(batches(), (2, 0, 4), strict=True)):
        own = logits if world.size == 1 else logits[:cut] if world.rank == 0 else logits[cut:]
        results[f"targets_{step}"] = centering(own, 0.3)
        centering.commit()
        results[f"center_{step}"] = centering.center.clone()
    return results


def test_the_number_of_ranks_does_not_matter(tmp_path: Path) -> None:
    one, two = on_ranks(), run_on_ranks(on_ranks, 2, tmp_path)
    for step in range(STEPS):
        joined = torch.cat([rank[f"targets_{step}"] for rank in two])
        torch.testing.assert_close(joined, one[f"targets_{step}"])
        torch.testing.assert_close(two[0][f"center_{step}"], one[f"center_{step}"])
        assert torch.equal(two[0][f"center_{step}"], two[1][f"center_{step}"])


def make_objective() -> Objective:
    head = {"head": {"prototypes": PROTOTYPES}}
    settings = {"centering": "softmax", "center_momentum": 0.8, "dino": head, "ibot": head}
    recipe = build_recipe({"manifest": "m", "out": "o", "model": {"config": {}}, "objective": settings})
    return build_objective(recipe, {}, EMBED)


def advance(objective: Objective, logits: Tensor) -> None:
    for head, shift in (("dino", 0.0), ("ibot", 3.0)):
        objective.centering[head](logits + shift, 0.3)
    objective.commit(torch.zeros(2, ROWS, EMBED), {})


def test_centers_go_on_from_a_checkpoint_as_if_never_stopped() -> None:
    straight, resumed = make_objective(), make_objective()
    for step in batches():
        advance(straight, step)
    killed = make_objective()
    advance(killed, batches()[0])
    killed.centering["dino"](batches(seed=1)[0], 0.3)  # killed before this step was accepted
    resumed.load_state_dict(killed.state_dict())
    for step in batches()[1:]:
        advance(resumed, step)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    centers = [straight.centering[head].center for head in ("dino", "ibot")]
    assert centers[0].abs().min() > 0
    assert (centers[1] - centers[0]).min() > 1


def test_sinkhorn_is_the_default_and_has_no_state() -> None:
    centering = build_centering(ObjectiveSettings())
    assert set(centering) == {"dino", "ibot"}
    assert not centering.state_dict()
    logits = batches()[0]
    settings = ObjectiveSettings(sinkhorn_iterations=1)
    found = build_centering(settings)["dino"](logits, 0.3)
    assert torch.equal(found, sinkhorn(logits, 0.3, iterations=1))
    assert not torch.equal(found, SinkhornCentering(3)(logits, 0.3))


def test_settings_reach_the_centers() -> None:
    dino, ibot = make_objective().centering.values()
    assert (dino.momentum, ibot.momentum, dino.center.shape) == (0.8, 0.8, (PROTOTYPES,))


def test_without_ibot_there_is_no_second_center() -> None:
    settings = ObjectiveSettings.model_validate({"centering": "softmax", "ibot": {"weight": 0}})
    assert set(build_centering(settings)) == {"dino"}
