"""The card of ``tiny``: every figure in it is read from the weights or from the logs of its runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from openfino import tiny
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Backbone
from openfino.models.licence import LICENCE_LINKS
from tiny_stages import Record, Stage

HEADER = f"""---
license: {tiny.LICENCE}
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [dinov3, openfino, self-supervised, image-feature-extraction, procedural]
---"""
SHOWN = 12
"""Rows of the table of kNN over training."""


@dataclass(frozen=True)
class Closeness:
    """Features from weights in float16 against those from the same weights in float32.

    Attributes:
        largest: absolute difference of any value of a token.
        scale: root mean square of the values.
        cosine: the smallest one of two corresponding tokens.
        images: how many were compared.
    """

    largest: float
    scale: float
    cosine: float
    images: int

    def __str__(self) -> str:
        return (
            f"float16 against float32 on {self.images} procedural images: largest difference {self.largest:.2g} at "
            f"feature scale {self.scale:.2g}, smallest cosine {self.cosine:.7f}"
        )


def tiny_card(
    backbone: Backbone,
    preprocessing: Preprocessing,
    stages: Sequence[Stage],
    closeness: Closeness,
    digest: str,
) -> str:
    """README.md of the package's folder.

    Args:
        backbone: in float32.
        preprocessing: that it expects.
        stages: the runs that made it.
        closeness: of what is packed to ``backbone``.
        digest: SHA-256 of the packed weights.
    """
    command = "python benchmarks/build_tiny.py" + (" --refine" if len(stages) > 1 else "")
    sections = [
        HEADER,
        _introduction(backbone, preprocessing),
        _training(stages),
        _curve(stages),
        _use(preprocessing),
        "## Limits\n\nIt is small, and what it knows it learned from drawings: shapes, textures, "
        "occlusion, but no things of the world. It is a start for demonstrations, tests, small budgets and machines "
        "without a network. For real work start from DINOv3 or another large model.",
        f"## Files\n\n- `{tiny.WEIGHTS}`: float16; opened as float32. {closeness}.\n- SHA-256: `{digest}`, checked "
        f"whenever openfino opens `tiny`.\n- `*.recipe.yaml`, `*.metrics.jsonl`, `*.probes.jsonl`: of each run.\n\n"
        f"Made again from nothing by `{command}` in openfino's repository.",
        f"## Licence\n\n[Apache-2.0]({LICENCE_LINKS[tiny.LICENCE]}), as openfino itself. There is no parent model and "
        "no image of anybody else's in it.",
    ]
    return "\n\n".join(sections) + "\n"


def _introduction(backbone: Backbone, preprocessing: Preprocessing) -> str:
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    height, width = preprocessing.size
    return (
        f"# tiny\n\nThe backbone that comes with openfino: a {backbone.description} ({millions:.1f} M parameters, "
        f"{len(backbone.blocks)} blocks, width {backbone.embed_dim}, patch {backbone.patch_size}, {backbone.registers} "
        f"registers, {height} x {width} pixels, {backbone.channels} channels), pretrained from scratch with openfino's "
        "own DINOv3 trainer on procedural images only: dead leaves, fractals, shaded solids, glyphs, spectra, cells, "
        "terrain. It has seen no photograph and no label."
    )


def _training(stages: Sequence[Stage]) -> str:
    rows = [
        f"| {stage.name} | {stage.steps:,} | {stage.recipe.train.batch_size} | "
        f"{stage.steps * stage.recipe.train.batch_size:,} | {_terms(stage)} | {stage.recipe.seed} | {stage.device} |"
        for stage in stages
    ]
    table = "\n".join(
        [
            "| run | steps | batch | images seen | terms | seed | device |",
            "|---|---:|---:|---:|---|---:|---|",
            *rows,
        ]
    )
    return f"## Training\n\n{table}"


def _terms(stage: Stage) -> str:
    objective = stage.recipe.objective
    weights = {
        "DINO": objective.dino.weight,
        "iBOT": objective.ibot.weight,
        "KoLeo": stage.recipe.koleo_weight,
        "Gram": objective.gram.weight,
    }
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight > 0)


def _curve(stages: Sequence[Stage]) -> str:
    """kNN over training, on real images that never train."""
    points = [(stage.name, record["step"], dict(_knn(record))) for stage in stages for record in stage.probes]
    points = [point for point in points if point[2]]
    if not points:
        return "## While it trained\n\nIt was not probed."
    names = list(points[0][2])
    every = max(-(-len(points) // SHOWN), 1)
    shown = [*points[:-1:every], points[-1]]
    rows = [
        f"| {stage} | {step:,} | {' | '.join(f'{scores[name]:.3f}' for name in names)} |"
        for stage, step, scores in shown
    ]
    head = [f"| run | step | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    return (
        "## While it trained\n\nAccuracy of k nearest neighbours (k = "
        f"{stages[-1].recipe.probe.k}) on frozen features of small real images, which only watched. Compared with "
        "random weights, raw pixels and HOG on images kept apart: `benchmarks/RESULTS.md`.\n\n"
        + "\n".join([*head, *rows])
    )


def _knn(record: Record) -> Iterator[tuple[str, float]]:
    for split, result in ((record.get("label") or {}).get("splits") or {}).items():
        yield split, result["scores"]["knn"]["accuracy"]


def _use(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    return (
        "## Use\n\n```yaml\nmodel: tiny        # in a recipe, of any number of channels\n```\n\n"
        "```sh\nopenfino embed tiny images/ --out features.parquet\nopenfino export tiny --out tiny-hf\n```\n\n"
        f"Pixels are scaled to [0, 1], the whole image resized to {height} x {width}, then normalised "
        f"({preprocessing.normalization}); other sizes that are multiples of the patch work too."
    )
