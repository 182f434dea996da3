"""Two processes with half of the batch each give what one process gives: values, gradients, state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from make_views import EMBED, PATCHES, make_views, take_images, with_factors
from torch import Tensor

from openfino.distributed import current_world, sum_over_ranks
from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.guidance.guidance import GuidedFactor
from openfino.objectives.objective import build_objective
from openfino.objectives.sinkhorn import sinkhorn
from openfino.recipe import build_recipe
from ranks import run_on_ranks

IMAGES, STEPS = 6, 3
INPUTS = ("global_cls", "global_logits", "local_logits", "bottleneck")
FACTORS = {
    "plate": GuidedFactor("plate", "spurious", "discrete", 5),
    "age": GuidedFactor("age", "informative", "continuous", 1),
    "rare": GuidedFactor("rare", "informative", "discrete", 3),
}


def global_views(step: int) -> Views:
    """Half of the images, all on rank 1, are masked; factor ``rare`` has values on rank 0 only."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.rand(2, IMAGES, PATCHES, generator=generator) < 0.5
    masks[:, : IMAGES // 2] = False
    views = make_views(images=IMAGES, step=step, seed=step, masks=masks)
    factors = {
        "plate": FactorBatch(
            torch.randint(5, (IMAGES,), generator=generator), torch.rand(IMAGES, generator=generator) < 0.7
        ),
        "age": FactorBatch(
            torch.rand(IMAGES, 1, generator=generator), torch.tensor([0, 1, 0, 1, 1, 1]).bool()
        ),
        "rare": FactorBatch(torch.tensor([0, step % 3, 2, 0, 0, 0]), torch.tensor([1, 1, 1, 0, 0, 0]).bool()),
    }
    return with_factors(views, factors)


def measure() -> dict[str, Any]:
    """Run a few steps on this rank's share and return what must not depend on the number of ranks."""
    world = current_world()
    share = IMAGES // world.size
    own = torch.arange(world.rank * share, (world.rank + 1) * share)
    settings = {
        "manifest": "m",
        "out": "o",
        "model": {"config": {}},
        "train": {"steps": 10, "freeze_steps": 0, "warmup_steps": 0, "unfreeze_ramp_steps": 0},
    }
    factors = {name: factor.role for name, factor in FACTORS.items()}
    objective_settings = {
        "koleo": {"weight": 0.1, "group_size": 4, "neighbours": 2},
        "sigreg": {"directions": 16},
    }
    recipe = build_recipe({**settings, "factors": factors, "objective": objective_settings})
    objective = build_objective(recipe, FACTORS, EMBED)
    results: dict[str, Any] = {}
    for step in range(1, STEPS + 1):
        views = take_images(global_views(step), own)
        objective.zero_grad()
        objective.begin(views.teacher_cls, views.factors)
        total, values = objective(views)
        total.backward()
        objective.commit(views.teacher_cls, views.factors)
        scalars = {"total": total.detach(), **values, **objective.metrics()}
        mean = {name: sum_over_ranks(value) / world.size for name, value in scalars.items()}
        results[f"scalars_{step}"] = mean
        results[f"inputs_{step}"] = {name: getattr(views, name).grad / world.size for name in INPUTS}
        results[f"masked_{step}"] = views.masked_logits.grad / world.size
        results[f"parameters_{step}"] = {
            name: sum_over_ranks(parameter.grad) / world.size
            for name, parameter in objective.named_parameters()
        }
        results[f"state_{step}"] = {name: value.clone() for name, value in objective.named_buffers()}
    results["sinkhorn"] = [sinkhorn(part, 0.05) for part in sinkhorn_parts(world.rank, world.size)]
    return results


def sinkhorn_parts(rank: int, size: int) -> list[Tensor]:
    """This rank's rows of two problems: five rows split 2 and 3, and five rows split 0 and 5."""
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(9)) * 20
    if size == 1:
        return list(logits)
    return [logits[0, :2] if rank == 0 else logits[0, 2:], logits[1, :0] if rank == 0 else logits[1]]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return measure()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(measure, 2, Path(tmp_path_factory.mktemp("ranks")))


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_values_and_metrics(one: dict[str, Any], two: list[dict[str, Any]], step: int) -> None:
    for rank in two:
        close(rank[f"scalars_{step}"], one[f"scalars_{step}"])


@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("name", INPUTS)
def test_gradients_of_the_student(
    one: dict[str, Any], two: list[dict[str, Any]], name: str, step: int
) -> None:
    joined = torch.cat([rank[f"inputs_{step}"][name] for rank in two], dim=1)
    close(joined, one[f"inputs_{step}"][name])
    assert joined.abs().sum() > 0


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_gradients_of_masked_patches(one: dict[str, Any], two: list[dict[str, Any]], step: int) -> None:
    assert two[0][f"masked_{step}"].shape[0] == 0
    close(two[1][f"masked_{step}"], one[f"masked_{step}"])


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_gradients_of_heads_with_dropout(one: dict[str, Any], two: list[dict[str, Any]], step: int) -> None:
    for rank in two:
        close(rank[f"parameters_{step}"], one[f"parameters_{step}"])


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_prototypes_and_norms(one: dict[str, Any], two: list[dict[str, Any]], step: int) -> None:
    for rank in two:
        close(rank[f"state_{step}"], one[f"state_{step}"])
    torch.testing.assert_close(two[0][f"state_{step}"], two[1][f"state_{step}"], rtol=0, atol=0)


def test_sinkhorn_with_other_counts_of_rows(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for problem in range(2):
        close(torch.cat([rank["sinkhorn"][problem] for rank in two]), one["sinkhorn"][problem])
    assert two[0]["sinkhorn"][1].shape == (0, 7)
