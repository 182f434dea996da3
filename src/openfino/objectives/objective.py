"""The total loss: the weighted sum of the terms that a recipe asks for (paper eq. 4)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from openfino.factors.batch import FactorBatch
from openfino.objectives.base import Term, Views
from openfino.objectives.centering import Centering, build_centering
from openfino.objectives.dino import DinoTerm
from openfino.objectives.gram import GramTerm
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.ibot import IbotTerm
from openfino.objectives.koleo import KoleoTerm
from openfino.objectives.sigreg import SigregTerm
from openfino.recipe import Recipe


class Objective(nn.Module):
    """A sum of terms, and what makes the targets of their teacher.

    Args:
        terms: with distinct names; each owns its weight.
        centering: how the teacher's logits become targets, by head (see :func:`build_centering`).
    """

    def __init__(self, terms: Sequence[Term], centering: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({term.name: term for term in terms})
        self.centering = nn.ModuleDict() if centering is None else centering

    @property
    def guidance(self) -> Guidance | None:
        """The guidance term, if some factor guides the run."""
        return next((term for term in self._terms() if isinstance(term, Guidance)), None)

    def begin(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Once per batch, before its first piece (see :meth:`Term.begin`)."""
        for term in self._terms():
            term.begin(teacher_cls, factors)

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the unweighted value (detached) by name of each term that has a weight at this step.

        On several ranks the mean over ranks of each is its value for the global batch; over several pieces of a
        batch, the mean weighted by their images (see :class:`Term`).
        """
        weights = {term: term.weight(views.step) for term in self._terms()}
        values = {term.name: term(views) for term, weight in weights.items() if weight != 0}
        total = sum(weight * values[term.name] for term, weight in weights.items() if weight != 0)
        assert isinstance(total, Tensor)
        return total, {name: value.detach() for name, value in values.items()}

    def metrics(self) -> dict[str, Tensor]:
        """What the terms have to say beside their values (see :meth:`Term.metrics`)."""
        return {name: value for term in self._terms() for name, value in term.metrics().items()}

    def commit(self, teacher_cls: Tensor, factors: Mapping[str, FactorBatch]) -> None:
        """Move the state of guidance (see :meth:`Guidance.commit`) and of centring after an accepted optimizer step."""
        for centering in self.centering.values():
            assert isinstance(centering, Centering)
            centering.commit()
        if self.guidance is not None:
            self.guidance.commit(teacher_cls, factors)

    def _terms(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]


def build_objective(recipe: Recipe, guided_factors: Mapping[str, GuidedFactor], embed_dim: int) -> Objective:
    """The terms with a weight above zero, and guidance if some factor has one.

    Args:
        recipe: of the run.
        guided_factors: informative and spurious factors by name.
        embed_dim: width D of the backbone.
    """
    settings = recipe.objective
    terms: list[Term] = [
        DinoTerm(
            settings.dino.weight,
            settings.dino.student_temperature,
            settings.dino.local_weight,
            same_crop_pairs=settings.dino.same_crop_pairs,
        ),
        IbotTerm(settings.ibot.weight, settings.ibot.student_temperature),
        KoleoTerm(
            recipe.koleo_weight,
            settings.koleo.group_size,
            neighbours=settings.koleo.neighbours,
            every_crop=settings.koleo.every_crop,
        ),
        SigregTerm(
            recipe.sigreg_weight,
            directions=settings.sigreg.directions,
            knots=settings.sigreg.knots,
            limit=settings.sigreg.range,
            seed=recipe.seed,
            sum_crops=settings.sigreg.sum_crops,
        ),
        GramTerm(settings.gram),
    ]
    terms = [term for term in terms if term.base_weight > 0]
    weighted = {name: factor for name, factor in guided_factors.items() if factor.weight > 0}
    if weighted:
        guidance = Guidance(
            weighted,
            embed_dim,
            settings.guidance,
            seed=recipe.seed,
            unfreeze_step=recipe.train.freeze_steps,
            total_steps=recipe.train.steps,
        )
        terms.append(guidance)
    return Objective(terms, build_centering(settings))
