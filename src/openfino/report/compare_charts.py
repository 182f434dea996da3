"""Charts of the comparison as markup: dots with intervals, bars, label fractions, scatters. Colours by CSS class.

Dots and bars are HTML, so that their text keeps its size on a narrow screen; every mark says its place in the JSON.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from openfino.report.compare_result import (
    GUIDED,
    START,
    Comparison,
    Key,
    change,
    count,
    is_number,
    metric_name,
    pointer,
    share_name,
)
from openfino.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    figure,
    nice_ticks,
    tick_text,
)

MAX_POINTS = 60  # of a training curve
_TICKS = 5


@dataclass(frozen=True)
class Mark:
    """A dot and its interval in a row of :func:`dot_rows`.

    Attributes:
        keys: place in the JSON of an object with ``low`` and ``high``.
        value: name of the value in that object.
        hollow: for what does not count in the first place.
    """

    keys: tuple[Key, ...]
    value: str = "mean"
    hollow: bool = False


@dataclass(frozen=True)
class Row:
    """One row of :func:`dot_rows`: name (markup), CSS class, marks, and the text (markup) at the right."""

    name: str
    style: str
    marks: Sequence[Mark]
    text: str


def dot_rows(comparison: Comparison, rows: Sequence[Row], label: str, line: float | None = None) -> str:
    """A row for each of ``rows`` on one axis.

    Args:
        comparison: what the marks point into.
        rows: from top to bottom.
        label: of the axis; text.
        line: a value to mark through all rows.
    """
    values = [value for row in rows for mark in row.marks for value in _reach(comparison, mark)]
    if not values:
        return "<p class='small'>Nothing was measured.</p>"
    values += [] if line is None else [line]
    ticks = nice_ticks(min(values), max(values), _TICKS)
    axis = Axis(ticks[0], ticks[-1], 0.0, 100.0)
    grid = "".join(f"<i class='tick' style='left:{axis.place(tick):.2f}%'></i>" for tick in ticks)
    if line is not None:
        grid += f"<i class='level' style='left:{axis.place(line):.3f}%'></i>"
    drawn = "".join(
        f"<li class='{row.style}'><span class='name'>{row.name}</span><span class='track'>{grid}"
        f"{''.join(_mark(comparison, mark, axis) for mark in row.marks)}</span>"
        f"<span class='value'>{row.text}</span></li>\n"
        for row in rows
    )
    names = "".join(
        f"<b style='left:{axis.place(tick):.2f}%'>{tick_text(tick, ticks[1] - ticks[0])}</b>"
        for tick in ticks
    ).replace("-", "\N{MINUS SIGN}")
    return (
        f"<ol class='dots' data-low='{ticks[0]!r}' data-high='{ticks[-1]!r}' aria-label='{escape(label)}'>{drawn}"
        f"<li class='scale' aria-hidden='true'><span class='name'></span><span class='track'>{names}</span>"
        f"<span class='value'></span></li></ol>\n"
    )


def arm_dots(comparison: Comparison) -> str:
    """Every arm on the headline's split, best first, and as rings on the next split."""
    split, metric = comparison.split, comparison.metric
    others = [name for name in comparison.splits[1:2] if metric in comparison.metrics(name)]
    rows = [
        Row(
            comparison.name(arm),
            f"{comparison.style(arm)}{' own' if arm == GUIDED else ''}",
            [
                *(Mark(("arms", arm, other, metric), hollow=True) for other in others),
                Mark(("arms", arm, split, metric)),
            ],
            _with_interval(comparison, "arms", arm, split, metric),
        )
        for arm in _by_score(comparison)
    ]
    frozen = comparison.number("arms", START, split, metric, "mean")
    rings = f" Rings: {escape(others[0])}." if others else ""
    line = "" if frozen is None else f" Dashed: {comparison.name(START)}."
    return (
        f"<div><h3>{escape(metric_name(metric))} on {escape(split)}</h3>{dot_rows(comparison, rows, metric, frozen)}"
        f"<p class='small'>Dot and bar: mean and 95 % interval.{rings}{line}</p></div>"
    )


def difference_dots(comparison: Comparison) -> str:
    """FINO minus every other arm on the headline's split; hollow where the difference is within noise."""
    split, metric = comparison.split, comparison.metric
    rows = []
    for arm in _by_score(comparison):
        found = comparison.difference(GUIDED, arm, split, metric)
        if found is None:
            continue
        keys = ("differences", found.number)
        noise = "" if found.beyond_noise else " <em>within noise</em>"
        value = comparison.show(*keys, "difference", form=change)
        text = f"{value}{noise}<small>{_interval(comparison, *keys)}</small>"
        mark = Mark(keys, "difference", hollow=not found.beyond_noise)
        rows.append(Row(comparison.name(arm), comparison.style(arm), [mark], text))
    if not rows:
        return ""
    own = comparison.name(GUIDED)
    return (
        f"<div><h3>{own} minus each arm</h3>{dot_rows(comparison, rows, f'{GUIDED} minus each arm', 0.0)}"
        f"<p class='small'>Bar: 95 % interval of the paired difference; hollow where it is within noise.</p></div>"
    )


