"""The audit as one self-contained page: advice, heat map, graph, splits, columns, every figure."""

from html import escape

import openfino
from openfino.audit.advice import INFORMATIVE, LEAK, SAFE
from openfino.audit.analysis import Audit
from openfino.audit.dependence import Dependence
from openfino.audit.describe import Column
from openfino.audit.graph import draw_graph
from openfino.audit.terminal import notable
from openfino.pages import fill_page


def page_html(audit: Audit) -> str:
    """The page as text; it loads nothing."""
    styles = {name: style_class(item.role) for name, item in audit.advice.items()}
    return fill_page(
        "openfino.audit",
        "page.html",
        title=escape(audit.name),
        rows=f"{audit.rows:,}",
        count=len(audit.columns),
        advice="".join(_advice(audit, name) for name in audit.advice),
        heat=_heat_map(audit),
        graph=draw_graph(audit.measured, audit.dependence, styles),
        conditional=_sentences([str(item) for item in notable(audit)], "No pair has a third column between."),
        splits=_sentences(
            audit.splits.sentences() if audit.splits else [],
            "Nothing to say: no column of splits, or sound ones.",
        ),
        columns=_columns(audit),
        bins="".join(_bins(column) for column in audit.columns.values() if column.bins),
        pairs=_pairs(audit.dependence),
        version=openfino.__version__,
    )


def style_class(role: str) -> str:
    """CSS class of a role."""
    if role == INFORMATIVE:
        return "informative"
    if role == SAFE:
        return "safe"
    return "leak" if role == LEAK else "entangled" if role.startswith("entangled") else "useless"


def _advice(audit: Audit, name: str) -> str:
    item = audit.advice[name]
    return (
        f"<li class='{style_class(item.role)}'><b>{escape(name)}</b><span class='role'>{escape(item.role)}</span>"
        f"<p>{escape(item.reason)}</p></li>\n"
    )


def _heat_map(audit: Audit) -> str:
    names = audit.measured
    if not names:
        return "<p>No two columns can be compared.</p>"
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    rows = []
    for given in names:
        cells = "".join(
            "<td style='--u:0'></td>" if given == of else _cell(audit.table.u(of, given)) for of in names
        )
        rows.append(f"<tr><th scope='row'>{escape(given)}</th>{cells}</tr>\n")
    return (
        f"<table class='heat'><thead><tr><th>knowing X, about Y</th>{head}</tr></thead><tbody>{''.join(rows)}"
        "</tbody></table>"
    )


def _cell(pair: Dependence) -> str:
    shade = min(max(pair.u_adjusted, 0.0), 1.0) * 0.75
    return (
        f"<td style='--u:{shade:.3f}' title='{escape(str(pair), quote=True)}'>{_two(pair.u_adjusted)}"
        f"<small>{_two(pair.u)}</small></td>"
    )


def _two(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def _sentences(sentences: list[str], otherwise: str) -> str:
    if not sentences:
        return f"<p>{escape(otherwise)}</p>"
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _columns(audit: Audit) -> str:
    headings = (
        "missing",
        "kind",
        "values",
        "single",
        "commonest",
        "bits",
        "range",
        "examples",
        "why this kind",
    )
    head = "".join(f"<th scope='col'>{heading}</th>" for heading in ("column", *headings))
    rows = "".join(_column(column) for column in audit.columns.values())
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _column(column: Column) -> str:
    share = column.missing / column.rows
    single = "" if column.singletons is None else f"{column.singletons:,}"
    aside = f"; set aside: {column.set_aside}" if column.set_aside else ""
    in_path = "; its value stands in the image's path" if column.in_path else ""
    numbers = (f"{column.values:,}", single, f"{column.imbalance:.1%}", f"{column.entropy:.2f}")
    cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
    texts = (" to ".join(column.range) if column.range else "", ", ".join(column.examples))
    cells += "".join(f"<td>{escape(text)}</td>" for text in texts)
    return (
        f"<tr><th scope='row'>{escape(column.name)}</th><td class='number'>{column.missing:,} ({share:.1%})"
        f"<span class='bar'><i style='width:{share:.1%}'></i></span></td><td>{escape(column.kind)}</td>{cells}"
        f"<td class='wide'>{escape(column.reason + aside + in_path)}</td></tr>\n"
    )


def _bins(column: Column) -> str:
    bins = column.bins or []
    text = f"in {len(bins)} quantile bins: {'; '.join(bins)}"
    return f"<p class='small'><b>{escape(column.name)}</b> {escape(text)}</p>"


def _pairs(pairs: list[Dependence]) -> str:
    head = "".join(
        f"<th scope='col'>{heading}</th>"
        for heading in ("X", "Y", "U(Y|X)", "corrected", "interval", "bits beyond chance", "rows")
    )
    rows = "".join(_pair(pair) for pair in sorted(pairs, key=lambda pair: -pair.u_adjusted))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _pair(pair: Dependence) -> str:
    low, high = pair.interval
    numbers = (
        f"{pair.u:.3f}",
        f"{pair.u_adjusted:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{pair.bits:.3f}",
        f"{pair.rows:,}",
    )
    cells = "".join(f"<td class='number'>{number}</td>" for number in numbers)
    return f"<tr><th scope='row'>{escape(pair.given[0])}</th><td>{escape(pair.of)}</td>{cells}</tr>\n"
