"""What a metadata column means."""

from typing import Literal, Self

from pydantic import model_validator

from openfino.recipe.section import FactorKind, FactorRole, Section, Weight


class FactorSettings(Section):
    """What one metadata column (or group of columns) means."""

    role: FactorRole
    kind: FactorKind | None = None
    """Inferred from the column when not given."""
    columns: list[str] | None = None
    """The columns of a ``vector`` factor; for other kinds one column, by default the factor's own name."""
    period: Literal["hour", "weekday", "month", "day_of_year"] | float | None = None
    """For ``cyclic``: part of a timestamp, or the length of the cycle in the column's units (360 for degrees)."""
    weight: Weight = 0.03
    output: Literal["sigmoid", "tanh", "identity"] | None = None
    """Output of the regressor; tanh for cyclic, sigmoid otherwise. ``identity`` is refused for spurious."""

    @model_validator(mode="after")
    def _bounded_when_spurious(self) -> Self:
        if self.role == "spurious" and self.output == "identity":
            raise ValueError(
                "a spurious factor needs a bounded output: with 'identity' the reversed gradient diverges "
                "(paper section 3); use 'sigmoid' or 'tanh'"
            )
        return self
