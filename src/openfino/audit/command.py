"""What the command line asks for, in the terms of :func:`openfino.audit.analysis.run_audit`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from openfino.audit.analysis import Audit
from openfino.audit.describe import DeclaredKinds
from openfino.audit.page import page_html
from openfino.audit.recipes import recipe_text
from openfino.errors import InputProblemsError, OpenfinoError, Problem
from openfino.factors.numbers import Period
from openfino.factors.timestamps import NAMED_PERIODS
from openfino.recipe import FactorKind


def parse_kinds(texts: Sequence[str]) -> DeclaredKinds:
    """``dose=continuous``, ``acquired=cyclic:hour``, ``angle=cyclic:360``.

    Raises:
        InputProblemsError: if one is not understood.
    """
    known: dict[str, FactorKind] = {kind: kind for kind in get_args(FactorKind) if kind != "vector"}
    kinds: dict[str, tuple[FactorKind, Period | None]] = {}
    problems = []
    for text in texts:
        column, _, kind = text.rpartition("=")
        kind, _, period = kind.partition(":")
        length = _period(period)
        if not column or kind not in known or (kind == "cyclic") != (length is not None):
            what = f"{text!r} is not COLUMN=KIND"
            remedy = (
                f"Kinds: {', '.join(known)}; cyclic with its period: angle=cyclic:360, acquired=cyclic:hour"
            )
            problems.append(Problem("--kind", what, remedy))
        else:
            kinds[column] = (known[kind], length)
    if problems:
        raise InputProblemsError(problems)
    return kinds


def _period(text: str) -> str | float | None:
    if text in NAMED_PERIODS:
        return text
    try:
        length = float(text)
    except ValueError:
        return None
    return length if 0 < length < float("inf") else None


def parse_given(texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """``antibody|plate,cell_line`` -> (plate, cell_line, antibody): X, Z, Y of U(Y|X,Z).

    Raises:
        InputProblemsError: if one is not understood.
    """
    triples, problems = [], []
    for text in texts:
        of, _, given = text.partition("|")
        names = [name.strip() for name in given.split(",")]
        if not of.strip() or len(names) != 2 or not all(names) or len({of.strip(), *names}) != 3:
            remedy = "Write antibody|plate,cell_line for U(antibody | plate, cell_line)"
            problems.append(Problem("--given", f"{text!r} is not Y|X,Z", remedy))
        else:
            triples.append((names[0], names[1], of.strip()))
    if problems:
        raise InputProblemsError(problems)
    return triples


def check_outputs(recipe: Path | None, page: Path | None, *, overwrite: bool) -> None:
    """Refuse, before anything is read, to write over files.

    Raises:
        OpenfinoError: if one exists and may not be replaced.
    """
    for path in (recipe, page):
        if path is not None and path.exists() and (path.is_dir() or not overwrite):
            raise OpenfinoError(f"{path} exists already; write --overwrite to replace it, or another name")


def write_outputs(audit: Audit, manifest: Path, *, recipe: Path | None, page: Path | None) -> list[Path]:
    """Write the recipe and the page that were asked for; returns their paths.

    Raises:
        OpenfinoError: if one cannot be written.
    """
    written = []
    for path, text in (
        (recipe, recipe and recipe_text(audit, relative(manifest, recipe.parent))),
        (page, page and page_html(audit)),
    ):
        if path is None or text is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(text), encoding="utf-8")
        except OSError as error:
            raise OpenfinoError(f"{path} cannot be written: {error.strerror}") from None
        written.append(path)
    return written


def relative(manifest: Path, folder: Path) -> str:
    """``manifest`` as a recipe in ``folder`` must name it."""
    return Path(os.path.relpath(manifest, folder)).as_posix()