def bar_groups(comparison: Comparison, split: str, arms: Sequence[str], groups: Sequence[str]) -> str:
    """A card for each group with a bar for each arm, all on one axis from 0."""
    keys = {(arm, group): ("per_group", arm, split, group) for arm in arms for group in groups}
    values = [value for place in keys.values() for value in _reach(comparison, Mark(place))]
    ticks = nice_ticks(min([0.0, *values]), max([0.0, *values]), _TICKS)
    axis = Axis(ticks[0], ticks[-1], 0.0, 100.0)
    cards = []
    for group in groups:
        sized = next((arm for arm in arms if comparison.number(*keys[arm, group], "rows") is not None), None)
        size = (
            ""
            if sized is None
            else f" <span>{comparison.show(*keys[sized, group], 'rows', form=count)} images</span>"
        )
        bars = "".join(_bar(comparison, arm, keys[arm, group], axis) for arm in arms)
        cards.append(
            f"<figure class='group'><figcaption><b>{escape(group)}</b>{size}</figcaption><ol>{bars}</ol></figure>\n"
        )
    return f"<div class='groups' data-low='{ticks[0]!r}' data-high='{ticks[-1]!r}'>{''.join(cards)}</div>"


def fraction_chart(comparison: Comparison, split: str) -> str:
    """The headline's metric over the share of labels (logarithmic), one line for each arm with its interval."""
    arms = [arm for arm in comparison.ordered("fractions") if _fractions(comparison, arm, split)]
    if not arms:
        return ""
    shares = sorted({float(share) for arm in arms for share, _ in _fractions(comparison, arm, split)})
    ends = [math.log10(shares[0]), math.log10(shares[-1])]
    x_axis = Axis(ends[0] - 0.05, max(ends[1], ends[0] + 0.1) + 0.05, LEFT, WIDTH - RIGHT)
    values = [
        value
        for arm in arms
        for _, keys in _fractions(comparison, arm, split)
        for value in _reach(comparison, Mark(keys))
    ]
    ticks = nice_ticks(min(values), max(values))
    y_axis = Axis(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(ticks, y_axis, metric_name(comparison.metric)), *_share_ticks(shares, x_axis)]
    for arm in arms:
        places = [
            (x_axis.place(math.log10(float(share))), keys)
            for share, keys in _fractions(comparison, arm, split)
        ]
        parts += _banded(comparison, places, y_axis, comparison.style(arm), comparison.title(arm))
    title = f"{metric_name(comparison.metric)} on {split}"
    legend = "".join(_legend(comparison.style(arm), comparison.name(arm)) for arm in arms)
    return (
        f"<figure class='chart' data-low='{ticks[0]!r}' data-high='{ticks[-1]!r}'><figcaption><b>{escape(title)}</b>"
        f"</figcaption><ul class='legend'>{legend}</ul><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{escape(title)}'>{''.join(parts)}</svg></figure>\n"
    )


def training_curves(comparison: Comparison) -> str:
    """The loss of every arm that trained, one line for each seed."""
    figures = []
    for arm in comparison.ordered("curves"):
        seeds = comparison.at("curves", arm) or {}
        lines = [
            Line(f"seed {seed}", thinned(records), comparison.style(arm), dashed=number > 0)
            for number, (seed, records) in enumerate(seeds.items())
        ]
        lines = [line for line in lines if len(line.finite) > 1]
        figures.append(figure(comparison.title(arm), lines, y_label="loss") if lines else "")
    return "".join(figures)


def thinned(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, float | None]]:
    """At most ``MAX_POINTS`` (step, loss) of ``records``, evenly spaced from the first to the last."""
    last = len(records) - 1
    if last < MAX_POINTS:
        kept = list(records)
    else:
        kept = [records[round(place * last / (MAX_POINTS - 1))] for place in range(MAX_POINTS)]
    return [
        (float(record["step"]), record["loss"] if is_number(record.get("loss")) else None) for record in kept
    ]


def _by_score(comparison: Comparison) -> list[str]:
    """The arms, those with the largest mean first; those without come last."""
    means = {
        arm: comparison.number("arms", arm, comparison.split, comparison.metric, "mean")
        for arm in comparison.arms
    }
    return sorted(means, key=lambda arm: -math.inf if (mean := means[arm]) is None else mean, reverse=True)


def _reach(comparison: Comparison, mark: Mark) -> list[float]:
    found = (comparison.number(*mark.keys, name) for name in (mark.value, "low", "high"))
    return [value for value in found if value is not None]


