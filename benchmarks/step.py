"""Time and memory of a training step at ViT-S/B/L, with drawn data so that nothing but the step is measured.

    python benchmarks/step.py --model small --batch 64              # DINOv3 crops, two guides
    python benchmarks/step.py --model small --batch 8 --crops 96,48 --prototypes 4096 --device cpu

The arms (no guidance, guidance) alternate step by step in one process; medians and their ratio are printed as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from openfino.adapt import build_run
from openfino.distributed import World
from openfino.factors.batch import FactorBatch
from openfino.images.loader import ViewBatch
from openfino.images.photometric import CropKind, draw_parameters
from openfino.keyed import keyed_generator
from openfino.models.loading import random_backbone
from openfino.objectives.guidance.guidance import GuidedFactor
from openfino.recipe import Recipe, build_recipe
from openfino.training.loop import Run, train

SIZES = {
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
FACTORS = {
    "place": {"role": "informative", "kind": "discrete"},
    "age": {"role": "spurious", "kind": "continuous"},
}


@dataclass(frozen=True)
class DrawnFactor:
    """Stands for an encoded factor: the values of a row depend on its number."""

    guided: GuidedFactor

    def batch(self, rows: torch.Tensor) -> FactorBatch:
        if self.guided.kind == "discrete":
            return FactorBatch(rows % self.guided.size, torch.ones_like(rows, dtype=torch.bool))
        return FactorBatch((rows[:, None] % 100) / 100.0, torch.ones_like(rows, dtype=torch.bool))


def recipe_of(arguments: argparse.Namespace, *, guided: bool) -> Recipe:
    head = {"prototypes": arguments.prototypes}
    config = {**SIZES[arguments.model], "patch_size": 16, "num_register_tokens": 4}
    global_size, local_size = (int(side) for side in arguments.crops.split(","))
    return build_recipe(
        {
            "manifest": "none",
            "out": "none",
            "model": {"config": config},
            "views": {"global_size": global_size, "local_size": local_size, "local_count": 8},
            "factors": FACTORS if guided else {},
            "objective": {"dino": {"head": head}, "ibot": {"head": head}},
            "train": {
                "steps": 1_000_000,
                "freeze_steps": 0,
                "batch_size": arguments.batch,
                "log_every": 1_000_000,
                "checkpoint_every": 1_000_000,
                "compile": arguments.compile,
                "activation_checkpointing": arguments.checkpoint,
                "drop_path": 0.1,
            },
        }
    )


def build(recipe: Recipe, device: torch.device) -> Run:
    backbone = random_backbone(recipe.model.config or {}, 3, seed=0)
    factors = {
        name: DrawnFactor(
            GuidedFactor(name, setting.role, setting.kind, 1000 if setting.kind == "discrete" else 1)
        )
        for name, setting in recipe.factors.items()
    }
    guided = {name: factor.guided for name, factor in factors.items()}
    run = build_run(recipe, backbone, guided, device, World())
    run.factors = factors  # type: ignore[assignment]
    return run


def draw_batch(recipe: Recipe, step: int) -> ViewBatch:
    """A batch of noise with the masks of the protocol."""
    images, views = recipe.train.batch_size, recipe.views
    generator = torch.Generator().manual_seed(step)

    def crops(count: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(0, 255, (count, images, 3, *size), dtype=torch.uint8, generator=generator)

    patches = (views.global_size[0] // 16) * (views.global_size[1] // 16)
    masks = torch.zeros(2 * images, patches, dtype=torch.bool)
    for crop, ratio in enumerate(torch.linspace(0.1, 0.5, images)):
        masks[2 * crop, : int(patches * ratio)] = True
    return ViewBatch(
        step=step,
        rows=torch.arange(step * images, (step + 1) * images),
        global_crops=crops(2, views.global_size),
        local_crops=crops(views.local_count, views.local_size),
        masks=masks.view(2, images, patches),
        photometric={
            "global": photometric(("global_1", "global_2"), images, step),
            "local": photometric(("local",) * views.local_count, images, step),
        },
        unreadable=[],
    )


def photometric(kinds: Sequence[CropKind], images: int, step: int) -> dict[str, torch.Tensor]:
    """Parameters of the natural preset for every crop, name -> [crops, images, ...]."""
    rng = keyed_generator(step, len(kinds))
    channels = ["red", "green", "blue"]
    drawn = [[draw_parameters(rng, "natural", kind, channels, None) for _ in range(images)] for kind in kinds]
    return {
        name: torch.from_numpy(np.stack([[one[name] for one in row] for row in drawn]).astype(np.float32))
        for name in drawn[0][0]
    }


def timed_step(run: Run, batch: ViewBatch, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    train(run, [batch])
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crops", default="224,96")
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arms = {
        name: build(recipe_of(arguments, guided=name == "guided"), device) for name in ("plain", "guided")
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(arguments.steps + 3):
        batch = draw_batch(arms["plain"].recipe, step)
        for name, run in arms.items():
            taken = timed_step(run, batch, device)
            if step >= 3:
                times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        **vars(arguments),
        "hardware": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "seconds_per_step": {name: round(value, 4) for name, value in medians.items()},
        "guided_over_plain": round(medians["guided"] / medians["plain"], 4),
        "images_per_second": round(arguments.batch / medians["guided"], 1),
        "peak_gib_both_arms": round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if device.type == "cuda"
        else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
