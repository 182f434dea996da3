"""The terms against the authors' modules: values and gradients, in float32 and in float64."""

import pytest
import torch
from make_views import make_views, with_factors
from torch import Tensor
from torch.nn import functional as F

from golden_data import Case, golden_cases
from openfino.objectives.base import FactorBatch
from openfino.objectives.guidance.balance import GradientBalance
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.guidance.prototypes import prototype_logits
from openfino.objectives.guidance.regression import Regressor
from openfino.objectives.guidance.reversal import ramp, scale_gradient
from openfino.recipe import GuidanceSettings

pytestmark = pytest.mark.golden
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def golden_case(file: str, name: str) -> Case:
    return next(case for case in golden_cases(file) if case.name == name)


def leaf(golden: Case, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return golden[name].to(dtype).requires_grad_()


def check(golden: Case, actual: Tensor, name: str) -> None:
    """Float64 against the float64 twin; float32 within ten times the authors' own rounding noise.

    Where that noise is small by luck, 1e-6 of the largest value is allowed.
    """
    double = actual.dtype == torch.float64
    expected = golden[f"{name}_f64" if double else name]
    largest = expected.abs().max().item()
    tolerance = 1e-12 * largest if double else max(10 * golden.noise(name), 1e-6 * largest)
    torch.testing.assert_close(actual.detach(), expected, atol=tolerance, rtol=0.0)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("sigmoid", "dann"), ("linear", "linear"), ("constant", "constant")]
)
@pytest.mark.parametrize("warmup", [0, 100])
def test_ramp(theirs: str, ours: str, warmup: int) -> None:
    """Their warm-up is our frozen stage; past the end their linear ramp goes on (1.1), ours stays at 1."""
    golden = golden_case("lambda_schedule.safetensors", f"{theirs}_warmup{warmup}")
    expected = golden["values"].clamp(max=1.0)
    values = [ramp(ours, step - warmup, 1000 - warmup) for step in range(1001)]
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, atol=1e-12, rtol=0)


def test_ramp_of_a_long_run() -> None:
    golden = golden_case("lambda_schedule.safetensors", "sigmoid_long_run")
    values = [ramp("dann", step, 25_000) for step in golden["iterations"].tolist()]
    torch.testing.assert_close(
        torch.tensor(values, dtype=torch.float64), golden["values"], atol=1e-12, rtol=0
    )


@both_precisions
@pytest.mark.parametrize("case", ["forward_a", "forward_b"])
@pytest.mark.parametrize(("key", "factor"), [("p1", 1.0), ("p037", 0.37), ("m1", -1.0)])
def test_prototypes(case: str, key: str, factor: float, dtype: torch.dtype) -> None:
    """Their concentration, one per value, stands for our temperature; their prototypes are not unit vectors."""
    golden = golden_case("prototypical_head.safetensors", case)
    features = leaf(golden, "student_cls", dtype)
    prototypes = F.normalize(golden["centroids"].to(dtype), dim=-1)
    temperature = golden["concentration"].to(dtype).clamp(min=golden.hparams["phi_min"])
    seen = torch.ones(len(prototypes), dtype=torch.bool)
    scaled = prototypes / temperature[:, None]
    logits = prototype_logits(scale_gradient(features, factor), scaled, seen, temperature=1.0)
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    check(golden, loss, f"lambda_{key}/loss")
    check(golden, features.grad, f"lambda_{key}/grad_student_cls")
    accuracy = (logits.argmax(dim=-1) == golden["labels"]).double().mean()
    assert accuracy.item() == pytest.approx(golden["accuracy"].item())


@pytest.mark.parametrize(
    "case", ["regressor_sigmoid_minmax", "regressor_tanh_no_minmax", "regressor_linear_minmax2"]
)
@pytest.mark.parametrize(("key", "factor"), [("p05", 0.5), ("m05", -0.5)])
def test_regressor(case: str, key: str, factor: float) -> None:
    golden = golden_case("guide_mlp_heads.safetensors", case)
    settings = golden.hparams
    output = {"none": "identity"}.get(settings["output_activation"], settings["output_activation"])
    regressor = Regressor(
        settings["input_dim"], settings["n_outputs"], hidden=settings["hidden_dim"], output=output
    ).eval()
    for number, layer in enumerate(regressor.layers):
        layer.load_state_dict(
            {part: golden[f"params/regressor.{3 * number}.{part}"] for part in ("weight", "bias")}
        )
    features = leaf(golden, "cls_input")
    outputs = regressor(scale_gradient(features, factor), 0, torch.arange(len(features)), len(features))
    loss = (outputs - golden["normalized_targets"]).square().mean()
    loss.backward()
    check(golden, outputs, "outputs")
    check(golden, loss, f"lambda_{key}/loss")
    check(golden, features.grad, f"lambda_{key}/grad_cls")
    for number, layer in enumerate(regressor.layers):
        check(golden, layer.weight.grad, f"grad_params/regressor.{3 * number}.weight")
        check(golden, layer.bias.grad, f"grad_params/regressor.{3 * number}.bias")


