import math

import pytest
import torch
from torch import Tensor

from openfino.objectives.guidance.prototypes import PrototypeBank, prototype_logits

VALUES = torch.tensor([2, 0, 2, 3, 0])
VALID = torch.tensor([True, True, True, True, False])


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def embeddings(seed: int = 0) -> Tensor:
    """What guidance hands over: means over two crops of unit vectors."""
    draws = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    return unit(draws).mean(dim=0)


def make_bank(size: int = 5, momentum: float = 0.9) -> PrototypeBank:
    bank = PrototypeBank(size, 3, temperature=0.5, momentum=momentum)
    bank.admit(embeddings(), VALUES, VALID)
    return bank


def naive_loss(features: Tensor, bank: PrototypeBank, value: int) -> float:
    scores = {
        m: sum(f * p for f, p in zip(unit(features).tolist(), bank.prototypes[m].tolist(), strict=True)) / 0.5
        for m in range(len(bank.seen))
        if bank.seen[m]
    }
    return math.log(sum(math.exp(score) for score in scores.values())) - scores[value]


def test_first_images_give_their_mean() -> None:
    bank = make_bank()
    means = embeddings()
    assert bank.seen.tolist() == [True, False, True, True, False]
    torch.testing.assert_close(bank.prototypes[2], unit(means[0] + means[2]))
    torch.testing.assert_close(bank.prototypes[0], unit(means[1]))
    assert torch.equal(bank.prototypes[[1, 4]], torch.zeros(2, 3))


def test_admission_is_idempotent() -> None:
    bank = make_bank()
    before = bank.prototypes.clone()
    bank.admit(embeddings(seed=1), VALUES, VALID)
    assert torch.equal(bank.prototypes, before)
    assert bank.counts.tolist() == [0] * 5


def test_update_moves_and_projects_only_the_batchs_rows() -> None:
    bank = make_bank()
    bank.admit(embeddings(seed=2), torch.full((5,), 1), torch.ones(5, dtype=torch.bool))
    before, means = bank.prototypes.clone(), embeddings(seed=1)
    bank.update(means, VALUES, VALID)
    expected = before.clone()
    for value in (0, 2, 3):
        members = [i for i in range(5) if VALID[i] and VALUES[i] == value]
        mean = sum(means[i] for i in members) / len(members)
        expected[value] = unit(0.9 * before[value] + 0.1 * mean)
    torch.testing.assert_close(bank.prototypes, expected)
    assert torch.equal(bank.prototypes[1], before[1])
    torch.testing.assert_close(bank.prototypes[bank.seen].norm(dim=1), torch.ones(4))
    assert bank.counts.tolist() == [1, 0, 2, 1, 0]


def test_update_of_a_value_without_prototype_takes_its_mean() -> None:
    bank = PrototypeBank(5, 3)
    bank.update(embeddings(), VALUES, VALID)
    torch.testing.assert_close(bank.prototypes, make_bank().prototypes)
    assert torch.equal(bank.seen, make_bank().seen)


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0], [2, 0, 2, 3, 0]])
def test_nothing_valid_changes_nothing(values: list[int]) -> None:
    bank = make_bank()
    before = {name: buffer.clone() for name, buffer in bank.state_dict().items()}
    bank.update(embeddings(seed=1), torch.tensor(values), torch.zeros(5, dtype=torch.bool))
    assert all(torch.equal(before[name], buffer) for name, buffer in bank.state_dict().items())


def test_images_without_value_do_not_undo_the_move() -> None:
    """The value of an image that is not valid is arbitrary: it may name the row that another one moves."""
    bank, alone = make_bank(), make_bank()
    bank.update(embeddings(seed=1), torch.tensor([2, 2, 2, 2, 2]), torch.tensor([0, 1, 0, 0, 0]).bool())
    alone.update(embeddings(seed=1)[1:2], torch.tensor([2]), torch.tensor([True]))
    torch.testing.assert_close(bank.prototypes, alone.prototypes)


def test_order_of_images_does_not_matter() -> None:
    bank, shuffled = make_bank(), make_bank()
    order = torch.tensor([4, 2, 0, 1, 3])
    bank.update(embeddings(seed=1), VALUES, VALID)
    shuffled.update(embeddings(seed=1)[order], VALUES[order], VALID[order])
    torch.testing.assert_close(shuffled.prototypes, bank.prototypes)


def test_broken_embeddings_spare_the_bank() -> None:
    bank = make_bank()
    before = bank.prototypes.clone()
    broken = embeddings(seed=1)
    broken[3] = torch.nan
    bank.update(broken, VALUES, VALID)
    assert bank.prototypes.isfinite().all()
    assert torch.equal(bank.prototypes[3], before[3])


def test_loss_matches_loops_over_the_seen_values() -> None:
    bank = make_bank()
    features = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))
    losses, correct = bank(features, VALUES, VALID)
    for crop in range(2):
        for image in range(5):
            if VALID[image]:
                expected = naive_loss(features[crop, image], bank, int(VALUES[image]))
                assert losses[crop, image].item() == pytest.approx(expected, rel=1e-5)
                nearest = (bank.prototypes @ features[crop, image]).masked_fill(~bank.seen, -9e9).argmax()
                assert bool(correct[crop, image]) == (int(nearest) == int(VALUES[image]))
            else:
                assert losses[crop, image] == 0.0
                assert not correct[crop, image]


def test_an_unseen_value_is_no_negative() -> None:
    small, large = make_bank(size=4), make_bank(size=40)
    features = torch.randn(2, 5, 3)
    torch.testing.assert_close(small(features, VALUES, VALID)[0], large(features, VALUES, VALID)[0])


def test_nothing_seen_and_nothing_valid_has_finite_gradients() -> None:
    features = torch.randn(2, 5, 3, requires_grad=True)
    losses, _ = PrototypeBank(4, 3)(features, VALUES, torch.zeros(5, dtype=torch.bool))
    losses.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_gradient_of_the_logits() -> None:
    prototypes = unit(torch.randn(4, 3, dtype=torch.float64))
    seen = torch.tensor([True, False, True, True])
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return prototype_logits(x, prototypes, seen, 0.7).log_softmax(dim=-1)[:, [0, 2, 3]]

    assert torch.autograd.gradcheck(loss, features)


def test_cosines_are_float32_under_autocast() -> None:
    bank = make_bank()
    features = torch.randn(2, 5, 3)
    expected, _ = bank(features, VALUES, VALID)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = bank(features, VALUES, VALID)
        bank.update(embeddings(seed=1), VALUES, VALID)
    assert torch.equal(losses, expected)
    other = make_bank()
    other.update(embeddings(seed=1), VALUES, VALID)
    assert torch.equal(bank.prototypes, other.prototypes)
