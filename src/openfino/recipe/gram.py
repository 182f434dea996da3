"""Gram anchoring: whom to keep the patch similarities of, when, and how closely."""

import math
from typing import Literal, Self

from pydantic import model_validator

from openfino.recipe.section import Count, Positive, Section, Size, Weight


class GramSettings(Section):
    """Gram anchoring (DINOv3 section 4.2 and 4.3): off unless ``weight`` is above 0."""

    weight: Weight = 0.0
    """2 in the paper, 1.5 in its high-resolution stage."""
    teacher: str = "start"
    """Whose patch similarities are kept.

    ``start``: the starting backbone, frozen. ``ema``: the run's own averaged teacher. Anything else: a model, frozen,
    ``tiny``, or by its hub name, its folder (of a run, too) or its weights file; it may have another width and another
    patch size.
    """
    start_step: Count = 0
    """First step of the term; before it costs nothing."""
    ramp_steps: Count = 0
    """The weight rises from 0 along half a cosine wave over this many steps (the authors: 1,000)."""
    refresh_every: Positive | None = None
    """After each multiple of this many steps the Gram teacher becomes a copy of the averaged teacher."""
    first_refresh: Positive | None = None
    """No refresh before this many steps; ``start_step + refresh_every`` when not given."""
    max_refreshes: Positive | None = None
    """Without limit when not given (the authors: 3)."""
    crop_size: Size | None = None
    """The Gram teacher sees the region of each global crop cut at this size, without photometric operations and
    normalised as it knows images, and its features are resized to the student's patches: twice the global size in the
    paper. It may not have fewer patches than the student. When not given it sees the global crops themselves."""
    negatives: Literal["keep", "drop", "drop_teacher"] = "keep"
    """What becomes of negative similarities. ``drop``: zero on both sides; ``drop_teacher``: zero on the teacher's."""
    per_image: bool = True
    """Compare patches of the same crop only. Otherwise the patches of all global crops of a step, on all processes,
    make one matrix: its memory grows with the square of their number."""
    tokens: Literal["all", "masked", "unmasked"] = "all"
    """Which patches are compared: ``masked`` are those that the student cannot see (``ibot.mask_fraction`` and
    ``ibot.mask_ratio``, also where iBOT has no weight)."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        wrong = []
        given = [
            key
            for key, field in type(self).model_fields.items()
            if key != "weight" and getattr(self, key) != field.default
        ]
        if self.weight == 0 and given:
            wrong.append(
                f"'gram' has weight 0: {', '.join(given)} would have no effect; give it a weight (2 in the paper), or "
                f"leave out {', '.join(given)}"
            )
        if self.teacher == "ema" and self.refresh_every is not None:
            wrong.append(
                "teacher: ema follows the student at every step and is never refreshed; leave out refresh_every, "
                "or write teacher: start"
            )
        if self.refresh_every is None:
            wrong += [
                f"{key} says nothing without refresh_every; add it, or leave out {key}"
                for key in ("first_refresh", "max_refreshes")
                if getattr(self, key) is not None
            ]
        if self.tokens != "all" and self.per_image:
            wrong.append(f"tokens: {self.tokens} compares the patches of all crops; write per_image: false")
        if self.crop_size is not None and min(self.crop_size) < 1:
            wrong.append(f"crop_size {list(self.crop_size)} holds no pixel")
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    @property
    def source(self) -> str | None:
        """Hub name, folder or file of the Gram teacher; None for one of this run's own models, or without the term."""
        return None if self.teacher in ("start", "ema") else self.teacher

    def source_at(self, step: int) -> str | None:
        """As :attr:`source`, for a run that goes on at ``step``: None once the Gram teacher has been refreshed."""
        return None if self.refreshes(step) else self.source

    def weight_at(self, step: int) -> float:
        """The weight at ``step``: 0, then half a cosine wave whose last step has all of ``weight``, then constant."""
        since = step - self.start_step
        if since < 0:
            return 0.0
        if since >= self.ramp_steps:
            return self.weight
        return self.weight * 0.5 * (1.0 - math.cos(math.pi * since / max(self.ramp_steps - 1, 1)))

    @property
    def first_weighted_step(self) -> int:
        """The first step with a weight above 0."""
        return self.start_step + (1 if self.ramp_steps else 0)

    def refreshes(self, steps: int) -> int:
        """How often the Gram teacher was refreshed within the first ``steps`` steps (dinov3.md section 2.6).

        After step ``it`` where it + 1 >= ``first_refresh`` and ``refresh_every`` divides it + 1, while fewer than
        ``max_refreshes`` were made.
        """
        every = self.refresh_every
        if every is None:
            return 0
        first = self.start_step + every if self.first_refresh is None else self.first_refresh
        due = max(steps // every - (first - 1) // every, 0)
        return due if self.max_refreshes is None else min(due, self.max_refreshes)
