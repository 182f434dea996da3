"""Pictures of the comparison as markup: UMAP, nearest neighbours, and patch tokens as colours, before and after."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from openfino.report.compare_result import Comparison, count, is_number

SIDE, MARGIN = 260, 8
MOST_COLOURS = 10
_SHADES = 5  # of numbers
_MARKS = {True: ("right", "<i>&#10003;</i>"), False: ("wrong", "<i>&#10007;</i>"), None: ("", "")}

Pictures = Mapping[str, str]


class Colouring:
    """The colour of every value of a column: classes by falling frequency, numbers in five shades.

    Attributes:
        names: CSS class -> what it stands for.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        known = [value for value in values if value is not None]
        counts = Counter(map(str, known))
        self._edges: list[float] = []
        self._classes: dict[str, str] = {}
        if all(map(is_number, known)) and len(counts) > MOST_COLOURS:
            shares = np.linspace(0, 1, _SHADES + 1)
            self._edges = np.quantile(np.array(known, dtype=float), shares, method="nearest").tolist()
            pairs = zip(self._edges[:-1], self._edges[1:], strict=True)
            self.names = {f"q{number}": f"{low:g} to {high:g}" for number, (low, high) in enumerate(pairs)}
        else:
            ordered = sorted(counts, key=lambda name: (-counts[name], name))
            self._classes = {name: f"c{number}" for number, name in enumerate(ordered[:MOST_COLOURS])}
            self.names = {style: name for name, style in self._classes.items()}
            if len(ordered) > MOST_COLOURS:
                self.names["other"] = f"{len(ordered) - MOST_COLOURS} others"
        if len(known) < len(values):
            self.names["none"] = "missing"

    def __call__(self, value: Any) -> str:
        """CSS class of ``value``."""
        if value is None:
            return "none"
        if self._edges:
            return f"q{int(np.searchsorted(self._edges[1:-1], value, side='right'))}"
        return self._classes.get(str(value), "other")


def umap_section(comparison: Comparison) -> str:
    """A row of panels, one for each arm, for the label and for the spurious factor."""
    arms = [arm for arm in comparison.ordered("umap") if comparison.at("umap", arm, "points")]
    if not arms:
        return not_drawn(comparison, "umap")
    parts = []
    for key, name in (("label", comparison.at("label")), ("spurious", comparison.at("spurious"))):
        values = [value for arm in arms for value in comparison.at("umap", arm, key) or []]
        if not values:
            parts.append(f"<p class='small'>No {key} factor to colour by.</p>" if key == "spurious" else "")
            continue
        colouring = Colouring(values)
        legend = "".join(
            f"<li><svg viewBox='0 0 8 8' aria-hidden='true'><circle class='{style}' cx='4' cy='4' r='4'/></svg>"
            f"{escape(text)}</li>"
            for style, text in colouring.names.items()
        )
        panels = "".join(_scatter(comparison, arm, key, colouring) for arm in arms)
        parts.append(
            f"<h3>Coloured by {escape(str(name or key))}</h3><ul class='legend'>{legend}</ul>"
            f"<div class='charts scatters'>{panels}</div>"
        )
    return "".join(parts)


def neighbour_section(comparison: Comparison, pictures: Pictures) -> str:
    """One card for each query, with its neighbours under each arm."""
    queries = comparison.at("gallery", "queries") or []
    if not queries or not pictures:
        return not_drawn(comparison, "gallery")
    totals = [
        f"{comparison.name(arm)} {comparison.show('gallery', 'right', arm, form=count)} of "
        f"{comparison.show('gallery', 'shown', arm, form=count)}"
        for arm in comparison.ordered("gallery", "right")
    ]
    label = escape(str(comparison.at("label")))
    said = f"Neighbours with the {label} of their query: <b>{', '.join(totals)}</b>. " if totals else ""
    bank = comparison.show("gallery", "bank", form=count)
    cards = "".join(_card(comparison, query, pictures) for query in queries)
    return (
        f"<p>{said}Queries are drawn by key and not by success; neighbours are the nearest by the cosine of CLS among "
        f"{bank} training images.</p><div class='cards'>{cards}</div>"
    )


