"""The backbone to start from."""

from typing import Any, Self

from pydantic import model_validator

from openfino.recipe.section import Section


class ModelSettings(Section):
    """The backbone to start from: a hub name, a folder, or a configuration with random weights."""

    source: str | None = None
    """Hugging Face hub name or a folder (an export, or a run)."""
    config: dict[str, Any] | None = None
    """``DINOv3ViTConfig`` keys for a randomly initialised backbone."""
    allow_partial: bool = False
    """Go on when under 99 % of the parameters of the source matched."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError(
                "give exactly one of 'source' (hub name or folder) and 'config' (random weights)"
            )
        return self
