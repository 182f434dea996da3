"""What a cache of many features costs to write and to probe, and what half precision costs in accuracy.

    python benchmarks/feature_cache.py size --images 50000 200000
    python benchmarks/feature_cache.py precision

``size``: synthetic features of the shape of a ViT-S (CLS of four blocks and mean patch token: 1,920 numbers; four patch
tokens of 1,536) are written and probed, each phase in a process of its own: its seconds, and its peak memory above
that of a process that has only imported. ``precision``: the sample set (2,400 drawn images) under ``tiny``, probes on
features kept as float32 and as float16.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frozen import with_channels
from openfino.evaluation.cache import CachedFeatures, cached_features
from openfino.evaluation.cachefolder import fill, planned_chunks
from openfino.evaluation.chunks import Chunk, ChunkWriter, Layout
from openfino.evaluation.classifiers import knn_predict
from openfino.evaluation.grid import Grid, fit_grid
from openfino.evaluation.tasks import Targets, Task, resolve_task
from openfino.manifest import read_manifest
from openfino.models.store import load_model
from openfino.sampledata.draw import draw_sample
from openfino.sampledata.microscope import CHANNELS

WIDTH, LAYERS, TOKENS, CLASSES = 384, 4, 4, 10
LAYOUT = Layout({"linear": (LAYERS * WIDTH + WIDTH,), "patches": (TOKENS, LAYERS * WIDTH)}, dtype="float16")
SIGNAL = 0.1  # of a class, against noise of deviation 1 in every number
BATCH = 256
TASK = Task("single", "class", tuple(map(str, range(CLASSES))))


def synthetic(folder: Path, images: int) -> CachedFeatures:
    """Features with a class that can be read from them; written unless they are there."""
    patterns = {
        part: np.random.default_rng(0).standard_normal((CLASSES, *shape), dtype=np.float32)
        for part, shape in LAYOUT.shapes.items()
    }
    stamps = [f"{image:032x}" for image in range(images)]

    def compute(chunk: Chunk) -> Chunk:
        with ChunkWriter(chunk) as writer:
            for start in range(0, len(chunk.stamps), BATCH):
                own = np.array([int(stamp, 16) for stamp in chunk.stamps[start : start + BATCH]])
                rng = np.random.default_rng(own[0])
                parts = {
                    part: rng.standard_normal((len(own), *shape), dtype=np.float32)
                    + SIGNAL * patterns[part][own % CLASSES]
                    for part, shape in LAYOUT.shapes.items()
                }
                writer.write(parts, [None] * len(own))
            return writer.finish()

    chunks = list(fill(planned_chunks(folder, stamps, LAYOUT), compute))
    each = len(chunks[0].stamps)
    rows = np.arange(images, dtype=np.int64)
    return CachedFeatures(rows, LAYERS, LAYOUT, [chunk.stem for chunk in chunks], rows // each, rows % each)


def write_phase(folder: Path, images: int) -> dict[str, Any]:
    """Write everything."""
    synthetic(folder, images)
    return {"gigabytes": images * LAYOUT.image_bytes / 1e9}


def probe_phase(kind: str) -> Callable[[Path, int], dict[str, Any]]:
    """Eight heads, chosen on a tenth and scored on another: one pass (linear), or 100 steps and at most 2,000 rows."""

    def phase(folder: Path, images: int) -> dict[str, Any]:
        source = synthetic(folder, images)
        labels = np.arange(images, dtype=np.int64) % CLASSES
        order = np.random.default_rng(1).permutation(images)
        tenth = images // 10
        targets = Targets(labels, np.ones(images, dtype=bool))
        length: dict[str, Any] = {"epochs": 1.0} if kind == "linear" else {"steps": 100}
        most = images if kind == "linear" else 2000
        fitted = fit_grid(
            "linear" if kind == "linear" else "attentive",
            source,
            targets,
            order[2 * tenth :],
            order[tenth : 2 * tenth][:most],
            TASK,
            Grid(),
            metric="accuracy",
            batch_size=BATCH,
            **length,
        )
        test = order[:tenth][:most]
        chosen = TASK.predict(fitted.logits(test)).chosen
        return {"accuracy": float((chosen == labels[test]).mean()), "steps": fitted.steps}

    return phase


def cls_phase(folder: Path, images: int) -> dict[str, Any]:
    """All CLS tokens at once, for nearest neighbours."""
    cls = synthetic(folder, images).cls()
    return {"gigabytes": cls.nbytes / 1e9}


def take_phase(folder: Path, images: int) -> dict[str, Any]:
    """100 batches of 256 rows drawn from everywhere, both parts."""
    source = synthetic(folder, images)
    rng = np.random.default_rng(2)
    for _ in range(100):
        positions = rng.integers(0, images, BATCH)
        source.take(positions, "linear")
        source.take(positions, "patches")
    return {}


PHASES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "nothing": lambda *_: {},
    "write": write_phase,
    "take": take_phase,
    "cls": cls_phase,
    "linear": probe_phase("linear"),
    "attentive": probe_phase("attentive"),
}


def measure(phase: str, folder: Path, images: int) -> dict[str, Any]:
    """One phase, in this process."""
    started, busy = time.perf_counter(), time.process_time()
    found = PHASES[phase](folder, images)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "processor": busy, "peak_mb": peak, **found}


def size_command(sizes: list[int]) -> None:
    """Every phase at every size, in processes of their own."""
    print("| images | phase | wall s | processor s | peak memory above imports, MB | |")
    print("| ---: | --- | ---: | ---: | ---: | --- |")
    for images in sizes:
        with tempfile.TemporaryDirectory() as folder:
            base = 0.0
            for phase in PHASES:
                command = [sys.executable, __file__, "phase", phase, folder, str(images)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                base = base or found["peak_mb"]
                extra = ", ".join(f"{key} {found[key]:.3g}" for key in list(found)[3:])
                times = f"{found['seconds']:.1f} | {found['processor']:.1f}"
                print(
                    f"| {images:,} | {phase} | {times} | {found['peak_mb'] - base:.0f} | {extra} |",
                    flush=True,
                )


def precision_command(images: int, seeds: int) -> None:
    """Probes of the localisation on features of either precision."""
    print("| probe | seed | float32 | float16 | answers that differ |")
    print("| --- | ---: | ---: | ---: | ---: |")
    model = with_channels(load_model("tiny"), list(CHANNELS))
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_manifest(draw_sample(Path(folder) / "data", images=images))
        task = resolve_task(manifest, "localization")
        sources = {
            dtype: cached_features(
                model,
                manifest,
                range(len(manifest)),
                folder=Path(folder) / "cache",
                patches=True,
                dtype=dtype,
            )
            for dtype in ("float32", "float16")
        }
        targets = task.targets(manifest.table, np.arange(len(manifest)))
        split = {name: manifest.rows_where("split", [name]) for name in ("train", "val", "test_ood")}
        truth = targets.values[split["test_ood"]]

        def show(name: str, seed: str, answers: dict[str, Any]) -> None:
            scores = [float((answers[dtype] == truth).mean()) for dtype in sources]
            differ = int((answers["float32"] != answers["float16"]).sum())
            print(
                f"| {name} | {seed} | {scores[0]:.4f} | {scores[1]:.4f} | {differ} of {len(truth)} |",
                flush=True,
            )

        bank = {dtype: source.cls() for dtype, source in sources.items()}
        known = np.asarray(targets.values[split["train"]], dtype=np.int64)
        show(
            "kNN",
            "",
            {
                dtype: knn_predict(cls[split["train"]], known, cls[split["test_ood"]], k=20)
                for dtype, cls in bank.items()
            },
        )
        for kind, grid, epochs in (
            ("linear", Grid(), 20.0),
            ("attentive", Grid(lrs=(1e-3,), weight_decays=(1e-2,)), 8.0),
        ):
            for seed in range(seeds):
                answers = {}
                for dtype, source in sources.items():
                    fitted = fit_grid(
                        "linear" if kind == "linear" else "attentive",
                        source,
                        targets,
                        split["train"],
                        split["val"],
                        task,
                        grid,
                        metric="macro_f1",
                        epochs=epochs,
                        seed=seed,
                    )
                    answers[dtype] = task.predict(fitted.logits(split["test_ood"])).chosen
                show(kind, str(seed), answers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    size = commands.add_parser("size")
    size.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    precision = commands.add_parser("precision")
    precision.add_argument("--images", type=int, default=2400)
    precision.add_argument("--seeds", type=int, default=3)
    phase = commands.add_parser("phase")
    phase.add_argument("phase", choices=list(PHASES))
    phase.add_argument("folder", type=Path)
    phase.add_argument("images", type=int)
    given = parser.parse_args()
    if given.command == "size":
        size_command(given.images)
    elif given.command == "precision":
        precision_command(given.images, given.seeds)
    else:
        print(json.dumps(measure(given.phase, given.folder, given.images)))


if __name__ == "__main__":
    main()
