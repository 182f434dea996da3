"""The guidance term: every informative and spurious factor through its head, reversal and balance (eq. 4)."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openfino.distributed import current_world, gather_rows, sum_over_ranks
from openfino.errors import OpenfinoError
from openfino.factors.batch import FactorBatch
from openfino.objectives.base import Term, Views
from openfino.objectives.guidance.balance import GradientBalance, escaped, gradient_norms
from openfino.objectives.guidance.prototypes import PrototypeBank
from openfino.objectives.guidance.regression import Output, Regressor, target_map
from openfino.objectives.guidance.reversal import ramp, scale_gradient
from openfino.recipe import FactorKind, GuidanceSettings


@dataclass(frozen=True)
class GuidedFactor:
    """What guidance must know of a factor.

    Attributes:
        name: of the factor.
        role: keep it (informative) or erase it (spurious).
        kind: discrete factors get a prototype bank, the others a regressor.
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
    that keeps the graph when no image has a value.

    ``forward`` keeps no state except that a value's first image admits its prototype; what moves prototypes
    and norms is :meth:`commit`, called after an accepted step.

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
        self.unfreeze_step = unfreeze_step
        self.total_steps = total_steps
        self.heads = nn.ModuleDict()
        for factor in self.factors.values():
            index = zlib.crc32(factor.name.encode())
            self.heads[escaped(factor.name)] = _build_head(factor, embed_dim, settings, seed, index)
        self.balance = GradientBalance(list(self.factors), settings.balance_momentum)
        self._norms: Tensor | None = None
        self._metrics: dict[str, Tensor] = {}

    def head(self, name: str) -> PrototypeBank | Regressor:
        """The prototype bank or the regressor of a factor."""
        head = self.heads[escaped(name)]
        assert isinstance(head, PrototypeBank | Regressor)
        return head

    def forward(self, views: Views) -> Tensor:
        """The weighted sum over factors, a float32 scalar; its mean over ranks is the global batch's."""
        self._admit(views)
        gamma = ramp(
            self.settings.ramp, views.step - self.unfreeze_step, self.total_steps - self.unfreeze_step
        )
        self._metrics = {"guidance/ramp": torch.full((), gamma, device=views.global_cls.device)}
        shares = _image_shares([views.factors[name].valid for name in self.factors])
        features, losses = [], []
        for factor, share in zip(self.factors.values(), shares, strict=True):
            sign = 1.0 if factor.role == "informative" else -1.0
            seen = self._embedding(views.global_cls, sign * gamma)
            features.append(seen)
            losses.append(self._loss(factor, seen, views, share))
        scales = self._scales(losses, features)
        addends = zip(self.factors.values(), scales, losses, strict=True)
        return torch.stack([factor.weight * scale * loss for factor, scale, loss in addends]).sum()

    def metrics(self) -> dict[str, Tensor]:
        """Of the last forward pass; the mean over ranks is the value of the global batch.

        ``guidance/ramp``, and per factor ``guidance/<factor>/`` ``loss``, ``accuracy`` (discrete) or ``mae``
        (in units of the encoded values), both over the valid images and 0 if there is none,
        ``valid_fraction``, and with balancing ``scale`` and ``gradient_norm`` (of the global batch,
        unsmoothed).
        """
        return dict(self._metrics)

    @torch.no_grad()
    def commit(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Move prototypes and smoothed norms after an accepted optimizer step.

        Args:
            teacher_cls: teacher CLS of this rank's global crops [V, B, D].
            factors: the batch's values on this rank.
        """
        embeddings = _gather_embeddings(teacher_cls)
        for name in self.factors:
            head = self.head(name)
            if isinstance(head, PrototypeBank):
                head.update(embeddings, *_gather_values(factors[name]))
        if self._norms is not None:
            self.balance.commit(self._norms)

    @torch.no_grad()
    def _admit(self, views: Views) -> None:
        banks = [(name, head) for name in self.factors if isinstance(head := self.head(name), PrototypeBank)]
        if banks:
            embeddings = _gather_embeddings(views.teacher_cls)
            for name, bank in banks:
                bank.admit(embeddings, *_gather_values(views.factors[name]))

    def _embedding(self, cls: Tensor, factor: float) -> Tensor:
        """The student CLS as a head sees it: always with a gradient, so that its norm can be measured."""
        if cls.requires_grad:
            return scale_gradient(cls.float(), factor)
        return cls.detach().float().requires_grad_(torch.is_grad_enabled())

    def _loss(self, factor: GuidedFactor, features: Tensor, views: Views, share: Tensor) -> Tensor:
        """Unweighted loss of one factor; ``share`` [B] is each image's weight in a mean."""
        batch = views.factors[factor.name]
        head = self.head(factor.name)
        if isinstance(head, PrototypeBank):
            losses, correct = head(features, batch.values, batch.valid)
            score_name, scores = "accuracy", correct.float()
        else:
            to_target = target_map(factor.kind, factor.regressor_output)
            errors = head(features, views.step) - to_target(batch.values.float())
            losses = errors.square().mean(dim=-1)
            score_name, scores = "mae", errors.detach().abs().mean(dim=-1) / to_target.scale
        loss = (losses * share).sum(dim=1).mean()
        prefix = f"guidance/{factor.name}"
        self._metrics[f"{prefix}/loss"] = loss.detach()
        self._metrics[f"{prefix}/{score_name}"] = (scores * share).sum(dim=1).mean()
        self._metrics[f"{prefix}/valid_fraction"] = batch.valid.float().mean()
        return loss

    def _scales(self, losses: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """The detached s_t [T]; remembers the norms for :meth:`commit`."""
        self._norms = None
        if not self.settings.balance or not torch.is_grad_enabled():
            return torch.ones(len(losses), device=losses[0].device)
        # A backward pass inside autocast would multiply matrices in half precision.
        with torch.autocast(losses[0].device.type, enabled=False):
            gradients = [
                torch.autograd.grad(loss, feature, retain_graph=True)[0]
                for loss, feature in zip(losses, features, strict=True)
            ]
        self._norms = gradient_norms(gradients)
        scales = self.balance.scales(self._norms)
        for name, scale, norm in zip(self.factors, scales, self._norms, strict=True):
            self._metrics[f"guidance/{name}/scale"] = scale
            self._metrics[f"guidance/{name}/gradient_norm"] = norm
        return scales


def _build_head(
    factor: GuidedFactor, embed_dim: int, settings: GuidanceSettings, seed: int, index: int
) -> nn.Module:
    if factor.kind == "discrete":
        return PrototypeBank(factor.size, embed_dim, settings.temperature, settings.momentum)
    return Regressor(
        embed_dim,
        factor.size,
        hidden=settings.regressor_hidden,
        dropout=settings.regressor_dropout,
        output=factor.regressor_output,
        seed=seed,
        index=index,
    )


def _image_shares(valid: Sequence[Tensor]) -> Tensor:
    """Weight of each image in its factor's mean [T, B]: W / (valid images of all ranks); 0 if not valid."""
    present = torch.stack(list(valid)).float()
    counts = sum_over_ranks(present.sum(dim=1, keepdim=True))
    return present * current_world().size / counts.clamp(min=1)


def _gather_embeddings(teacher_cls: Tensor) -> Tensor:
    """Normalised teacher CLS [V, B, D], mean over crops, of the images of all ranks [W * B, D]."""
    return gather_rows(F.normalize(teacher_cls.detach().float(), dim=-1).mean(dim=0))


def _gather_values(factor: FactorBatch) -> tuple[Tensor, Tensor]:
    """Values and validity of the images of all ranks, each [W * B]."""
    values = gather_rows(torch.where(factor.valid, factor.values, -1))
    return values.clamp(min=0), values >= 0
