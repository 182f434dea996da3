"""Each loss of a domain against a loop in double precision, its gradient, and what must not change it."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from openfino.baselines.losses import Discriminator, GroupWeights, adversarial_loss, coral_gap, members_of
from openfino.baselines.methods import Coral, Dann, GroupDro, Method, Seen
from openfino.evaluation.tasks import Task

DOMAINS = torch.tensor([0, 1, -1, 0, 2, 1, 0, 3, 1, 3])  # domain 2 has a single image, one is unknown
TASK = Task("single", "label", ("a", "b", "c"))


def features(width=4, seed=0):
    return torch.randn(
        len(DOMAINS), width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def seen(seed=0, domains=DOMAINS, rows=slice(None)):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (len(DOMAINS),), generator=generator)
    logits = torch.randn(len(DOMAINS), 3, dtype=torch.float64, generator=generator)
    return Seen(features(seed=seed)[rows], logits[rows], labels[rows], domains[rows])


def losses_of(logits, labels):
    return TASK.losses(logits, labels, 0.1)


def naive_gap(values, domains):
    values, total = values.tolist(), 0.0
    width = len(values[0])

    def covariance(domain):
        own = [row for row, its in zip(values, domains.tolist(), strict=True) if its == domain]
        means = [sum(column) / len(own) for column in zip(*own, strict=True)]
        return [
            [sum((r[i] - means[i]) * (r[j] - means[j]) for r in own) / (len(own) - 1) for j in range(width)]
            for i in range(width)
        ]

    several = [d for d in sorted(set(domains.tolist())) if d >= 0 and domains.tolist().count(d) > 1]
    for one, other in itertools.combinations(several, 2):
        first, second = covariance(one), covariance(other)
        gaps = [(first[i][j] - second[i][j]) ** 2 for i in range(width) for j in range(width)]
        total += sum(gaps) / (4 * width**2)
    return total


def test_members_are_those_of_known_domains_with_enough_images():
    assert {d: own.tolist() for d, own in members_of(DOMAINS, 2).items()} == {
        0: [0, 3, 6],
        1: [1, 5, 8],
        3: [7, 9],
    }
    assert members_of(DOMAINS)[2].tolist() == [4]
    assert members_of(torch.tensor([-1, -1])) == {}


def test_coral_is_the_sum_over_pairs():
    assert coral_gap(features(), DOMAINS).item() == pytest.approx(naive_gap(features(), DOMAINS), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: coral_gap(x, DOMAINS), features().requires_grad_())


def test_coral_ignores_the_unknown_the_single_and_the_order():
    values, order = features(), torch.randperm(len(DOMAINS), generator=torch.Generator().manual_seed(1))
    gap = coral_gap(values, DOMAINS)
    assert torch.allclose(coral_gap(values[order], DOMAINS[order]), gap)
    kept = torch.tensor([row for row, domain in enumerate(DOMAINS.tolist()) if domain not in (-1, 2)])
    assert torch.allclose(coral_gap(values[kept], DOMAINS[kept]), gap)
    assert torch.allclose(coral_gap(values, torch.where(DOMAINS >= 0, 7 - DOMAINS, DOMAINS)), gap)


def test_coral_without_a_pair_of_domains_is_zero_with_a_gradient():
    values = features().requires_grad_()
    gap = coral_gap(values, torch.tensor([0] * 9 + [1]))
    gap.backward()
    assert gap.item() == 0
    assert values.grad.abs().max() == 0


def test_coral_does_not_see_half_precision():
    values = 100 * features().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = coral_gap(values, DOMAINS)
    assert torch.equal(mixed, coral_gap(values, DOMAINS))


def discriminator():
    torch.manual_seed(0)
    return Discriminator(4, 4, 6).double()


def test_the_adversary_is_a_cross_entropy_over_known_domains():
    model, values = discriminator(), features()
    hidden = F.relu(values @ model.hidden.weight.T + model.hidden.bias)
    odds = (hidden @ model.readout.weight.T + model.readout.bias).detach().exp()
    known = [row for row, domain in enumerate(DOMAINS.tolist()) if domain >= 0]
    expected = [-math.log(odds[row, DOMAINS[row]] / odds[row].sum()) for row in known]
    assert adversarial_loss(values, DOMAINS, model, 0.3).item() == pytest.approx(np.mean(expected), rel=1e-10)


def test_the_adversary_reverses_the_gradient_of_the_features_alone():
    def gradients(strength):
        model, values = discriminator(), features().requires_grad_()
        adversarial_loss(values, DOMAINS, model, strength).backward()
        return values.grad, [parameter.grad for parameter in model.parameters()]

    plain, own = gradients(-1.0)  # scale -1 twice: the gradient as it is
    reversed_, same = gradients(0.3)
    assert torch.allclose(reversed_, -0.3 * plain)
    assert plain.abs().max() > 0
    assert all(torch.equal(one, other) for one, other in zip(own, same, strict=True))
    assert torch.autograd.gradcheck(
        lambda x: adversarial_loss(x, DOMAINS, discriminator(), -1.0), features().requires_grad_()
    )


def test_the_adversary_without_a_known_domain_is_zero():
    values = features().requires_grad_()
    loss = adversarial_loss(values, torch.full((10,), -1), discriminator(), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert values.grad.abs().max() == 0


def test_group_weights_follow_the_exponentiated_losses():
    weights, expected = GroupWeights(3, 0.5), np.full(3, 1 / 3)
    for groups, losses in (([0, 2], [1.0, 3.0]), ([1], [2.0]), ([2, 1, 0], [0.1, 0.2, 0.3])):
        weights.update(torch.tensor(groups), torch.tensor(losses))
        for group, loss in zip(groups, losses, strict=True):
            expected[group] *= math.exp(0.5 * loss)
        expected /= expected.sum()
        assert weights.weights.numpy() == pytest.approx(expected, rel=1e-5)
    assert weights.weights.sum().item() == pytest.approx(1.0)


def test_group_weights_survive_what_is_not_finite():
    weights = GroupWeights(2, 0.5)
    weights.update(torch.tensor([0, 1]), torch.tensor([math.nan, 2.0]))
    assert weights.weights.numpy() == pytest.approx(np.array([1.0, math.e]) / (1 + math.e), rel=1e-5)
    for _ in range(2000):
        weights.update(torch.tensor([1]), torch.tensor([50.0]))
    assert weights.weights.isfinite().all()


def test_group_dro_is_the_weighted_sum_and_the_mean_of_the_unknown():
    batch, method = seen(), GroupDro(losses_of, 0.7, 5).double()
    losses = losses_of(batch.logits, batch.labels).tolist()
    total, parts = method(batch, 0, 10)
    domains = DOMAINS.tolist()
    means = {g: np.mean([v for v, d in zip(losses, domains, strict=True) if d == g]) for g in range(4)}
    raw = [math.exp(0.7 * means.get(group, 0.0)) / 5 for group in range(5)]
    expected = sum(raw[group] / sum(raw) * mean for group, mean in means.items()) * 0.9 + losses[2] * 0.1
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert parts["worst_group"].item() == pytest.approx(max(means.values()))
    before = method.groups.weights.clone()
    method.eval()(batch, 0, 10)
    assert torch.equal(method.groups.weights, before)


def test_group_dro_has_the_gradient_of_its_losses():
    batch = seen()

    def loss(logits):
        method = GroupDro(losses_of, 0.7, 5).double().eval()
        return method(Seen(batch.pooled, logits, batch.labels, batch.domains), 0, 10)[0]

    assert torch.autograd.gradcheck(loss, batch.logits.requires_grad_())


@pytest.mark.parametrize("domains", [torch.full((10,), -1), DOMAINS])
def test_without_domains_every_method_is_the_label_loss(domains):
    batch = seen(domains=domains)
    plain = Method(losses_of)(batch, 3, 10)[0]
    torch.manual_seed(0)
    methods = (Dann(losses_of, 1.0, 4, 4, 6).double(), Coral(losses_of, 1.0), GroupDro(losses_of, 0.5, 4))
    same = [torch.allclose(method(batch, 3, 10)[0], plain) for method in methods]
    assert same == [bool((domains < 0).all())] * 3


def test_the_parts_add_up():
    batch = seen()
    torch.manual_seed(0)
    for method, name, factor in (
        (Dann(losses_of, 2.0, 4, 4, 6).double(), "domain", 1),
        (Coral(losses_of, 3.0), "gap", 3),
    ):
        total, parts = method(batch, 5, 10)
        assert torch.allclose(total, parts["label"] + factor * parts[name])


@pytest.mark.parametrize(
    ("step", "ramped"), [(-1, 0.0), (0, 0.0), (5, 2 / (1 + math.exp(-5)) - 1), (10, 0.99991)]
)
def test_dann_ramps_from_when_the_backbone_trains(step, ramped):
    batch, strength = seen(), 0.5
    pooled = batch.pooled.requires_grad_()
    torch.manual_seed(0)
    method = Dann(losses_of, strength, 4, 4, 6).double()
    method(batch, step, 10)[0].backward()
    plain = features().requires_grad_()
    adversarial_loss(plain, DOMAINS, method.discriminator, -1.0).backward()
    assert torch.allclose(pooled.grad, -strength * ramped * plain.grad, rtol=1e-3, atol=1e-12)
