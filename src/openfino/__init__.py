"""openfino: adapt pretrained vision transformers with the metadata that images already carry."""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``openfino.audit(...)``, ``compass`` and ``compare`` without importing anything before they are asked for."""
    if name in ("audit", "compass", "compare"):
        return import_module(f"openfino.{name}")
    raise AttributeError(f"module 'openfino' has no attribute {name!r}")