def map_section(comparison: Comparison, pictures: Pictures) -> str:
    """A row for each image: the image, and its patch tokens as colours under each arm."""
    images = comparison.at("maps", "images") or []
    if not images or not pictures:
        return not_drawn(comparison, "maps")
    arms = list(dict.fromkeys(arm for image in images for arm in image.get("pca") or {}))
    arms = [arm for arm in comparison.ordered("maps", "explained") if arm in arms] or arms
    heads = "".join(
        f"<li class='head'>{comparison.name(arm)}<small>{_explained(comparison, arm)}</small></li>"
        for arm in arms
    )
    rows = "".join(_map_row(image, arms, pictures) for image in images)
    recipe = escape(str(comparison.at("maps", "recipe") or ""))
    return (
        f"<ul class='maps' style='--columns:{len(arms) + 1}'><li class='head'>image</li>{heads}{rows}</ul>"
        f"<p class='small'>Every arm has a fit of its own: its colours do not compare with another's. {recipe}</p>"
    )


def not_drawn(comparison: Comparison, part: str) -> str:
    """Why a part of the page is not there."""
    reason = comparison.at("not_drawn", part)
    return f"<p class='small'>Not drawn{f': {escape(str(reason))}' if reason else ''}.</p>"


def _scatter(comparison: Comparison, arm: str, key: str, colouring: Colouring) -> str:
    """One path for each colour: a point is a line of no length with round ends."""
    points = np.array(comparison.at("umap", arm, "points"), dtype=float)
    low, high = points.min(axis=0), points.max(axis=0)
    reach = float((high - low).max()) or 1.0
    places = MARGIN + (points - (low + high - reach) / 2) / reach * (SIDE - 2 * MARGIN)
    paths: dict[str, list[str]] = {}
    for (x, y), value in zip(places, comparison.at("umap", arm, key), strict=True):
        paths.setdefault(colouring(value), []).append(f"M{x:.1f} {SIDE - y:.1f}h0")
    drawn = "".join(
        f"<path class='dots {style}' d='{''.join(paths[style])}'/>" for style in sorted(paths, reverse=True)
    )
    name = comparison.title(arm)
    return (
        f"<figure class='chart'><figcaption><b>{escape(name)}</b></figcaption><svg viewBox='0 0 {SIDE} {SIDE}' "
        f"role='img' aria-label='UMAP of {escape(name)} by {key}'>{drawn}</svg></figure>\n"
    )


def _card(comparison: Comparison, query: Mapping[str, Any], pictures: Pictures) -> str:
    lines = []
    found = query.get("found") or {}
    for arm in [arm for arm in comparison.arms if arm in found]:
        tiles = "".join(_tile(tile, pictures) for tile in found[arm])
        lines.append(f"<h4>{comparison.name(arm)}</h4><ul class='tiles'>{tiles}</ul>")
    return (
        f"<article class='card'><ul class='tiles query'>{_tile(query, pictures)}</ul><div>{''.join(lines)}</div>"
        "</article>\n"
    )


def _tile(tile: Mapping[str, Any], pictures: Pictures) -> str:
    style, mark = _MARKS[tile.get("right")]
    values = [str(tile[key]) for key in ("label", "spurious") if tile.get(key) is not None]
    title, text = escape(", ".join(values)), escape(str(tile.get("label", "")).replace("_", " "))
    image = _image(pictures, tile.get("image"), title)
    return f"<li class='tile {style}' title='{title}'>{image}{mark}<span>{text}</span></li>"


def _map_row(image: Mapping[str, Any], arms: Sequence[str], pictures: Pictures) -> str:
    label = escape(str(image.get("label") or ""))
    own = f"<li>{_image(pictures, image.get('image'), label)}<small>{label}</small></li>"
    maps = (_image(pictures, (image.get("pca") or {}).get(arm), f"{arm}, {label}", "pixels") for arm in arms)
    return own + "".join(f"<li>{drawn}</li>" for drawn in maps)


def _image(pictures: Pictures, name: str | None, text: str, style: str = "") -> str:
    """The picture ``name``; an empty box where there is none."""
    address = pictures.get(name or "", "")
    if not address.startswith("data:image/"):
        return "<span class='blank'></span>"
    return f"<img{f' class={style!r}' if style else ''} src='{escape(address)}' alt='{text}' loading='lazy'>"


def _explained(comparison: Comparison, arm: str) -> str:
    shares = comparison.at("maps", "explained", arm)
    if not shares:
        return ""
    shown = ", ".join(comparison.show("maps", "explained", arm, place) for place in range(len(shares)))
    return f"of the variance: {shown}"
