"""What a trained baseline says of images, and the same network before training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from openfino.baselines.data import WholeImages
from openfino.baselines.network import Network, build_network
from openfino.baselines.training import ARM_FILE, HEAD_FILE, RECIPE_FILE
from openfino.baselines.trial import predict
from openfino.errors import OpenfinoError
from openfino.evaluation.heads import AttentiveHead
from openfino.evaluation.splits import Rows
from openfino.evaluation.tasks import Task
from openfino.images.preprocess import Preprocessing
from openfino.manifest import Manifest
from openfino.models.store import load_model
from openfino.recipe import load_recipe

Matrix = NDArray[np.float32]


def predict_baseline(
    out: Path,
    manifest: Manifest,
    rows: Rows,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    untrained: bool = False,
) -> tuple[Matrix, Rows]:
    """Logits of images that a baseline of :func:`openfino.baselines.training.train_baseline` has not to have seen.

    Args:
        out: folder of the arm.
        manifest: where the images are.
        rows: of the manifest.
        batch_size: images per forward pass.
        device: where it runs, in float32.
        workers: threads that read images.
        untrained: the network as it was before training, for comparison; it is made again from recipe and seed.

    Returns:
        logits float32 [n, t], as the arm's task takes them, and the rows that could be read, int64 [n].

    Raises:
        OpenfinoError: if ``out`` holds no trained baseline, or no image can be read.
    """
    _, logits, read = _run(out, manifest, rows, batch_size, device, workers, untrained)
    return logits, read


def baseline_features(
    out: Path,
    manifest: Manifest,
    rows: Rows,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    untrained: bool = False,
) -> tuple[Matrix, Rows]:
    """What the last linear layer reads, float32 [n, width], and the rows; DANN and CORAL act on it.

    Arguments and errors are those of :func:`predict_baseline`.
    """
    pooled, _, read = _run(out, manifest, rows, batch_size, device, workers, untrained)
    return pooled, read


def task_of(out: Path) -> Task:
    """The task of the arm in ``out``.

    Raises:
        OpenfinoError: if there is none.
    """
    facts = _facts(Path(out))["task"]
    return Task(**{**facts, "names": tuple(facts["names"])})


def load_network(out: Path, *, untrained: bool = False) -> tuple[Network, Preprocessing]:
    """The network of an arm on the CPU, in evaluation mode, and how it reads images.

    Raises:
        OpenfinoError: if ``out`` holds no trained baseline.
    """
    out = Path(out)
    facts = _facts(out)
    if not (out / HEAD_FILE).is_file():
        raise OpenfinoError(f"{out}: no trial of this baseline has finished yet")
    model = load_model(out)
    outputs = len(facts["task"]["names"])
    if untrained:
        recipe = load_recipe(out / RECIPE_FILE)
        network = build_network(
            recipe, facts["method"], channels=facts["channels"], outputs=outputs, seed=facts["seed"]
        )
        return network.eval(), model.preprocessing
    head = AttentiveHead(facts["token_dim"], outputs, facts["width"], facts["heads"])
    head.load_state_dict(load_file(out / HEAD_FILE))
    return Network(model.backbone, head, facts["layers"]).eval(), model.preprocessing


def _run(
    out: Path,
    manifest: Manifest,
    rows: Rows,
    batch_size: int,
    device: torch.device | str,
    workers: int,
    untrained: bool,
) -> tuple[Matrix, Matrix, Rows]:
    network, preprocessing = load_network(out, untrained=untrained)
    rows = np.asarray(rows, dtype=np.int64)
    images = WholeImages(manifest, rows, preprocessing, batch_size=batch_size, workers=workers, kept_bytes=0)
    device = torch.device(device)
    pooled, logits, read = predict(network.to(device), images, device)
    return pooled.numpy(), logits.numpy(), read


def _facts(out: Path) -> dict[str, Any]:
    if not (out / ARM_FILE).is_file():
        raise OpenfinoError(f"{out} holds no baseline")
    facts: dict[str, Any] = json.loads((out / ARM_FILE).read_text(encoding="utf-8"))
    return facts
