"""Guidance with what is not the paper's default: other heads, another ramp, other balancing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_views import EMBED, as_batch, make_views, take_images, with_factors
from torch import Tensor

from openfino.distributed import current_world, sum_over_ranks
from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.guidance.classification import Classifier
from openfino.objectives.guidance.concentration import ConcentrationBank
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.guidance.prototypes import PrototypeBank
from openfino.recipe import GuidanceSettings
from openfino.settings_layers import load_preset
from ranks import run_on_ranks

PLATE = GuidedFactor("plate", "spurious", "discrete", 5)
AGE = GuidedFactor("age", "informative", "continuous", 1, weight=0.1)
IMAGES, UNFREEZE, TOTAL = 6, 10, 110
AUTHORS: dict[str, Any] = load_preset("authors")["objective"]["guidance"]
HEADS: dict[str, dict[str, Any]] = {
    "concentration": {"bank": "concentration"},
    "classifier": {"discrete_head": "classifier"},
    "binary_classifier": {"discrete_head": "binary_classifier"},
    "authors": AUTHORS,
}
heads = pytest.mark.parametrize("head", HEADS)


def make_guidance(*factors: GuidedFactor, seed: int = 0, **settings: Any) -> Guidance:
    chosen = GuidanceSettings(**{"regressor_hidden": [8], **settings})
    named = {factor.name: factor for factor in factors}
    return Guidance(named, EMBED, chosen, seed=seed, unfreeze_step=UNFREEZE, total_steps=TOTAL)


def guided_views(step: int = TOTAL) -> Views:
    generator = torch.Generator().manual_seed(step)
    plates = torch.randint(5, (IMAGES,), generator=generator)
    ages = torch.rand(IMAGES, 1, generator=generator)
    factors = {
        "plate": FactorBatch(plates, torch.tensor([1, 1, 0, 1, 1, 1]).bool()),
        "age": FactorBatch(ages, torch.tensor([0, 1, 1, 1, 0, 1]).bool()),
    }
    return with_factors(make_views(images=IMAGES, step=step, seed=step), factors)


def run(guidance: Guidance, views: Views) -> Tensor:
    """The value of ``views``, a whole batch."""
    guidance.begin(views.teacher_cls, views.factors)
    value: Tensor = guidance(views)
    return value


def after_a_step(guidance: Guidance, views: Views) -> dict[str, Any]:
    """Everything that one step gives and leaves."""
    guidance.zero_grad()
    value = run(guidance, views)
    value.backward()
    guidance.commit(views.teacher_cls, views.factors)
    return {
        "value": value.detach(),
        "cls": views.global_cls.grad,
        "gradients": {name: parameter.grad for name, parameter in guidance.named_parameters()},
        "state": {name: buffer.clone() for name, buffer in guidance.named_buffers()},
    }


def test_heads_are_what_the_settings_say() -> None:
    assert isinstance(make_guidance(PLATE).head("plate"), PrototypeBank)
    assert isinstance(make_guidance(PLATE, bank="concentration").head("plate"), ConcentrationBank)
    assert isinstance(make_guidance(PLATE, discrete_head="classifier").head("plate"), Classifier)
    assert [
        make_guidance(PLATE, discrete_head=name).head("plate").binary
        for name in ("classifier", "binary_classifier")
    ] == [False, True]


def test_a_bank_gets_the_temperature_the_momentum_and_a_key_of_its_own() -> None:
    other = replace(PLATE, name="site")
    guidance = make_guidance(PLATE, other, bank="concentration", temperature=0.3, momentum=0.5)
    plate, site = guidance.head("plate"), guidance.head("site")
    assert isinstance(plate, ConcentrationBank)
    assert isinstance(site, ConcentrationBank)
    assert plate.concentration.tolist() == pytest.approx([0.3] * 5)
    assert plate.momentum == 0.5
    assert not torch.equal(plate.centroids, site.centroids)
    again = make_guidance(PLATE, bank="concentration", seed=1).head("plate")
    assert not torch.equal(plate.centroids, again.centroids)


@pytest.mark.parametrize("head", ["concentration", "classifier", "binary_classifier"])
def test_value_is_the_weighted_mean_over_crops_and_valid_images(head: str) -> None:
    guidance = make_guidance(PLATE, regressor_dropout=0.0, **HEADS[head])
    views = guided_views()
    values, valid = views.factors["plate"].values, views.factors["plate"].valid
    total = run(guidance, views)
    bank = guidance.head("plate")
    if isinstance(bank, ConcentrationBank):
        losses, correct = bank(views.global_cls, values, valid)
    else:
        losses, correct = bank.judge(bank(views.global_cls, 0, views.slots, IMAGES), values, valid)
    kept = [(crop, image) for crop in range(2) for image in range(IMAGES) if valid[image]]
    torch.testing.assert_close(total, 0.03 * sum(losses[place] for place in kept) / len(kept))
    accuracy = sum(correct[place].item() for place in kept) / len(kept)
    assert guidance.metrics()["guidance/plate/accuracy"].item() == pytest.approx(accuracy)


@heads
def test_an_image_without_value_counts_as_absent(head: str) -> None:
    kept = torch.tensor([0, 1, 3, 4, 5])
    views = guided_views()
    views = with_factors(views, {"plate": views.factors["plate"]})
    whole, part = (
        after_a_step(make_guidance(PLATE, regressor_dropout=0.0, **HEADS[head]), own)
        for own in (views, as_batch(take_images(views, kept)))
    )
    assert torch.equal(whole["cls"][:, 2], torch.zeros(2, EMBED))
    torch.testing.assert_close({**whole, "cls": whole["cls"][:, kept]}, part)


@heads
def test_the_value_of_an_image_that_is_not_valid_has_no_influence(head: str) -> None:
    views, other = guided_views(), guided_views()
    other.factors["plate"].values[2] = (other.factors["plate"].values[2] + 1) % 5
    first, second = make_guidance(PLATE, AGE, **HEADS[head]), make_guidance(PLATE, AGE, **HEADS[head])
    torch.testing.assert_close(after_a_step(first, views), after_a_step(second, other), rtol=0, atol=0)


@heads
def test_no_value_at_all_gives_a_zero_with_every_parameter_in_the_graph(head: str) -> None:
    guidance = make_guidance(PLATE, **HEADS[head])
    views = guided_views()
    nothing = replace(views.factors["plate"], valid=torch.zeros(IMAGES).bool())
    before = {name: buffer.clone() for name, buffer in guidance.named_buffers()}
    result = after_a_step(guidance, with_factors(views, {"plate": nothing}))
    assert result["value"].item() == 0.0
    assert torch.equal(result["cls"], torch.zeros_like(result["cls"]))
    assert all(gradient.abs().sum() == 0 for gradient in result["gradients"].values())
    torch.testing.assert_close(result["state"], before, rtol=0, atol=0)


@heads
def test_order_of_images_does_not_matter(head: str) -> None:
    """Each image keeps its slot, and with it its dropout."""
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    views = guided_views()
    first = after_a_step(make_guidance(PLATE, AGE, **HEADS[head]), views)
    second = after_a_step(make_guidance(PLATE, AGE, **HEADS[head]), take_images(views, order))
    torch.testing.assert_close({**first, "cls": first["cls"][:, order]}, second)


@heads
def test_pieces_sum_to_the_whole_batch(head: str) -> None:
    settings = {**HEADS[head], "balance": False}
    whole, parts = make_guidance(PLATE, AGE, **settings), make_guidance(PLATE, AGE, **settings)
    views = guided_views()
    expected = after_a_step(whole, views)
    parts.begin(views.teacher_cls, views.factors)
    total = torch.zeros(())
    for images in ([0, 1, 2, 3], [5, 4]):
        piece = take_images(views, torch.tensor(images))
        value = parts(piece)
        (piece.share * value).backward()
        total += piece.share * value.detach()
    parts.commit(views.teacher_cls, views.factors)
    torch.testing.assert_close(total, expected["value"])
    torch.testing.assert_close(
        {name: parameter.grad for name, parameter in parts.named_parameters()}, expected["gradients"]
    )
    torch.testing.assert_close(dict(parts.named_buffers()), expected["state"])


@pytest.mark.parametrize(("ramp_from", "expected"), [("unfreeze", 0.4), ("start", 50 / 110)])
def test_the_ramp_begins_where_the_settings_say(ramp_from: str, expected: float) -> None:
    guidance = make_guidance(PLATE, ramp="linear", ramp_from=ramp_from)
    run(guidance, guided_views(step=50))
    assert guidance.metrics()["guidance/ramp"].item() == pytest.approx(expected)


def test_reversed_weight_scales_spurious_factors_only() -> None:
    views = guided_views()
    for factor, expected in ((PLATE, 0.1), (AGE, 1.0)):
        plain = make_guidance(factor, regressor_dropout=0.0)
        scaled = make_guidance(factor, regressor_dropout=0.0, reversed_weight=0.1)
        torch.testing.assert_close(run(scaled, views), expected * run(plain, views))
        assert (
            scaled.metrics()["guidance/" + factor.name + "/loss"]
            == plain.metrics()["guidance/" + factor.name + "/loss"]
        )


def pulls(guidance: Guidance, step: int = TOTAL) -> dict[str, float]:
    """Norm of what each factor adds to the encoder's gradient, at the scales of all."""
    views = guided_views(step)
    run(guidance, views)
    metrics = guidance.metrics()
    found = {}
    for name, factor in guidance.factors.items():
        settings = guidance.settings.model_copy(update={"balance": False})
        alone = make_guidance(factor, **settings.model_dump())
        alone.head(name).load_state_dict(guidance.head(name).state_dict())
        own = guided_views(step)
        run(alone, own).backward()
        found[name] = (metrics[f"guidance/{name}/scale"] * own.global_cls.grad.norm()).item()
    return found


