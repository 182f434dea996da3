import math

import pytest
import torch
from torch import Tensor

from openfino.objectives.guidance.concentration import ConcentrationBank, concentration_logits

VALUES = torch.tensor([2, 0, 2, 3, 0, 2])
VALID = torch.tensor([True, True, True, True, False, True])
TAU, MOMENTUM, MINIMUM = 0.5, 0.9, 0.3


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def teacher(seed: int = 0) -> Tensor:
    """Teacher CLS [V, B, D]."""
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_bank(size: int = 5, *, seed: int = 0, index: int = 0) -> ConcentrationBank:
    bank = ConcentrationBank(size, 3, TAU, MOMENTUM, MINIMUM, seed=seed, index=index)
    return bank.double()


def moved(bank: ConcentrationBank, *, steps: int = 1, values: Tensor = VALUES) -> ConcentrationBank:
    for step in range(steps):
        bank.update(bank.embed(teacher(step)), values, VALID)
    return bank


class NaiveBank:
    """The rule in loops over Python's floats."""

    def __init__(self, bank: ConcentrationBank) -> None:
        self.centroids = bank.centroids.tolist()
        self.phi = bank.concentration.tolist()
        self.counts = bank.counts.tolist()

    def update(self, cls: Tensor, values: Tensor, valid: Tensor) -> None:
        for crop in cls.tolist():
            images = range(len(crop))
            for value in {int(values[i]) for i in images if valid[i]}:
                members = [unit(crop[i]) for i in images if valid[i] and values[i] == value]
                mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
                old = self.centroids[value]
                if self.counts[value] == 0:
                    self.centroids[value] = mean
                else:
                    if len(members) >= 2:
                        squares = [math.dist(member, unit(old)) ** 2 for member in members]
                        spread = math.sqrt(sum(squares) / len(squares))
                        self.phi[value] = MOMENTUM * self.phi[value] + (1 - MOMENTUM) * spread
                    self.centroids[value] = [
                        MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(old, mean, strict=True)
                    ]
                self.counts[value] += len(members)

    def loss(self, features: list[float], value: int) -> float:
        scores = [
            sum(a * b for a, b in zip(unit(features), unit(centroid), strict=True)) / max(phi, MINIMUM)
            for centroid, phi in zip(self.centroids, self.phi, strict=True)
        ]
        return math.log(sum(math.exp(score) for score in scores)) - scores[value]


def test_updates_match_loops() -> None:
    bank = make_bank()
    naive = NaiveBank(bank)
    for step in range(4):
        values = VALUES.roll(step)
        bank.update(bank.embed(teacher(step)), values, VALID)
        naive.update(teacher(step), values, VALID)
        for row, expected in zip(bank.centroids.tolist(), naive.centroids, strict=True):
            assert row == pytest.approx(expected, abs=1e-12)
        assert bank.concentration.tolist() == pytest.approx(naive.phi, abs=1e-12)
        assert bank.counts.tolist() == naive.counts
    assert len({round(phi, 6) for phi in naive.phi}) > 2


def test_loss_matches_loops_over_all_values() -> None:
    """Also over value 1, which nobody has seen; where phi is small its minimum counts."""
    bank = moved(make_bank(), steps=3)
    bank.concentration[3] = 1e-3
    naive = NaiveBank(bank)
    features = teacher(9)
    losses, correct = bank(features, VALUES, VALID)
    for crop in range(2):
        for image in range(6):
            if VALID[image]:
                rows, value = features[crop, image].tolist(), int(VALUES[image])
                assert losses[crop, image].item() == pytest.approx(naive.loss(rows, value), rel=1e-10)
                best = min(range(5), key=lambda other: naive.loss(rows, other))
                assert bool(correct[crop, image]) == (best == value)
            else:
                assert losses[crop, image] == 0.0
                assert not correct[crop, image]


def test_centroids_are_not_projected_and_begin_as_the_plain_mean() -> None:
    bank = make_bank()
    bank.update(bank.embed(teacher()[:1]), VALUES, VALID)
    mean = torch.nn.functional.normalize(teacher()[0, [0, 2, 5]], dim=-1).mean(dim=0)
    torch.testing.assert_close(bank.centroids[2], mean)
    assert bank.centroids[2].norm() < 0.9
    assert torch.equal(bank.concentration, torch.full((5,), TAU, dtype=torch.float64))


