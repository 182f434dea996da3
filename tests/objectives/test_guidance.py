from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from make_views import EMBED, as_batch, make_views, take_images, with_factors
from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.guidance.prototypes import PrototypeBank
from openfino.recipe import GuidanceSettings

PLATE = GuidedFactor("plate", "spurious", "discrete", 4)
AGE = GuidedFactor("age", "informative", "continuous", 1)
HOUR = GuidedFactor("hour", "informative", "cyclic", 2, weight=0.1)
UNFREEZE, TOTAL = 10, 110

BATCH = {
    "plate": FactorBatch(torch.tensor([0, 2, 2, 1]), torch.tensor([True, True, True, False])),
    "age": FactorBatch(torch.tensor([[0.1], [0.9], [0.0], [0.4]]), torch.tensor([True, True, False, True])),
    "hour": FactorBatch(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.0, -1.0]]), torch.ones(4) > 0),
}


def make_guidance(*factors: GuidedFactor, **settings: object) -> Guidance:
    chosen = GuidanceSettings(**{"regressor_hidden": [8], "regressor_dropout": 0.0, **settings})
    named = {factor.name: factor for factor in factors}
    return Guidance(named, EMBED, chosen, seed=0, unfreeze_step=UNFREEZE, total_steps=TOTAL)


def guided_views(step: int = TOTAL, **changes: FactorBatch) -> Views:
    return with_factors(make_views(step=step), {**BATCH, **changes})


def run(guidance: Guidance, views: Views) -> Tensor:
    """The value of ``views``, a whole batch."""
    guidance.begin(views.teacher_cls, views.factors)
    value: Tensor = guidance(views)
    return value


def dropless(head: torch.nn.Module, views: Views) -> Tensor:
    """What a regressor without dropout says."""
    outputs: Tensor = head(views.global_cls, views.step, views.slots, views.batch_size)
    return outputs


def parameter_gradients(module: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in module.parameters()]


def test_value_is_the_weighted_mean_over_crops_and_valid_images() -> None:
    guidance = make_guidance(PLATE, HOUR, AGE, balance=False)
    views = guided_views()
    total = run(guidance, views)
    bank = guidance.head("plate")
    losses, _ = bank(views.global_cls, BATCH["plate"].values, BATCH["plate"].valid)
    plate = sum(losses[crop, image] for crop in range(2) for image in (0, 1, 2)) / 6
    outputs = dropless(guidance.head("age"), views)
    age = sum(
        (outputs[crop, image, 0] - BATCH["age"].values[image, 0]) ** 2
        for crop in range(2)
        for image in (0, 1, 3)
    )
    hour = (dropless(guidance.head("hour"), views) - BATCH["hour"].values).square().mean()
    torch.testing.assert_close(total, 0.03 * plate + 0.03 * age / 6 + 0.1 * hour)


@pytest.mark.parametrize("factor", [PLATE, AGE])
@pytest.mark.parametrize(("step", "gamma"), [(0, 0.0), (UNFREEZE, 0.0), (UNFREEZE + 50, 0.5), (TOTAL, 1.0)])
def test_role_and_ramp_scale_the_encoders_gradient_and_not_the_heads(
    factor: GuidedFactor, step: int, gamma: float
) -> None:
    gradients = {}
    for role, kind in (("informative", "constant"), ("informative", "linear"), ("spurious", "linear")):
        guidance = make_guidance(replace(factor, role=role), ramp=kind)
        views = guided_views(max(step, UNFREEZE) if kind == "constant" else step)
        run(guidance, views).backward()
        gradients[role, kind] = views.global_cls.grad, parameter_gradients(guidance)
    plain, heads = gradients["informative", "constant"]
    torch.testing.assert_close(gradients["informative", "linear"][0], gamma * plain)
    torch.testing.assert_close(gradients["spurious", "linear"][0], -gamma * plain)
    for role in ("informative", "spurious"):
        assert all(torch.equal(a, b) for a, b in zip(gradients[role, "linear"][1], heads, strict=True))
    assert plain.abs().sum() > 0


