"""Every plot of the comparison as a PNG file for a paper, 200 dots per inch on white; needs matplotlib."""

import base64
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openfino.report.compare_gallery import Colouring, Pictures
from openfino.report.compare_result import (
    CLASSES,
    GUIDED,
    START,
    Comparison,
    Key,
    metric_name,
    share_name,
)
from openfino.report.compare_sections import BAR_ARMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_FOLDER, DPI = "figures", 200
MOST_LETTERS = 20  # of a group
NO_MATPLOTLIB = "matplotlib is not installed (pip install 'openfino[report]')"
COLOURS = {
    "frozen": "#6e7781",
    "ssl": "#0072b2",
    "fino": "#c24e00",
    "supervised": "#8a3ffc",
    "posthoc": "#1a7f37",
}
assert set(COLOURS) == set(CLASSES.values())
_HUES = ("0072b2", "c24e00", "1a7f37", "8a3ffc", "a8005c", "6b5b00", "00868b", "e0608a", "7a4a2b", "4d5bd6")
_SHADES = ("38287a", "1c7a94", "1c9e80", "8fc14a", "d9b400")
_CATEGORIES = {
    **{f"c{number}": f"#{colour}" for number, colour in enumerate(_HUES)},
    **{f"q{number}": f"#{colour}" for number, colour in enumerate(_SHADES)},
    "other": "#57606a",
    "none": "#d5d9df",
}
_STYLES = ("-", "--", "-.", ":")

Drawing = Callable[[], "Figure | None"]


def write_figures(out: Path, comparison: Comparison, pictures: Pictures) -> list[str] | str:
    """Draw everything that the result has into ``out/figures``, in place of what is there; names of the files.

    Without matplotlib nothing is drawn, and the answer says so.
    """
    if find_spec("matplotlib") is None:
        return NO_MATPLOTLIB
    folder = out / FIGURE_FOLDER
    folder.mkdir(exist_ok=True)
    written = []
    for name, draw in drawings(comparison, pictures).items():
        figure = draw()
        if figure is None:
            continue
        file = io.BytesIO()
        figure.savefig(file, dpi=DPI, format="png", facecolor="white")
        partial = folder / f".{name}.partial"
        partial.write_bytes(file.getvalue())
        os.replace(partial, folder / name)
        written.append(name)
    for old in folder.glob("*.png"):
        if old.name not in written:
            old.unlink()
    return written


def drawings(comparison: Comparison, pictures: Pictures) -> dict[str, Drawing]:
    """By name of the file, what draws it; it gives None where the result has nothing to draw."""
    found: dict[str, Drawing] = {}
    for split in comparison.splits:
        safe = re.sub(r"[^\w-]+", "_", split)
        found[f"scores_{safe}.png"] = lambda split=split: score_figure(comparison, split)  # type: ignore[misc]
        found[f"differences_{safe}.png"] = lambda split=split: difference_figure(comparison, split)  # type: ignore[misc]
        found[f"fractions_{safe}.png"] = lambda split=split: fraction_figure(comparison, split)  # type: ignore[misc]
        found[f"groups_{safe}.png"] = lambda split=split: group_figure(comparison, split)  # type: ignore[misc]
    for key in ("label", "spurious"):
        found[f"umap_{key}.png"] = lambda key=key: umap_figure(comparison, key)  # type: ignore[misc]
    found["neighbours.png"] = lambda: neighbour_figure(comparison, pictures)
    found["maps.png"] = lambda: map_figure(comparison, pictures)
    found["training.png"] = lambda: training_figure(comparison)
    return found


def score_figure(comparison: Comparison, split: str) -> "Figure | None":
    """Mean and 95 % interval of every arm, best at the top."""
    places: dict[str, tuple[Key, ...]] = {
        arm: ("arms", arm, split, comparison.metric) for arm in comparison.arms
    }
    figure = _dots(comparison, places, "mean", f"{metric_name(comparison.metric)} on {split}")
    frozen = comparison.number(*places.get(START, ("",)), "mean")
    if figure is not None and frozen is not None:
        figure.axes[0].axvline(frozen, color=COLOURS["frozen"], linestyle="--", linewidth=1, zorder=0)
    return figure


def difference_figure(comparison: Comparison, split: str) -> "Figure | None":
    """FINO minus every other arm with its 95 % interval; hollow where it is within noise."""
    places: dict[str, tuple[Key, ...]] = {}
    for arm in comparison.arms:
        found = comparison.difference(GUIDED, arm, split, comparison.metric)
        if found is not None:
            places[arm] = ("differences", found.number)
    label = f"{comparison.title(GUIDED)} minus arm, {metric_name(comparison.metric)} on {split}"
    figure = _dots(comparison, places, "difference", label)
    if figure is not None:
        figure.axes[0].axvline(0, color="#1b1f24", linewidth=1, zorder=0)
    return figure


