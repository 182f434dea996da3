"""openfino: adapt pretrained vision transformers with the metadata that images already carry."""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``openfino.audit(...)`` without importing anything before it is asked for."""
    if name == "audit":
        return import_module("openfino.audit")
    raise AttributeError(f"module 'openfino' has no attribute {name!r}")
