"""Tables of the comparison as markup: scores, probes, groups, leakage, cost, what was chosen, what did not run."""

from collections.abc import Sequence
from html import escape

from openfino.report.compare_charts import bar_groups
from openfino.report.compare_result import (
    GUIDED,
    PROBES,
    START,
    Comparison,
    Key,
    brief,
    count,
    is_better,
    metric_name,
    probe_name,
)

BAR_ARMS = (START, "ssl", GUIDED, "finetune")
MOST_GROUPS = 24
COSTS = {
    "images": "images seen",
    "seconds": "seconds",
    "probe_seconds": "seconds for probes",
    "trials": "trials",
}
METHODS = {"knn": "kNN", "linear": "linear"}
_LEVEL, _ABOVE, _BELOW, _TO = "&asymp;", "&#9650;", "&#9660;", "&rarr;"


def score_tables(comparison: Comparison) -> str:
    """One table for each split, that of the headline first, with intervals and marks."""
    parts = []
    for split in comparison.splits:
        metrics = comparison.metrics(split)
        if not metrics:
            continue
        rows = comparison.show("splits", split, "rows", form=count)
        head = "".join(
            f"<th scope='col' class='number'>{escape(metric_name(metric))}</th>" for metric in metrics
        )
        body = "".join(
            _row(
                comparison,
                arm,
                "".join(_score_cell(comparison, arm, split, metric) for metric in metrics),
            )
            for arm in comparison.arms
        )
        parts.append(
            f"<h3>{escape(split)} <span>{rows} images</span></h3>{table('arm', head, body, f'Scores on {split}')}"
        )
    own, frozen = comparison.name(GUIDED), comparison.name(START)
    return (
        f"{''.join(parts)}<p class='small'>Large: mean over the seeds; small: 95 % interval over seeds and images; "
        f"bold: the best of its column. <b>{_LEVEL}</b> within noise of {own}. <b class='helps'>{_ABOVE}</b> better, "
        f"<b class='hurts'>{_BELOW}</b> worse than {frozen}, beyond noise. Differences are paired: same images, same "
        f"seeds.</p>{_left_out(comparison)}"
    )


def _left_out(comparison: Comparison) -> str:
    """What of the test splits was not, or could not be, told right."""
    said = []
    if comparison.number("left_out_tests"):
        number = comparison.show("left_out_tests", form=count)
        said.append(
            f"{number} test images were left out under all arms, because one of them could not use them."
        )
    for split in comparison.at("unseen_labels") or {}:
        number = comparison.show("unseen_labels", split, form=count)
        said.append(
            f"{number} images of {escape(split)} have a label that no training image has: they count as wrong."
        )
    return f"<p class='small'>{' '.join(said)}</p>" if said else ""


def probe_tables(comparison: Comparison) -> str:
    """The headline's metric by every probe, one table for each split."""
    arms = comparison.ordered("probes")
    found = dict.fromkeys(probe for arm in arms for probe in comparison.at("probes", arm) or {})
    order = [
        *(probe for probe in PROBES if probe in found),
        *(probe for probe in found if probe not in PROBES),
    ]
    metric, parts = comparison.metric, []
    for split in comparison.splits:
        keys = {(arm, probe): ("probes", arm, probe, split, metric) for arm in arms for probe in order}
        probes = [probe for probe in order if any(comparison.at(*keys[arm, probe]) for arm in arms)]
        if not probes:
            continue
        head = "".join(f"<th scope='col' class='number'>{escape(probe_name(probe))}</th>" for probe in probes)
        body = "".join(
            _row(comparison, arm, "".join(_cell(comparison, *keys[arm, probe]) for probe in probes))
            for arm in arms
        )
        title = f"{metric_name(metric)} on {split}"
        parts.append(f"<h3>{escape(title)}</h3>{table('arm', head, body, title)}")
    return "".join(parts) or "<p>One probe only.</p>"


def group_section(comparison: Comparison) -> str:
    """Bars of the main arms for every group, and a table of all arms."""
    parts = []
    for split in comparison.splits:
        arms = [arm for arm in comparison.ordered("per_group") if comparison.at("per_group", arm, split)]
        if not arms:
            continue
        main = [arm for arm in BAR_ARMS if arm in arms] or arms[:4]
        groups = _hardest_first(comparison, arms, main[0], split)
        shown = groups[:MOST_GROUPS]
        more = "" if shown == groups else "<p class='small'>The hardest groups; all are in the table.</p>"
        head = "".join(f"<th scope='col' class='number'>{escape(group)}</th>" for group in groups)
        body = "".join(
            _row(
                comparison,
                arm,
                "".join(_cell(comparison, "per_group", arm, split, group) for group in groups),
            )
            for arm in arms
        )
        every = table("arm", head, body, f"Groups of {split}")
        parts.append(
            f"<h3>{escape(split)}</h3>{bar_groups(comparison, split, main, shown)}{more}"
            f"<details><summary>Every arm and group</summary>{every}</details>"
        )
    return "".join(parts)


