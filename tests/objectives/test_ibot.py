import pytest
import torch
from make_views import PATCHES, make_views, take_images
from torch import Tensor

from openfino.objectives.ibot import IbotTerm, masked_patch_cross_entropy, weighted_patch_cross_entropy


def naive(student: Tensor, teacher: Tensor, masks: Tensor, temperature: float) -> float:
    total, row = 0.0, 0
    for crop in masks:
        count = int(crop.sum())
        for _ in range(count):
            scores = student[row].double() / temperature
            log_probs = [float(score - scores.exp().sum().log()) for score in scores]
            total -= sum(q * p for q, p in zip(teacher[row].tolist(), log_probs, strict=True)) / count
            row += 1
    return total / len(masks)


def test_matches_loops() -> None:
    masks = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    teacher = torch.rand(6, 5, generator=generator, dtype=torch.float64).softmax(dim=-1)
    value = masked_patch_cross_entropy(student, teacher, masks, 0.2)
    assert value.item() == pytest.approx(naive(student, teacher, masks, 0.2), rel=1e-12)


def test_gradient() -> None:
    masks = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    teacher = torch.rand(3, 4, dtype=torch.float64).softmax(dim=-1)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: masked_patch_cross_entropy(x, teacher, masks, 0.5), student)


def test_given_weights_match_loops() -> None:
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    teacher = torch.rand(4, 5, generator=generator, dtype=torch.float64).softmax(dim=-1)
    weights = [0.5, 0.0, 2.0, 1.0]
    one_patch = torch.ones(1, 1, dtype=torch.bool)
    expected = sum(
        weight * naive(student[row : row + 1], teacher[row : row + 1], one_patch, 0.2)
        for row, weight in enumerate(weights)
    )
    value = weighted_patch_cross_entropy(student, teacher, torch.tensor(weights).double(), 3, 0.2)
    assert value.item() == pytest.approx(expected / 3, rel=1e-12)


def test_gradient_with_given_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.rand(3, 4, dtype=torch.float64, generator=generator).softmax(dim=-1)
    student = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: weighted_patch_cross_entropy(x, teacher, weights, 2, 0.5), student
    )
    weighted_patch_cross_entropy(student, teacher, weights, 2, 0.5).backward()
    assert not student.grad[1].any()
    assert student.grad[0].any()


def test_term_flattens_crops_before_images() -> None:
    """Rows are in (crop, image, patch) order: a swap of the two leading axes would pair wrong weights."""
    views = make_views(images=3)
    expected = naive(views.masked_logits.detach(), views.teacher_masked_probs, views.masks.flatten(0, 1), 0.1)
    assert IbotTerm()(views).item() == pytest.approx(expected, rel=1e-5)


def test_unmasked_crops_halve_the_value() -> None:
    masks = torch.zeros(2, 2, PATCHES, dtype=torch.bool)
    masks[0, :, :3] = True
    views = make_views(images=2, masks=masks)
    first_crop = masked_patch_cross_entropy(views.masked_logits, views.teacher_masked_probs, masks[0], 0.1)
    torch.testing.assert_close(IbotTerm()(views), first_crop / 2)


def test_nothing_masked_gives_a_zero_with_graph() -> None:
    views = make_views(masks=torch.zeros(2, 4, PATCHES, dtype=torch.bool))
    value = IbotTerm()(views)
    value.backward()
    assert value.item() == 0.0
    assert views.masked_logits.grad is not None


def test_order_of_images_does_not_matter() -> None:
    views = make_views(images=5)
    shuffled = take_images(views, torch.tensor([4, 0, 3, 1, 2]))
    torch.testing.assert_close(IbotTerm()(shuffled), IbotTerm()(views))
