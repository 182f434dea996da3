"""What is held against the authors' modules, and how closely it agrees.

A :class:`Component` says which part of ours stands for which cases of the reference values and where it deviates.
The tests run every component; ``page.py`` writes ``docs/fidelity.md`` from the same list.
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from golden_data import Case, golden_cases, golden_json
from openfino.recipe import Recipe, build_recipe

FLOAT32_BOUND = 1e-5  # of the largest value
NOISE_FACTOR = 10.0  # or this many times the float32 rounding noise of the authors' own run
FLOAT64_BOUND = 1e-10  # of the largest value
NOTHING = "None."  # the deviation of what deviates in nothing

# What JSON files hold beside outputs: what theirs was given, which row it is, and words.
GIVEN = (
    "hparams.*",
    "note",
    *("groups.name", "groups.shape"),
    *("rows.ratio", "rows.requested", "rows.iteration"),
    *("total_iterations", "world_size", "batch_size_per_gpu", "scaling_rule"),
    *("groups_lr_multiplier", "groups_wd_multiplier"),
)


@dataclass(frozen=True)
class Compared:
    """One tensor of ours beside theirs.

    Attributes:
        name: of the stored tensor in its case; of a JSON file the keys with dots between them, and what the entries
            of a list hold under the same key is one tensor (see :func:`outputs_of`).
        actual: ours; in float64 it is held against the float64 twin ``<name>_f64``.
        expected: theirs, where it is not simply the stored tensor.
        noise: float32 rounding noise of theirs, where it is not the stored one.
    """

    name: str
    actual: Tensor
    expected: Tensor | None = None
    noise: float | None = None


Comparison = Callable[[Case, torch.dtype], Iterable[Compared]]


@dataclass(frozen=True)
class Component:
    """One part of openfino and the reference cases that it stands for.

    Attributes:
        name: what it is, in the field's words.
        ours: dotted name of the function or class.
        source: section or equation of the paper.
        cases: names (with wildcards) of cases by golden file.
        compare: gives the tensors of one case, computed by us in the given precision.
        double: whether float64 is compared too.
        deviation: where the authors' code differs from the paper or is wrong, what our default does instead and
            why, and which option gives their behaviour.
    """

    name: str
    ours: str
    source: str
    cases: Mapping[str, tuple[str, ...]]
    compare: Comparison
    double: bool = False
    deviation: str = NOTHING

    def golden(self) -> list[Case]:
        """Its cases, in the order of the files; skips the test where the reference values are absent."""
        return [
            case
            for file, patterns in self.cases.items()
            for case in golden_cases(file)
            if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)
        ]


@dataclass(frozen=True)
class Agreement:
    """How closely one tensor agrees."""

    file: str
    case: str
    tensor: str
    double: bool
    error: float  # largest absolute difference over the largest absolute value of theirs
    bound: float


COMPONENTS: list[Component] = []


def component(
    name: str,
    *,
    ours: str,
    source: str,
    cases: Mapping[str, Iterable[str]],
    double: bool = False,
    deviation: str = NOTHING,
) -> Callable[[Comparison], Comparison]:
    """Put the decorated comparison on the list."""

    def register(compare: Comparison) -> Comparison:
        frozen = {file: tuple(patterns) for file, patterns in cases.items()}
        COMPONENTS.append(Component(name, ours, source, frozen, compare, double, deviation))
        return compare

    return register


def agreement(case: Case, compared: Compared) -> Agreement:
    """The error of one tensor and the bound that it must keep.

    Raises:
        AssertionError: if the shapes differ.
    """
    actual = compared.actual.detach()
    double = actual.dtype == torch.float64 and f"{compared.name}_f64" in case
    expected = compared.expected
    if expected is None:
        expected = case[f"{compared.name}_f64" if double else compared.name]
    assert actual.shape == expected.shape, (case.name, compared.name, actual.shape, expected.shape)
    largest = expected.double().abs().max().item() if expected.numel() else 0.0
    scale = largest or 1.0
    difference = (actual.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    error = difference / scale if math.isfinite(difference) else math.inf
    noise = compared.noise if compared.noise is not None else case.noise(compared.name)
    bound = FLOAT64_BOUND if double else max(FLOAT32_BOUND, NOISE_FACTOR * noise / scale)
    return Agreement(case.file, case.name, compared.name, double, error, bound)


@functools.cache
def agreements(index: int) -> tuple[Agreement, ...]:
    """Every tensor of component ``index`` of :data:`COMPONENTS`, in float32 and, where it says so, in float64."""
    chosen = COMPONENTS[index]
    precisions = [torch.float32, torch.float64] if chosen.double else [torch.float32]
    return tuple(
        agreement(case, compared)
        for case in chosen.golden()
        for dtype in precisions
        for compared in chosen.compare(case, dtype)
    )


def outputs_of(case: Case) -> set[str]:
    """The stored outputs and gradients of a case, without their float64 twins; of a JSON file all but what is given."""
    if case.file.endswith(".json"):
        names = set(leaf_names(golden_json(case.file)[case.name]))
        return {name for name in names if not any(fnmatch.fnmatchcase(name, given) for given in GIVEN)}
    return {
        name.removeprefix(f"{case.name}/")
        for name, facts in case.tensors.items()
        if facts["role"] in ("output", "grad") and not name.endswith("_f64")
    }


def leaf_names(content: Any, name: str = "") -> Iterator[str]:
    """The keys that lead to each value of a JSON file, with dots between them; all entries of a list have one name."""
    if isinstance(content, dict):
        for key, inner in content.items():
            yield from leaf_names(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(content, list) and any(isinstance(entry, dict) for entry in content):
        for entry in content:
            yield from leaf_names(entry, name)
    else:
        yield name


def authors_recipe(**sections: Any) -> Recipe:
    """A recipe of ``preset: authors`` with ``sections`` laid over it."""
    needed = {"manifest": "m.csv", "out": "run", "model": {"config": {}}}
    return build_recipe({"preset": "authors", **needed, **sections})


def leaf(case: Case, name: str, dtype: torch.dtype) -> Tensor:
    """A stored input that takes a gradient."""
    return case[name].to(dtype).requires_grad_()
