"""The audit on a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from openfino.audit.advice import ENTANGLED, INFORMATIVE, LEAK, SAFE
from openfino.audit.analysis import Audit, Conditional
from openfino.audit.dependence import Dependence

_SHOWN_PAIRS = 20
_SHOWN_FINDINGS = 12
_STYLES = {INFORMATIVE: "green", SAFE: "cyan", ENTANGLED.split(":")[0]: "yellow", LEAK: "red"}


def print_audit(audit: Audit, console: Console) -> None:
    """Columns, the strongest dependences, what stands between them, splits, and the advice last."""
    console.print(f"{audit.name}: {audit.rows:,} rows, {len(audit.columns)} columns", highlight=False)
    console.print(_columns(audit))
    for name, column in audit.columns.items():
        if column.bins and column.set_aside is None:
            console.print(
                Text(f"{name} in {len(column.bins)} quantile bins: {'; '.join(column.bins)}", "dim")
            )
    pairs = strongest(audit)
    if pairs:
        console.print(_pairs(pairs[:_SHOWN_PAIRS], len(pairs)))
    elif audit.dependence:
        console.print("No column says anything about another that chance does not explain.")
    _list(console, "What stands between two columns", [str(item) for item in notable(audit)])
    if audit.splits is not None:
        _list(console, f"Splits ({audit.splits.column})", audit.splits.sentences())
    console.print(_advice(audit))


def strongest(audit: Audit) -> list[Dependence]:
    """Pairs that chance does not explain, the strongest first."""
    return sorted((pair for pair in audit.dependence if pair.is_clear), key=lambda pair: -pair.u_adjusted)


def notable(audit: Audit) -> list[Conditional]:
    """The conditionals that were asked for, then those that explain something, then the others."""
    return sorted(audit.conditional, key=lambda item: (not item.asked, not item.explained))


def style_of(role: str) -> str:
    """Colour of a role."""
    return next((style for start, style in _STYLES.items() if role.startswith(start)), "dim")


def _columns(audit: Audit) -> RichTable:
    table = RichTable(
        title="Columns", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    longest = max(map(len, audit.columns))
    for heading, width in (("column", min(longest, 20)), ("kind", 10)):
        table.add_column(heading, no_wrap=True, min_width=width)
    for heading in ("values", "missing", "single", "top", "bits"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(len(heading), 5))
    table.add_column("range or examples", no_wrap=True, max_width=40)
    table.caption = "single: values with one image; top: share of the commonest value or bin"
    for name, column in audit.columns.items():
        single = "" if column.singletons is None else f"{column.singletons:,}"
        known = column.entropy or column.imbalance
        table.add_row(
            Text(name),
            column.kind,
            f"{column.values:,}",
            f"{column.missing / audit.rows:.1%}",
            single,
            f"{column.imbalance:.1%}" if known else "",
            f"{column.entropy:.2f}" if known else "",
            Text(" to ".join(column.range) if column.range else ", ".join(column.examples[:3])),
        )
    return table


def _pairs(pairs: list[Dependence], total: int) -> RichTable:
    more = f" (the strongest {len(pairs)} of {total})" if total > len(pairs) else ""
    table = RichTable(title=f"What tells what, beyond chance{more}", title_justify="left")
    table.add_column("X")
    table.add_column("says about Y")
    for heading in ("U(Y|X)", "corrected", "99.9 % interval", "rows"):
        table.add_column(heading, justify="right")
    for pair in pairs:
        low, high = pair.interval
        table.add_row(
            Text(pair.given[0]),
            Text(pair.of),
            f"{pair.u:.3f}",
            f"{pair.u_adjusted:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{pair.rows:,}",
        )
    table.caption = "Decisions use the corrected figure: 0 by chance, 1 if X determines Y."
    return table


def _advice(audit: Audit) -> RichTable:
    table = RichTable(title="Advice", title_justify="left", show_lines=True)
    table.add_column("column")
    table.add_column("role", max_width=30)
    table.add_column("because")
    for name, item in audit.advice.items():
        table.add_row(Text(name), Text(item.role, style_of(item.role)), Text(item.reason))
    return table


def _list(console: Console, title: str, sentences: list[str]) -> None:
    if not sentences:
        return
    console.print(Text(f"\n{title}", "italic"))
    for sentence in sentences[:_SHOWN_FINDINGS]:
        console.print(Text(f"  - {sentence}"))
    if len(sentences) > _SHOWN_FINDINGS:
        console.print(f"  ... and {len(sentences) - _SHOWN_FINDINGS} more in --json and --html")
