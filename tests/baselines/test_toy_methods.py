"""Toy problems in which the effect of each method is known: what it plants is there without it, and gone with it."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from openfino.baselines.losses import coral_gap
from openfino.baselines.methods import Coral, Dann, GroupDro, Method, Seen

DOMAINS, INPUTS, WIDTH = 3, 12, 8


def losses_of(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


class Toy(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.encoder = nn.Linear(INPUTS, width)
        self.readout = nn.Linear(width, 2)

    def forward(self, inputs):
        pooled = self.encoder(inputs)
        return pooled, self.readout(pooled)


def train(method, inputs, labels, domains, *, kind=None, steps=400, batch=128, lr=1e-2):
    """Train an encoder with a method, everything drawn from fixed seeds.

    A discriminator is three times as fast as the encoder and nobody has much momentum: else the two of them circle.
    """
    torch.manual_seed(0)
    model = (kind or Toy)()
    groups = [{"params": list(model.parameters())}, {"params": list(method.parameters()), "lr": 3 * lr}]
    optimizer = torch.optim.AdamW(
        groups[: 1 + bool(groups[1]["params"])], lr=lr, betas=(0.5, 0.9), weight_decay=0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        rows = torch.randint(len(labels), (batch,), generator=generator)
        seen = Seen(*model(inputs[rows]), labels[rows], domains[rows])
        loss, _ = method(seen, step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def readable(features, target):
    """Held-out accuracy of a linear reader."""
    half = len(target) // 2
    reader = LogisticRegression(max_iter=1000).fit(features[:half], target[:half])
    return reader.score(features[half:], target[half:])


def planted_domains(count=3000):
    """Label and domain in different directions of a rotated space, the domain the stronger."""
    rng = np.random.default_rng(0)
    labels, domains = rng.integers(0, 2, count), rng.integers(0, DOMAINS, count)
    inputs = rng.standard_normal((count, INPUTS))
    inputs[:, 0] += 4 * labels - 2
    inputs[:, 1 : 1 + DOMAINS] += 4 * np.eye(DOMAINS)[domains]
    rotation, _ = np.linalg.qr(rng.standard_normal((INPUTS, INPUTS)))
    return torch.tensor(inputs @ rotation).float(), torch.tensor(labels), torch.tensor(domains)


def dann(strength):
    torch.manual_seed(2)
    return Dann(losses_of, strength, WIDTH, DOMAINS, hidden=64)


def test_dann_removes_a_planted_domain_and_keeps_the_label():
    inputs, labels, domains = planted_domains()
    chance = 1 / DOMAINS
    found = {}
    for name, method in (("plain", Method(losses_of)), ("dann", dann(1.0))):
        features = train(method, inputs, labels, domains).encoder(inputs).detach().numpy()
        found[name] = readable(features, domains.numpy()), readable(features, labels.numpy())
    assert found["plain"][0] > 0.9
    assert found["dann"][0] < chance + 0.12
    assert min(found["plain"][1], found["dann"][1]) > 0.95


def planted_covariances(count=3000):
    """The domains differ in the spread of two directions, not in their means; the label is in a third."""
    rng = np.random.default_rng(0)
    labels, domains = rng.integers(0, 2, count), rng.integers(0, DOMAINS, count)
    inputs = rng.standard_normal((count, INPUTS))
    inputs[:, 1] *= np.array([0.3, 2.0, 5.0])[domains]
    inputs[:, 2] *= np.array([4.0, 1.0, 0.3])[domains]
    inputs[:, 0] += 4 * labels - 2
    return torch.tensor(inputs).float(), torch.tensor(labels), torch.tensor(domains)


def test_coral_aligns_planted_covariances_and_keeps_the_label():
    inputs, labels, domains = planted_covariances()
    gaps = {}
    for name, method in (("plain", Method(losses_of)), ("coral", Coral(losses_of, 1.0))):
        model = train(method, inputs, labels, domains)
        with torch.no_grad():
            features = model.encoder(inputs)
        # Relative to the features' own spread: shrinking them would close any gap.
        gaps[name] = float(coral_gap(features, domains) / torch.cov(features.T).square().sum())
        assert readable(features.numpy(), labels.numpy()) > 0.95
    assert gaps["coral"] < gaps["plain"] / 20


def planted_groups(count=4000):
    """In nine of ten images a strong cue agrees with the label (domain 0), in the tenth it contradicts it (domain 1).

    A weaker cue is always right, up to noise.
    """
    rng = np.random.default_rng(0)
    labels, domains = rng.integers(0, 2, count), (rng.random(count) < 0.1).astype(np.int64)
    sign = 2 * labels - 1
    inputs = np.zeros((count, INPUTS))
    inputs[:, 0] = sign + rng.standard_normal(count) * 0.8
    inputs[:, 1] = sign * (1 - 2 * domains) + rng.standard_normal(count) * 0.3
    return torch.tensor(inputs).float(), torch.tensor(labels), torch.tensor(domains)


class LinearToy(nn.Module):
    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(INPUTS, 2)

    def forward(self, inputs):
        return inputs, self.readout(inputs)


def test_group_dro_lifts_the_planted_worst_group():
    inputs, labels, domains = planted_groups()
    worst = {}
    for name, method in (("plain", Method(losses_of)), ("dro", GroupDro(losses_of, 0.1, 2))):
        model = train(method, inputs, labels, domains, kind=LinearToy)
        right = model.readout(inputs).argmax(dim=1) == labels
        by_group = [right[domains == group].float().mean().item() for group in (0, 1)]
        worst[name] = by_group[1]
        assert by_group[0] > 0.85
    assert worst["plain"] < 0.7
    assert worst["dro"] > 0.85
    weight = float(method.groups.weights[1])
    assert weight > 0.3  # of a tenth of the images
