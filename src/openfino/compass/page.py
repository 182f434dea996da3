"""The compass as one self-contained page: recommendation, plot, table, what every seed scored, the rule."""

import statistics
from html import escape

import openfino
from openfino.compass.plan import CONTROL, ROLES
from openfino.compass.plot import colour_of, plot_svg
from openfino.compass.result import RULE, START, Compass, FactorResult
from openfino.compass.terminal import sentences, warnings_of
from openfino.compass.validation import WORDS, Part
from openfino.compass.verdict import Change, Quadrant
from openfino.pages import fill_page

_CLASSES: dict[Quadrant, str] = {
    "always beneficial": "good",
    "informative only": "keep",
    "spurious only": "drop",
    "always harmful": "bad",
    "within noise": "noise",
}


def page_html(compass: Compass, recipe: str) -> str:
    """The page as text; it loads nothing.

    Args:
        compass: what was found.
        recipe: the recommended recipe as text.
    """
    metric, method = compass.measure
    lead, *rest = sentences(compass)
    return fill_page(
        "openfino.compass",
        "page.html",
        title=escape(compass.recipe),
        lead=escape(lead),
        rest="".join(f"<p>{escape(text)}</p>" for text in rest),
        warnings="".join(f"<p class='warning'>{escape(text)}</p>" for text in warnings_of(compass)),
        plot=plot_svg(compass),
        tables="".join(_table(compass, part) for part in compass.validation.parts),
        rule=escape(RULE),
        measured=(
            f"{escape(metric)} of <b>{escape(compass.label)}</b> by the {escape(method)} probe on frozen features, "
            f"after {compass.steps:,} steps, seeds {', '.join(map(str, compass.seeds))}. Validation: "
            f"{escape(compass.validation.how)}."
        ),
        runs=_runs(compass),
        recipe=escape(recipe),
        version=openfino.__version__,
    )


def _table(compass: Compass, part: Part) -> str:
    roles = "".join(f"<th scope='col' class='number'>as {role}</th>" for role in ROLES)
    head = f"<th scope='col'>factor</th>{roles}<th scope='col'>quadrant</th>"
    rows = "".join(
        _row(number, name, factor, part) for number, (name, factor) in enumerate(compass.factors.items())
    )
    noise = compass.spreads[part].noise(compass.comparisons)
    decides = " (decides)" if part == compass.deciding else ""
    return (
        f"<h3>{WORDS[part].capitalize()}{decides}</h3><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div><p class='small'>Control {compass.level(CONTROL.name, part):.3f}, "
        f"before training {compass.level(START, part):.3f}. Within noise: up to {noise:.3f}. "
        f"{compass.validation.rows[part]:,} images.</p>"
    )


def _row(number: int, name: str, factor: FactorResult, part: Part) -> str:
    quadrant = factor.quadrant(part)
    cells = "".join(_cell(factor.changes[role][part]) for role in ROLES)
    mark = f"<svg class='mark' viewBox='0 0 10 10'><circle class='{colour_of(number)}' cx='5' cy='5' r='4.5'/></svg>"
    return (
        f"<tr><th scope='row' class='factor'>{mark}{escape(name)}</th>{cells}"
        f"<td><span class='quadrant {_CLASSES[quadrant]}'>{quadrant}</span></td></tr>\n"
    )


def _cell(change: Change) -> str:
    style = {"helps": "helps", "hurts": "hurts", "within noise": "level"}[change.effect]
    text = f"{change.mean:+.3f}<small>&plusmn; {change.deviation:.3f}</small>".replace("-", "&minus;")
    return f"<td class='number {style}'>{text}</td>"


def _runs(compass: Compass) -> str:
    """Every score of every arm and seed."""
    splits = [*compass.validation.parts.values(), *compass.validation.tests]
    names = {split: WORDS[part] for part, split in compass.validation.parts.items()}
    head = "<th scope='col'>arm</th>" + "".join(
        f"<th scope='col' class='number'>{escape(names.get(split, split))}</th>" for split in splits
    )
    rows = []
    for arm, scores in compass.scores.items():
        cells = "".join(
            f"<td class='number'>{statistics.fmean(scores[split]):.3f}"
            f"<small>{' '.join(f'{value:.3f}' for value in scores[split])}</small></td>"
            for split in splits
        )
        rows.append(f"<tr><th scope='row'>{escape(arm)}</th>{cells}</tr>\n")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
