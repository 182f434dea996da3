"""Schedules, parameter groups, projection heads, channel expansion and masks against the authors' modules."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from comparisons import Compared, authors_recipe, component, leaf
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DINOv3ViTConfig

from conftest import TINY
from golden_data import Case
from openfino.images.masks import block_mask, blocks, mask_plan
from openfino.keyed import keyed_generator
from openfino.models.channels import expand_filters
from openfino.models.families import family_of
from openfino.models.head import ProjectionHead
from openfino.models.loading import random_backbone
from openfino.models.variants import Variants
from openfino.objectives.guidance.mlp import KeyedMlp
from openfino.objectives.guidance.reversal import ramp
from openfino.recipe import HeadSettings, TrainSettings
from openfino.training.optimizer import build_optimizer, freeze_for_stage, set_rates
from openfino.training.schedules import Schedules, classical_cosine, warmup_cosine

MASK_SAMPLES = 2000  # theirs are statistics of as many
STANDARD_ERRORS = 4.0

# What their parameters are called in the transformers model (the fused qkv is three there), first match first.
PLACES = (
    ("cls_token", ("embeddings.cls_token",)),
    ("storage_tokens", ("embeddings.register_tokens",)),
    ("mask_token", ("embeddings.mask_token",)),
    ("patch_embed.proj.", ("embeddings.patch_embeddings.",)),
    ("cls_norm.", ("cls_norm.",)),
    ("local_cls_norm.", ("local_cls_norm.",)),
    ("norm.", ("norm.",)),
)
PLACES_IN_BLOCK = (
    ("attn.qkv.", ("attention.q_proj.", "attention.k_proj.", "attention.v_proj.")),
    ("attn.proj.", ("attention.o_proj.",)),
    ("ls1.gamma", ("layer_scale1.lambda1",)),
    ("ls2.gamma", ("layer_scale2.lambda1",)),
    ("mlp.fc1.", ("mlp.up_proj.",)),
    ("mlp.fc2.", ("mlp.down_proj.",)),
    ("mlp.w1.", ("mlp.gate_proj.",)),
    ("mlp.w2.", ("mlp.up_proj.",)),
    ("mlp.w3.", ("mlp.down_proj.",)),
    ("norm", ("norm",)),
)


def double(values: list[float]) -> Tensor:
    """A list as a tensor that loses nothing of it."""
    return torch.tensor(values, dtype=torch.float64)


@component(
    "schedules",
    ours="training.schedules.warmup_cosine, classical_cosine",
    source="DINOv3 sec. 3.1, app. C",
    cases={"schedules.safetensors": ["*"]},
    deviation=(
        "Not in the curves. Step i of our warm-up has (i + 1) / n of the rate, so that the first step moves; theirs "
        "has i / n (`train.warmup_from_zero: true`). Their older curve, which ends one step after the last, is "
        "`train.schedule: classical_cosine`."
    ),
)
def schedules(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    settings = case.hparams
    steps = range(len(case["values"]))
    if "peak" in settings:
        curve = {name: settings[name] for name in ("start", "peak", "end")}
        curve |= {"warmup": settings["warmup_iterations"], "total": settings["total_iterations"]}
        length = settings.get("cosine_iterations")
        values = [warmup_cosine(step, **curve, cosine_steps=length) for step in steps]
    else:
        frozen = settings.get("freeze_iters", 0)
        curve = {"peak": settings["base_value"], "end": settings["final_value"]}
        curve |= {"start": settings.get("start_warmup_value", 0.0), "warmup": settings.get("warmup_iters", 0)}
        curve |= {"total": settings["total_iters"] - frozen, "stretch": settings.get("trunc_extra", 0.0)}
        values = [classical_cosine(step - frozen, **curve) if step >= frozen else 0.0 for step in steps]
    yield Compared("values", double(values))


def group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """The optimizer's group that holds ``parameter``."""
    return next(
        group for group in optimizer.param_groups if any(parameter is member for member in group["params"])
    )


