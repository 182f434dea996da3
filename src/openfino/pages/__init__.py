"""Pages of one file: what every one of them begins with, and the style that several share."""

from importlib.resources import files
from string import Template


def fill_page(package: str, name: str, **values: object) -> str:
    """The template ``name`` of ``package`` with ``values`` in their places; the page loads nothing.

    A template begins with ``$head`` and has ``$base`` among its styles and, if it wants them, ``$shared`` (charts,
    legends, cards), its own rules behind them.

    Raises:
        KeyError: if the template names a place that has no value.
    """
    shared = {"head": "head.html", "base": "base.css", "shared": "report.css"}
    parts = {place: _read("openfino.pages", file).rstrip() for place, file in shared.items()}
    return Template(_read(package, name)).substitute(parts, **values)


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
