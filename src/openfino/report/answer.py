"""The demo's result in words and as a table: does guidance help on plates that training never saw?"""

import math
from collections.abc import Mapping
from html import escape
from typing import Any, Literal

import numpy as np

from openfino.evaluation.metrics import macro_f1
from openfino.evaluation.splits import encode_column
from openfino.manifest import Manifest
from openfino.recipe import Recipe
from openfino.report.curves import ARM_NAMES, METHOD_NAMES

SPLITS = ("test_ood", "test_id")
Verdict = Literal["above", "below", "level with"]
Arms = Mapping[str, Mapping[str, Any]]


def noise(first: float, second: float, images: int) -> float:
    """Two standard errors of the difference of two scores on ``images`` images, taken as accuracies.

    A yardstick, not a test: macro-F1 weighs rare classes more, and images of one plate resemble each other.
    """
    return 2.0 * math.sqrt((first * (1 - first) + second * (1 - second)) / max(images, 1))


def compare(first: float, second: float, images: int) -> Verdict:
    """Whether ``first`` lies above or below ``second`` by more than :func:`noise`."""
    if abs(first - second) <= noise(first, second, images):
        return "level with"
    return "above" if first > second else "below"


def headline(arms: Arms, recipe: Recipe, images: int, plates: int) -> str:
    """One sentence: the answer and the kNN scores on test_ood behind it."""
    frozen, ssl, fino = (_score(arms, arm, "test_ood", "knn") for arm in ("frozen", "ssl", "fino"))
    verdict = compare(fino, ssl, images)
    guides = " and ".join(name for name, factor in recipe.factors.items() if factor.role != "watched")
    opening = {
        "above": "Yes, guidance helped in this run",
        "below": "No, guidance hurt in this run",
        "level with": "Guidance made no clear difference in this run",
    }[verdict]
    return (
        f"<strong>{opening}</strong>: on {plates} plates that training never saw, kNN macro-F1 of the localisation "
        f"pattern is {_value(frozen)} with the frozen start, {_value(ssl)} after plain self-supervision (SSL) and "
        f"{_value(fino)} after guidance by {escape(guides)} (FINO)."
    )


def details(arms: Arms, images: int) -> str:
    """What the headline leaves out: the linear probe, SSL against the start, and how far to trust it."""
    linear = {arm: _score(arms, arm, "test_ood", "linear") for arm in arms}
    knn = {arm: _score(arms, arm, "test_ood", "knn") for arm in arms}
    verdicts = [compare(scores["fino"], scores["ssl"], images) for scores in (knn, linear)]
    agree = "agrees" if verdicts[0] == verdicts[1] else "does not agree"
    sentences = [
        f"The linear probe {agree}: {_value(linear['frozen'])}, {_value(linear['ssl'])}, {_value(linear['fino'])} "
        f"(FINO {verdicts[1]} SSL).",
        f"By kNN, plain SSL is {compare(knn['ssl'], knn['frozen'], images)} the frozen start, and FINO is "
        f"{compare(knn['fino'], knn['frozen'], images)} it.",
        f"This is one run with one seed on {images} test images: differences under about "
        f"{noise(knn['fino'], knn['ssl'], images):.2f} can be chance.",
    ]
    return " ".join(sentences)


def score_table(arms: Arms, manifest: Manifest, recipe: Recipe) -> str:
    """The arms: macro-F1 by split and probe, what can be read from the features, and trivial baselines."""
    factors = list(arms["frozen"]["leakage"])
    groups = "".join(f"<th colspan='2' scope='colgroup'>macro-F1, {split}" for split in SPLITS)
    probes = "".join(
        f"<th class='number' scope='col'>{name}" for _ in SPLITS for name in METHOD_NAMES.values()
    )
    read = "".join(f"<th class='number' scope='col'>{escape(name)}" for name in factors)
    read_group = f"<th colspan='{len(factors)}' scope='colgroup'>read by kNN, accuracy" if factors else ""
    rows = []
    for arm, scores in arms.items():
        cells = [
            _cell(_score(arms, arm, split, method), arm, f"{split}/{method}", _best(arms, split, method))
            for split in SPLITS
            for method in METHOD_NAMES
        ]
        cells += [
            _cell(scores["leakage"].get(name, {}).get("knn_accuracy"), arm, f"leakage/{name}", None)
            for name in factors
        ]
        rows.append(f"<tr class='{escape(arm)}'><th scope='row'>{ARM_NAMES[arm]}{''.join(cells)}</tr>\n")
    trivial = [commonest_answer(manifest, recipe, split) for split in SPLITS for _ in METHOD_NAMES]
    trivial += [arms["frozen"]["leakage"][name].get("majority") for name in factors]
    cells = [_cell(value, "baseline", "", None) for value in trivial]
    rows.append(f"<tr class='baseline'><th scope='row'>always the commonest answer{''.join(cells)}</tr>\n")
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Scores of the three arms'>"
        f"<table class='scores'><thead><tr><th rowspan='2' scope='col'>arm{groups}{read_group}</tr>"
        f"<tr>{probes}{read}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def reading_list(arms: Arms, recipe: Recipe) -> str:
    """How well each factor can still be read, and whether guidance was asked to change that."""
    asked = {
        "informative": "guidance was asked to keep it",
        "spurious": "guidance was asked to erase it",
        "watched": "guidance was not asked to change that",
    }
    items = []
    for name, first in arms["frozen"]["leakage"].items():
        values = {arm: scores["leakage"].get(name, {}).get("knn_accuracy") for arm, scores in arms.items()}
        if None in values.values() or name not in recipe.factors:
            continue
        shown = ", ".join(f"{_value(value)} ({ARM_NAMES[arm]})" for arm, value in values.items())
        items.append(
            f"<li>The nearest neighbours of a training image tell its <b>{escape(name)}</b> with accuracy {shown}; "
            f"always answering the commonest gives {_value(first['majority'])}, guessing {_value(first['chance'])}; "
            f"{asked[recipe.factors[name].role]}.</li>"
        )
    return "".join(items)


def commonest_answer(manifest: Manifest, recipe: Recipe, split: str) -> float | None:
    """Macro-F1 on ``split`` of always answering the commonest label of the train rows; None without rows."""
    codes = encode_column(manifest.table[recipe.probe.label or "localization"])
    train, tested = (
        codes[manifest.rows_where(recipe.probe.split or "split", [name])]
        for name in (recipe.probe.train, split)
    )
    train, tested = train[train >= 0], tested[tested >= 0]
    if len(train) == 0 or len(tested) == 0:
        return None
    return macro_f1(tested, np.full_like(tested, np.bincount(train).argmax()))


def _score(arms: Arms, arm: str, split: str, method: str) -> float:
    return float(arms[arm][split][method]["macro_f1"])


def _best(arms: Arms, split: str, method: str) -> float:
    return max(_score(arms, arm, split, method) for arm in arms)


def _value(value: float) -> str:
    """Three decimals, with the exact number in the markup."""
    return f"<data value='{value!r}'>{value:.3f}</data>"


def _cell(value: float | None, arm: str, column: str, best: float | None) -> str:
    if value is None:
        return "<td class='number'>-"
    shown = _value(float(value))
    shown = f"<b>{shown}</b>" if best is not None and value == best else shown
    place = f" data-arm='{escape(arm)}' data-column='{escape(column)}'" if column else ""
    return f"<td class='number'{place}>{shown}<span class='bar' style='width:{100 * value:.1f}%'></span>"
