"""Which column of the demo's table plays which role, and what in the table justifies it."""

from collections.abc import Mapping
from html import escape

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.evaluation.splits import encode_column
from openfino.manifest import Manifest
from openfino.recipe import FactorSettings, Recipe

_ARGUED = ("antibody", "plate")
_REASONS = {
    "antibody": "Known from the screen's plan, and the pattern depends on it: keeping it keeps the biology.",
    "plate": "A batch effect, but entangled with the antibody: erasing it would erase part of the antibody.",
    "cell_line": "Every plate carries one cell line: the plate determines it.",
    "well": "One antibody in each well of a plate: the antibody again.",
    "acquired": "Plates are taken on different days: the date is the plate again.",
    "operator": "Drawn for each image at random: it holds nothing about the image.",
}


def uncertainty_removed(target: pl.Series, given: pl.Series) -> float:
    """U(target | given) = 1 - H(target | given) / H(target) over the rows where both are known.

    1 when ``given`` determines ``target``, 0 when it says nothing about it or ``target`` has one value (the
    coefficient of FINO's App. A.3).
    """
    targets, givens = encode_column(target), encode_column(given)
    known = (targets >= 0) & (givens >= 0)
    pairs = np.stack([targets[known], givens[known]], axis=1)
    alone = _entropy(pairs[:, :1])
    return 1.0 - (_entropy(pairs) - _entropy(pairs[:, 1:])) / alone if alone > 0 else 0.0


def role_section(manifest: Manifest, recipes: Mapping[str, Recipe]) -> str:
    """The reasons with the numbers behind them, and a table of all columns.

    Args:
        manifest: of the demo.
        recipes: of the two trained arms, ``ssl`` and ``fino``.
    """
    reasons = "".join(f"<li>{reason}</li>" for reason in _evidence(manifest, recipes["fino"]))
    rows = "".join(_row(manifest, name, recipes) for name in manifest.table.columns)
    head = (
        "<tr><th>column<th class='number'>values<th class='number'>missing<th>SSL arm<th>FINO arm<th>why</tr>"
    )
    return (
        f"<ul>{reasons}</ul>\n"
        "<p><b>Informative</b>: guidance keeps it in the features. <b>Spurious</b>: guidance erases it. "
        "<b>Watched</b>: only measured. Missing values are masked: such an image still trains every other "
        "term.</p>\n"
        "<div class='scroll' tabindex='0' role='region' aria-label='Columns and roles'>"
        f"<table class='columns'><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
    )


def _evidence(manifest: Manifest, recipe: Recipe) -> list[str]:
    """What the train rows say about antibody, plate and pattern, as sentences in HTML."""
    table = manifest.table[manifest.rows_where("split", [recipe.probe.train])]
    label = recipe.probe.label or "localization"
    plates = table.drop_nulls(["plate", "antibody"]).group_by("plate").agg(pl.col("antibody").n_unique())
    antibodies = table.drop_nulls(["plate", "antibody"]).group_by("antibody").agg(pl.col("plate").n_unique())

    def share(target: str, given: str) -> str:
        value = uncertainty_removed(table[target], table[given])
        return f"U({escape(target)} | {escape(given)}) = {value:.2f}"

    roles = {name: recipe.factors[name].role if name in recipe.factors else "not used" for name in _ARGUED}
    return [
        f"<b>antibody: {roles['antibody']}.</b> The pattern depends on it: an antibody stains one protein, and the "
        f"protein has its place in the cell ({share(label, 'antibody')}). It is known without anyone looking at an "
        "image.",
        f"<b>plate: {roles['plate']}.</b> It is a batch effect (gain, background, blur, noise) that one would like to "
        f"erase. But each training plate carries one cell line ({share('cell_line', 'plate')}) and its own panel of "
        f"{_range(plates['antibody'])} antibodies ({share('antibody', 'plate')}), and each antibody is on "
        f"{_range(antibodies['plate'])} of the {len(plates)} plates: erasing the plate would erase part of the "
        "antibody. So it is safer to measure it than to erase it.",
        "U(Y | X) is the share of the uncertainty about Y that knowing X removes, from 0 to 1; measured on the "
        "training rows.",
    ]


def _row(manifest: Manifest, name: str, recipes: Mapping[str, Recipe]) -> str:
    column = manifest.table[name]
    missing = column.null_count() / max(len(column), 1)
    uses = [_use(name, manifest, recipe) for recipe in recipes.values()]
    cells = "".join(f"<td>{escape(use)}" for use in uses)
    return (
        f"<tr><th scope='row'><code>{escape(name)}</code><td class='number'>{column.drop_nulls().n_unique()}"
        f"<td class='number'>{missing:.0%}{cells}<td>{escape(_reason(name, manifest, recipes))}</tr>\n"
    )


def _use(name: str, manifest: Manifest, recipe: Recipe) -> str:
    factor = recipe.factors.get(name)
    if factor is not None:
        return _described(factor)
    if name in manifest.path_columns:
        return "image"
    uses = {recipe.probe.label: "label of the probes", recipe.probe.split: "split"}
    return uses.get(name, "not used")


def _described(factor: FactorSettings) -> str:
    return factor.role if factor.role == "watched" else f"{factor.role}, weight {factor.weight:g}"


def _reason(name: str, manifest: Manifest, recipes: Mapping[str, Recipe]) -> str:
    probe = recipes["fino"].probe
    if name == probe.label:
        return "What the probes ask for. Training never sees it."
    if name == probe.split:
        return "Training, and fitting of probes, on train alone; test_ood holds plates of its own."
    return "" if name in manifest.path_columns else _REASONS.get(name, "")


def _range(counts: pl.Series) -> str:
    numbers = counts.to_list() or [0]
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _entropy(codes: NDArray[np.int64]) -> float:
    """Entropy in nats of the rows of ``codes`` [n, m]."""
    if len(codes) == 0:
        return 0.0
    _, counts = np.unique(codes, axis=0, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
