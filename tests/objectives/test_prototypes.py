import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden_data import Case, golden_cases
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


class NaivePrototypes:
    """Equations 1 and 2 in loops over Python's floats: first images give their mean, then the moving average."""

    def __init__(self, temperature: float, momentum: float) -> None:
        self.temperature, self.momentum = temperature, momentum
        self.prototypes: dict[int, list[float]] = {}

    def step(self, crops: list[list[list[float]]], values: list[int], momentum: float | None) -> None:
        """``crops`` [V][B][D]; ``momentum`` None admits only."""
        for value in sorted(set(values)):
            if momentum is None and value in self.prototypes:
                continue
            members = [i for i, other in enumerate(values) if other == value]
            rows = [naive_unit(crop[i]) for crop in crops for i in members]
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            if momentum is not None:
                old = self.prototypes[value]
                mean = [momentum * a + (1 - momentum) * b for a, b in zip(old, mean, strict=True)]
            self.prototypes[value] = naive_unit(mean)

    def loss(self, features: list[float], value: int) -> float:
        scores = {
            other: sum(a * b for a, b in zip(naive_unit(features), prototype, strict=True)) / self.temperature
            for other, prototype in self.prototypes.items()
        }
        largest = max(scores.values())
        sums = math.fsum(math.exp(score - largest) for score in scores.values())
        return largest + math.log(sums) - scores[value]


def naive_unit(row: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in row))
    return [x / length for x in row]


def compare_with_loops(teachers: Tensor, students: Tensor, labels: Tensor, momentum: float) -> PrototypeBank:
    """A sequence of steps [T, V, B, D] and [T, B] in float64: losses before each update, prototypes after."""
    temperature = 0.07 / 3
    bank = PrototypeBank(6, teachers.shape[-1], temperature, momentum).double()
    naive = NaivePrototypes(temperature, momentum)
    for teacher, student, values in zip(teachers, students, labels, strict=True):
        valid = torch.ones(len(values), dtype=torch.bool)
        rows = bank.embed(teacher)
        bank.admit(rows, values, valid)
        naive.step(teacher.tolist(), values.tolist(), None)
        losses, _ = bank(student, values, valid)
        expected = [
            [naive.loss(row, value) for row, value in zip(crop, values.tolist(), strict=True)]
            for crop in student.tolist()
        ]
        torch.testing.assert_close(
            losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
        )
        bank.update(rows, values, valid)
        naive.step(teacher.tolist(), values.tolist(), momentum)
        for value, prototype in naive.prototypes.items():
            assert bank.prototypes[value].tolist() == pytest.approx(prototype, abs=1e-12)
    return bank


def test_a_sequence_of_steps_matches_equations_1_and_2_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    teachers = torch.randn(6, 2, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (6, 5), generator=generator)
    bank = compare_with_loops(teachers, teachers.flip(0), labels, 0.9)
    assert bank.counts.sum() == 30


def golden_sequence(name: str) -> Case:
    return next(case for case in golden_cases("prototypical_head.safetensors") if case.name == name)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "length", "apart"),
    [
        ("update_sequence_m0.999", 0.88, 1.6e-4),
        ("update_sequence_m0.99", 0.94, 6.9e-4),
        ("update_sequence_m0.5", 0.73, 1.9e-2),
    ],
)
def test_on_the_authors_inputs_ours_keeps_to_the_equations_and_theirs_does_not(
    name: str, length: float, apart: float
) -> None:
    """Theirs leave the sphere; put back on it, they point elsewhere once something has moved."""
    case = golden_sequence(name)
    teachers, students = (case[f"{who}_cls"].double()[:, None] for who in ("teacher", "student"))
    bank = compare_with_loops(teachers, students, case["labels"], case.hparams["centroid_momentum"])
    ours, theirs = (
        bank.prototypes[bank.seen],
        case["centroids_f64"][-1][bank.seen[: case.hparams["n_classes"]]],
    )
    assert theirs.norm(dim=1).min() < length
    assert (F.normalize(theirs, dim=-1) - ours).norm(dim=1).max() > apart
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours), dtype=torch.float64))


def test_order_of_images_does_not_matter() -> None:
    bank, shuffled = make_bank(), make_bank()
    order = torch.tensor([4, 2, 0, 1, 3])
    bank.update(embeddings(seed=1), VALUES, VALID)
    shuffled.update(embeddings(seed=1)[order], VALUES[order], VALID[order])
    torch.testing.assert_close(shuffled.prototypes, bank.prototypes)


def test_broken_embeddings_count_as_absent() -> None:
    bank, without = make_bank(), make_bank()
    broken = embeddings(seed=1)
    broken[2:4] = torch.nan
    bank.update(broken, VALUES, VALID)
    without.update(embeddings(seed=1), VALUES, VALID & torch.tensor([1, 1, 0, 0, 1]).bool())
    torch.testing.assert_close(bank.prototypes, without.prototypes)
    assert torch.equal(bank.prototypes[3], make_bank().prototypes[3])


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
