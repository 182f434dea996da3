"""Which role helps? Every factor alone as informative and as spurious, against no guidance (FINO, App. A.3).

``openfino.compass(recipe, out=..., ...)`` is :func:`openfino.compass.command.run_compass`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openfino.compass.result import Compass


class _Callable(ModuleType):
    """The room is also the function that one wants from it; nothing heavy is imported before it is called."""

    def __call__(self, recipe: Any, **options: Any) -> "Compass":
        from openfino.compass.command import run_compass

        return run_compass(recipe, **options)


sys.modules[__name__].__class__ = _Callable
