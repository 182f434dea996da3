import math

import pytest
import torch
from make_views import make_views, take_images
from torch import Tensor

from openfino.objectives.base import Views
from openfino.objectives.dino import DinoTerm, cross_entropy


def naive(student: Tensor, teacher: Tensor, temperature: float, skip_same_crop: bool) -> float:
    total, count = 0.0, 0
    for s in range(len(student)):
        for t in range(len(teacher)):
            if skip_same_crop and s == t:
                continue
            for image in range(student.shape[1]):
                scores = (student[s, image].double() / temperature).tolist()
                mass = math.log(sum(math.exp(score) for score in scores))
                for score, target in zip(scores, teacher[t, image].tolist(), strict=True):
                    total -= target * (score - mass)
                count += 1
    return total / count


@pytest.mark.parametrize("skip_same_crop", [False, True])
@pytest.mark.parametrize("crops", [(2, 2), (5, 2), (2, 3)])
def test_matches_loops(crops: tuple[int, int], skip_same_crop: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(crops[0], 3, 6, generator=generator, dtype=torch.float64)
    teacher = torch.rand(crops[1], 3, 6, generator=generator, dtype=torch.float64).softmax(dim=-1)
    value = cross_entropy(student, teacher, 0.3, skip_same_crop=skip_same_crop)
    assert value.item() == pytest.approx(naive(student, teacher, 0.3, skip_same_crop), rel=1e-10)


def test_gradient() -> None:
    student = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(2, 2, 4, dtype=torch.float64).softmax(dim=-1)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, teacher, 0.5), student)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, teacher, 0.5, skip_same_crop=True), student)


@pytest.mark.parametrize("skip_same_crop", [False, True])
def test_float32_under_autocast(skip_same_crop: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(3, 4, 9, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 4, 9, generator=generator).softmax(dim=-1)
    expected = cross_entropy(student, teacher, 0.1, skip_same_crop=skip_same_crop)
    (gradient,) = torch.autograd.grad(expected, student)
    with torch.autocast("cpu", torch.bfloat16):
        value = cross_entropy(student, teacher, 0.1, skip_same_crop=skip_same_crop)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], gradient, rtol=0, atol=1e-6)


def test_eight_local_crops_weigh_eight_ninths() -> None:
    views = make_views(local_crops=8)
    loss = cross_entropy(views.global_logits, views.teacher_probs, 0.1, skip_same_crop=True)
    local = cross_entropy(views.local_logits, views.teacher_probs, 0.1)
    torch.testing.assert_close(DinoTerm()(views), loss / 9 + local * 8 / 9)
    torch.testing.assert_close(DinoTerm(local_weight=0.5)(views), loss / 9 + local * 4 / 9)


def test_with_same_crop_pairs_the_shares_count_them() -> None:
    """Four pairs of global crops instead of two: eight local crops weigh 16 of 20."""
    views = make_views(local_crops=8)
    term = DinoTerm(same_crop_pairs=True)
    loss = cross_entropy(views.global_logits, views.teacher_probs, 0.1)
    local = cross_entropy(views.local_logits, views.teacher_probs, 0.1)
    torch.testing.assert_close(term(views), loss * 4 / 20 + local * 16 / 20)
    torch.testing.assert_close(term.metrics()["dino/global"], loss.detach())
    assert not torch.isclose(term.metrics()["dino/global"], global_part(views))


def global_part(views: Views) -> Tensor:
    """The global part without the pairs of a crop with itself."""
    term = DinoTerm()
    term(views)
    return term.metrics()["dino/global"]


def test_without_local_crops_only_the_global_part_is_left() -> None:
    views = make_views(local_crops=0)
    term = DinoTerm()
    loss = cross_entropy(views.global_logits, views.teacher_probs, 0.1, skip_same_crop=True)
    torch.testing.assert_close(term(views), loss)
    assert list(term.metrics()) == ["dino/global"]


def test_a_crop_is_not_compared_with_itself() -> None:
    views = make_views(local_crops=0)
    term = DinoTerm()
    before = term(views)
    views.teacher_probs = views.teacher_probs.clone()
    views.teacher_probs[1] = views.teacher_probs[1].roll(1, dims=-1)
    (gradient,) = torch.autograd.grad(term(views), views.global_logits)
    (old,) = torch.autograd.grad(before, views.global_logits)
    torch.testing.assert_close(gradient[1], old[1])
    assert not torch.allclose(gradient[0], old[0])


def test_descending_the_gradient_raises_the_targets_probability() -> None:
    views = make_views()
    DinoTerm()(views).backward()
    target = views.teacher_probs[1, 0].argmax()
    views.teacher_probs[1, 0] = torch.eye(views.teacher_probs.shape[-1])[target]
    views.global_logits.grad = None
    DinoTerm()(views).backward()
    gradient = views.global_logits.grad[0, 0]
    assert gradient[target] < 0
    assert gradient.sum().abs() < 1e-6


def test_order_of_images_does_not_matter() -> None:
    views = make_views(images=5)
    shuffled = take_images(views, torch.tensor([4, 0, 3, 1, 2]))
    torch.testing.assert_close(DinoTerm()(shuffled), DinoTerm()(views))


def test_metrics_are_the_two_means() -> None:
    views = make_views()
    term = DinoTerm()
    term(views)
    metrics = term.metrics()
    local = cross_entropy(views.local_logits, views.teacher_probs, 0.1)
    torch.testing.assert_close(metrics["dino/local"], local.detach())
    assert not metrics["dino/global"].requires_grad
