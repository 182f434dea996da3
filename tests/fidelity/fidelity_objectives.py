"""DINO, iBOT, KoLeo, SIGReg and their targets against the authors' modules."""

from collections.abc import Iterator

import torch
from comparisons import Compared, component, leaf

from golden_data import Case
from openfino.objectives.dino import cross_entropy


@component(
    "DINO loss",
    ours="objectives.dino.cross_entropy",
    source="DINOv3 sec. 3.1",
    cases={"dino_loss.safetensors": ["ce_*"]},
    double=True,
)
def dino(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    student = leaf(case, "student_logits", dtype)
    teacher = case["teacher_probs"].to(dtype)
    settings = case.hparams
    loss = cross_entropy(
        student, teacher, settings["student_temp"], skip_same_crop=settings["ignore_diagonal"]
    )
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_student_logits", student.grad)
