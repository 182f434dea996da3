"""openfino: adapt pretrained vision transformers with the metadata that images already carry."""

from importlib import import_module

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``openfino.audit(...)``, ``probe``, ``compass`` and ``compare``; nothing is imported before it is asked for."""
    if name == "probe":
        return import_module("openfino.evaluation.command").probe_command
    if name in ("audit", "compass", "compare"):
        return import_module(f"openfino.{name}")
    raise AttributeError(f"module 'openfino' has no attribute {name!r}")
