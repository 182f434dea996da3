"""Probes on frozen features."""

from typing import Literal, Self

from pydantic import model_validator

from openfino.recipe.section import Count, Positive, Section


class ProbeSettings(Section):
    """Probes on frozen features, before, during and after training."""

    label: str | None = None
    """Column with the task label; never used by training."""
    split: str | None = None
    """Column that names the split of each row."""
    train: str = "train"
    """Value of ``split`` on whose rows a probe is fitted."""
    val: str | None = None
    """Value of ``split`` that selects the best checkpoint."""
    tests: list[str] = []
    """Values of ``split`` that are scored."""
    group: str | None = None
    """Column for worst-group accuracy."""
    k: Positive = 20
    every: Positive | None = None
    """Probe, and draw ``pictures``, every n steps; only at the start and the end when not given."""
    metric: Literal["accuracy", "macro_f1", "worst_group_accuracy"] = "macro_f1"
    """The metric that selects the best checkpoint."""
    method: Literal["knn", "linear"] = "knn"
    """The probe that selects the best checkpoint."""
    max_rows: Positive | None = None
    """Probe on at most this many rows of each split."""
    erase: list[str] | None = None
    """Factors to erase from the frozen features by LEACE (no training) and measure without, at the start and the end;
    every spurious factor when not given, ``[]`` for none."""
    pictures: Count = 4
    """With each probe, draw what the teacher sees in this many images that do not train (in training images if all
    train): ``pictures/`` and TensorBoard."""

    @model_validator(mode="after")
    def _needs(self) -> Self:
        given = [name for name in ("val", "tests", "group") if getattr(self, name)]
        if given and self.label is None:
            raise ValueError(
                f"{', '.join(map(repr, given))} would have no effect without 'label': name the column of the task "
                "label, or leave them out"
            )
        if (self.val or self.tests) and self.split is None:
            raise ValueError("'val' and 'tests' are values of a split column: name it with 'split'")
        if self.metric == "worst_group_accuracy" and self.group is None:
            raise ValueError("metric worst_group_accuracy needs 'group'")
        return self