@pytest.mark.parametrize("case", ["three_guides", "two_guides_equal_weight", "one_unused_guide"])
def test_balance_of_unweighted_losses(case: str) -> None:
    """At the first step there is no smoothing; their norms are ours times the weight, which we keep out."""
    golden = golden_case("grad_norm_equalization.safetensors", case)
    weights = torch.tensor(golden.hparams["weights"])
    norms = golden["norms"] / weights
    scales = GradientBalance([str(number) for number in range(len(weights))]).scales(norms)
    target = norms[norms > 0].log().mean().exp()
    pulls = weights * scales * norms
    torch.testing.assert_close(pulls, torch.where(norms > 0, weights * target, 0.0))
    if case == "two_guides_equal_weight":
        check(golden, scales, "scales")


def test_user_weights_are_not_cancelled_by_balancing() -> None:
    """Ten times the weight of one guide: in the authors' code all pulls stay alike, in ours its own grows."""
    ours, theirs = [], []
    for case in ("three_guides", "three_guides_weights_x10_on_first"):
        golden = golden_case("grad_norm_equalization.safetensors", case)
        weights = torch.tensor(golden.hparams["weights"])
        norms = golden["norms"] / weights
        ours.append(weights * GradientBalance(["a", "b", "c"]).scales(norms) * norms)
        theirs.append(golden["scales"] * golden["norms"])
    torch.testing.assert_close(ours[1] / ours[0], torch.tensor([10.0, 1.0, 1.0]))
    torch.testing.assert_close(theirs[1], theirs[1][:1].expand(3), rtol=1e-3, atol=0)


def test_guides() -> None:
    """Loss and encoder gradient of their prototypical and regression guides at iteration 300 of 1000.

    Their bank is at its start: random unit vectors for all values, temperature 0.07.
    """
    golden = golden_case("total_loss.safetensors", "guides_iter300")
    settings = golden.hparams
    gamma = ramp("dann", settings["iteration"], settings["total_iterations"])
    assert gamma == pytest.approx(golden["lambda"].item())
    features = leaf(golden, "student_cls")
    for guide, weight, sign in ((0, 0.03, 1.0), (1, 0.003, -1.0)):
        prototypes = F.normalize(golden[f"initial_centroids_{guide}"], dim=-1)
        seen = torch.ones(len(prototypes), dtype=torch.bool)
        scaled = scale_gradient(features, sign * gamma)
        logits = prototype_logits(scaled, prototypes, seen, settings["base_temperature"])
        loss = F.cross_entropy(logits.flatten(0, 1), golden[f"labels_{guide}"].repeat(2))
        (gradient,) = torch.autograd.grad(weight * loss, features)
        torch.testing.assert_close(loss.detach(), golden["losses"][guide], atol=5e-6, rtol=0)
        torch.testing.assert_close(gradient, golden["grad_cls_per_guide"][guide], atol=5e-8, rtol=1e-5)


def test_guidance_with_their_regression_guide() -> None:
    """Our whole guidance term with one factor equals their regression guide."""
    golden = golden_case("total_loss.safetensors", "guides_iter300")
    settings = golden.hparams
    factor = GuidedFactor("age", "informative", "continuous", 1, output="sigmoid", weight=0.05)
    guidance = Guidance(
        {"age": factor},
        settings["D"],
        GuidanceSettings(regressor_hidden=settings["hidden_dim"]),
        seed=0,
        unfreeze_step=0,
        total_steps=settings["total_iterations"],
    ).eval()
    for number, layer in enumerate(guidance.head("age").layers):
        parts = ("weight", "bias")
        layer.load_state_dict(
            {part: golden[f"regressor_params/regressor.{3 * number}.{part}"] for part in parts}
        )
    views = make_views(images=settings["B"], step=settings["iteration"])
    views.global_cls = leaf(golden, "student_cls")
    views.teacher_cls = golden["teacher_cls"]
    low, high = settings["output_min"], settings["output_max"]
    encoded = ((golden["labels_3"] - low) / (high - low))[:, None]
    views = with_factors(views, {"age": FactorBatch(encoded, torch.ones(settings["B"], dtype=torch.bool))})
    total = guidance(views)
    total.backward()
    torch.testing.assert_close(total.detach(), golden["weighted"][3], atol=1e-8, rtol=1e-5)
    gradient = golden["grad_cls_per_guide"][3]
    torch.testing.assert_close(views.global_cls.grad, gradient, atol=5e-8, rtol=1e-5)