@pytest.mark.parametrize("factor", [PLATE, AGE, HOUR])
def test_an_image_without_value_counts_as_absent(factor: GuidedFactor) -> None:
    kept = torch.tensor([0, 1, 3])
    valid = torch.tensor([True, True, False, True])
    whole = with_factors(make_views(step=TOTAL), {factor.name: replace(BATCH[factor.name], valid=valid)})
    part = as_batch(take_images(whole, kept))
    results = []
    for views in (whole, part):
        guidance = make_guidance(factor)
        value = run(guidance, views)
        value.backward()
        results.append((value.detach(), parameter_gradients(guidance), views.global_cls.grad, guidance))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2][:, kept], results[1][2])
    assert torch.equal(results[0][2][:, 2], torch.zeros(2, EMBED))
    for (_, _, _, guidance), views in zip(results, (whole, part), strict=True):
        guidance.commit(views.teacher_cls, views.factors)
    torch.testing.assert_close(results[0][3].state_dict(), results[1][3].state_dict())


def test_values_that_are_not_valid_have_no_influence() -> None:
    first, second = make_guidance(PLATE, AGE), make_guidance(PLATE, AGE)
    values = BATCH["plate"].values.clone()
    values[3] = 3
    ages = BATCH["age"].values.clone()
    ages[2] = 1.0
    views = guided_views()
    other = guided_views(plate=replace(BATCH["plate"], values=values), age=replace(BATCH["age"], values=ages))
    torch.testing.assert_close(run(first, views), run(second, other))
    first.commit(views.teacher_cls, views.factors)
    second.commit(other.teacher_cls, other.factors)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_no_value_at_all_gives_a_zero_with_every_parameter_in_the_graph() -> None:
    guidance = make_guidance(PLATE, AGE, HOUR)
    nothing = {name: replace(batch, valid=torch.zeros(4) > 0) for name, batch in BATCH.items()}
    views = guided_views(**nothing)
    before = {name: value.clone() for name, value in guidance.state_dict().items()}
    value = run(guidance, views)
    value.backward()
    guidance.commit(views.teacher_cls, views.factors)
    assert value.item() == 0.0
    assert all(
        torch.equal(gradient, torch.zeros_like(gradient)) for gradient in parameter_gradients(guidance)
    )
    assert torch.equal(views.global_cls.grad, torch.zeros_like(views.global_cls))
    torch.testing.assert_close(guidance.state_dict(), before, rtol=0, atol=0)


def test_forward_again_changes_nothing() -> None:
    """A step that is skipped leaves prototypes for new values and nothing else, and may be repeated."""
    guidance = make_guidance(PLATE, AGE)
    first = run(guidance, guided_views())
    after = {name: value.clone() for name, value in guidance.state_dict().items()}
    second = run(guidance, guided_views())
    assert torch.equal(first, second)
    torch.testing.assert_close(guidance.state_dict(), after, rtol=0, atol=0)
    assert guidance.balance.smoothed.tolist() == [0.0, 0.0]
    assert guidance.head("plate").counts.tolist() == [0] * 4


def test_commit_moves_the_bank_towards_the_teacher_and_stores_the_norms() -> None:
    guidance = make_guidance(PLATE, AGE)
    views = guided_views()
    run(guidance, views)
    bank = guidance.head("plate")
    assert isinstance(bank, PrototypeBank)
    expected = PrototypeBank(4, EMBED)
    expected.load_state_dict(bank.state_dict())
    views.teacher_cls = torch.randn(2, 4, EMBED)
    guidance.commit(views.teacher_cls, views.factors)
    units = torch.nn.functional.normalize(views.teacher_cls, dim=-1).mean(dim=0)
    expected.update(units, BATCH["plate"].values, BATCH["plate"].valid)
    torch.testing.assert_close(bank.state_dict(), expected.state_dict())
    assert bank.counts.tolist() == [1, 0, 2, 0]
    norms = [guidance.metrics()[f"guidance/{name}/gradient_norm"] for name in guidance.factors]
    torch.testing.assert_close(guidance.balance.smoothed, torch.stack(norms))


def test_norms_are_those_of_the_unweighted_losses_at_the_embedding() -> None:
    guidance = make_guidance(replace(PLATE, weight=0.7), replace(AGE, weight=0.2))
    views = guided_views(step=0)  # frozen: the ramp is 0 and must not enter the norm
    run(guidance, views)
    alone = make_guidance(replace(AGE, weight=1.0), balance=False, ramp="constant")
    alone.head("age").load_state_dict(guidance.head("age").state_dict())
    reference = guided_views()
    run(alone, reference).backward()
    norm = guidance.metrics()["guidance/age/gradient_norm"]
    torch.testing.assert_close(norm, reference.global_cls.grad.norm())


