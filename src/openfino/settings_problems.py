"""What pydantic says about a recipe, in the user's terms: one problem for each key."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from openfino.errors import Problem

Location = tuple[str | int, ...]

# How the kinds of a value that may be several things are called.
ALTERNATIVES = {
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
}


def problems_of(error: ValidationError, root: type[BaseModel], settings: Mapping[str, Any]) -> list[Problem]:
    """One problem for each wrong key of ``settings``, which were refused as a ``root``."""
    found: dict[Location, list[Any]] = {}
    for detail in error.errors():
        found.setdefault(_key_of(detail, settings), []).append(detail)
    # A mapping in the place of a word or a mapping: what is wrong within it says all.
    outer = {key for key in found if any(other[: len(key)] == key and other != key for other in found)}
    return [_problem(key, details, root) for key, details in found.items() if key not in outer]


def _key_of(detail: Any, settings: Any) -> Location:
    """The key that an error is about: its location without the names of alternatives and validators."""
    key: list[str | int] = []
    node = settings
    for part in detail["loc"]:
        in_mapping = isinstance(node, Mapping) and part in node
        in_list = isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int)
        if in_mapping or (in_list and part < len(node)):
            node = node[part]
            key.append(part)
        elif detail["type"] == "missing" and isinstance(node, Mapping) and part == detail["loc"][-1]:
            key.append(part)
    return tuple(key)


def _problem(key: Location, details: Sequence[Any], root: type[BaseModel]) -> Problem:
    where = ".".join(map(str, key)) or "recipe"
    detail = details[0]
    kinds = {each["type"] for each in details}
    message = detail["msg"].removeprefix("Value error, ")
    if kinds == {"extra_forbidden"}:
        known = _keys_of(root, key[:-1])
        return Problem(
            where, "unknown key", _did_you_mean(key[-1], known) or f"Known keys: {', '.join(known)}"
        )
    if kinds == {"missing"} and isinstance(detail["input"], Mapping):
        return Problem(where, "required key is absent", "Add it to the recipe")
    if kinds == {"missing"}:
        return Problem(where, f"{detail['input']!r} has too few values", "Give one for each place")
    if kinds == {"value_error"}:
        return Problem(where, message, "")
    what = f"{detail['input']!r} is not accepted"
    if kinds & {"literal_error", "model_type"}:
        return Problem(where, what, _accepted(key, details, root))
    return Problem(where, what, message)


def _accepted(key: Location, details: Sequence[Any], root: type[BaseModel]) -> str:
    """The accepted words of a key and what else it may be, the likely one first."""
    words: list[str] = []
    others: list[str] = []
    for detail in details:
        if detail["type"] == "literal_error":
            words += re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        elif detail["type"] == "model_type":
            others.append(f"a mapping with {', '.join(_keys_of(root, key))}")
        else:
            others.append(ALTERNATIVES.get(detail["type"], detail["msg"]))
    guess = _did_you_mean(details[0]["input"], words)
    accepted = f"Accepted: {', '.join([*map(repr, words), *others])}"
    return f"{guess} {accepted}" if guess else accepted


def _did_you_mean(given: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(given), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else ""


def _keys_of(root: type[BaseModel], key: Location) -> list[str]:
    """The keys that the section at ``key`` knows."""
    section = root
    inside = False  # within a mapping of sections, whose own keys are the user's
    for part in key:
        if inside:
            inside = False
            continue
        annotation = section.model_fields[str(part)].annotation
        inside = getattr(annotation, "__origin__", None) is dict
        section = next(filter(_is_section, _types_in(annotation)))
    return list(section.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _types_in(annotation: Any) -> list[Any]:
    """The annotation and everything that it is made of."""
    return [annotation, *(inner for each in get_args(annotation) for inner in _types_in(each))]
