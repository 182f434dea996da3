"""How well the patches of frozen backbones tell what they show: before and after Gram refinement.

    python benchmarks/patch_consistency.py runs/tiny/pretrain runs/tiny/refine
    python benchmarks/patch_consistency.py tiny --seeds 1 --images 8 --sizes 64

The images are of the drawn sample set, whose generator knows what every pixel shows: background, cytoplasm or
nucleus. A patch has the class of most of its pixels. The network sees three of the four stains as red, green and blue,
by default all but that of the nuclei, which alone would give the classes away. The field of view is the same at every
size: at 64 pixels the grid of patches of 8 pixels is 8 x 8 and a nucleus is two patches wide, at 128 it is four.

- within: share of a patch's K nearest patches of the same image that have its class, by cosine; mean over the patches
  of each class, then over classes. ``chance`` is what random neighbours would give, ``neighbours in space`` what the
  K patches that lie nearest would.
- across: the same with the nearest patches of other images, which are of other plates.
- linear mIoU: a linear classifier of single patches, fitted on the images of training plates (penalty chosen on a
  fifth of their patches), scored on other plates.

``random`` is the first network with random weights; ``pixels`` are those of the patch, ``mean and sd`` their
statistics in each stain. Every seed draws its own screen, images and random network. Prints Markdown and writes OUT.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from arms import Scores, markdown_table, summarise
from frozen import Images, Matrix, as_seen, at_size, patch_features, random_twin, write_figures
from openfino.errors import OpenfinoError
from openfino.evaluation.classifiers import fit_linear
from openfino.evaluation.metrics import Codes
from openfino.evaluation.segmentation import mean_iou, patch_classes
from openfino.evaluation.splits import probe_generator
from openfino.models.store import LoadedModel, load_model
from openfino.sampledata.draw import MASK_CLASSES, render_with_mask
from openfino.sampledata.microscope import CHANNELS
from openfino.sampledata.screen import plan_screen

SCREEN_IMAGES = 2400
STAINS = ("microtubules", "protein", "er")
FIT, SCORED = "train", "test_ood"
QUERY_CHUNK = 1024
COLUMNS = {"within": "within", "across": "across", "linear mIoU": "miou"}


@dataclass(frozen=True)
class Scenes:
    """Images uint8 [n, 3, S, S], and the class of every patch, int64 [n, rows, columns]."""

    images: Images
    classes: NDArray[np.int64]


def draw_scenes(
    split: str, count: int, size: int, patch: int, seed: int, stains: tuple[str, ...] = STAINS
) -> Scenes:
    """``count`` images of one split of the sample set of ``seed``.

    Raises:
        OpenfinoError: if the split holds fewer.
    """
    screen = plan_screen(SCREEN_IMAGES, seed)
    shots = [shot for shot in screen.shots if shot.split == split]
    if count > len(shots):
        raise OpenfinoError(f"{count} images wanted, split {split} has {len(shots)}")
    chosen = probe_generator(seed, f"scenes {split}").choice(len(shots), count, replace=False)
    channels = [CHANNELS.index(stain) for stain in stains]
    drawn = [render_with_mask(screen, shots[number], size) for number in chosen]
    return Scenes(
        np.stack([image[channels] for image, _ in drawn]),
        np.stack([patch_classes(mask, patch, len(MASK_CLASSES)) for _, mask in drawn]),
    )


def same_class(similarity: Tensor, own: Tensor, others: Tensor, k: int) -> Tensor:
    """Share of the ``k`` most similar patches that have one's own class.

    Args:
        similarity: [m, n]; -inf for what must not be chosen.
        own: classes [m]. others: classes [n]. k: neighbours.

    Returns:
        [m].
    """
    nearest = similarity.topk(k, dim=1).indices
    return (others[nearest] == own[:, None]).double().mean(dim=1)


def over_classes(shares: Tensor, classes: Tensor) -> float:
    """Mean over the patches of each class, then over the classes that occur."""
    means = [shares[classes == kind].mean() for kind in classes.unique()]
    return float(torch.stack(means).mean())


def within_images(similarities: Iterator[Tensor], classes: NDArray[np.int64], k: int) -> float:
    """Local purity within images.

    Args:
        similarities: of all patches of an image to each other [P, P], image by image.
        classes: [n, rows, columns].
        k: neighbours.
    """
    every = torch.from_numpy(classes).flatten(1)
    shares = [
        same_class(similarity.fill_diagonal_(-torch.inf), own, own, k)
        for similarity, own in zip(similarities, every, strict=True)
    ]
    return over_classes(torch.cat(shares), every.flatten())


def cosines(features: Matrix) -> Iterator[Tensor]:
    """Cosine similarities of the patches [n, P, D] of each image [P, P]."""
    for unit in F.normalize(torch.from_numpy(features), dim=-1):
        yield unit @ unit.T


def nearness(classes: NDArray[np.int64]) -> Iterator[Tensor]:
    """Minus the distance of the patches of an image in the grid [P, P], for every image."""
    place = torch.cartesian_prod(*(torch.arange(float(side)) for side in classes.shape[1:]))
    for _ in classes:
        yield -torch.cdist(place, place)


def chance_within(classes: NDArray[np.int64]) -> float:
    """What neighbours drawn from the same image without looking would give."""
    every = torch.from_numpy(classes).flatten(1)
    same = (every[:, :, None] == every[:, None, :]).sum(dim=2) - 1
    return over_classes((same / (every.shape[1] - 1)).flatten(), every.flatten())


def across_images(queries: Matrix, classes: Codes, bank: Matrix, bank_classes: Codes, k: int) -> float:
    """Local purity among patches of other images: queries [m, D], bank [n, D]."""
    units = F.normalize(torch.from_numpy(bank), dim=1)
    known, own = torch.from_numpy(bank_classes), torch.from_numpy(classes)
    shares = []
    for start in range(0, len(queries), QUERY_CHUNK):
        query = F.normalize(torch.from_numpy(queries[start : start + QUERY_CHUNK]), dim=1)
        shares.append(same_class(query @ units.T, own[start : start + QUERY_CHUNK], known, k))
    return over_classes(torch.cat(shares), own)


def pixel_rows(model: LoadedModel, images: Images) -> dict[str, Matrix]:
    """What the patches are without a network: their pixels as the network sees them, and statistics of these."""
    patch = model.backbone.patch_size
    seen = as_seen(model, images)
    patches = F.unfold(seen, patch, stride=patch).mT.unflatten(2, (seen.shape[1], patch * patch))
    statistics = torch.cat([patches.mean(dim=3), patches.std(dim=3)], dim=2)
    return {"pixels": patches.flatten(2).numpy(), "mean and sd": statistics.numpy()}


def measure(fit: Matrix, scored: Matrix, fit_scenes: Scenes, scenes: Scenes, k: int, seed: int) -> Scores:
    """All scores of one kind of features [n, P, D] of both sets of scenes."""
    known, truth = fit_scenes.classes.ravel(), scenes.classes.ravel()
    bank, queries = fit.reshape(-1, fit.shape[-1]), scored.reshape(-1, scored.shape[-1])
    linear = fit_linear(bank, known, probe_generator(seed, "penalty"))
    return {
        "within": within_images(cosines(scored), scenes.classes, k),
        "across": across_images(queries, truth, bank, known, k),
        "miou": mean_iou(truth, linear.predict(queries)),
    }


def measure_seed(
    models: dict[str, LoadedModel], size: int, count: int, k: int, seed: int, stains: tuple[str, ...]
) -> dict[str, Scores]:
    """Scores of every row on one draw of images of one size."""
    first = next(iter(models.values()))
    patch = first.backbone.patch_size
    fit, scored = (draw_scenes(split, count, size, patch, seed, stains) for split in (FIT, SCORED))
    rows = {}
    for name, model in (models | {"random": random_twin(first, seed)}).items():
        rows[name] = [patch_features(at_size(model, size), scenes.images) for scenes in (fit, scored)]
    plain = [pixel_rows(at_size(first, size), scenes.images) for scenes in (fit, scored)]
    rows |= {name: [part[name] for part in plain] for name in plain[0]}
    scores = {name: measure(*features, fit, scored, k, seed) for name, features in rows.items()}
    scores["neighbours in space"] = {"within": within_images(nearness(scored.classes), scored.classes, k)}
    scores["chance"] = {"within": chance_within(scored.classes)}
    return scores


def open_models(names: list[str], sizes: list[int]) -> dict[str, LoadedModel]:
    """The models by name.

    Raises:
        OpenfinoError: if they differ in their patches, do not take three channels, or a size is not made of patches.
    """
    models = {name: load_model(name) for name in names}
    kinds = {(model.backbone.patch_size, model.backbone.channels) for model in models.values()}
    if len(kinds) > 1 or next(iter(kinds))[1] != len(STAINS):
        raise OpenfinoError("give models with patches of one size that take three channels")
    patch = next(iter(kinds))[0]
    if odd := [size for size in sizes if size % patch]:
        raise OpenfinoError(f"--sizes: {odd[0]} pixels are not a multiple of the patch of {patch}")
    return models


def run(arguments: argparse.Namespace) -> str:
    """Everything; returns the Markdown."""
    models = open_models(arguments.models, arguments.sizes)
    parts, summaries = [], {}
    for size in arguments.sizes:
        scores: dict[str, list[Scores]] = {}
        for seed in range(arguments.seeds):
            measured = measure_seed(
                models, size, arguments.images, arguments.k, seed, tuple(arguments.stains)
            )
            for row, values in measured.items():
                scores.setdefault(row, []).append(values)
            sys.stderr.write(
                f"{size} pixels, seed {seed}: {time.process_time():.0f} processor-seconds so far\n"
            )
        summaries[str(size)] = summarise(scores)
        parts += [f"{size} x {size} pixels:", markdown_table(summaries[str(size)], COLUMNS)]
    settings = {key: value for key, value in vars(arguments).items() if key != "out"}
    write_figures(arguments.out, "patch_consistency.py", models, {"settings": settings, "sizes": summaries})
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="runs, model folders, or names")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny/patch_consistency.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="pixels of a side")
    parser.add_argument("--images", type=int, default=60, help="to fit, and again to score")
    parser.add_argument("--k", type=int, default=5, help="nearest patches")
    parser.add_argument("--stains", nargs=3, choices=CHANNELS, default=list(STAINS), help="red, green, blue")
    try:
        print(run(parser.parse_args()))
    except OpenfinoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
