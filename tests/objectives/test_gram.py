import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_views import EMBED, PATCHES, make_views, take_images
from torch import Tensor

from openfino.distributed import current_world, sum_over_ranks
from openfino.objectives.base import Views
from openfino.objectives.gram import GramTerm, gram_loss
from openfino.objectives.objective import Objective
from openfino.recipe import GramSettings
from ranks import run_on_ranks

TEACHER_EMBED = EMBED + 3
OPTIONS = list(itertools.product((True, False), (True, False), ("keep", "drop", "drop_teacher")))


def views_with_teacher(**options: Any) -> Views:
    views = make_views(**options)
    generator = torch.Generator().manual_seed(5)
    shape = (*views.global_patches.shape[:3], TEACHER_EMBED)
    return replace(views, gram_patches=torch.randn(shape, generator=generator))


def unit(row: list[float]) -> list[float]:
    length = sum(value * value for value in row) ** 0.5
    return [value / length for value in row]


def naive(
    student: Tensor, teacher: Tensor, normalise: bool = True, per_image: bool = True, negatives: str = "keep"
) -> float:
    """The mean over all pairs of patches that are compared."""
    sides = []
    for patches in (student, teacher):
        groups = patches.tolist() if per_image else [patches.flatten(0, -2).tolist()]
        sides.append([[unit(row) if normalise else row for row in group] for group in groups])
    total, count = 0.0, 0
    for own, target in zip(*sides, strict=True):
        for i, j in itertools.product(range(len(own)), repeat=2):
            similar = sum(a * b for a, b in zip(own[i], own[j], strict=True))
            wanted = sum(a * b for a, b in zip(target[i], target[j], strict=True))
            if negatives != "keep":
                wanted = max(wanted, 0.0)
            if negatives == "drop":
                similar = max(similar, 0.0)
            total += (similar - wanted) ** 2
            count += 1
    return total / count


