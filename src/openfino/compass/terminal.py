"""The compass on a terminal."""

import statistics

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from openfino.compass.plan import CONTROL, ROLES
from openfino.compass.result import RULE, START, Compass
from openfino.compass.validation import WORDS, Part
from openfino.compass.verdict import Change

QUADRANT_STYLES = {
    "always beneficial": "green",
    "informative only": "cyan",
    "spurious only": "magenta",
    "always harmful": "red",
    "within noise": "dim",
}


def print_compass(compass: Compass, console: Console) -> None:
    """The table of factors, the rule behind it, and the recommendation last."""
    metric, method = compass.measure
    console.print(
        f"Change of {metric} ({method} probe) of {compass.label} against no guidance, mean +- deviation over "
        f"{len(compass.seeds)} seeds",
        highlight=False,
        markup=False,
    )
    for part in compass.validation.parts:
        console.print(_table(compass, part))
    console.print(Text(f"Chosen {WORDS[compass.deciding]}, on {compass.validation.how}.", "dim"))
    console.print(Text(RULE, "dim"))
    for warning in warnings_of(compass):
        console.print(Text(f"! {warning}", "yellow"))
    console.print(Text("\nRecommended", "bold"))
    for sentence in sentences(compass):
        console.print(Text(f"  {sentence}"))


def sentences(compass: Compass) -> list[str]:
    """The recommendation, and by how much it beat the control where it was not chosen."""
    chosen = compass.recommendation
    said = [chosen.why]
    base = compass.scores[CONTROL.name]
    metric = compass.measure[0]
    for split, change in chosen.tests.items():
        own, control = (
            statistics.fmean(compass.scores[arm][split]) for arm in (chosen.arm.name, CONTROL.name)
        )
        verb = {"helps": "beats", "hurts": "does worse than", "within noise": "is level with"}[change.effect]
        said.append(
            f"On {split}, which it was not chosen on, it {verb} the control: {metric} {own:.3f} against "
            f"{control:.3f}, {change.mean:+.3f} (noise {change.noise:.3f})."
        )
    if chosen.arm == CONTROL and compass.validation.tests:
        shown = ", ".join(
            f"{statistics.fmean(base[split]):.3f} on {split}" for split in compass.validation.tests
        )
        said.append(f"The control has {metric} {shown}.")
    return said


def warnings_of(compass: Compass) -> list[str]:
    """What weakens the result, then what the columns' dependence says against a role."""
    return [
        *compass.warnings,
        *(warning for factor in compass.factors.values() for warning in factor.warnings),
    ]


def shown(change: Change) -> str:
    """``+0.031 +- 0.012``: mean and standard deviation over the seeds."""
    return f"{change.mean:+.3f} +- {change.deviation:.3f}"


def _table(compass: Compass, part: Part) -> RichTable:
    decides = " (decides)" if part == compass.deciding else ""
    table = RichTable(title=f"{WORDS[part]}{decides}", title_justify="left")
    table.add_column("factor")
    for role in ROLES:
        table.add_column(f"as {role}", justify="right")
    table.add_column("quadrant")
    for name, factor in compass.factors.items():
        quadrant = factor.quadrant(part)
        cells = [_cell(factor.changes[role][part]) for role in ROLES]
        table.add_row(Text(name), *cells, Text(quadrant, QUADRANT_STYLES[quadrant]))
    noise = compass.spreads[part].noise(compass.comparisons)
    table.caption = (
        f"control {compass.level(CONTROL.name, part):.3f}, before training {compass.level(START, part):.3f}; "
        f"within noise: up to {noise:.3f}; {compass.validation.rows[part]} images"
    )
    return table


def _cell(change: Change) -> Text:
    return Text(shown(change), {"helps": "green", "hurts": "red", "within noise": "dim"}[change.effect])
