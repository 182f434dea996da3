"""The teacher: an exponential moving average of the student."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A frozen copy of ``student`` in evaluation mode (no drop path, no position augmentation)."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    old: list[Tensor] = list(teacher.parameters())
    new = [parameter.detach() for parameter in student.parameters()]
    torch._foreach_lerp_(old, new, 1.0 - momentum)