def double_patches(seed: int, crops: int = 3, patches: int = 4, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(crops, patches, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("normalise", "per_image", "negatives"), OPTIONS)
def test_matches_loops(normalise: bool, per_image: bool, negatives: Any) -> None:
    student, teacher = double_patches(0), double_patches(1, width=7)
    options = {"normalise": normalise, "per_image": per_image, "negatives": negatives}
    found = gram_loss(student, teacher, **options)
    assert found.item() == pytest.approx(naive(student, teacher, **options), rel=1e-12)


@pytest.mark.parametrize(("normalise", "per_image", "negatives"), OPTIONS)
def test_gradient(normalise: bool, per_image: bool, negatives: Any) -> None:
    teacher = double_patches(1)
    options = {"normalise": normalise, "per_image": per_image, "negatives": negatives}
    student = double_patches(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: gram_loss(rows, teacher, **options), student)


def test_flat_rows_are_one_matrix() -> None:
    student, teacher = double_patches(0), double_patches(1)
    flat = gram_loss(student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(flat, gram_loss(student, teacher, per_image=False))


def test_only_similarities_count() -> None:
    """Turning all features of a crop, or scaling each patch, changes no cosine."""
    student, teacher = double_patches(0), double_patches(1)
    rotation = torch.linalg.qr(double_patches(2, 1, 5, 5)[0]).Q
    scales = torch.rand(3, 4, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(gram_loss(scales * student @ rotation, teacher), gram_loss(student, teacher))
    assert gram_loss(student, scales * student @ rotation).item() == pytest.approx(0.0, abs=1e-25)


def test_float32_within_autocast() -> None:
    student, teacher = double_patches(0).float(), double_patches(1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gram_loss(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, gram_loss(student, teacher))


def test_other_numbers_of_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="do not correspond"):
        gram_loss(double_patches(0), double_patches(1, patches=5))


SETTINGS = {
    "crops": {},
    "crops together": {"per_image": False},
    "masked": {"per_image": False, "tokens": "masked", "negatives": "drop"},
    "unmasked": {"per_image": False, "tokens": "unmasked", "negatives": "drop_teacher"},
}
each = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def term(settings: dict[str, Any]) -> GramTerm:
    return GramTerm(GramSettings(weight=2.0, **settings))


def expected(views: Views, settings: dict[str, Any]) -> float:
    assert views.gram_patches is not None
    sides = [patches.detach().flatten(0, 1) for patches in (views.global_patches, views.gram_patches)]
    if (tokens := settings.get("tokens")) is not None:
        chosen = views.masks.flatten(0, 1) == (tokens == "masked")
        sides = [side[chosen] for side in sides]
    return naive(
        *sides,
        per_image=settings.get("per_image", True),
        negatives=settings.get("negatives", "keep"),
    )


@each
def test_term_matches_loops(settings: dict[str, Any]) -> None:
    views = views_with_teacher(images=3)
    found = term(settings)(views)
    found.backward()
    assert found.item() == pytest.approx(expected(views, settings), rel=1e-5)
    gradient = views.global_patches.grad
    assert gradient is not None
    absent = {"masked": ~views.masks, "unmasked": views.masks}.get(settings.get("tokens", ""))
    if absent is not None:
        assert not gradient[absent].any()
        assert gradient[~absent].abs().sum(dim=-1).min() > 0


@each
def test_order_of_images_does_not_matter(settings: dict[str, Any]) -> None:
    views = views_with_teacher(images=5)
    shuffled = take_images(views, torch.tensor([4, 0, 3, 1, 2]))
    torch.testing.assert_close(term(settings)(shuffled), term(settings)(views))


@each
def test_pairing_of_student_and_teacher_matters(settings: dict[str, Any]) -> None:
    views = views_with_teacher(images=4)
    assert views.gram_patches is not None
    swapped = replace(views, gram_patches=views.gram_patches.flip(1))
    assert abs(term(settings)(swapped).item() - term(settings)(views).item()) > 1e-4


def test_a_crop_at_a_time_is_the_mean_over_pieces() -> None:
    views = views_with_teacher(images=5)
    pieces = [take_images(views, torch.tensor(images)) for images in ([0, 1, 2], [3, 4])]
    parts = [term({})(piece) * len(piece.slots) / 5 for piece in pieces]
    torch.testing.assert_close(torch.stack(parts).sum(), term({})(views))


def test_nothing_to_compare_gives_a_zero_with_graph() -> None:
    views = views_with_teacher(masks=torch.zeros(2, 4, PATCHES, dtype=torch.bool))
    found = term(SETTINGS["masked"])(views)
    found.backward()
    assert found.item() == 0.0
    assert views.global_patches.grad is not None


def test_a_step_without_weight_computes_nothing() -> None:
    objective = Objective([GramTerm(GramSettings(weight=2.0, start_step=3)), Probe()])
    views = make_views()  # without a teacher: the term would fail
    total, values = objective(views)
    assert set(values) == {"probe"}
    assert total.item() == values["probe"].item()
    total, values = objective(views_with_teacher(step=3))
    assert total.item() == pytest.approx(values["probe"].item() + 2.0 * values["gram"].item())


class Probe(GramTerm):
    """Some other term."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__(GramSettings(weight=1.0))

    def forward(self, views: Views) -> Tensor:
        return views.global_cls.sum()


def measure() -> dict[str, Any]:
    """Values and gradients of this rank's half of six images, of which only those of the last rank are masked."""
    world, images = current_world(), 6
    masks = torch.rand(2, images, PATCHES, generator=torch.Generator().manual_seed(1)) < 0.5
    masks[:, : images // 2] = False
    share = images // world.size
    own = torch.arange(world.rank * share, (world.rank + 1) * share)
    results = {}
    for name, settings in SETTINGS.items():
        views = take_images(views_with_teacher(images=images, masks=masks), own)
        value = term(settings)(views)
        value.backward()
        gradient = views.global_patches.grad
        assert gradient is not None
        results[name] = (sum_over_ranks(value) / world.size, gradient / world.size)
    return results


def test_two_ranks_give_what_one_gives(tmp_path: Path) -> None:
    one, two = measure(), run_on_ranks(measure, 2, tmp_path)
    for name, (value, gradient) in one.items():
        for rank in two:
            torch.testing.assert_close(rank[name][0], value, rtol=1e-5, atol=1e-7, msg=name)
        joined = torch.cat([rank[name][1] for rank in two], dim=1)
        torch.testing.assert_close(joined, gradient, rtol=1e-5, atol=1e-8, msg=name)
        assert gradient.abs().sum() > 0