def leakage_table(comparison: Comparison) -> str:
    """How well each factor can be read from each arm's features."""
    arms = comparison.ordered("leakage")
    factors = dict.fromkeys(factor for arm in arms for factor in comparison.at("leakage", arm) or {})
    columns = {factor: _measures(comparison, arms, factor) for factor in factors}
    columns = {factor: measures for factor, measures in columns.items() if measures}
    if not columns:
        return ""
    tops = "".join(
        f"<th colspan='{len(measures)}' scope='colgroup'>{escape(factor)}{_role(comparison, factor)}</th>"
        for factor, measures in columns.items()
    )
    names = "".join(
        f"<th scope='col' class='number'>{_measure_name(measure)}</th>"
        for measures in columns.values()
        for measure in measures
    )
    body = "".join(
        _row(
            comparison,
            arm,
            "".join(
                f"<td class='number'>{comparison.show('leakage', arm, factor, measure)}</td>"
                for factor, measures in columns.items()
                for measure in measures
            ),
        )
        for arm in arms
    )
    floor = _floor_row(comparison, arms[0], columns)
    head = f"<tr><th rowspan='2' scope='col'>arm</th>{tops}</tr><tr>{names}</tr>"
    return _scrolled(
        f"<table class='grouped'><thead>{head}</thead><tbody>{body}{floor}</tbody></table>", "Leakage"
    )


def cost_table(comparison: Comparison) -> str:
    """Images, seconds and trials of every arm, and what it was given."""
    arms = comparison.ordered("cost")
    known = {key for arm in arms for key in comparison.at("cost", arm)}
    numbers = {key: name for key, name in COSTS.items() if key in known}
    heads = (*numbers.values(), "uses labels", "uses metadata")
    head = "".join(f"<th scope='col' class='number'>{name}</th>" for name in heads)
    body = "".join(
        _row(
            comparison,
            arm,
            "".join(
                f"<td class='number'>{comparison.show('cost', arm, key, form=count)}</td>" for key in numbers
            )
            + f"<td class='number'>{_yes(comparison.at('cost', arm, 'uses_labels'))}</td>"
            f"<td class='number'>{_yes(comparison.at('cost', arm, 'uses_metadata'))}</td>",
        )
        for arm in arms
    )
    return table("arm", head, body, "Cost of every arm") if arms else "<p>No cost was recorded.</p>"


def learned_table(comparison: Comparison) -> str:
    """Every arm beside its own state before training, probe by probe, by the metric of the table."""
    arms = comparison.ordered("learned")
    columns = [
        (split, probe)
        for split in comparison.splits
        for probe in dict.fromkeys(
            probe for arm in arms for probe in comparison.at("learned", arm, split) or {}
        )
    ]
    if not columns:
        return ""
    head = "".join(
        f"<th scope='col' class='number'>{escape(split)}, {escape(probe_name(probe))}</th>"
        for split, probe in columns
    )
    body = "".join(
        _row(comparison, arm, "".join(_before_and_after(comparison, arm, *column) for column in columns))
        for arm in arms
    )
    return table("arm", head, body, "Before and after training") + (
        f"<p class='small'>Before {_TO} after training, read by the same probe, by {metric_name(comparison.metric)}. "
        f"<b class='helps'>{_ABOVE}</b> or <b class='hurts'>{_BELOW}</b>: beyond noise.</p>"
    )


def _before_and_after(comparison: Comparison, arm: str, split: str, probe: str) -> str:
    keys = ("learned", arm, split, probe)
    if comparison.at(*keys) is None:
        return "<td class='number'>\N{EN DASH}</td>"
    mark = ""
    if comparison.at(*keys, "beyond_noise"):
        risen = (comparison.number(*keys, "difference") or 0.0) > 0
        style, sign = ("helps", _ABOVE) if risen else ("hurts", _BELOW)
        mark = f"<span class='mark {style}'>{sign}</span>"
    before, after = comparison.show(*keys, "before"), comparison.show(*keys, "after")
    return f"<td class='number'>{before} {_TO} {after}{mark}</td>"


def chosen_table(comparison: Comparison) -> str:
    """What validation chose for every arm and seed."""
    arms = [arm for arm in comparison.ordered("chosen") if comparison.at("chosen", arm)]
    names = dict.fromkeys(
        name
        for arm in arms
        for entry in comparison.at("chosen", arm)
        for name, value in entry.items()
        if not isinstance(value, dict | list)
    )
    head = "".join(f"<th scope='col' class='number'>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        _row(
            comparison,
            arm,
            "".join(
                f"<td class='number'>{_plain(comparison, 'chosen', arm, number, name)}</td>" for name in names
            ),
        )
        for arm in arms
        for number in range(len(comparison.at("chosen", arm)))
    )
    return table("arm", head, body, "What was chosen") if arms else ""


