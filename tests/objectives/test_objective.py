from dataclasses import replace
from typing import Any

import pytest
import torch
from make_views import EMBED, make_views, with_factors
from torch import Tensor

from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.guidance.guidance import GuidedFactor
from openfino.objectives.objective import Objective, build_objective
from openfino.recipe import build_recipe

FACTORS = {
    "plate.id": GuidedFactor("plate.id", "spurious", "discrete", 4),
    "type": GuidedFactor("type", "informative", "continuous", 1),
}


def make_objective(guided: bool, **objective: Any) -> Objective:
    roles = {name: factor.role for name, factor in FACTORS.items()} if guided else {}
    settings = {"manifest": "m.csv", "out": "run", "model": {"config": {}}, "factors": roles}
    recipe = build_recipe({**settings, "objective": objective})
    return build_objective(recipe, FACTORS if guided else {}, EMBED)


def guided_views(step: int = 20_000) -> Views:
    valid = torch.ones(4, dtype=torch.bool)
    factors = {
        "plate.id": FactorBatch(torch.tensor([0, 1, 1, 3]), valid),
        "type": FactorBatch(torch.rand(4, 1, generator=torch.Generator().manual_seed(0)), valid),
    }
    return with_factors(make_views(step=step), factors)


def run(objective: Objective, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
    """Total and terms of ``views``, a whole batch."""
    objective.begin(views.teacher_cls, views.factors)
    total, values = objective(views)
    return total, values


def test_terms_of_the_paper_without_and_with_factors() -> None:
    assert list(make_objective(guided=False).terms) == ["dino", "ibot", "koleo"]
    assert list(make_objective(guided=True).terms) == ["dino", "ibot", "sigreg", "guidance"]


@pytest.mark.parametrize(
    ("guided", "weights"),
    [
        (False, {"dino": 1.0, "ibot": 1.0, "koleo": 0.1}),
        (True, {"dino": 1.0, "ibot": 1.0, "sigreg": 0.05, "guidance": 1.0}),
    ],
)
def test_total_is_the_weighted_sum(guided: bool, weights: dict[str, float]) -> None:
    objective = make_objective(guided)
    total, values = run(objective, guided_views())
    assert set(values) == set(weights)
    expected = sum(weight * values[name] for name, weight in weights.items())
    torch.testing.assert_close(total.detach(), expected)
    assert total.requires_grad
    assert not any(value.requires_grad for value in values.values())


def test_a_weight_of_zero_removes_the_term() -> None:
    objective = make_objective(
        guided=True, ibot={"weight": 0.0}, sigreg={"weight": 0.0}, koleo={"weight": 1.0}
    )
    assert list(objective.terms) == ["dino", "koleo", "guidance"]


def test_a_factor_of_weight_zero_does_not_guide() -> None:
    recipe = build_recipe({"manifest": "m.csv", "out": "run", "model": {"config": {}}})
    silent = {"type": replace(FACTORS["type"], weight=0.0)}
    assert build_objective(recipe, silent, EMBED).guidance is None


def test_settings_reach_the_terms() -> None:
    objective = make_objective(
        guided=True,
        dino={"student_temperature": 0.2, "local_weight": 0.5, "same_crop_pairs": True},
        ibot={"student_temperature": 0.3},
        koleo={"weight": 0.1, "group_size": 2, "neighbours": 3, "every_crop": True},
        sigreg={"directions": 8, "knots": 5, "range": 2.0, "sum_crops": True},
    )
    dino, ibot, koleo, sigreg, _ = objective.terms.values()
    assert (dino.temperature, dino.local_weight, ibot.temperature) == (0.2, 0.5, 0.3)
    assert (dino.same_crop_pairs, koleo.every_crop, sigreg.sum_crops) == (True, True, True)
    assert koleo.neighbours == 3
    assert (koleo.group_size, sigreg.directions, sigreg.knots, sigreg.limit) == (2, 8, 5, 2.0)
    guidance = objective.guidance
    assert (guidance.ramp_start, guidance.total_steps) == (10_000, 25_000)


@pytest.mark.parametrize(
    ("preset", "given", "size"),
    [("paper", {}, 16), ("small", {}, 16), ("authors", {}, None), ("small", {"group_size": None}, None)],
)
def test_koleo_has_the_groups_of_its_preset_unless_told_otherwise(
    preset: str, given: dict[str, Any], size: int | None
) -> None:
    settings = {"manifest": "m.csv", "out": "run", "model": {"config": {}}, "preset": preset}
    objective = build_objective(build_recipe({**settings, "objective": {"koleo": given}}), {}, EMBED)
    assert objective.terms["koleo"].group_size == size


def test_the_authors_preset_sums_sigreg_over_the_crops_and_leaves_its_weight_to_the_factors() -> None:
    settings = {"manifest": "m.csv", "out": "run", "model": {"config": {}}, "preset": "authors"}
    guided = build_recipe({**settings, "factors": {"type": "informative"}})
    sigreg = build_objective(guided, {"type": FACTORS["type"]}, EMBED).terms["sigreg"]
    assert (sigreg.base_weight, sigreg.sum_crops) == (0.05, True)
    assert list(build_objective(build_recipe(settings), {}, EMBED).terms) == ["dino", "ibot", "koleo"]


def test_metrics_of_all_terms_and_commit() -> None:
    objective = make_objective(guided=True)
    views = guided_views()
    run(objective, views)
    metrics = objective.metrics()
    assert {"dino/global", "dino/local", "guidance/ramp", "guidance/plate.id/accuracy"} <= set(metrics)
    objective.commit(views.teacher_cls, views.factors)
    assert objective.guidance.head("plate.id").counts.tolist() == [1, 2, 0, 1]
    make_objective(guided=False).commit(views.teacher_cls, {})


def test_state_survives_a_checkpoint() -> None:
    first, second = make_objective(guided=True), make_objective(guided=True)
    views = guided_views()
    run(first, views)
    first.commit(views.teacher_cls, views.factors)
    second.load_state_dict(first.state_dict())
    later = guided_views(step=20_001)
    assert torch.equal(run(first, later)[0], run(second, later)[0])


def test_all_terms_are_float32_under_autocast() -> None:
    objective = make_objective(guided=True, koleo={"weight": 0.1})
    expected, values = run(objective, guided_views())
    with torch.autocast("cpu", torch.bfloat16):
        total, under_autocast = run(objective, guided_views())
    assert torch.equal(total, expected)
    assert under_autocast == values
    assert all(value.dtype == torch.float32 for value in values.values())


def test_half_precision_outputs_of_the_student() -> None:
    objective = make_objective(guided=True, koleo={"weight": 0.1})
    views = guided_views()
    names = ("global_cls", "global_logits", "local_logits", "masked_logits", "bottleneck")
    half = replace(
        views, **{name: getattr(views, name).detach().bfloat16().requires_grad_() for name in names}
    )
    total, _ = run(objective, half)
    total.backward()
    assert total.dtype == torch.float32
    for name in names:
        assert getattr(half, name).grad.dtype == torch.bfloat16
