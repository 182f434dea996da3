"""Did it help? Every arm beside every other: same start, splits, head, grid and choice (FINO, section 4).

``openfino.compare(recipe, label=..., out=..., ...)`` is :func:`openfino.compare.command.run_compare`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openfino.compare.command import Compared


class _Callable(ModuleType):
    """The room is also the function that one wants from it; nothing heavy is imported before it is called."""

    def __call__(self, recipe: Any, **options: Any) -> "Compared":
        from openfino.compare.command import run_compare

        return run_compare(recipe, **options)


sys.modules[__name__].__class__ = _Callable