def test_concentration_runs_away_from_the_temperature() -> None:
    """What official-code B4 saw: it becomes the spread of the images, whatever temperature was asked for."""
    bank = ConcentrationBank(5, 3, 0.07 / 3, MOMENTUM)
    for step in range(100):
        bank.update(bank.embed(teacher(step).float()), VALUES, VALID)
    assert 0.5 < bank.concentration[2] < 1.5
    assert bank.concentration[3].item() == pytest.approx(
        0.07 / 3
    )  # one image per batch says nothing of a spread


def test_admission_changes_nothing() -> None:
    bank = make_bank()
    before = {name: buffer.clone() for name, buffer in bank.state_dict().items()}
    bank.admit(bank.embed(teacher()), VALUES, VALID)
    assert all(torch.equal(before[name], buffer) for name, buffer in bank.state_dict().items())


def test_only_rows_of_the_batch_move() -> None:
    bank = moved(make_bank())
    before = bank.centroids.clone()
    bank.update(bank.embed(teacher(1)), torch.full((6,), 2), VALID)
    others = [0, 1, 3, 4]
    assert torch.equal(bank.centroids[others], before[others])
    assert not torch.equal(bank.centroids[2], before[2])
    assert bank.counts.tolist() == [2, 0, 6 + 10, 2, 0]


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0, 0], VALUES.tolist()])
def test_nothing_valid_changes_nothing(values: list[int]) -> None:
    bank = moved(make_bank())
    before = {name: buffer.clone() for name, buffer in bank.state_dict().items()}
    bank.update(bank.embed(teacher(1)), torch.tensor(values), torch.zeros(6, dtype=torch.bool))
    assert all(torch.equal(before[name], buffer) for name, buffer in bank.state_dict().items())


def test_images_without_value_count_as_absent() -> None:
    bank, part = moved(make_bank()), moved(make_bank())
    bank.update(bank.embed(teacher(1)), VALUES, VALID)
    part.update(part.embed(teacher(1)[:, VALID]), VALUES[VALID], VALID[VALID])
    torch.testing.assert_close(bank.state_dict(), part.state_dict())


def test_order_of_images_does_not_matter() -> None:
    bank, shuffled = moved(make_bank()), moved(make_bank())
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    bank.update(bank.embed(teacher(1)), VALUES, VALID)
    shuffled.update(shuffled.embed(teacher(1)[:, order]), VALUES[order], VALID[order])
    torch.testing.assert_close(shuffled.state_dict(), bank.state_dict())


def test_broken_images_count_as_absent() -> None:
    bank, without = make_bank(), make_bank()
    broken = teacher()
    broken[:, 2:4] = torch.nan
    bank.update(bank.embed(broken), VALUES, VALID)
    whole = torch.tensor([True, True, False, False, True, True])
    without.update(without.embed(teacher()), VALUES, VALID & whole)
    torch.testing.assert_close(bank.state_dict(), without.state_dict())
    assert bank.counts.tolist() == [2, 0, 4, 0, 0]


def test_unseen_values_are_keyed_unit_vectors() -> None:
    before = torch.random.get_rng_state()
    bank, same, larger = make_bank(), make_bank(), make_bank(size=700)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(bank.centroids.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(bank.centroids, same.centroids)
    assert torch.equal(larger.centroids[:5], bank.centroids)
    others = [make_bank(seed=1).centroids, make_bank(index=1).centroids]
    assert not any(torch.equal(bank.centroids, other) for other in others)


def test_an_unseen_value_is_a_negative() -> None:
    small, large = moved(make_bank(size=4)), moved(make_bank(size=40))
    features = teacher(9)
    assert (large(features, VALUES, VALID)[0] > small(features, VALUES, VALID)[0])[:, VALID].all()


def test_gradient_of_the_logits() -> None:
    bank = moved(make_bank(), steps=3)
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        logits = concentration_logits(x, bank.centroids, bank.concentration, MINIMUM)
        return logits.log_softmax(dim=-1)

    assert torch.autograd.gradcheck(loss, features)


def test_a_batch_without_a_value_has_finite_gradients() -> None:
    features = torch.randn(2, 6, 3, requires_grad=True)
    losses, _ = make_bank().float()(features, VALUES, torch.zeros(6, dtype=torch.bool))
    losses.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_float32_under_autocast() -> None:
    bank, other = moved(make_bank()).float(), moved(make_bank()).float()
    features = torch.randn(2, 6, 3)
    expected, _ = bank(features, VALUES, VALID)
    other.update(other.embed(teacher(1)), VALUES, VALID)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank(features, VALUES, VALID)[0], expected)
        bank.update(bank.embed(teacher(1)), VALUES, VALID)
    torch.testing.assert_close(bank.state_dict(), other.state_dict(), rtol=0, atol=0)
