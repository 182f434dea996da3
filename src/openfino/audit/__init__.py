"""Which columns? What a table says about itself before anything is trained.

``openfino.audit(manifest, label=..., ...)`` is :func:`openfino.audit.analysis.run_audit`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openfino.audit.analysis import Audit


class _Callable(ModuleType):
    """The room is also the function that one wants from it; nothing heavy is imported before it is called."""

    def __call__(self, manifest: Any, **options: Any) -> "Audit":
        from openfino.audit.analysis import run_audit

        return run_audit(manifest, **options)


sys.modules[__name__].__class__ = _Callable
