"""``openfino adapt``: from a recipe to an adapted backbone in a run folder.

This file builds the parts in the order of the flow (manifest, factors, images, models, objective) and hands them
to :func:`openfino.training.loop.train`.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openfino.diagnostics.pictures import Pictures
from openfino.distributed import World, barrier, choose_device, gather_objects, join_world
from openfino.errors import OpenfinoError
from openfino.factors.encode import EncodedFactor, Vocabulary, load_vocabularies, save_vocabularies
from openfino.gram_source import NamedTeacher, open_named_teacher
from openfino.images.loader import build_loader
from openfino.images.preprocess import Preprocessing
from openfino.keyed import Purpose, keyed_seed
from openfino.models.backbone import Backbone
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.ema import make_teacher
from openfino.models.licence import licence_of, public_name
from openfino.models.loading import LoadReport, fit_channels, pretrained_backbone, random_backbone
from openfino.models.store import model_folder, quiet_transformers, read_sidecar, save_backbone
from openfino.objectives.guidance.guidance import GuidedFactor
from openfino.objectives.objective import build_objective
from openfino.preflight import Preflight, encode_factors, preflight, with_source_normalization
from openfino.prober import Prober
from openfino.recipe import Recipe
from openfino.recipe.effects import rope_beyond_preset
from openfino.runfolder import check_folder, claim_folder, describe_environment, write_whole
from openfino.training.checkpoint import FOLDER, last_checkpoint, load_checkpoint, step_of
from openfino.training.gram import GramTeacher
from openfino.training.logging import RunLog
from openfino.training.loop import Run, all_unreadable, restore_run, train
from openfino.training.optimizer import build_optimizer
from openfino.training.schedules import Schedules
from openfino.training.step import Student, TrainableModel

VOCABULARY_FILE = "factors.json"
SUMMARY_FILE = "summary.json"
NO_MASKS = {"mask_fraction": 0.0}


def adapt(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Run ``recipe`` and return the content of its ``summary.json``.

    Under ``torchrun`` every process calls this; the main one writes.

    Raises:
        OpenfinoError: whatever the user can mend, before training where possible.
    """
    device = choose_device(recipe.train.device)
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    world = join_world(device)
    console = console or Console()
    say = console.print if world.is_main else _silent
    started = time.perf_counter()

    # Recipe, table, files, factors, sizes, weights: what can be refused is refused here, before anything is written.
    recipe = with_source_normalization(recipe)
    if world.is_main:
        check_folder(recipe, resume=resume, overwrite=overwrite)
    checkpoint = _checkpoint(recipe, world) if resume else None
    start_step = step_of(checkpoint)
    if start_step > recipe.train.steps:
        raise OpenfinoError(f"the run is at step {start_step}; train.steps {recipe.train.steps} is behind it")
    ready = preflight(recipe, read_images="exist" if world.is_main else "none", start_step=start_step)
    if recipe.train.batch_size % world.size:
        raise OpenfinoError(
            f"train.batch_size {recipe.train.batch_size} is not divisible by the {world.size} processes"
        )
    backbone, report = starting_backbone(recipe, ready.channels)
    named = open_named_teacher(recipe, len(ready.channels), start_step)
    if world.is_main:
        claim_folder(recipe, resume=resume, overwrite=overwrite)
    barrier()
    tensors, state = load_checkpoint(checkpoint) if checkpoint else ({}, {"step": 0})
    factors, vocabularies = _factors(recipe, ready, resume=checkpoint is not None)
    say(describe(recipe, ready, factors), highlight=False)
    say(str(report), highlight=False)
    if named:
        say(f"Gram teacher: {named.report}", highlight=False)

    # Models, objective, optimizer, probes.
    guided = guided_factors(factors)
    provenance = describe_provenance(recipe, ready, backbone)
    run = build_run(recipe, backbone, guided, device, world, named)
    run.factors = {name: factors[name] for name in guided}
    preprocessing = Preprocessing(
        size=recipe.views.global_size, normalization=recipe.images.normalization, channels=ready.channels
    )
    prober = Prober(recipe, ready.manifest, preprocessing, provenance, device)
    pictures = Pictures(recipe, ready.manifest, ready.rows, preprocessing, device)
    probing = world.is_main and (recipe.probe.label is not None or bool(recipe.factors))
    baseline: Mapping[str, float] = {}
    if world.is_main:
        pictures.forget_after(state["step"])
        save_vocabularies(recipe.out / VOCABULARY_FILE, vocabularies)
        write_whole(recipe.out / "environment.json", json.dumps(describe_environment(device), indent=1))
    if probing:
        baseline = prober.start(run.teacher.backbone, state["step"])
        say(prober.describe_baseline(), highlight=False)
    if tensors:
        restore_run(run, tensors, state)
        say(f"resuming at step {run.step} of {recipe.train.steps}", highlight=False)
    if recipe.train.compile:
        run.model.student.backbone.compile_blocks()
        run.teacher.backbone.compile_blocks()
        if run.gram:
            run.gram.compile_blocks()

    # Train.
    def save_model(step: int) -> None:
        if world.is_main:
            facts = {**provenance, "steps": step, "probes": prober.before_and_after(step)}
            save_backbone(recipe.out / "model", run.teacher.backbone, preprocessing, facts)

    def probe_now(step: int) -> Mapping[str, float]:
        metrics = prober.probe(run.teacher.backbone, step, full=step == recipe.train.steps) if probing else {}
        if probing:
            run.log.say(prober.line(step))
        if world.is_main:
            pictures.draw(run.teacher.backbone, step, run.log)
        barrier()
        return metrics

    run.on_checkpoint = save_model
    run.on_probe = probe_now
    total_steps = recipe.train.steps
    with RunLog(
        recipe.out, start_step=run.step, total_steps=total_steps, console=console, active=world.is_main
    ) as log:
        run.log = log
        if baseline:
            log.write(0, baseline)
        if world.is_main and run.step == 0:
            pictures.draw(run.teacher.backbone, 0, log)
        train(run, _batches(recipe, ready, run, world))
        log.write(total_steps - 1, probe_now(total_steps))
        save_model(run.step)

    # Report.
    if probing:
        say(prober.table(), highlight=False, markup=False, soft_wrap=True)
    summary = {
        "steps": run.step,
        "images_seen": run.step * recipe.train.batch_size,
        "seconds": round(time.perf_counter() - started, 1),
        "skipped_steps": run.skipped,
        "unreadable_rows": all_unreadable(run),
        "entangled": ready.entangled,
        "weights": {"source": report.source, "matched": report.matched, "total": report.total},
        **{key: provenance[key] for key in ("parent", "factors", "images")},
        "probes": prober.before_and_after(),
        "leakage": [dataclasses.asdict(change) for change in prober.changes()],
        "flags": [str(change) for change in prober.changes() if change.flagged],
        "best_step": prober.best_step,
        "model": str(recipe.out / ("best" if (recipe.out / "best").is_dir() else "model")),
    }
    if world.is_main:
        write_whole(recipe.out / SUMMARY_FILE, json.dumps(summary, indent=1))
        say(_closing_words(summary), highlight=False)
    return summary