def pull(guidance: Guidance, kept: Callable[[str], bool]) -> Tensor:
    """Norm of the encoder's gradient from the factors ``kept`` says, at the scales of all."""
    views = guided_views()
    run(guidance, views)
    metrics = guidance.metrics()
    total = torch.zeros(2, 4, EMBED)
    for name, factor in guidance.factors.items():
        if kept(name):
            scale = metrics[f"guidance/{name}/scale"]
            single = make_guidance(replace(factor, weight=1.0), balance=False)
            single.head(name).load_state_dict(guidance.head(name).state_dict())
            own = guided_views()
            run(single, own).backward()
            total += factor.weight * scale * own.global_cls.grad
    return total.norm()


def test_balancing_equalises_the_pulls_and_preserves_the_users_weights() -> None:
    """The authors' code divides its weights out again: there every factor pulls alike whatever its weight."""
    equal = make_guidance(PLATE, AGE)
    torch.testing.assert_close(pull(equal, "plate".__eq__), pull(equal, "age".__eq__))
    weighted = make_guidance(replace(PLATE, weight=0.3), AGE)
    torch.testing.assert_close(pull(weighted, "plate".__eq__), 10 * pull(weighted, "age".__eq__))
    torch.testing.assert_close(pull(weighted, "age".__eq__), pull(equal, "age".__eq__))


def test_total_gradient_is_the_sum_of_the_pulls() -> None:
    guidance = make_guidance(replace(PLATE, weight=0.3), AGE)
    views = guided_views()
    run(guidance, views).backward()
    torch.testing.assert_close(views.global_cls.grad.norm(), pull(guidance, lambda name: True))


def test_a_factor_absent_from_the_batch_leaves_the_others_unscaled() -> None:
    guidance = make_guidance(PLATE, AGE)
    views = guided_views(plate=replace(BATCH["plate"], valid=torch.zeros(4) > 0))
    run(guidance, views)
    guidance.commit(views.teacher_cls, views.factors)
    assert guidance.metrics()["guidance/age/scale"].item() == 1.0
    assert dict(zip(guidance.factors, guidance.balance.smoothed > 0, strict=True)) == {
        "age": True,
        "plate": False,
    }


def test_everything_frozen() -> None:
    guidance = make_guidance(PLATE, AGE)
    views = guided_views(step=0)
    views.global_cls = views.global_cls.detach()
    run(guidance, views).backward()
    assert all(gradient.abs().sum() > 0 for gradient in parameter_gradients(guidance))
    assert guidance.metrics()["guidance/plate/gradient_norm"] > 0
    with torch.no_grad():
        assert run(guidance, guided_views()).isfinite()


def test_metrics() -> None:
    guidance = make_guidance(PLATE, AGE, HOUR)
    views = guided_views(step=UNFREEZE + 50)
    run(guidance, views)
    metrics = guidance.metrics()
    names = ("plate", "age", "hour")
    scores = {"plate": "accuracy", "age": "mae", "hour": "mae"}
    assert set(metrics) == {"guidance/ramp"} | {
        f"guidance/{name}/{key}"
        for name in names
        for key in ("loss", scores[name], "valid_fraction", "scale", "gradient_norm")
    }
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["guidance/ramp"].item() == pytest.approx(2 / (1 + torch.tensor(-5.0).exp().item()) - 1)
    assert metrics["guidance/plate/valid_fraction"].item() == 0.75
    _, correct = guidance.head("plate")(views.global_cls, BATCH["plate"].values, BATCH["plate"].valid)
    assert metrics["guidance/plate/accuracy"].item() == pytest.approx(correct.sum().item() / 6)
    errors = (dropless(guidance.head("age"), views) - BATCH["age"].values).abs()[:, [0, 1, 3]]
    assert metrics["guidance/age/mae"].item() == pytest.approx(errors.mean().item())


def test_mae_is_in_units_of_the_encoded_values() -> None:
    guidance = make_guidance(replace(AGE, output="tanh"))
    views = guided_views()
    run(guidance, views)
    decoded = (dropless(guidance.head("age"), views) + 1) / 2
    errors = (decoded - BATCH["age"].values).abs()[:, [0, 1, 3]]
    assert guidance.metrics()["guidance/age/mae"].item() == pytest.approx(errors.mean().item(), rel=1e-5)


