"""No term makes the host wait for a GPU: looked for on a CPU, among the operations that a step calls."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from make_views import EMBED, PATCH_PROTOTYPES, PROTOTYPES, make_views, with_factors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openfino.objectives.base import FactorBatch, Views
from openfino.objectives.guidance.guidance import GuidedFactor
from openfino.objectives.objective import Objective, build_objective
from openfino.recipe import build_recipe

# What returns a number to the host, has a shape that the host must learn, or copies from memory that is not pinned.
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "lift_fresh")


class Watch(TorchDispatchMode):
    """Notes what a host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITS or counted or any(each is not None and each.dtype == torch.bool for each in indices):
            self.found.append(name)
        return func(*args, **kwargs)


@contextmanager
def watched() -> Iterator[list[str]]:
    with Watch() as watch:
        yield watch.found


@pytest.mark.parametrize(
    "ask",
    [
        lambda rows: rows.sum().item(),
        lambda rows: bool(rows.any()),
        lambda rows: rows[rows > 0],
        lambda rows: rows.nonzero(),
        lambda rows: rows.new_tensor([1.0]),
        lambda rows: rows.repeat_interleave(torch.ones(4).long(), dim=0),
    ],
)
def test_what_waits_is_seen(ask: Any) -> None:
    rows = torch.randn(4, 3)
    ones = torch.ones(4).long()
    with watched() as found:
        rows.repeat_interleave(ones, dim=0, output_size=4)
        rows[ones]
        torch.where(rows > 0, rows, 0.0)
    assert not found
    with watched() as found:
        ask(rows)
    assert found


GUIDED = {
    "plate": GuidedFactor("plate", "spurious", "discrete", 4),
    "age": GuidedFactor("age", "informative", "continuous", 1),
}
GRAM = {"weight": 2.0, "teacher": "ema"}
OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"koleo": {"weight": 0.1}, "gram": GRAM},
    "centred": {"centering": "softmax", "gram": {**GRAM, "per_image": False, "negatives": "drop"}},
    "authors": {
        "koleo": {"weight": 0.1, "every_crop": True},
        "guidance": {"bank": "concentration", "balance_momentum": 0.0, "balance_weighted_losses": True},
    },
    "classifier": {"guidance": {"discrete_head": "classifier"}},
}


def objective_of(settings: Mapping[str, Any]) -> Objective:
    heads = {
        "dino": {"head": {"prototypes": PROTOTYPES}},
        "ibot": {"head": {"prototypes": PATCH_PROTOTYPES}},
    }
    roles = {name: factor.role for name, factor in GUIDED.items()}
    base = {"manifest": "m.csv", "out": "run", "model": {"config": {}}, "factors": roles}
    return build_objective(build_recipe({**base, "objective": {**heads, **settings}}), GUIDED, EMBED)


def guided_views(step: int = 20_000) -> Views:
    valid = torch.tensor([True, True, False, True])
    values = {"plate": torch.tensor([0, 1, 1, 3]), "age": torch.rand(4, 1)}
    views = with_factors(
        make_views(step=step), {name: FactorBatch(own, valid) for name, own in values.items()}
    )
    return replace(views, gram_patches=torch.randn(views.global_patches.shape))


def one_step(objective: Objective, views: Views) -> Tensor:
    """All that a step does with an objective."""
    for name, logits in (("dino", views.global_logits), ("ibot", views.masked_logits)):
        objective.centering[name](logits.detach().flatten(0, -2), 0.07)
    objective.begin(views.teacher_cls, views.factors)
    total, _ = objective(views)
    total.backward()
    objective.commit(views.teacher_cls, views.factors)
    objective.metrics()
    return total


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_no_step_waits(settings: Mapping[str, Any]) -> None:
    objective, views = objective_of(settings), guided_views()
    with watched() as found:
        total = one_step(objective, views)
    assert found == []
    assert total.isfinite()


def test_chosen_patches_are_waited_for_once() -> None:
    """How many there are decides the size of the matrices."""
    gram = {**GRAM, "per_image": False, "tokens": "masked"}
    objective, views = objective_of({"gram": gram}), guided_views()
    with watched() as found:
        one_step(objective, views)
    assert found == ["nonzero"]
