"""The sum of all self-supervised terms, built from a recipe, against the authors'."""

from collections.abc import Iterator

import torch
from comparisons import Compared, authors_recipe, component, leaf

from golden_data import Case
from openfino.objectives.base import Views
from openfino.objectives.objective import Objective, build_objective

# What the terms see -> the stored input.
STUDENT = {
    "global_cls": "student_cls",
    "global_logits": "student_global_logits",
    "local_logits": "student_local_logits",
    "bottleneck": "student_bottleneck",
    "masked_logits": "student_masked_logits",
    "global_patches": "student_patches",
}


def views_of(case: Case) -> tuple[Views, dict[str, torch.Tensor]]:
    """Our views of a case, and its stored inputs as leaves."""
    settings = case.hparams
    leaves = {theirs: leaf(case, theirs, torch.float32) for theirs in STUDENT.values()}
    inputs = {ours: leaves[theirs] for ours, theirs in STUDENT.items()}
    crops = (settings["n_global"], settings["B"])
    inputs["global_patches"] = inputs["global_patches"].unflatten(0, crops)
    views = Views(
        step=settings["seed_step_iteration"],
        masks=case["masks"].unflatten(0, crops),
        teacher_probs=case["teacher_cls_probs"],
        teacher_masked_probs=case["teacher_masked_probs"],
        teacher_cls=torch.zeros(*crops, settings["D"]),
        slots=torch.arange(settings["B"]),
        batch_size=settings["B"],
        gram_patches=case["teacher_patches"].unflatten(0, crops),
        **inputs,
    )
    return views, leaves


def objective_of(case: Case) -> Objective:
    """The objective of the recipe that stands for theirs; SIGReg's directions are the stored ones."""
    settings = case.hparams
    with_sigreg = settings["sigreg_enabled"]
    with_koleo = settings["sigreg_koleo_too"] or not with_sigreg
    student = {"student_temperature": settings["student_temp"]}
    recipe = authors_recipe(
        objective={
            "dino": {
                **student,
                "weight": settings["dino_loss_weight"],
                "same_crop_pairs": not settings["global_ignore_diagonal"],
            },
            "ibot": {**student, "weight": settings["ibot_loss_weight"]},
            "koleo": {"weight": settings["koleo_loss_weight"] if with_koleo else 0.0},
            "sigreg": {
                "weight": settings["sigreg_loss_weight"] if with_sigreg else 0.0,
                "directions": settings["sigreg_num_slices"],
                "knots": settings["sigreg_n_knots"],
                "range": settings["sigreg_range_max"],
            },
            "gram": {
                "weight": settings["gram_loss_weight"] if settings["gram"] else 0.0,
                "per_image": settings["gram_img_level"],
            },
        }
    )
    objective = build_objective(recipe, {}, settings["D"])
    if with_sigreg:
        objective.terms["sigreg"].directions_at = lambda step, samples: case["sigreg_A"]
    return objective


@component(
    "total of the self-supervised terms",
    ours="objectives.objective.Objective",
    source="eq. 4",
    cases={"total_loss.safetensors": ["sigreg_*", "koleo_*"]},
    deviation=(
        "With `preset: authors`, for the sum over crops in SIGReg. Their log holds the means over crops of KoLeo and "
        "SIGReg, ours the values that enter the sum."
    ),
)
def total(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    objective, crops = objective_of(case), case.hparams["n_global"]
    views, leaves = views_of(case)
    objective.begin(views.teacher_cls, {})
    loss, values = objective(views)
    loss.backward()
    metrics = objective.metrics()
    yield Compared("total", loss)
    yield Compared("terms/dino_global_crops_loss", metrics["dino/global"])
    yield Compared("terms/dino_local_crops_loss", metrics["dino/local"])
    yield Compared("terms/dino_local_loss_weight", torch.tensor(objective.terms["dino"].local_weight))
    yield Compared("terms/ibot_loss", values["ibot"])
    for name in {"koleo", "sigreg"} & set(values):
        yield Compared(f"terms/{name}_loss", values[name] / crops)
    if "gram" in values:
        yield Compared("terms/gram_loss", values["gram"])
        yield Compared("terms/gram_loss_weight", torch.tensor(objective.terms["gram"].weight(views.step)))
    for name, tensor in leaves.items():
        if f"grad_{name}" in case:
            yield Compared(f"grad_{name}", tensor.grad)
        else:
            # Theirs does not use it.
            assert tensor.grad is None or not tensor.grad.any(), name