def starting_backbone(recipe: Recipe, channels: list[str]) -> tuple[Backbone, LoadReport]:
    """The backbone of the recipe, with its patch embedding fitted to the channels."""
    if recipe.model.config is not None:
        seed = keyed_seed(recipe.seed, Purpose.INIT, 0)
        backbone = random_backbone(recipe.model.config, len(channels), seed)
        _set_rope(backbone, recipe)
        total = sum(parameter.numel() for parameter in backbone.parameters())
        return backbone, LoadReport("random initialisation (model.config)", total, total, [], [], [])
    source = str(recipe.model.source)
    with quiet_transformers():
        backbone, report = pretrained_backbone(
            str(model_folder(source) or source),
            allow_partial=recipe.model.allow_partial,
            layer_norm_eps=recipe.model.layer_norm_eps,
        )
    _set_rope(backbone, recipe)
    keep = recipe.model.keep_grey_response
    return backbone, fit_channels(backbone, report, len(channels), keep_grey_response=keep)


def _set_rope(backbone: Backbone, recipe: Recipe) -> None:
    """Change the rotary positions as the recipe says; a model without them need not fit what only a preset says."""
    if isinstance(backbone, Dinov3Backbone) or rope_beyond_preset(recipe):
        backbone.set_rope(recipe.model.rope)


def guided_factors(factors: Mapping[str, EncodedFactor]) -> dict[str, GuidedFactor]:
    """What guidance must know of every factor that is not only watched."""
    return {
        name: GuidedFactor(
            name=name,
            role=factor.spec.role,
            kind=factor.spec.kind,
            size=factor.target_size,
            output=factor.spec.output,
            weight=factor.spec.weight,
        )
        for name, factor in factors.items()
        if factor.spec.role != "watched"
    }


def build_run(
    recipe: Recipe,
    backbone: Backbone,
    guided: Mapping[str, GuidedFactor],
    device: torch.device,
    world: World,
    named: NamedTeacher | None = None,
) -> Run:
    """Student, teachers, objective and optimizer, with every random weight drawn from the recipe's seed."""
    gram = None
    if recipe.objective.gram.weight > 0:
        frozen = None if recipe.objective.gram.teacher == "ema" else named.backbone if named else backbone
        gram = GramTeacher(recipe.objective.gram, frozen, device, named.normalization if named else None)
    backbone.install_drop_path(recipe.train.drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(recipe.seed, Purpose.INIT, 1))
        student = Student(backbone, recipe.objective)
        objective = build_objective(recipe, guided, backbone.embed_dim)
    model = TrainableModel(student, objective, recipe.seed).to(device).train()
    teacher = make_teacher(student)
    if recipe.train.activation_checkpointing:
        backbone.checkpoint_activations()
    modules: dict[str, torch.nn.Module] = {"backbone": backbone, "objective": objective}
    modules |= {name: head for name, head in student.named_children() if name != "backbone"}
    return Run(
        recipe=recipe,
        model=model,
        teacher=teacher,
        optimizer=build_optimizer(modules, recipe.train),
        schedules=Schedules(recipe.train, recipe.objective.teacher_temperature),
        device=device,
        world=world,
        gram=gram,
    )


