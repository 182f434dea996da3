"""Nearest neighbours of a frozen backbone against what needs no training, on images that it never saw.

    python benchmarks/tiny_knn.py tiny
    python benchmarks/tiny_knn.py runs/tiny/pretrain --seeds 1 --references 500 --queries 200 --sample-references 300

Fashion-MNIST: references are drawn from its training file, queries from its test file. Sample set: drawn as ``openfino
sample`` draws it; references are of split ``train``, queries of ``test_id`` and of ``test_ood`` (new plates), the label
is the localisation. Every seed draws its own images and its own random network. Neighbours by cosine, weighted as in
``openfino probe``.

Decided before any figure was seen: the headline is CLS and mean patch side by side, as the linear probe takes them, and
on the four channels of the sample set the network applied to each channel on its own (as grey, features side by side);
the other rows are there to be compared. ``patches in place``, added when training had begun, has all patch tokens side
by side: both data sets show centred objects, of which raw pixels and HOG know the places and the headline does not.
Raw pixels count with the better of their two rows. ``--size``, added last, shows images at their own size: those of
Fashion-MNIST have 28 pixels, which is 32 in whole patches.

Prints Markdown and writes OUT.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arms import Scores, Summary, markdown_table, summarise
from fashion_mnist import SOURCE, read_source
from frozen import (
    Images,
    Matrix,
    Pooled,
    as_seen,
    at_size,
    pooled_features,
    random_twin,
    with_channels,
    write_figures,
)
from hog import hog
from openfino.errors import OpenfinoError
from openfino.evaluation.classifiers import knn_predict
from openfino.evaluation.metrics import Codes, accuracy, macro_f1
from openfino.evaluation.splits import probe_generator
from openfino.models.store import LoadedModel, load_model
from openfino.sampledata.draw import render
from openfino.sampledata.microscope import CHANNELS
from openfino.sampledata.screen import plan_screen

NEIGHBOURS = (10, 20)
METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}
SAMPLE_SIZE, SAMPLE_SEED = 64, 0
TESTS = {"fashion": ("test",), "sample": ("test_id", "test_ood")}
HEADLINE, PLACED = "cls+mean", "patches in place"
RAW = ("raw pixels", "raw pixels as the network sees them")
BY_CHANNEL = ", channel by channel"


@dataclass(frozen=True)
class Task:
    """Images [n, C, H, W] with known class, and those to classify by the name of their split."""

    name: str
    bank: tuple[Images, Codes]
    queries: dict[str, tuple[Images, Codes]]

    @property
    def images(self) -> Images:
        """All of them, those with known class first."""
        return np.concatenate([self.bank[0], *(images for images, _ in self.queries.values())])


def draw_rows(available: NDArray[np.int64], count: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """``count`` of the rows that are available.

    Raises:
        OpenfinoError: if there are fewer.
    """
    if count > len(available):
        raise OpenfinoError(f"{purpose}: {count:,} images wanted, there are {len(available):,}")
    return np.sort(probe_generator(seed, purpose).choice(available, count, replace=False))


def fashion_task(source: Path, seed: int, references: int, queries: int) -> Task:
    """Grey images of Fashion-MNIST."""
    drawn = {}
    for prefix, count in (("train", references), ("t10k", queries)):
        images, labels = read_source(source, prefix)
        rows = draw_rows(np.arange(len(images)), count, seed, f"fashion {prefix}")
        drawn[prefix] = images[rows][:, None], labels[rows].astype(np.int64)
    return Task("fashion", drawn["train"], {"test": drawn["t10k"]})


def sample_task(images: int, seed: int, references: int, queries: int) -> Task:
    """Four-channel images of the sample set of ``images`` images; only those that are used are drawn."""
    screen = plan_screen(images, SAMPLE_SEED)
    splits = np.array([shot.split for shot in screen.shots])
    drawn = {}
    for split, count in (("train", references), *((test, queries) for test in TESTS["sample"])):
        rows = draw_rows(np.flatnonzero(splits == split), count, seed, f"sample {split}")
        shots = [screen.shots[row] for row in rows]
        pictures = np.stack([render(screen, shot, SAMPLE_SIZE) for shot in shots])
        labels = np.array([screen.antibodies[shot.antibody].pattern for shot in shots], dtype=np.int64)
        drawn[split] = pictures, labels
    return Task("sample", drawn.pop("train"), drawn)


def network_rows(name: str, model: LoadedModel, images: Images) -> dict[str, Matrix]:
    """Features of images by the name of their row; a network for other channels is applied in both ways."""
    channels = images.shape[1]
    if channels in (1, model.backbone.channels):
        return _variants(name, pooled_features(model, images))
    expanded = with_channels(model, list(CHANNELS))
    each = [pooled_features(model, images[:, channel : channel + 1]) for channel in range(channels)]
    joined = Pooled(
        *(np.concatenate([getattr(one, part) for one in each], axis=1) for part in ("cls", "mean", "placed"))
    )
    return _variants(name + BY_CHANNEL, joined) | _variants(
        f"{name}, patch embedding expanded", pooled_features(expanded, images)
    )


def _variants(name: str, features: Pooled) -> dict[str, Matrix]:
    variants = {HEADLINE: features.both, "cls": features.cls, "mean": features.mean, PLACED: features.placed}
    return {f"{name}, {variant}": matrix for variant, matrix in variants.items()}


def untrained_rows(model: LoadedModel, images: Images, references: int) -> dict[str, Matrix]:
    """Features that nobody trained; the first ``references`` images standardise the statistics."""
    side, count = images.shape[-1], len(images)
    unit = images.astype(np.float32) / 255
    fitting = model if images.shape[1] == 1 else with_channels(model, list(CHANNELS))
    statistics = np.concatenate([unit.mean(axis=(2, 3)), unit.std(axis=(2, 3))], axis=1)
    known = statistics[:references]
    return {
        RAW[0]: unit.reshape(count, -1),
        RAW[1]: as_seen(fitting, images).flatten(1).numpy(),
        "HOG": hog(images, round(side / 8)),
        "mean and sd": (statistics - known.mean(axis=0)) / np.maximum(known.std(axis=0), np.float32(1e-6)),
    }


def score_rows(task: Task, rows: Mapping[str, Matrix]) -> dict[str, Scores]:
    """Row -> ``test/k10/accuracy`` and the like."""
    codes, first = task.bank[1], len(task.bank[1])
    scores: dict[str, Scores] = {row: {} for row in rows}
    for row, features in rows.items():
        start = first
        for split, (_, truth) in task.queries.items():
            queries = features[start : start + len(truth)]
            start += len(truth)
            for k in NEIGHBOURS:
                answers = knn_predict(features[:first], codes, queries, k=k)
                for metric, measure in METRICS.items():
                    scores[row][f"{split}/k{k}/{metric}"] = measure(truth, answers)
    return scores


def measure_task(task: Task, model: LoadedModel, seed: int) -> dict[str, Scores]:
    """Scores of every row on one draw of images."""
    images = task.images
    rows = network_rows("tiny", model, images) | network_rows("random", random_twin(model, seed), images)
    return score_rows(task, rows | untrained_rows(model, images, len(task.bank[1])))


def margins(task: str, summary: Summary, reading: str = HEADLINE) -> dict[str, dict[str, dict[str, Any]]]:
    """By how much a reading of the network's tokens is better than each baseline, the random network read likewise.

    Returns score -> baseline -> mean, the worst seed, whether all seeds.
    """
    way = BY_CHANNEL if task == "sample" else ""
    against = {"random": [f"random{way}, {reading}"], "raw pixels": list(RAW), "HOG": ["HOG"]}
    own = summary[f"tiny{way}, {reading}"]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for score, values in own.items():
        found[score] = {}
        for baseline, rows in against.items():
            best = np.max([summary[row][score]["values"] for row in rows], axis=0)
            gaps = np.array(values["values"]) - best
            found[score][baseline] = {
                "mean": float(gaps.mean()),
                "worst": float(gaps.min()),
                "beaten": bool((gaps > 0).all()),
            }
    return found


def tables(task: str, summary: Summary) -> str:
    """Scores and margins of a task as Markdown."""
    parts = []
    for split in TESTS[task]:
        columns = {
            f"k = {k}, {metric.replace('_', '-')}": f"{split}/k{k}/{metric}"
            for k in NEIGHBOURS
            for metric in METRICS
        }
        parts += [f"{task}, {split}:", markdown_table(summary, columns)]
    for reading in (HEADLINE, PLACED):
        found = margins(task, summary, reading)
        baselines = list(next(iter(found.values())))
        lines = [[f"{reading} minus", *baselines], ["---", *("---:" for _ in baselines)]]
        for score, gaps in found.items():
            cells = [f"{gap['mean']:+.3f} (worst seed {gap['worst']:+.3f})" for gap in gaps.values()]
            lines.append([score, *cells])
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts)


def run(arguments: argparse.Namespace) -> str:
    """Everything; returns the Markdown."""
    model = load_model(arguments.model)
    if arguments.size is not None:
        model = at_size(model, arguments.size)
    summaries = {}
    for name in arguments.tasks:
        scores: dict[str, list[Scores]] = {}
        for seed in range(arguments.seeds):
            if name == "fashion":
                task = fashion_task(arguments.source, seed, arguments.references, arguments.queries)
            else:
                counts = arguments.sample_references, arguments.sample_queries
                task = sample_task(arguments.sample_images, seed, *counts)
            for row, measured in measure_task(task, model, seed).items():
                scores.setdefault(row, []).append(measured)
            sys.stderr.write(f"{name}, seed {seed}: {time.process_time():.0f} processor-seconds so far\n")
        summaries[name] = summarise(scores)
    settings = {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
    }
    figures = {
        "settings": settings,
        "tasks": {
            name: {
                "rows": summary,
                "margins": {reading: margins(name, summary, reading) for reading in (HEADLINE, PLACED)},
            }
            for name, summary in summaries.items()
        },
    }
    write_figures(arguments.out, "tiny_knn.py", {"tiny": model}, figures)
    return "\n\n".join(tables(name, summary) for name, summary in summaries.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a run, a model folder, or a name")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny/knn.json"))
    parser.add_argument("--tasks", nargs="+", choices=list(TESTS), default=list(TESTS))
    parser.add_argument(
        "--size", type=int, help="pixels of the images that the network sees; its own when not given"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--source", type=Path, default=SOURCE, help=f"folder of Fashion-MNIST ({SOURCE})")
    parser.add_argument("--references", type=int, default=5000, help="of Fashion-MNIST")
    parser.add_argument("--queries", type=int, default=2000, help="of Fashion-MNIST")
    parser.add_argument("--sample-images", type=int, default=6000, help="in the whole sample set")
    parser.add_argument("--sample-references", type=int, default=1500)
    parser.add_argument("--sample-queries", type=int, default=400, help="in each test split")
    try:
        print(run(parser.parse_args()))
    except OpenfinoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