def _mark(comparison: Comparison, mark: Mark, axis: Axis) -> str:
    value = comparison.number(*mark.keys, mark.value)
    if value is None:
        return ""
    kind = "dot hollow" if mark.hollow else "dot"
    bar = "" if mark.hollow and mark.value == "mean" else _whisker(comparison, mark.keys, axis)
    place = pointer(*mark.keys, mark.value)
    return f"{bar}<i class='{kind}' style='left:{axis.place(value):.3f}%' data-at='{place}'></i>"


def _whisker(comparison: Comparison, keys: tuple[Key, ...], axis: Axis) -> str:
    low, high = comparison.number(*keys, "low"), comparison.number(*keys, "high")
    if low is None or high is None:
        return ""
    start = axis.place(low)
    return (
        f"<i class='whisker' style='left:{start:.3f}%;width:{axis.place(high) - start:.3f}%' "
        f"data-at='{pointer(*keys)}'></i>"
    )


def _with_interval(comparison: Comparison, *keys: Key) -> str:
    return f"{comparison.show(*keys, 'mean')}<small>{_interval(comparison, *keys)}</small>"


def _interval(comparison: Comparison, *keys: Key) -> str:
    if comparison.number(*keys, "low") is None:
        return ""
    form = change if keys[0] == "differences" else None
    shown = (comparison.show(*keys, name, **({"form": form} if form else {})) for name in ("low", "high"))
    return " to ".join(shown)


def _bar(comparison: Comparison, arm: str, keys: tuple[Key, ...], axis: Axis) -> str:
    value = comparison.number(*keys, "mean")
    drawn = ""
    if value is not None:
        start, stop = sorted((axis.place(0.0), axis.place(value)))
        drawn = (
            f"<i class='bar' style='left:{start:.3f}%;width:{stop - start:.3f}%' "
            f"data-at='{pointer(*keys, 'mean')}'></i>{_whisker(comparison, keys, axis)}"
        )
    return (
        f"<li class='{comparison.style(arm)}'><span class='name'>{comparison.name(arm)}</span>"
        f"<span class='track'>{drawn}</span><span class='value'>{comparison.show(*keys, 'mean')}</span></li>"
    )


def _fractions(comparison: Comparison, arm: str, split: str) -> list[tuple[str, tuple[Key, ...]]]:
    """(share, place in the JSON) of what was measured, by rising share."""
    shares = sorted(comparison.at("fractions", arm) or {}, key=float)
    places = [(share, ("fractions", arm, share, split, comparison.metric)) for share in shares]
    return [(share, keys) for share, keys in places if comparison.number(*keys, "mean") is not None]


def _grid(ticks: Sequence[float], axis: Axis, label: str) -> Iterator[str]:
    for tick in ticks:
        y = axis.place(tick)
        text = tick_text(tick, ticks[1] - ticks[0])
        yield f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        yield f"<text class='tick' x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"
    yield f"<text class='label' x='2' y='12'>{escape(label)}</text>"


def _share_ticks(shares: Sequence[float], axis: Axis) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, -math.inf
    yield f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>"
    for share in shares:
        x, text = axis.place(math.log10(share)), share_name(share)
        yield f"<line class='axis' x1='{x:.1f}' x2='{x:.1f}' y1='{bottom}' y2='{bottom + 4}'/>"
        if x - right > 7.0 * len(text):  # names that would touch are left out
            yield f"<text class='tick' x='{x:.1f}' y='{bottom + 16}' text-anchor='middle'>{text}</text>"
            right = x
    x, y = WIDTH - RIGHT, HEIGHT - 4
    yield f"<text class='label' x='{x}' y='{y}' text-anchor='end'>share of the labels</text>"


def _banded(
    comparison: Comparison,
    places: Sequence[tuple[float, tuple[Key, ...]]],
    axis: Axis,
    style: str,
    title: str,
) -> Iterator[str]:
    """A line with its points, and behind it the band from low to high."""
    band = [
        (x, low, high)
        for x, keys in places
        if (low := comparison.number(*keys, "low")) is not None
        and (high := comparison.number(*keys, "high")) is not None
    ]
    if len(band) > 1:
        edge = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
        corners = " ".join(f"{x:.1f},{axis.place(value):.1f}" for x, value in edge)
        yield f"<polygon class='band {style}' points='{corners}'/>"
    points = [(x, axis.place(comparison.number(*keys, "mean") or 0.0), keys) for x, keys in places]
    steps = " L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
    yield f"<path class='line {style}' d='M{steps}'/>"
    for x, y, keys in points:
        said = f"{title}, {share_name(keys[2])}: {comparison.number(*keys, 'mean'):.3f}"
        yield (
            f"<circle class='point {style}' cx='{x:.1f}' cy='{y:.2f}' r='3' data-at='{pointer(*keys, 'mean')}'>"
            f"<title>{escape(said)}</title></circle>"
        )


def _legend(style: str, name: str) -> str:
    sample = f"<svg viewBox='0 0 22 8' aria-hidden='true'><path class='line {style}' d='M1 4 L21 4'/></svg>"
    return f"<li>{sample}{name}</li>"
