"""The comparison on a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"reference": "dim", "ssl": "cyan", "guided": "green", "supervised": "yellow", "post hoc": "magenta"}


def print_compared(result: Mapping[str, Any], console: Console) -> None:
    """The answer first, then the scores with intervals, the costs, and what did not run."""
    console.print(Text(result["answer"]["headline"], "bold"))
    for sentence in result["answer"]["details"]:
        console.print(Text(f"  {sentence}"))
    console.print(_scores(result))
    console.print(_costs(result))
    for arm, reason in result["not_run"].items():
        if reason != "not asked for":
            console.print(Text(f"not run: {result['titles'][arm]}: {reason}", "dim"))


def _scores(result: Mapping[str, Any]) -> Table:
    metric, tests = result["metric"], [split for split in result["splits"] if split not in ("train", "val")]
    seeds = len(result["seeds"])
    table = Table(
        title=f"{metric} of {result['label']} ({result['headline_probe']} head, {seeds} seed{'s' * (seeds > 1)})",
        title_justify="left",
    )
    table.add_column("arm")
    for split in tests:
        table.add_column(split, justify="right", no_wrap=True)
    for arm, splits in result["arms"].items():
        cells = []
        for split in tests:
            value = splits.get(split, {}).get(metric)
            shown = "" if value is None else f"{value['mean']:.3f} [{value['low']:.3f} {value['high']:.3f}]"
            cells.append(Text(shown + _mark(result, arm, split)))
        table.add_row(_name(result, arm), *cells)
    table.caption = "95 % intervals over images and seeds; +, -: above, below the frozen start beyond noise"
    return table


def _costs(result: Mapping[str, Any]) -> Table:
    table = Table(title="Cost of one seed, all trials", title_justify="left")
    table.add_column("arm")
    for name in ("images seen", "training, s", "reading, s", "trials"):
        table.add_column(name, justify="right")
    for arm, cost in result["cost"].items():
        spent = (
            f"{cost['images']:,}",
            f"{cost['seconds']:.0f}",
            f"{cost['probe_seconds']:.0f}",
            str(cost["trials"]),
        )
        table.add_row(_name(result, arm), *spent)
    return table


def _name(result: Mapping[str, Any], arm: str) -> Text:
    return Text(result["titles"][arm], STYLES[result["kinds"][arm]])


def _mark(result: Mapping[str, Any], arm: str, split: str) -> str:
    """Whether an arm differs from the frozen start."""
    wanted = {"arm": arm, "than": "frozen", "split": split, "metric": result["metric"]}
    for entry in result["differences"]:
        if entry["beyond_noise"] and all(entry[key] == value for key, value in wanted.items()):
            return " +" if entry["difference"] > 0 else " -"
    return "  "
