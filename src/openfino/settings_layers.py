"""Settings before they are validated: short forms, presets, overrides and paths, laid over one another."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from openfino import tiny
from openfino.errors import OpenfinoError

PRESETS = ("paper", "small", "authors")
# Where a recipe names a model, and the words there that name no file or folder.
MODEL_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("model", "source"): tiny.NAMES,
    ("objective", "gram", "teacher"): ("start", "ema", *tiny.NAMES),
}

Settings = dict[str, Any]


def expand_short_forms(settings: Mapping[str, Any]) -> Settings:
    """``model: NAME`` as ``model: {source: NAME}`` and ``factors: {a: ROLE}`` as ``factors: {a: {role: ROLE}}``."""
    expanded = dict(settings)
    if isinstance(expanded.get("model"), str):
        expanded["model"] = {"source": expanded["model"]}
    factors = expanded.get("factors")
    if isinstance(factors, Mapping):
        expanded["factors"] = {
            name: {"role": factor} if isinstance(factor, str) else factor for name, factor in factors.items()
        }
    return expanded


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """Lay the settings of a recipe ``over`` those of ``base``, key by key at every depth.

    A key of ``over`` wins; keys that only ``base`` has stay, and a list is replaced whole. Short forms are expanded
    first. ``model.source`` and ``model.config`` exclude each other: the one in ``over`` replaces the other one.
    """
    base, over = expand_short_forms(base), expand_short_forms(over)
    old, new = base.get("model"), over.get("model")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for given, other in (("source", "config"), ("config", "source")):
            if new.get(given) is not None and new.get(other) is None:
                base["model"] = {key: value for key, value in old.items() if key != other}
    return _lay_over(base, over)


def _lay_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = _lay_over(old, value)
        else:
            merged[key] = value
    return merged


def load_preset(name: str) -> Settings:
    """The settings of a named preset.

    Raises:
        OpenfinoError: for an unknown name.
    """
    if name not in PRESETS:
        raise OpenfinoError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    text = resources.files("openfino.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text) or {}


def parse_override(text: str) -> Settings:
    """``train.steps=100`` as nested settings; the value is read as YAML.

    Raises:
        OpenfinoError: if there is no ``=``, a key is empty, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise OpenfinoError(f"{text!r} is not of the form key=value, e.g. train.steps=100")
    try:
        settings: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        cause = getattr(error, "problem", None) or error
        raise OpenfinoError(
            f"override {text!r}: the value {value!r} is not valid YAML ({cause}); "
            "lists are written [48, 48], and a text with special characters in quotes"
        ) from None
    for part in reversed(parts):
        settings = {part: settings}
    return settings


def make_paths_absolute(settings: Mapping[str, Any], folder: Path) -> Settings:
    """Settings whose ``manifest``, ``out`` and model folders, relative to ``folder``, no longer depend on it.

    A model is a folder or file if there is one of that name, or if it starts with ``./``, ``../``, ``/`` or ``~``;
    any other text is a hub name and stays as it is, and so does ``tiny`` (:mod:`openfino.tiny`).
    """
    settings = expand_short_forms(settings)
    for key in ("manifest", "out"):
        if isinstance(settings.get(key), str):
            settings[key] = str(_absolute(settings[key], folder))
    for keys, words in MODEL_KEYS.items():
        settings = _with_absolute_model(settings, keys, words, folder)
    return settings


def _with_absolute_model(
    settings: Mapping[str, Any], keys: Sequence[str], words: Sequence[str], folder: Path
) -> Settings:
    """``settings`` with the model at ``keys`` absolute, if there is one and if it is a folder."""
    key, *inner = keys
    value = settings.get(key)
    if inner and isinstance(value, Mapping):
        return {**settings, key: _with_absolute_model(value, inner, words, folder)}
    if inner or not isinstance(value, str) or value in words:
        return dict(settings)
    is_path = value.startswith(("./", "../", "/", "~")) or (folder / value).exists()
    return {**settings, key: str(_absolute(value, folder))} if is_path else dict(settings)


def _absolute(text: str, folder: Path) -> Path:
    """An absolute path; the last part may be a link, whose name and place count and not its target's."""
    path = folder / Path(text).expanduser()
    return path.parent.resolve() / path.name