@component(
    "schedules of the FINO recipes",
    ours="training.schedules.Schedules, training.optimizer.set_rates",
    source="FINO sec. 3",
    cases={"recipe_schedules.json": ["*"]},
    deviation=(
        "Theirs scales the rate by 4 sqrt(batch / 1024), the paper says sqrt(batch / 1024) "
        "(`train.lr_scaling: sqrt_1024_x4`). Their ramp of the backbone scales weight decay as well as the rate, so "
        "that what is decayed in a step ramps quadratically; ours ramps linearly (`train.ramp_decay: true`). Their "
        "teacher temperature never warms up although the recipe names a start; ours goes from 0.04 to 0.07 as the "
        "paper says (`objective.teacher_temperature.warmup_steps: 0`)."
    ),
)
def recipe_schedules(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    steps, rows = case["total_iterations"], case["rows"]
    batch_size = case["batch_size_per_gpu"] * case["world_size"]
    recipe = authors_recipe(train={"steps": steps, "batch_size": batch_size, "trainable_blocks": 1})
    plan = Schedules(recipe.train, recipe.objective.teacher_temperature)
    backbone = random_backbone(TINY, 3, seed=0)
    head = ProjectionHead(backbone.embed_dim, HeadSettings(prototypes=4, hidden=4, bottleneck=4))
    optimizer = build_optimizer({"backbone": backbone, "head": head}, recipe.train)
    examples = {
        "plain": head.mlp[0].weight,
        "last_layer": head.last_layer.weight,
        "frozen_backbone": backbone.blocks[1].mlp.up_proj.weight,
        "always_frozen": backbone.blocks[0].mlp.up_proj.weight,
    }
    guidance = recipe.objective.guidance
    since = 0 if guidance.ramp_from == "start" else recipe.train.freeze_steps
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for row in rows:
        step = row["iteration"]
        frozen = plan.backbone_frozen(step)
        found = {
            "lr": plan.lr(step),
            "last_layer_lr": 0.0 if plan.last_layer_frozen(step) else plan.lr(step),
            "weight_decay": plan.weight_decay(step),
            "momentum": plan.momentum(step),
            "teacher_temp": plan.teacher_temperature(step),
            "backbone_frozen": frozen,
            # Theirs says 1 while the flag above sets the rates to 0.
            "backbone_lr_scale": 1.0 if frozen else plan.backbone_factor(step),
            "guide_lambda": ramp(guidance.ramp, step - since, steps - since),
        }
        expected = {f"rows.{name}": row[name] for name in found}
        found = {f"rows.{name}": value for name, value in found.items()}
        set_rates(optimizer, plan.rates(step))
        freeze_for_stage(backbone, recipe.train, stage_one=frozen)
        for kind, parameter in examples.items():
            group = group_of(optimizer, parameter)
            # The optimizer leaves alone what takes no gradient; their groups all have the same multiplier.
            rate = group["lr"] / group["lr_multiplier"] * case["groups_lr_multiplier"]
            moves = parameter.requires_grad
            values = {"lr": rate * moves, "weight_decay": group["weight_decay"] * moves}
            found |= {f"rows.groups.{kind}.{name}": value for name, value in values.items()}
            expected |= {f"rows.groups.{kind}.{name}": row["groups"][kind][name] for name in values}
        for name, value in found.items():
            ours.setdefault(name, []).append(float(value))
            theirs.setdefault(name, []).append(float(expected[name]))
    ours["lr_factor"], theirs["lr_factor"] = [plan.lr_factor], [case["lr_factor"]]
    for name, values in ours.items():
        yield Compared(name, double(values), double(theirs[name]))


def their_settings(hparams: Mapping[str, Any]) -> TrainSettings:
    """What their grouping was told, as our settings."""
    own = {
        "layer_decay": hparams["lr_decay_rate"],
        "patch_embedding_lr": hparams.get("patch_embed_lr_mult", 1.0),
        "freeze_patch_embedding": hparams.get("freeze_patch_embed", True),
        "trainable_blocks": hparams.get("unfreeze_last_n_blocks"),
    }
    return authors_recipe(train=own).train


def our_module(case: Case) -> nn.Module:
    """The module of a case as we build it; its values do not matter."""
    shapes = {group["name"]: group["shape"] for group in case["groups"]}
    if case.name == "classifier_head":
        first, second, last = (shapes[f"classifier.{number}.weight"] for number in (0, 3, 6))
        return KeyedMlp(first[1], last[0], hidden=[first[0], second[0]])
    if case.name == "dino_head":
        prototypes, bottleneck = shapes["last_layer.weight"]
        hidden, width = shapes["mlp.0.weight"]
        settings = HeadSettings(prototypes=prototypes, hidden=hidden, bottleneck=bottleneck)
        return ProjectionHead(width, settings)
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    gated = "blocks.0.mlp.w1.weight" in shapes
    config = {
        "hidden_size": width,
        "num_attention_heads": 2,
        "num_hidden_layers": sum(name.endswith("norm1.weight") for name in shapes),
        "intermediate_size": shapes["blocks.0.mlp.w1.weight" if gated else "blocks.0.mlp.fc1.weight"][0],
        "use_gated_mlp": gated,
        "patch_size": patch,
        "num_register_tokens": shapes["storage_tokens"][1],
    }
    norms = {name: f"{name}.weight" in shapes for name in ("cls_norm", "local_cls_norm")}
    whole = DINOv3ViTConfig(**config, **Variants(**norms).as_config())
    family = family_of(whole)
    return family.backbone(family.model_class(whole))


def our_names(case: Case, name: str) -> list[str]:
    """What one of their parameters is called in :func:`our_module`."""
    if case.name == "dino_head":
        return [name]
    if case.name == "classifier_head":
        _, number, kind = name.split(".")
        return [f"layers.{int(number) // 3}.{kind}"]
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        base, places = f"model.model.layer.{number}.", PLACES_IN_BLOCK
    else:
        base, rest, places = "model.", name, PLACES
    old, new = next((old, new) for old, new in places if rest.startswith(old))
    return [base + each + rest.removeprefix(old) for each in new]


@component(
    "parameter groups",
    ours="training.optimizer.build_optimizer, freeze_for_stage",
    source="FINO sec. 3, DINOv3 app. C",
    cases={"param_groups.json": ["*"]},
    deviation=(
        "Theirs decays the CLS, register and mask tokens, although a comment says otherwise; ours does not: they are "
        "biases (`train.decay_tokens: true`). Where only the last blocks unfreeze, theirs never trains the patch "
        "embedding nor the last norm; ours trains both, so that new channels can be learned "
        "(`train.trainable_blocks_alone: true`). Outside FINO their stage 1 freezes the patch embedding too "
        "(`train.freeze_patch_embedding: true`). Their `dino_head_wd_multiplier` has no effect; we have no such key. "
        "Theirs clips backbone, DINO head and iBOT head each by itself and the heads of the factors never, and steps "
        "on gradients that are not finite; ours clips everything together and skips such a step on all ranks."
    ),
)
def parameter_groups(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    train, module = their_settings(case.hparams), our_module(case)
    optimizer = build_optimizer({"module": module}, train)
    if case.name.startswith("vit"):
        freeze_for_stage(module, train, stage_one=False)
    parameters = dict(module.named_parameters())
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for entry in case["groups"]:
        # The released models have no bias of the keys, and ours none of it either.
        names = [name for name in our_names(case, entry["name"]) if not name.endswith("k_proj.bias")]
        if "qkv" not in entry["name"]:
            (name,) = names
            assert parameters[name].numel() == math.prod(entry["shape"]), name
        for name in names:
            parameter = parameters.pop(name)
            group = group_of(optimizer, parameter)
            found = {
                "lr_multiplier": group["lr_multiplier"],
                "wd_multiplier": group["decays"],
                "is_last_layer": group["last_layer"],
                "is_frozen_backbone": group["backbone"],
                "always_frozen": not parameter.requires_grad,
            }
            for key, value in found.items():
                ours.setdefault(key, []).append(float(value))
                theirs.setdefault(key, []).append(float(entry[key]))
    assert not parameters, f"theirs has no {', '.join(parameters)}"
    for key, values in ours.items():
        yield Compared(f"groups.{key}", double(values), double(theirs[key]))


@component(
    "projection heads",
    ours="models.head.ProjectionHead",
    source="DINOv3 sec. 3.1",
    cases={"dino_head.safetensors": ["*"]},
    double=True,
)
def projection_heads(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    hparams = case.hparams
    head = ProjectionHead(
        hparams["in_dim"],
        HeadSettings(
            prototypes=hparams["out_dim"],
            hidden=hparams["hidden_dim"],
            bottleneck=hparams["bottleneck_dim"],
            layers=hparams["nlayers"],
            bias=hparams.get("mlp_bias", True),
        ),
    ).to(dtype)
    prefix = f"{case.name}/params/"
    names = [name.removeprefix(prefix) for name in case.tensors if name.startswith(prefix)]
    # Theirs is no sequence where it has one layer.
    renamed = {name: name.replace("mlp.", "mlp.0.") if hparams["nlayers"] == 1 else name for name in names}
    head.load_state_dict({renamed[name]: case[f"params/{name}"] for name in names})
    tokens = leaf(case, "x", dtype)
    logits, bottleneck = head(tokens)
    (logits * case["probe"].to(dtype)).sum().backward()
    yield Compared("out", logits)
    yield Compared("bottleneck", bottleneck)
    yield Compared("no_last_layer", F.normalize(bottleneck, dim=-1))
    yield Compared("only_last_layer_of_bottleneck", head.logits(bottleneck))
    yield Compared("grad_x", tokens.grad)
    yield Compared("grad_last_layer", head.last_layer.weight.grad)


@component(
    "channel expansion",
    ours="models.channels.expand_filters",
    source="FINO app. (HPA)",
    cases={"expand_patch_embed.safetensors": ["*"]},
    double=True,
    deviation=(
        "Their switch for not scaling by C_old / C_new is `model.keep_grey_response: false`. Theirs refuses fewer "
        "channels than before; ours gives each the mean filter, scaled, so that the response to a grey image stays "
        "(compared here with the sum of the old filters)."
    ),
)
def channel_expansion(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    weight = case["weight"].to(dtype)
    channels, normalize = case.hparams["target_in_chans"], case.hparams["normalize"]
    if case.name == "not_4d_raises":
        try:
            expand_filters(weight, channels)
        except ValueError:
            refused = torch.ones(1)
        else:
            refused = torch.zeros(1)
        yield Compared("refused", refused, torch.ones(1))
        return
    expanded = expand_filters(weight, channels, keep_grey_response=normalize)
    if case.name == "3to1_raises":
        yield Compared("grey_response", expanded.sum(dim=1), weight.sum(dim=1))
    else:
        yield Compared("expanded", expanded)


@component(
    "counts of masked patches",
    ours="images.masks.mask_plan",
    source="DINOv3 sec. 3.1; BEiT alg. 1",
    cases={"mask_generation.json": ["collate_*"]},
)
def mask_counts(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    hparams = case.hparams
    low, high = hparams["mask_ratio_tuple"]
    crops, patches = hparams["n_mask_rows"], hparams["n_tokens"]
    plan = torch.from_numpy(mask_plan(0, 0, crops, patches, hparams["mask_probability"], (low, high)))
    yield Compared("masked_counts_sorted", plan.sort().values, torch.tensor(case["masked_counts_sorted"]))
    for total in ("upperbound", "n_masked_patches"):
        yield Compared(total, plan.sum(), torch.tensor(case[total]))
    # Each masked patch has one over its crop's count, so that the sum counts the masked crops.
    yield Compared("sum_masks_weight", plan.count_nonzero(), torch.tensor(case["sum_masks_weight"]))


def regions(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Parts of the grid whose share of masked patches is compared."""
    centre, border, corners = (np.zeros((rows, columns), bool) for _ in range(3))
    centre[rows // 2 - 2 : rows // 2 + 2, columns // 2 - 2 : columns // 2 + 2] = True
    border[[0, -1]] = border[:, [0, -1]] = True
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return {"center_4x4": centre, "border": border, "corners": corners}


@functools.cache
def mask_sample(rows: int, columns: int, count: int) -> dict[str, np.ndarray]:
    """What is measured on each of our masks."""
    masks, before = (
        np.stack(
            [draw(keyed_generator(17, count, one), (rows, columns), count) for one in range(MASK_SAMPLES)]
        )
        for draw in (block_mask, blocks)
    )
    pairs = (masks[:, 1:] & masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] & masks[:, :, :-1]).sum((1, 2))
    sample = {
        "masked": masks.sum((1, 2)),
        "block_masked_before_random_completion": before.sum((1, 2)),
        "adjacent_masked_pairs": pairs,
    }
    return sample | {name: masks[:, region].mean(1) for name, region in regions(rows, columns).items()}


def agrees(statistic: str, values: np.ndarray, theirs: float) -> bool:
    """Whether two samples of as many values differ by no more than their sampling error allows."""
    centred = values - values.mean()
    deviation = float(values.std())
    if statistic.startswith("std_"):
        ours = deviation
        error = math.sqrt((centred**4).mean() - deviation**4) / (2 * deviation) if deviation else 0.0
    else:
        ours, error = float(values.mean()), deviation
    return abs(ours - theirs) <= STANDARD_ERRORS * error * math.sqrt(2 / len(values))


@component(
    "shapes of masks",
    ours="images.masks.block_mask",
    source="DINOv3 sec. 3.1; BEiT alg. 1",
    cases={"mask_generation.json": ["14x14_*"]},
    deviation=(
        "None. Random draws cannot be equal: the number of masked patches is compared exactly, and everything else "
        "(patches in blocks before single ones fill up, neighbouring pairs, share in the centre, border and corners; "
        "means and standard deviations of 2,000 masks) as 1, within four standard errors, or 0."
    ),
)
def mask_shapes(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    rows, columns = case.hparams["input_size"]
    assert case.hparams["n_samples"] == MASK_SAMPLES
    found: dict[str, list[float]] = {}
    expected: dict[str, list[float]] = {}
    for theirs in case["rows"]:
        sample = mask_sample(rows, columns, theirs["requested"])
        for name, value in theirs.items():
            if name in ("ratio", "requested"):
                continue
            kind, _, measured = name.partition("_")
            values = sample[measured]
            if measured == "masked":
                ours = float({"mean": values.mean(), "min": values.min(), "max": values.max()}[kind])
            else:
                ours, value = float(agrees(name, values, value)), 1.0
            found.setdefault(name, []).append(ours)
            expected.setdefault(name, []).append(value)
    for name, values in found.items():
        yield Compared(f"rows.{name}", double(values), double(expected[name]))