def test_float32_under_autocast() -> None:
    guidance = make_guidance(PLATE, AGE)
    expected = run(guidance, guided_views())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(guidance, guided_views()), expected)


def test_order_of_factors_does_not_matter() -> None:
    first = make_guidance(PLATE, AGE, HOUR, regressor_dropout=0.5)
    second = make_guidance(HOUR, PLATE, AGE, regressor_dropout=0.5)
    assert torch.equal(run(first, guided_views()), run(second, guided_views()))


def test_order_of_images_does_not_matter() -> None:
    views = guided_views()
    first, second = make_guidance(PLATE, AGE, HOUR), make_guidance(PLATE, AGE, HOUR)
    shuffled = take_images(views, torch.tensor([2, 0, 3, 1]))
    torch.testing.assert_close(run(first, views), run(second, shuffled))
    first.commit(views.teacher_cls, views.factors)
    second.commit(shuffled.teacher_cls, shuffled.factors)
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_a_spurious_factor_needs_a_bounded_output() -> None:
    with pytest.raises(OpenfinoError, match=r"'age'.*diverge"):
        GuidedFactor("age", "spurious", "continuous", 1, output="identity")


def test_default_outputs() -> None:
    assert (AGE.regressor_output, HOUR.regressor_output) == ("sigmoid", "tanh")
    assert replace(AGE, output="identity").regressor_output == "identity"


def accumulate(guidance: Guidance, views: Views, pieces: list[list[int]]) -> Tensor:
    """The value of ``views``, fed piece by piece; gradients accumulate in the heads."""
    guidance.begin(views.teacher_cls, views.factors)
    total = torch.zeros(())
    for images in pieces:
        piece = take_images(views, torch.tensor(images))
        value = guidance(piece)
        (piece.share * value).backward()
        total += piece.share * value.detach()
    return total


@pytest.mark.parametrize("pieces", [[[0, 1], [2, 3]], [[3], [0, 1, 2]], [[2, 3], [0, 1]]])
def test_pieces_sum_to_the_whole_batch(pieces: list[list[int]]) -> None:
    """Image 3 has no plate and image 2 no age: pieces have other counts of values than of images."""
    whole, parts = (make_guidance(PLATE, AGE, HOUR, regressor_dropout=0.5, balance=False) for _ in range(2))
    views = guided_views()
    expected = run(whole, views)
    expected.backward()
    torch.testing.assert_close(accumulate(parts, views, pieces), expected.detach())
    torch.testing.assert_close(parameter_gradients(parts), parameter_gradients(whole))
    torch.testing.assert_close(parts.metrics(), whole.metrics())


def test_norms_of_pieces_make_those_of_the_whole_batch() -> None:
    whole, parts = (make_guidance(PLATE, AGE, HOUR, regressor_dropout=0.5) for _ in range(2))
    views = guided_views()
    run(whole, views)
    accumulate(parts, views, [[0], [1, 2], [3]])
    for guidance in (whole, parts):
        guidance.commit(views.teacher_cls, views.factors)
    torch.testing.assert_close(parts.balance.smoothed, whole.balance.smoothed)
    name = "guidance/age/gradient_norm"
    torch.testing.assert_close(parts.metrics()[name], whole.metrics()[name])


def test_the_first_piece_scales_as_if_the_rest_were_like_it() -> None:
    """Else a smoothed norm of the whole batch would meet the smaller norm of a piece."""
    doubled = take_images(guided_views(), torch.tensor([0, 1, 0, 1]))
    doubled = as_batch(replace(doubled, masks=doubled.masks))
    whole, parts = (make_guidance(PLATE, HOUR) for _ in range(2))
    for guidance in (whole, parts):
        guidance.balance.commit(torch.tensor([1.0, 2.0]))
    run(whole, doubled)
    parts.begin(doubled.teacher_cls, doubled.factors)
    parts(take_images(doubled, torch.tensor([0, 1])))
    for name in ("plate", "hour"):
        scale = f"guidance/{name}/scale"
        torch.testing.assert_close(2 * parts.metrics()[scale], whole.metrics()[scale])
