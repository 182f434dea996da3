import math

import pytest
import torch
from make_views import make_views, take_images
from torch import Tensor

from openfino.objectives.koleo import KoleoTerm, koleo


def naive(embeddings: Tensor, groups: list[list[int]], neighbours: int = 1) -> float:
    points = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in embeddings.double().tolist()]
    total, count = 0.0, 0
    for group in groups:
        for i in group:
            distances = sorted(math.dist(points[i], points[j]) for j in group if j != i)
            for distance in distances[:neighbours]:
                total -= math.log(distance)
                count += 1
    return total / count


@pytest.mark.parametrize("neighbours", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "groups"),
    [
        (None, [list(range(8))]),
        (4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (3, [[0, 1, 2], [3, 4, 5, 6, 7]]),  # the incomplete last group is joined to the one before
        (20, [list(range(8))]),
    ],
)
def test_matches_loops(size: int | None, groups: list[list[int]], neighbours: int) -> None:
    """A group with fewer others than ``neighbours`` gives all that every group has."""
    embeddings = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = naive(embeddings, groups, min(neighbours, len(groups[0]) - 1))
    assert koleo(embeddings, size, neighbours).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("neighbours", [1, 2])
@pytest.mark.parametrize("size", [None, 3])
def test_gradient_reaches_both_ends(size: int | None, neighbours: int) -> None:
    embeddings = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x: koleo(x, size, neighbours), embeddings.requires_grad_())


def test_descending_spreads_the_embeddings() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)) * 0.1 + 1
    embeddings.requires_grad_()
    before = koleo(embeddings)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert koleo(embeddings - 0.001 * gradient) < before


@pytest.mark.parametrize("size", [None, 1])
def test_a_row_without_neighbour_gives_a_zero_with_graph(size: int | None) -> None:
    """Taken as its own neighbour, as the authors' code does, it would add -log(1e-8), about 18."""
    embeddings = torch.randn(1 if size is None else 4, 3, requires_grad=True)
    value = koleo(embeddings, size)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_collapsed_embeddings_stay_finite() -> None:
    embeddings = torch.ones(4, 3, requires_grad=True)
    value = koleo(embeddings)
    value.backward()
    assert value.isfinite()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("size", [None, 16])
def test_float32_under_autocast(size: int | None) -> None:
    """In few dimensions many similarities are closer than bfloat16 can tell: other neighbours would be the nearest."""
    embeddings = torch.randn(64, 3, generator=torch.Generator().manual_seed(4), requires_grad=True)
    expected = koleo(embeddings, size)
    (gradient,) = torch.autograd.grad(expected, embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        value = koleo(embeddings, size)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(value, embeddings)[0], gradient, rtol=0, atol=1e-6)


def test_length_of_embeddings_does_not_matter() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(koleo(embeddings * torch.arange(1, 7)[:, None]), koleo(embeddings))


def test_term_sums_the_crops() -> None:
    views = make_views()
    torch.testing.assert_close(
        KoleoTerm(every_crop=True)(views), koleo(views.global_cls[0]) + koleo(views.global_cls[1])
    )


def test_by_default_the_first_crop_only() -> None:
    views = make_views()
    value = KoleoTerm()(views)
    torch.testing.assert_close(value, koleo(views.global_cls[0]))
    (gradient,) = torch.autograd.grad(value, views.global_cls)
    assert not gradient[1].any()


def test_by_default_in_groups_of_sixteen_images() -> None:
    views = make_views(images=35)
    value = KoleoTerm()(views)
    crop = views.global_cls[0]
    expected = naive(crop.detach(), [list(range(16)), list(range(16, 35))])
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert KoleoTerm(group_size=None)(views).item() == pytest.approx(koleo(crop).item())
    assert value.item() != pytest.approx(koleo(crop).item(), rel=0.01)


def test_pieces_that_the_group_size_divides_give_what_the_batch_gives() -> None:
    """Groups of other pieces are those of each piece alone."""
    views, term = make_views(images=8), KoleoTerm(group_size=2)
    for sizes, alike in (((4, 4), True), ((2, 6), True), ((3, 5), False)):
        pieces = [take_images(views, images) for images in torch.arange(8).split(sizes)]
        mean = sum(piece.share * term(piece) for piece in pieces)
        assert torch.isclose(mean, term(views)) == alike


def test_term_with_more_neighbours() -> None:
    views = make_views(images=6)
    expected = sum(naive(crop.detach(), [[0, 1, 2], [3, 4, 5]], 2) for crop in views.global_cls)
    assert KoleoTerm(group_size=3, neighbours=2, every_crop=True)(views).item() == pytest.approx(
        expected, rel=1e-4
    )


def test_order_of_images_does_not_matter() -> None:
    views = make_views(images=5)
    shuffled = take_images(views, torch.tensor([4, 0, 3, 1, 2]))
    torch.testing.assert_close(KoleoTerm()(shuffled), KoleoTerm()(views))