def describe_provenance(recipe: Recipe, ready: Preflight, backbone: Backbone) -> dict[str, Any]:
    """Facts for the model card."""
    source = recipe.model.source
    name = public_name(source)
    private: dict[str, Any] = {"manifest": True, "out": True, "model": {"source"}, "compare": True}
    facts: dict[str, Any] = {}
    if gram := recipe.objective.gram.source:
        private["objective"] = {"gram": {"teacher"}}
        # A run that goes on may no longer have the model: what it recorded at first counts.
        stored = (read_sidecar(recipe.out / "model") or {}).get("provenance", {}).get("gram_teacher")
        facts["gram_teacher"] = stored or {"source": public_name(gram), "licence": licence_of(gram)}
    return {
        **facts,
        "source": name or "random weights",
        "parent": {"source": name, "licence": licence_of(source, backbone.config)},
        "factors": {
            name: {"role": spec.role, "kind": spec.kind, "columns": list(spec.columns)}
            for name, spec in ready.specs.items()
        },
        "images": len(ready.rows),
        "recipe": recipe.model_dump(mode="json", exclude=private),
    }


def describe(recipe: Recipe, ready: Preflight, factors: Mapping[str, EncodedFactor]) -> str:
    """What the run is about to do, in a few lines."""
    lines = [
        f"{len(ready.rows):,} of {len(ready.manifest):,} images train, {len(ready.channels)} channels "
        f"({', '.join(ready.channels)})"
    ]
    for name, factor in factors.items():
        valid = factor.valid[torch.from_numpy(ready.rows)].float().mean().item()
        line = f"  {name}: {factor.spec.role}, {factor.spec.kind}, {valid:.0%} of the rows have a value"
        if factor.unseen:
            line += f", {factor.unseen} rows outside training hold unseen values (masked)"
        if factor.clamped:
            line += f", {factor.clamped} rows lie outside the range of the training rows (moved to its end)"
        lines.append(f"{line}. {ready.reasons.get(name, '')}")
    lines += [f"entangled, recorded: {said}" for said in ready.entangled]
    terms = {
        "dino": recipe.objective.dino.weight,
        "ibot": recipe.objective.ibot.weight,
        "koleo": recipe.koleo_weight,
        "sigreg": recipe.sigreg_weight,
        f"gram (teacher {recipe.objective.gram.teacher})": recipe.objective.gram.weight,
    }
    lines.append("terms: " + ", ".join(f"{name} {weight:g}" for name, weight in terms.items() if weight > 0))
    return "\n".join(lines)


def _batches(recipe: Recipe, ready: Preflight, run: Run, world: World) -> Any:
    masked = run.model.student.backbone.can_mask and recipe.objective.uses_masks
    return build_loader(
        ready.manifest,
        ready.rows,
        images=recipe.images,
        views=recipe.views,
        gram=recipe.objective.gram,
        ibot=recipe.objective.ibot if masked else recipe.objective.ibot.model_copy(update=NO_MASKS),
        channels=ready.channels,
        patch_size=ready.patch_size,
        seed=recipe.seed,
        start_step=run.step,
        stop_step=recipe.train.steps,
        batch_size=recipe.train.batch_size,
        rank=world.rank,
        world_size=world.size,
        workers=recipe.train.workers,
        pin_memory=run.device.type == "cuda",
    )


def _checkpoint(recipe: Recipe, world: World) -> Path | None:
    """The checkpoint to go on from: every process takes the one that the main process finds."""
    found = last_checkpoint(recipe.out / FOLDER) if world.is_main else None
    place = gather_objects(str(found) if found else None)[0]
    return Path(place) if place else None


def _factors(
    recipe: Recipe, ready: Preflight, *, resume: bool
) -> tuple[dict[str, EncodedFactor], dict[str, Vocabulary]]:
    path = recipe.out / VOCABULARY_FILE
    stored = load_vocabularies(path) if resume and path.is_file() else None
    return encode_factors(ready, stored)


def _closing_words(summary: Mapping[str, Any]) -> str:
    words = f"done: {summary['steps']} steps, {summary['images_seen']:,} images, {summary['seconds']:.0f} s"
    if summary["skipped_steps"]:
        words += f"; {summary['skipped_steps']} steps skipped for non-finite values"
    if summary["unreadable_rows"]:
        words += f"; {len(summary['unreadable_rows'])} images could not be read and were replaced"
    if summary["best_step"] == 0:
        words += ". On the validation split nothing beat the starting backbone: best/ is that backbone"
    return f"{words}. Model: {summary['model']}"


def _silent(*_: Any, **__: Any) -> None:
    """What processes other than the main one say."""