def fraction_figure(comparison: Comparison, split: str) -> "Figure | None":
    """The metric over the share of labels."""
    figure, axes = _figure(1, 1, 4.4, 3.2)
    pane, shares_drawn = axes[0], set()
    for arm in comparison.ordered("fractions"):
        shares = sorted(comparison.at("fractions", arm) or {}, key=float)
        rows = [
            (float(share), *values)
            for share in shares
            if None
            not in (values := _triple(comparison, ("fractions", arm, share, split, comparison.metric)))
        ]
        if not rows:
            continue
        x, mean, low, high = np.array(rows, dtype=float).T
        colour = COLOURS[comparison.style(arm)]
        pane.plot(x, mean, marker="o", markersize=4, color=colour, label=_text(comparison.title(arm)))
        pane.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        shares_drawn |= set(x)
    if not shares_drawn:
        return None
    pane.set_xscale("log")
    pane.set_xticks(sorted(shares_drawn), [share_name(share) for share in sorted(shares_drawn)])
    pane.minorticks_off()
    pane.set_xlabel("share of the labels")
    pane.set_ylabel(f"{metric_name(comparison.metric)} on {_text(split)}")
    pane.legend(frameon=False, fontsize=8)
    return figure


def group_figure(comparison: Comparison, split: str) -> "Figure | None":
    """Means and 95 % intervals of the main arms, group by group."""
    arms = [arm for arm in BAR_ARMS if comparison.at("per_group", arm, split)]
    arms = (
        arms or [arm for arm in comparison.ordered("per_group") if comparison.at("per_group", arm, split)][:4]
    )
    if not arms:
        return None
    groups = list(dict.fromkeys(group for arm in arms for group in comparison.at("per_group", arm, split)))
    # A line for each group: two dozen plates fit on a page, and their names are read without turning it.
    figure, axes = _figure(1, 1, 4.4, 0.1 * len(groups) * (len(arms) + 1) + 1.1)
    for number, arm in enumerate(arms):
        places = np.arange(len(groups)) + (number - (len(arms) - 1) / 2) * 0.8 / len(arms)
        triples = [_triple(comparison, ("per_group", arm, split, group)) for group in groups]
        mean, low, high = (
            np.array([np.nan if value is None else value for value in column])
            for column in zip(*triples, strict=True)
        )
        axes[0].errorbar(
            mean,
            places,
            xerr=np.stack([mean - low, high - mean]).clip(0),
            fmt="o",
            markersize=3.5,
            elinewidth=0.8,
            color=COLOURS[comparison.style(arm)],
            label=_text(comparison.title(arm)),
        )
    axes[0].set_yticks(range(len(groups)), [_text(_short(group)) for group in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    axes[0].grid(axis="x", linewidth=0.4)
    metric = metric_name(str(comparison.at("per_group_metric") or comparison.metric))
    axes[0].set_xlabel(f"{metric} on {_text(split)}")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=min(len(arms), 2))
    return figure


def umap_figure(comparison: Comparison, key: str) -> "Figure | None":
    """A panel for each arm, coloured by ``label`` or ``spurious``."""
    arms = [arm for arm in comparison.ordered("umap") if comparison.at("umap", arm, "points")]
    values = [value for arm in arms for value in comparison.at("umap", arm, key) or []]
    if not values:
        return None
    colouring = Colouring(values)
    figure, axes = _figure(1, len(arms), 2.6 * len(arms) + 1.4, 2.7)
    for pane, arm in zip(axes, arms, strict=True):
        points = np.array(comparison.at("umap", arm, "points"), dtype=float)
        styles = np.array([colouring(value) for value in comparison.at("umap", arm, key)])
        for style in sorted(set(styles), reverse=True):
            own = points[styles == style]
            pane.scatter(own[:, 0], own[:, 1], s=5, color=_CATEGORIES[style], linewidths=0)
        _bare(pane, comparison.title(arm))
    for style, name in colouring.names.items():
        axes[-1].scatter([], [], s=16, color=_CATEGORIES[style], label=_text(name))
    axes[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def neighbour_figure(comparison: Comparison, pictures: Pictures) -> "Figure | None":
    """Every query in front of its neighbours, a row for each arm; green: same label, red: another."""
    queries = comparison.at("gallery", "queries") or []
    rows: list[tuple[str, list[Mapping[str, Any]]]] = []
    for query in queries:
        found = query.get("found") or {}
        rows += [(comparison.title(arm), [query, *found[arm]]) for arm in comparison.arms if arm in found]
    shown = [[_pixels(pictures, tile.get("image")) for tile in tiles] for _, tiles in rows]
    if not rows or all(pixels is None for line in shown for pixels in line):
        return None
    columns = max(map(len, shown))
    figure, axes = _figure(len(rows), columns, 1.0 * columns + 1.0, 1.05 * len(rows))
    frames = {True: "#1a7f37", False: "#cf222e", None: "#d5d9df"}
    for number, ((title, tiles), line) in enumerate(zip(rows, shown, strict=True)):
        for place in range(columns):
            pane = axes[number * columns + place]
            pixels = line[place] if place < len(line) else None
            _image(pane, pixels, frames[tiles[place].get("right")] if place < len(tiles) else None)
        axes[number * columns].set_ylabel(_text(title), fontsize=6, rotation=0, ha="right", va="center")
    return figure


def map_figure(comparison: Comparison, pictures: Pictures) -> "Figure | None":
    """Images, and their patch tokens as colours under each arm."""
    images = comparison.at("maps", "images") or []
    arms = [
        arm for arm in comparison.ordered("maps", "explained") if any(arm in image["pca"] for image in images)
    ]
    shown = [
        [_pixels(pictures, name) for name in (image.get("image"), *(image["pca"].get(arm) for arm in arms))]
        for image in images
    ]
    if not arms or all(pixels is None for line in shown for pixels in line):
        return None
    figure, axes = _figure(len(images), len(arms) + 1, 1.5 * (len(arms) + 1), 1.5 * len(images) + 0.3)
    for place, pixels in enumerate(pixels for line in shown for pixels in line):
        _image(axes[place], pixels)
    for pane, title in zip(axes, ("image", *(comparison.title(arm) for arm in arms)), strict=False):
        pane.set_title(_text(title), fontsize=7)
    return figure


def training_figure(comparison: Comparison) -> "Figure | None":
    """The loss of every arm that trained, a panel for each."""
    arms = [
        arm
        for arm in comparison.ordered("curves")
        if any(len(records) > 1 for records in (comparison.at("curves", arm) or {}).values())
    ]
    if not arms:
        return None
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    figure, axes = _figure(rows, columns, 2.6 * columns, 2.0 * rows)
    for pane, arm in zip(axes, arms, strict=False):
        for number, (seed, records) in enumerate(comparison.at("curves", arm).items()):
            steps = [record["step"] for record in records]
            losses = [np.nan if record.get("loss") is None else record["loss"] for record in records]
            pane.plot(
                steps,
                losses,
                color=COLOURS[comparison.style(arm)],
                linestyle=_STYLES[number % len(_STYLES)],
                linewidth=0.9,
                label=f"seed {seed}",
            )
        pane.set_title(_text(comparison.title(arm)), fontsize=8)
        pane.tick_params(labelsize=7)
    for pane in axes[len(arms) :]:
        pane.set_axis_off()
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("loss", fontsize=8)
    return figure


def _dots(
    comparison: Comparison, places: Mapping[str, tuple[Key, ...]], value: str, label: str
) -> "Figure | None":
    """A dot and its interval for every arm, the largest at the top."""
    known = {
        arm: mean for arm, keys in places.items() if (mean := comparison.number(*keys, value)) is not None
    }
    if not known:
        return None
    ordered = sorted(known, key=lambda arm: known[arm])
    figure, axes = _figure(1, 1, 5.2, 0.26 * len(ordered) + 0.8)
    for height, arm in enumerate(ordered):
        _, low, high = _triple(comparison, places[arm])
        colour = COLOURS[comparison.style(arm)]
        if low is not None and high is not None:
            axes[0].plot(
                [low, high], [height, height], color=colour, linewidth=2, alpha=0.65, solid_capstyle="round"
            )
        within = comparison.at(*places[arm], "beyond_noise") is False
        face = "white" if within else colour
        axes[0].plot([known[arm]], [height], marker="o", markersize=6, color=colour, markerfacecolor=face)
    axes[0].set_yticks(range(len(ordered)), [_text(comparison.title(arm)) for arm in ordered])
    axes[0].set_xlabel(_text(label))
    axes[0].grid(axis="x", linewidth=0.4)
    return figure


def _figure(rows: int, columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for pane in axes:
        pane.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _triple(comparison: Comparison, keys: Sequence[Key]) -> tuple[float | None, ...]:
    return tuple(comparison.number(*keys, name) for name in ("mean", "low", "high"))


def _text(name: str) -> str:
    """A name that matplotlib takes for text, not for mathematics."""
    return name.replace("\\", "\\\\").replace("$", r"\$")


def _short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..."


def _bare(pane: "Axes", title: str) -> None:
    pane.set_xticks([])
    pane.set_yticks([])
    pane.spines[:].set_visible(False)
    pane.set_aspect("equal", adjustable="datalim")
    pane.set_title(_text(title), fontsize=8)


def _image(pane: "Axes", pixels: Any, frame: str | None = None) -> None:
    pane.set_xticks([])
    pane.set_yticks([])
    for spine in pane.spines.values():
        spine.set_visible(frame is not None)
        spine.set(color=frame, linewidth=1.5)
    if pixels is not None:
        pane.imshow(pixels, interpolation="nearest")


def _pixels(pictures: Pictures, name: str | None) -> Any:
    """RGB of a ``data:`` address; None where there is none."""
    address = pictures.get(name or "", "")
    if not address.startswith("data:image/") or "," not in address:
        return None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGB"))
