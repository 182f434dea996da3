"""What every section of a recipe stands on: the types of its values, and no unknown key."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_size(value: Any) -> Any:
    """``224`` means ``(224, 224)``."""
    return (value, value) if isinstance(value, int) else value


Size = Annotated[tuple[int, int], BeforeValidator(_as_size), Field(description="height, width in pixels")]


def _as_pair(value: Any) -> Any:
    """``0.04`` means ``(0.04, 0.04)``."""
    return (value, value) if isinstance(value, int | float) else value


Range = tuple[float, float]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
FromTo = Annotated[
    tuple[Weight, Weight], BeforeValidator(_as_pair), Field(description="a number, or from, to")
]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
FactorKind = Literal["discrete", "continuous", "cyclic", "vector"]
FactorRole = Literal["informative", "spurious", "watched"]


class Section(BaseModel):
    """A part of the recipe: frozen, and no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
