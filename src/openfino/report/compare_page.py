"""The page, tables and figures that ``openfino compare`` leaves. A pure function of ``compare.json``; no network."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import openfino
from openfino.pages import fill_page
from openfino.report.compare_answer import answer_of
from openfino.report.compare_charts import arm_dots, difference_dots, fraction_chart, training_curves
from openfino.report.compare_figures import DPI, FIGURE_FOLDER, write_figures
from openfino.report.compare_files import csv_text, latex_text
from openfino.report.compare_gallery import Pictures, map_section, neighbour_section, umap_section
from openfino.report.compare_result import (
    CLASSES,
    KIND_NAMES,
    KINDS,
    Comparison,
    brief,
    metric_name,
    probe_name,
)
from openfino.report.compare_sections import (
    chosen_table,
    cost_table,
    group_section,
    leakage_table,
    learned_table,
    not_run_section,
    probe_tables,
    score_tables,
)
from openfino.runfolder import write_whole

PAGE_FILE, GALLERY_FILE = "compare.html", "gallery.json"
CSV_FILE, LATEX_FILE = "table.csv", "table.tex"


def write_compare_page(
    out: Path, result: Mapping[str, Any], pictures: Pictures | None = None, *, figures: bool = True
) -> Path:
    """Write ``out/compare.html``, ``table.csv``, ``table.tex`` and ``figures/*.png``; return the page's path.

    Args:
        out: an existing folder.
        result: as in ``compare.json``; any part but ``arms`` may be absent.
        pictures: ``data:`` addresses of the images that ``gallery`` and ``maps`` name; those in ``out/gallery.json``
            when not given.
        figures: whether to draw the PNG files (seconds; needs matplotlib, else the page says that there are none).
    """
    if pictures is None:
        stored = out / GALLERY_FILE
        pictures = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    comparison = Comparison(result)
    write_whole(out / CSV_FILE, csv_text(comparison))
    write_whole(out / LATEX_FILE, latex_text(comparison))
    drawn = write_figures(out, comparison, pictures) if figures else "they were not asked for"
    write_whole(out / PAGE_FILE, page_html(comparison, pictures, drawn))
    return out / PAGE_FILE


def page_html(comparison: Comparison, pictures: Pictures, figures: list[str] | str) -> str:
    """The page as text; it loads nothing.

    Args:
        comparison: the result.
        pictures: as in :func:`write_compare_page`.
        figures: names of the PNG files beside the page, or why there are none.
    """
    answer = comparison.at("answer") or answer_of(comparison.result)
    sections = {
        "table": ("The table", score_tables(comparison)),
        "probes": ("By other probes", probe_tables(comparison)),
        "fractions": (
            "With fewer labels",
            _charts((fraction_chart(comparison, split) for split in comparison.splits), "wide"),
        ),
        "groups": (_group_title(comparison), group_section(comparison)),
        "leakage": ("What can be read from the features", leakage_table(comparison)),
        "umap": ("The features, before and after", umap_section(comparison)),
        "neighbours": ("Nearest neighbours, before and after", neighbour_section(comparison, pictures)),
        "maps": ("Patch tokens as colours", map_section(comparison, pictures)),
        "curves": ("Training", _training(comparison)),
        "cost": ("What each arm cost", cost_table(comparison)),
        "not-run": ("Arms that did not run", not_run_section(comparison)),
        "files": ("For a paper", _files(figures)),
    }
    shown = {name: part for name, part in sections.items() if part[1]}
    return fill_page(
        "openfino.report",
        "compare_page.html",
        title=escape(str(comparison.at("recipe") or comparison.at("label"))),
        label=escape(str(comparison.at("label"))),
        headline=escape(str(answer.get("headline", ""))),
        details="".join(f"<p>{escape(str(text))}</p>" for text in answer.get("details") or []),
        measured=_measured(comparison),
        charts=arm_dots(comparison) + difference_dots(comparison),
        kinds=_kinds(comparison),
        contents="\n".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in shown.items()),
        sections="".join(
            f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>\n'
            for name, (title, body) in shown.items()
        ),
        version=openfino.__version__,
    )


def _measured(comparison: Comparison) -> str:
    seeds = comparison.at("seeds") or []
    shown = ", ".join(comparison.show("seeds", place, form=brief) for place in range(len(seeds)))
    metric, probe = (
        metric_name(comparison.metric),
        probe_name(str(comparison.at("headline_probe") or "attentive")),
    )
    cluster = escape(str(comparison.at("cluster") or ""))
    whole = f" Images of one {cluster} are drawn together where intervals are made." if cluster else ""
    return (
        f"{escape(metric)} of <b>{escape(str(comparison.at('label')))}</b> by the {escape(probe)} probe: same "
        f"backbone, head, grid and validation split for all; the test splits are read once. "
        f"Seeds {shown or 'unknown'}.{whole}"
    )


def _kinds(comparison: Comparison) -> str:
    """What the colours stand for."""
    present = [kind for kind in KINDS if any(comparison.kind(arm) == kind for arm in comparison.arms)]
    sample = "<svg viewBox='0 0 8 8' aria-hidden='true'><circle class='{}' cx='4' cy='4' r='4'/></svg>"
    return "".join(f"<li>{sample.format(CLASSES[kind])}{KIND_NAMES[kind]}</li>" for kind in present)


def _group_title(comparison: Comparison) -> str:
    group = comparison.at("group")
    metric = comparison.at("per_group_metric") or comparison.metric
    title = f"Group by group: {metric_name(str(metric))}"
    return escape(f"{title} by {group}" if group else title)


def _training(comparison: Comparison) -> str:
    learned, chosen = learned_table(comparison), chosen_table(comparison)
    curves = _charts([training_curves(comparison)])
    parts = [
        f"<h3>Loss</h3><p class='small'>The arms have different losses: they do not compare.</p>{curves}"
        if curves
        else "",
        f"<h3>Does each arm beat its untrained state?</h3>{learned}" if learned else "",
        f"<details><summary>What validation chose</summary>{chosen}</details>" if chosen else "",
    ]
    return "".join(parts)


def _charts(figures: Iterable[str], style: str = "") -> str:
    drawn = "".join(figures)
    return f"<div class='charts {style}'>{drawn}</div>" if drawn else ""


def _files(figures: list[str] | str) -> str:
    if isinstance(figures, str):
        said = f"No PNG figures: {escape(figures)}."
    else:
        names = ", ".join(f"<code>{FIGURE_FOLDER}/{escape(name)}</code>" for name in figures)
        said = f"Every plot at {DPI} dpi: {names}."
    return (
        f"<p>Beside this page: the table as <code>{CSV_FILE}</code> (every digit) and <code>{LATEX_FILE}</code> "
        f"(LaTeX, booktabs), everything as <code>compare.json</code>. {said}</p>"
    )
