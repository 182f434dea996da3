"""Gram anchoring against the authors' module."""

from collections.abc import Iterator

import torch
from comparisons import Compared, component, leaf

from golden_data import Case
from openfino.objectives.gram import gram_loss


def negatives_of(settings):
    """Our word for the authors' two switches."""
    if settings["remove_neg"]:
        return "drop"
    return "drop_teacher" if settings["remove_only_teacher_neg"] else "keep"


@component(
    "Gram loss",
    ours="objectives.gram.gram_loss",
    source="DINOv3 sec. 4.2",
    cases={"gram_loss.safetensors": ["*"]},
    double=True,
    deviation=(
        "The paper writes the sum over the entries, the authors' code takes their mean, to which the weight 2 "
        "belongs; ours takes the mean. Their constructor drops negative similarities by default, their recipes and "
        "ours keep them (`objective.gram.negatives`). Their `remove_only_teacher_neg` means to zero the student's "
        "entries too where both are negative, but zeroes the teacher's alone: `negatives: drop_teacher`. Their "
        "constructor ignores `img_level`; ours is `per_image`."
    ),
)
def gram(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    student = leaf(case, "student", dtype)
    settings = case.hparams
    loss = gram_loss(
        student,
        case["teacher"].to(dtype),
        normalise=settings["apply_norm"],
        per_image=settings["img_level"],
        negatives=negatives_of(settings),
    )
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_student", student.grad)
