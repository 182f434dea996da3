"""What a DINOv3 checkpoint may have beyond the configuration of transformers."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

CONFIG_KEY = "openfino"

Coordinates = Literal["separate", "min", "max"]
RopeDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Variants:
    """Traits of a DINOv3 ViT for which ``DINOv3ViTConfig`` has no key (dinov3.md 1.2 and 1.3).

    They are kept in ``config.json`` under ``openfino``; a model of the released kind has no such key.

    Attributes:
        rope_coords: by what the rows and columns of a grid of H x W patches are divided: each by its own number, both
            by the smaller, or both by the larger one.
        rope_dtype: of coordinates, angles, tables and the rotation itself.
        rope_periods: (shortest, longest) period where they are not given by ``rope_theta``.
        norm: of the blocks and the last one.
        cls_norm: whether CLS and registers have a last norm of their own.
        local_cls_norm: whether CLS and registers of local crops have one in training.
    """

    rope_coords: Coordinates = "separate"
    rope_dtype: RopeDtype = "float32"
    rope_periods: tuple[float, float] | None = None
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    cls_norm: bool = False
    local_cls_norm: bool = False

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Variants":
        """The variants that ``config`` carries; those of the released models where it says nothing."""
        stored = dict(getattr(config, CONFIG_KEY, None) or {})
        if stored.get("rope_periods") is not None:
            low, high = stored["rope_periods"]
            stored["rope_periods"] = (float(low), float(high))
        return cls(**stored)

    def to_json(self) -> dict[str, Any]:
        """What differs from the released models, as plain JSON values."""
        plain = Variants()
        stored = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(plain, field.name)
        }
        if self.rope_periods is not None:
            stored["rope_periods"] = list(self.rope_periods)
        return stored

    def as_config(self) -> dict[str, Any]:
        """Keywords for ``DINOv3ViTConfig``; empty for the released kind."""
        stored = self.to_json()
        return {CONFIG_KEY: stored} if stored else {}

    def store(self, config: PreTrainedConfig) -> None:
        """Write them into ``config``."""
        stored = self.to_json()
        if stored:
            setattr(config, CONFIG_KEY, stored)
        elif hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)