BY_WEIGHTED = {"balance_weighted_losses": True, "balance_momentum": 0.0, "regressor_dropout": 0.0}


@pytest.mark.parametrize("step", [UNFREEZE + 20, TOTAL])
def test_balancing_weighted_losses_cancels_the_users_weights(step: int) -> None:
    """What the authors' code does (official-code B1); with our default the pulls are in the ratio of the weights."""
    heavy = replace(AGE, weight=1.0)
    for settings, ratio in ((BY_WEIGHTED, 1.0), ({"regressor_dropout": 0.0}, 10.0)):
        light = pulls(make_guidance(PLATE, AGE, **settings), step)
        other = pulls(make_guidance(PLATE, heavy, **settings), step)
        before, after = light["age"] / light["plate"], other["age"] / other["plate"]
        assert after / before == pytest.approx(ratio, rel=1e-4)
    equal = pulls(make_guidance(PLATE, AGE, **BY_WEIGHTED), step)
    assert equal["age"] == pytest.approx(equal["plate"], rel=1e-4)


def test_weights_move_only_the_common_target() -> None:
    light = pulls(make_guidance(PLATE, AGE, **BY_WEIGHTED))
    heavy = pulls(make_guidance(PLATE, replace(AGE, weight=1.0), **BY_WEIGHTED))
    assert heavy["plate"] / light["plate"] == pytest.approx(10**0.5, rel=1e-4)


