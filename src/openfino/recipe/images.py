"""How images are read and cut into views."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openfino.recipe.section import Count, Range, Section, Size


class GivenNormalization(Section):
    """Per-channel mean and standard deviation of pixel values in [0, 1]."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


Normalization = Literal["imagenet", "zscore"] | GivenNormalization


class ImageSettings(Section):
    """How a row of the manifest becomes an array of C channels."""

    path_columns: list[str] | None = None
    """Columns that hold image paths, one per channel (or group of channels); inferred when not given."""
    channels: list[str] | None = None
    """Names of the channels; ``channel_0`` ... when not given."""
    normalization: Normalization = "imagenet"
    """``imagenet`` (3 channels), ``zscore`` (per image and channel), or given mean and std.

    When not given: what the starting weights were trained with (ImageNet's for all of DINO, 0.5 for SigLIP).
    """


class ViewSettings(Section):
    """Crops and photometric operations (fino.md section 3 and 4)."""

    preset: Literal["natural", "fluorescence", "overhead"] = "natural"
    global_size: Size = (224, 224)
    local_size: Size = (96, 96)
    local_count: Count = 8
    global_scale: Range = (0.4, 1.0)
    local_scale: Range = (0.05, 0.4)
    aspect: Range = (3 / 4, 4 / 3)
    blur_sigma: Range = (0.1, 2.0)
    """Weakest and strongest blur (not in ``fluorescence``), pixels of the crop; the default is for about 224 pixels."""
    protein_channel: str | None = None
    """For ``fluorescence``: the channel that is never dropped and whose contrast varies."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("global_scale", "local_scale", "aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, not {(low, high)}")
        return self
