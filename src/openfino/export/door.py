"""What every format of an export is, and what all of them share."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from openfino.errors import OpenfinoError
from openfino.models.backbone import Tokens
from openfino.models.store import LoadedModel

Opened = Callable[[Tensor], Tokens]


@dataclass(frozen=True)
class Written:
    """What :meth:`Door.write` has to say.

    Attributes:
        notes: what the format cannot hold, or what was chosen; for the report and the card.
        any_size: whether the written model takes images of any size (of whole patches), or that of the preprocessing
            alone.
    """

    notes: list[str] = field(default_factory=list)
    any_size: bool = True


class Door(ABC):
    """One format: how it is written, opened again and used.

    Attributes:
        name: as ``--to`` takes it.
        library: what opens it, as the hub calls it.
        opened_with: by what it is opened again for the comparison.
        tolerance: largest difference of a feature, in units of the features' root mean square.
        normalizes: whether the written model normalises the pixels itself.
        packages: what must be installed beyond our own dependencies, by the extra of the same name.
    """

    name: str
    library: str
    opened_with: str
    tolerance = 1e-4
    normalizes = False
    packages: tuple[str, ...] = ()

    def require(self) -> None:
        """Refuse before anything is loaded.

        Raises:
            OpenfinoError: if a package is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise OpenfinoError(
                f"the export to {self.name} needs {', '.join(missing)}. Install with: "
                f"pip install 'openfino[{self.name}]'"
            )

    def problems(self, model: LoadedModel) -> list[str]:
        """Why this format cannot hold a model."""
        return []

    @abstractmethod
    def write(self, model: LoadedModel, folder: Path) -> Written:
        """Write the model's files into ``folder`` (it exists and is empty)."""

    @abstractmethod
    def open(self, model: LoadedModel, folder: Path) -> Opened:
        """What the written files compute: from images [B, C, H, W] with values in [0, 1] to tokens.

        Args:
            model: what was written, for its preprocessing; no weight of it may be used.
            folder: where :meth:`write` wrote it.

        Raises:
            OpenfinoError: if the files do not open as they were written.
        """

    @abstractmethod
    def usage(self, model: LoadedModel, written: Written) -> str:
        """Markdown for the card: how to use it, with ``FOLDER`` for where it lies."""


def uncovered(model: LoadedModel) -> list[str]:
    """Whether the model's preprocessing gives images that are not cut into whole patches."""
    height, width = model.preprocessing.size
    patch = model.backbone.patch_size
    if height % patch == 0 and width % patch == 0:
        return []
    return [
        f"its preprocessing gives images of {height} x {width}, which patches of {patch} x {patch} do not cover (set "
        "preprocessing.size in its openfino.json to multiples)"
    ]