def test_a_ramp_of_zero_leaves_weighted_losses_unscaled() -> None:
    """Their norms are then below the threshold; ours by default are measured before the ramp."""
    for settings, alike in ((BY_WEIGHTED, True), ({}, False)):
        guidance = make_guidance(PLATE, AGE, **settings)
        run(guidance, guided_views(step=UNFREEZE))
        scales = [guidance.metrics()[f"guidance/{name}/scale"].item() for name in ("age", "plate")]
        assert (scales == [1.0, 1.0]) == alike


def test_weighted_losses_without_a_pull_worth_the_name_stay_as_they_are() -> None:
    """The released code's absolute threshold (official-code B16); the default knows none."""
    tiny = [replace(factor, weight=1e-8) for factor in (PLATE, AGE)]
    for settings, alike in ((BY_WEIGHTED, True), ({}, False)):
        guidance = make_guidance(*tiny, **settings)
        run(guidance, guided_views())
        scales = [guidance.metrics()[f"guidance/{name}/scale"].item() for name in ("age", "plate")]
        assert (scales == [1.0, 1.0]) == alike


def steps_on_a_rank() -> dict[str, Any]:
    """Three steps with each head on this rank's share; what must not depend on the number of ranks."""
    world = current_world()
    share = IMAGES // world.size
    own = torch.arange(world.rank * share, (world.rank + 1) * share)
    results: dict[str, Any] = {}
    for head, settings in HEADS.items():
        guidance = make_guidance(PLATE, AGE, **settings)
        for step in (20, 21, 22):
            result = after_a_step(guidance, take_images(guided_views(step), own))
            scalars = {"value": result["value"], **guidance.metrics()}
            results[f"{head} {step}"] = {
                "scalars": {name: sum_over_ranks(value) / world.size for name, value in scalars.items()},
                "gradients": {
                    name: sum_over_ranks(gradient) / world.size
                    for name, gradient in result["gradients"].items()
                },
                "state": result["state"],
                "cls": result["cls"] / world.size,
            }
    return results


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    one, two = steps_on_a_rank(), run_on_ranks(steps_on_a_rank, 2, tmp_path)
    for key, expected in one.items():
        first, second = two[0][key], two[1][key]
        torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
        joined = torch.cat([first.pop("cls"), second.pop("cls")], dim=1)
        torch.testing.assert_close(joined, expected.pop("cls"), rtol=1e-5, atol=1e-6)
        for rank in (first, second):
            torch.testing.assert_close(rank, expected, rtol=1e-5, atol=1e-6)
    moved = one["concentration 22"]["state"]
    assert not torch.equal(
        moved["heads.factor:plate.concentration"],
        torch.full_like(moved["heads.factor:plate.concentration"], 0.07 / 3),
    )
