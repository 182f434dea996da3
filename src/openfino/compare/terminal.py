"""The comparison on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"reference": "dim", "ssl": "cyan", "guided": "green", "supervised": "yellow", "post hoc": "magenta"}


def print_compared(result: Mapping[str, Any], console: Console) -> None:
    """The answer first, then the table with intervals and costs, then what did not run."""
    console.print(Text(result["answer"]["headline"], "bold"))
    for sentence in result["answer"]["details"]:
        console.print(Text(f"  {sentence}"))
    console.print(_table(result))
    for arm, reason in result["not_run"].items():
        if reason != "not asked for":
            console.print(Text(f"not run: {result['titles'][arm]}: {reason}", "dim"))


def _table(result: Mapping[str, Any]) -> Table:
    metric, tests = result["metric"], [split for split in result["splits"] if split not in ("train", "val")]
    seeds = len(result["seeds"])
    table = Table(
        title=f"{metric} of {result['label']} ({result['headline_probe']} head, {seeds} seed{'s' * (seeds > 1)})",
        title_justify="left",
    )
    table.add_column("arm")
    for split in tests:
        table.add_column(split, justify="right")
        table.add_column("- frozen", justify="right")
    for name in ("images", "seconds", "trials"):
        table.add_column(name, justify="right")
    for arm, splits in result["arms"].items():
        cells = []
        for split in tests:
            value = splits.get(split, {}).get(metric)
            cells.append(
                "" if value is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            )
            cells.append(_difference(result, arm, split))
        cost = result["cost"][arm]
        spent = [f"{cost['images']:,}", f"{cost['seconds']:.0f}", str(cost["trials"])]
        table.add_row(Text(result["titles"][arm], STYLES[result["kinds"][arm]]), *map(Text, cells), *spent)
    table.caption = (
        "95 % intervals over images and seeds; * beyond noise; costs: training of one seed, all trials"
    )
    return table


def _difference(result: Mapping[str, Any], arm: str, split: str) -> str:
    wanted = {"arm": arm, "than": "frozen", "split": split, "metric": result["metric"]}
    for entry in result["differences"]:
        if all(entry[key] == value for key, value in wanted.items()):
            return f"{entry['difference']:+.3f}{'*' if entry['beyond_noise'] else ' '}"
    return ""
