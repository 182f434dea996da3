"""The guidance term: every informative and spurious factor through its head, reversal and balance (eq. 4)."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from openfino.distributed import gather_rows
from openfino.errors import OpenfinoError
from openfino.factors.batch import FactorBatch
from openfino.objectives.base import Term, Views
from openfino.objectives.guidance.balance import GradientBalance, escaped, gradient_norms
from openfino.objectives.guidance.classification import Classifier
from openfino.objectives.guidance.concentration import ConcentrationBank
from openfino.objectives.guidance.prototypes import Bank, PrototypeBank
from openfino.objectives.guidance.regression import Output, Regressor, squared_errors, target_map
from openfino.objectives.guidance.reversal import ramp, scale_gradient
from openfino.recipe import FactorKind, GuidanceSettings

Head = Bank | Classifier | Regressor


@dataclass(frozen=True)
class GuidedFactor:
    """What guidance must know of a factor.

    Attributes:
        name: of the factor.
        role: keep it (informative) or erase it (spurious).
        kind: discrete factors get a prototype bank (or a classifier), the others a regressor.
        size: discrete: number of values in the vocabulary; otherwise number of target dimensions.
        output: range of the regressor's output; tanh for cyclic and sigmoid otherwise when not given.
        weight: lambda of the factor.

    Raises:
        OpenfinoError: for a spurious factor with an unbounded output.
    """

    name: str
    role: Literal["informative", "spurious"]
    kind: FactorKind
    size: int
    output: Output | None = None
    weight: float = 0.03

    def __post_init__(self) -> None:
        if self.role == "spurious" and self.output == "identity":
            raise OpenfinoError(
                f"factor {self.name!r} is spurious and its output is 'identity': the reversed gradient would "
                "diverge; use 'sigmoid' or 'tanh'"
            )

    @property
    def regressor_output(self) -> Output:
        """The given output, or the default of the kind."""
        return self.output or ("tanh" if self.kind == "cyclic" else "sigmoid")


class Guidance(Term):
    """Sum over factors of lambda_t s_t L_t on the student CLS of the global crops.

    The gradient that reaches the encoder is multiplied by +gamma (informative) or -gamma (spurious), where
    gamma ramps up from the step at which the backbone unfreezes; heads and prototypes always minimise their
    own loss. L_t is the mean over the valid images of the global batch, then over the crops; it is a zero
    that keeps the graph when no image has a value. s_t comes from the norms of the unweighted L_t at the embedding,
    so that the ratio of two factors' pulls is that of their weights.

    A batch goes through :meth:`begin`, where a value's first image admits its prototype, ``forward`` for each of
    its pieces, and, if its step is accepted, :meth:`commit`, which alone moves prototypes and smoothed norms.

    Args:
        factors: by name, informative and spurious only.
        embed_dim: D.
        settings: of guidance.
        seed: of the run.
        unfreeze_step: first step with a trainable backbone.
        total_steps: of the run.
    """

    name = "guidance"

    def __init__(
        self,
        factors: Mapping[str, GuidedFactor],
        embed_dim: int,
        settings: GuidanceSettings,
        *,
        seed: int,
        unfreeze_step: int,
        total_steps: int,
    ) -> None:
        super().__init__(weight=1.0)
        # By name: neither sums nor draws may depend on the order in which a recipe lists its factors.
        self.factors = dict(sorted(factors.items()))
        self.settings = settings
        self.ramp_start = unfreeze_step if settings.ramp_from == "unfreeze" else 0
        self.total_steps = total_steps
        self.weights = {
            factor.name: factor.weight * (settings.reversed_weight if factor.role == "spurious" else 1.0)
            for factor in self.factors.values()
        }
        self.heads = nn.ModuleDict()
        for factor in self.factors.values():
            index = zlib.crc32(factor.name.encode())
            self.heads[escaped(factor.name)] = _build_head(factor, embed_dim, settings, seed, index)
        self.balance = build_balance(list(self.factors), settings)
        self._squares: Tensor | None = None  # squared gradient norms of the batch's pieces so far [T]
        self._seen = 0.0  # their share of the batch

    def head(self, name: str) -> Head:
        """The prototype bank, classifier or regressor of a factor."""
        head = self.heads[escaped(name)]
        assert isinstance(head, Head)
        return head

    @torch.no_grad()
    def begin(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Admit the prototypes of values that the batch is the first to hold (see :meth:`Term.begin`)."""
        super().begin(teacher_cls, factors)
        self._squares, self._seen = None, 0.0
        for bank, embeddings, values, valid in self._gathered(teacher_cls, factors):
            bank.admit(embeddings, values, valid)

    def forward(self, views: Views) -> Tensor:
        """The weighted sum over factors, a float32 scalar; its mean over pieces and ranks is the global batch's."""
        gamma = self._ramp(views.step)
        self.record(views, "guidance/ramp", torch.full((), gamma, device=views.global_cls.device))
        features, losses = [], []
        for factor in self.factors.values():
            sign = 1.0 if factor.role == "informative" else -1.0
            seen = self._embedding(views.global_cls, sign * gamma)
            features.append(seen)
            losses.append(self._loss(factor, seen, views))
        scales = self._scales(losses, features, views)
        addends = zip(self.weights.values(), scales, losses, strict=True)
        return torch.stack([weight * scale * loss for weight, scale, loss in addends]).sum()

    def metrics(self) -> dict[str, Tensor]:
        """Of the batch so far; the mean over ranks is the value of the global batch.

        ``guidance/ramp``, and per factor ``guidance/<factor>/`` ``loss``, ``accuracy`` (discrete) or ``mae``
        (in units of the encoded values), both over the valid images and 0 if there is none,
        ``valid_fraction``, and with balancing ``scale`` and ``gradient_norm`` (of the global batch,
        unsmoothed; of what is balanced: the loss, or the weighted loss as it reaches the encoder).
        """
        metrics = super().metrics()
        if self._squares is not None:
            for name, norm in zip(self.factors, self._norms(), strict=True):
                metrics[f"guidance/{name}/gradient_norm"] = norm
        return metrics

    @torch.no_grad()
    def commit(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Move prototypes and smoothed norms after an accepted optimizer step.

        Args:
            teacher_cls: teacher CLS of this rank's global crops [V, B, D].
            factors: the batch's values on this rank.
        """
        for bank, embeddings, values, valid in self._gathered(teacher_cls, factors):
            bank.update(embeddings, values, valid)
        if self._squares is not None:
            self.balance.commit(self._norms())

    def _gathered(
        self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]
    ) -> Iterator[tuple[Bank, Tensor, Tensor, Tensor]]:
        """Each bank with the embeddings, values and validity of the images of all ranks."""
        banks = [(name, head) for name in self.factors if isinstance(head := self.head(name), Bank)]
        if banks:
            # All banks of a run are of one kind and see the same embeddings.
            embeddings = gather_rows(banks[0][1].embed(teacher_cls))
            for name, bank in banks:
                yield bank, embeddings, *_gather_values(factors[name])

    def _ramp(self, step: int) -> float:
        """gamma of ``step``."""
        return ramp(self.settings.ramp, step - self.ramp_start, self.total_steps - self.ramp_start)

    def _embedding(self, cls: Tensor, factor: float) -> Tensor:
        """The student CLS as a head sees it: always with a gradient, so that its norm can be measured."""
        if cls.requires_grad:
            return scale_gradient(cls.float(), factor)
        return cls.detach().float().requires_grad_(torch.is_grad_enabled())

    def _loss(self, factor: GuidedFactor, features: Tensor, views: Views) -> Tensor:
        """Unweighted loss of one factor."""
        batch = views.factors[factor.name]
        # The mean of a piece is over the valid images of the global batch, not over its own: pieces are weighted by
        # all their images, and a piece with one value must not weigh as much as a full one.
        share = batch.valid / views.valid_counts[factor.name].clamp(min=1)
        share = share * (views.batch_size / views.slots.shape[0])
        losses, scores = self._judge(factor, features, batch, views)
        loss = (losses * share).sum(dim=1).mean()
        prefix = f"guidance/{factor.name}"
        self.record(views, f"{prefix}/loss", loss)
        score = "accuracy" if factor.kind == "discrete" else "mae"
        self.record(views, f"{prefix}/{score}", (scores * share).sum(dim=1).mean())
        self.record(views, f"{prefix}/valid_fraction", batch.valid.float().mean())
        return loss

    def _judge(
        self, factor: GuidedFactor, features: Tensor, batch: FactorBatch, views: Views
    ) -> tuple[Tensor, Tensor]:
        """Losses, and whether right (discrete) or how wrong, each [V, B]; finite and arbitrary where not valid."""
        head = self.head(factor.name)
        if isinstance(head, Bank):
            losses, correct = head(features, batch.values, batch.valid)
            return losses, correct.float()
        outputs = head(features, views.step, views.slots, views.batch_size)
        if isinstance(head, Classifier):
            losses, correct = head.judge(outputs, batch.values, batch.valid)
            return losses, correct.float()
        to_target, values = target_map(factor.kind, factor.regressor_output), batch.values.float()
        errors = (to_target.decode(outputs.detach()) - values).abs().mean(dim=-1)
        return squared_errors(outputs, to_target(values)), errors

    def _scales(self, losses: Sequence[Tensor], features: Sequence[Tensor], views: Views) -> Tensor:
        """The detached s_t [T] from the norms of the pieces so far; adds those of this one."""
        if not self.settings.balance or not torch.is_grad_enabled():
            return torch.ones(len(losses), device=losses[0].device)
        # A backward pass inside autocast would multiply matrices in half precision.
        with torch.autocast(losses[0].device.type, enabled=False):
            gradients = [
                torch.autograd.grad(loss, feature, retain_graph=True)[0]
                for loss, feature in zip(losses, features, strict=True)
            ]
        norms = gradient_norms(gradients)
        if self.settings.balance_weighted_losses:
            norms = norms * self._ramp(views.step)
            # One by one: a tensor of the weights would be copied to the GPU, and the host would wait for it.
            pairs = zip(self.weights.values(), norms, strict=True)
            norms = torch.stack([weight * norm for weight, norm in pairs])
        squares = (views.share * norms).square()
        self._squares = squares if self._squares is None else self._squares + squares
        self._seen += views.share
        scales = self.balance.scales(self._norms())
        for name, scale in zip(self.factors, scales, strict=True):
            self.record(views, f"guidance/{name}/scale", scale)
        return scales

    def _norms(self) -> Tensor:
        """Gradient norms of the global batch [T]; from the part seen so far, as if the rest were like it."""
        assert self._squares is not None
        return (self._squares / self._seen).sqrt()


def _build_head(
    factor: GuidedFactor, embed_dim: int, settings: GuidanceSettings, seed: int, index: int
) -> nn.Module:
    hidden, dropout = settings.regressor_hidden, settings.regressor_dropout
    if factor.kind != "discrete":
        output = factor.regressor_output
        return Regressor(
            embed_dim, factor.size, hidden=hidden, dropout=dropout, output=output, seed=seed, index=index
        )
    if settings.discrete_head != "prototypes":
        binary = settings.discrete_head == "binary_classifier"
        return Classifier(
            factor.size, embed_dim, hidden=hidden, dropout=dropout, binary=binary, seed=seed, index=index
        )
    if settings.bank == "concentration":
        return ConcentrationBank(
            factor.size, embed_dim, settings.temperature, settings.momentum, seed=seed, index=index
        )
    return PrototypeBank(factor.size, embed_dim, settings.temperature, settings.momentum)


def build_balance(names: Sequence[str], settings: GuidanceSettings) -> GradientBalance:
    """The balance of factors ``names`` that the settings ask for."""
    if not settings.balance_weighted_losses:
        return GradientBalance(names, settings.balance_momentum)
    # Weights and ramp make small norms: the released code leaves those out that are as good as zero (B16).
    return GradientBalance(names, settings.balance_momentum, threshold=1e-6, epsilon=1e-8)


def _gather_values(factor: FactorBatch) -> tuple[Tensor, Tensor]:
    """Values and validity of the images of all ranks, each [W * B]."""
    values = gather_rows(torch.where(factor.valid, factor.values, -1))
    return values.clamp(min=0), values >= 0