def not_run_section(comparison: Comparison) -> str:
    """Every arm that has no scores, and why."""
    reasons = comparison.at("not_run") or {}
    if not reasons:
        return "<p>Every arm ran.</p>"
    items = "".join(
        f"<li><b>{comparison.name(arm)}</b>: {escape(str(reason))}</li>\n" for arm, reason in reasons.items()
    )
    return f"<ul>{items}</ul>"


def table(corner: str, head: str, body: str, label: str) -> str:
    """A table in a region that scrolls."""
    inner = f"<table><thead><tr><th scope='col'>{corner}</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return _scrolled(inner, label)


def _scrolled(inner: str, label: str) -> str:
    return f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(label)}'>{inner}</div>\n"


def _row(comparison: Comparison, arm: str, cells: str) -> str:
    own = " own" if arm == GUIDED else ""
    return (
        f"<tr class='{comparison.style(arm)}{own}'><th scope='row'>{comparison.name(arm)}</th>{cells}</tr>\n"
    )


def _score_cell(comparison: Comparison, arm: str, split: str, metric: str) -> str:
    value = comparison.number("arms", arm, split, metric, "mean")
    best = value is not None and value == comparison.best(split, metric)
    return _cell(
        comparison, "arms", arm, split, metric, bold=best, marks=_marks(comparison, arm, split, metric)
    )


def _cell(comparison: Comparison, *keys: Key, bold: bool = False, marks: str = "") -> str:
    shown = comparison.show(*keys, "mean")
    small = ""
    if comparison.number(*keys, "low") is not None:
        small = f"<small>{comparison.show(*keys, 'low')} to {comparison.show(*keys, 'high')}</small>"
    return f"<td class='number'>{marks}{f'<b>{shown}</b>' if bold else shown}{small}</td>"


def _marks(comparison: Comparison, arm: str, split: str, metric: str) -> str:
    """Whether the arm is within noise of FINO, and on which side of frozen it is beyond noise."""
    marks = ""
    to_own = comparison.difference(GUIDED, arm, split, metric)
    if to_own is not None and not to_own.beyond_noise:
        marks += f"<span class='mark' title='within noise of FINO'>{_LEVEL}</span>"
    to_start = comparison.difference(arm, START, split, metric)
    if to_start is not None and to_start.beyond_noise:
        better = is_better(to_start, metric)
        style, sign, word = ("helps", _ABOVE, "better") if better else ("hurts", _BELOW, "worse")
        marks += f"<span class='mark {style}' title='{word} than frozen, beyond noise'>{sign}</span>"
    return marks


def _hardest_first(comparison: Comparison, arms: Sequence[str], first: str, split: str) -> list[str]:
    """The groups of all arms, that with the lowest mean under ``first`` in front."""
    groups = dict.fromkeys(group for arm in arms for group in comparison.at("per_group", arm, split))

    def level(group: str) -> float:
        value = comparison.number("per_group", first, split, group, "mean")
        return float("inf") if value is None else value

    return sorted(groups, key=level)


def _measures(comparison: Comparison, arms: Sequence[str], factor: str) -> list[str]:
    """What was read of a factor: accuracies of a discrete one, R^2 of others."""
    for kind in ("accuracy", "r2"):
        names = [f"{reader}_{kind}" for reader in METHODS]
        read = [
            name
            for name in names
            if any(comparison.number("leakage", arm, factor, name) is not None for arm in arms)
        ]
        if read:
            return read
    return []


def _measure_name(measure: str) -> str:
    reader, kind = measure.split("_", 1)
    return f"{METHODS[reader]} {metric_name(kind)}"


def _floor_row(comparison: Comparison, arm: str, columns: dict[str, list[str]]) -> str:
    """What always answering the commonest value scores."""
    cells = "".join(
        f"<td class='number'>{comparison.show('leakage', arm, factor, 'majority')}</td>"
        for factor, measures in columns.items()
        for _ in measures
    )
    if "<data" not in cells:
        return ""
    return f"<tr class='floor'><th scope='row'>always the commonest value</th>{cells}</tr>\n"


def _role(comparison: Comparison, factor: str) -> str:
    role = comparison.at("roles", factor)
    return f" <small>{escape(str(role))}</small>" if role else ""


def _plain(comparison: Comparison, *keys: Key) -> str:
    value = comparison.at(*keys)
    if isinstance(value, bool):
        return _yes(value)
    return escape(value) if isinstance(value, str) else comparison.show(*keys, form=brief)


def _yes(value: object) -> str:
    return "\N{EN DASH}" if value is None else "yes" if value else "no"
