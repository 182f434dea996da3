"""The evaluation transform, stored with every model: whole image, resized, normalised."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor
from torch import from_numpy as tensor_of

from openfino.images.normalize import normalize
from openfino.images.read import ImageReadError, as_unit_float, read_image
from openfino.recipe import Normalization, Section, Size


class Preprocessing(Section):
    """From files to the pixels that a model expects."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    size: Size
    normalization: Normalization
    channels: list[str]
    """Names of the channels, in order."""

    def load(self, paths: Sequence[Path]) -> Tensor:
        """One image as float32 [C, h, w]: read, resized as a whole (bilinear, antialiased), normalised.

        Raises:
            ImageReadError: if the image cannot be read or has another number of channels.
        """
        image = read_image(paths)
        require_channels(image.shape[0], len(self.channels), paths)
        return self.apply(tensor_of(as_unit_float(image)))

    def apply(self, image: Tensor) -> Tensor:
        """The same for an image [C, H, W] with values in [0, 1]."""
        resized = F.interpolate(image[None], self.size, mode="bilinear", antialias=True, align_corners=False)
        return normalize(resized[0], self.normalization)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, values: dict[str, Any] | str) -> "Preprocessing":
        """The inverse of :meth:`to_json`; a JSON string is accepted too."""
        return cls.model_validate(json.loads(values) if isinstance(values, str) else values)


def require_channels(found: int, expected: int, paths: Sequence[Path]) -> None:
    """Refuse an image with another number of channels than the run's.

    Raises:
        ImageReadError: naming both numbers.
    """
    if found != expected:
        raise ImageReadError(paths[0], f"the image has {found} channels, the model expects {expected}")
