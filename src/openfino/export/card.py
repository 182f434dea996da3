"""The model card: what the model is, what it was made from, whether it helped, and how to use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import openfino
from openfino import tiny
from openfino.export.door import Door, Written
from openfino.models.licence import DINOV3, LICENCE_LINKS, UNKNOWN, Parent, parent_of
from openfino.models.store import LoadedModel
from openfino.recipe import GivenNormalization

# Licences that the hub knows by name; others are "other" with a license_name.
_HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    UNKNOWN,
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(model: LoadedModel, door: Door, written: Written) -> str:
    """README.md of an exported model; a fact that the provenance lacks is left out.

    Args:
        model: what was exported; its provenance is shown as it is (see ``public_provenance``).
        door: the format.
        written: what became of it.
    """
    provenance = model.provenance
    parent = parent_of(provenance, model.backbone.config)
    sections = [
        f"---\n{yaml.safe_dump(_header(model, parent, door), sort_keys=False)}---",
        _introduction(model, parent),
        _licence(parent),
        _data(provenance),
        _training(provenance),
        _probes(provenance),
        _preprocessing(model, door),
        f"## Use\n\n{door.usage(model, written)}",
        _limits(written),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(model: LoadedModel, parent: Parent, door: Door) -> dict[str, Any]:
    """The YAML that the hub reads."""
    header: dict[str, Any] = {"library_name": door.library, "pipeline_tag": "image-feature-extraction"}
    if parent.licence in _HUB_LICENCES:
        header["license"] = parent.licence
    elif parent.licence is not None:
        header |= {"license": "other", "license_name": parent.licence}
        if parent.licence in LICENCE_LINKS:
            header["license_link"] = LICENCE_LINKS[parent.licence]
    if _is_hub_name(parent.source):
        header["base_model"] = parent.source
    family = str(model.backbone.config.model_type).replace("_", "-").removesuffix("-vit")
    taught = "supervised" if model.provenance.get("supervised") else "self-supervised"
    header["tags"] = [family, "openfino", taught, "image-feature-extraction"]
    return header


def _is_hub_name(source: str | None) -> bool:
    if source is None or tiny.is_tiny(source):
        return False
    return bool(_HUB_NAME.fullmatch(source)) and not Path(source).exists()


def _named(parent: Parent) -> str:
    """The parent without the path to it."""
    if parent.source is None:
        return "random weights"
    if tiny.is_tiny(parent.source):
        return f"`{tiny.NAME}`, the backbone that comes with openfino"
    return f"`{parent.source}`" if _is_hub_name(parent.source) else f"the local model `{parent.source}`"


def _introduction(model: LoadedModel, parent: Parent) -> str:
    backbone = model.backbone
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    adapted = model.provenance.get("steps", 0) > 0
    origin = f"adapted with openfino {openfino.__version__} from" if adapted else "unchanged from"
    names = model.preprocessing.channels
    taught = model.provenance.get("supervised")
    labels = (
        f"with the labels of `{taught['label']}` ({taught['method']})" if taught else "without task labels"
    )
    return (
        f"# {'Adapted vision' if adapted else 'Vision'} backbone\n\n"
        f"A {backbone.description} ({millions:.1f} M parameters, {len(backbone.blocks)} blocks, width "
        f"{backbone.embed_dim}, patch {backbone.patch_size}), {origin} {_named(parent)}, {labels}. "
        f"It turns an image with {len(names)} channels ({', '.join(names)}) into features."
    )


def _licence(parent: Parent) -> str:
    if parent.licence is None:
        text = "The backbone started from random weights: no parent's licence applies."
    elif parent.licence == UNKNOWN:
        text = (
            f"The licence of {_named(parent)} is not known. Find out before passing these weights on: it "
            "applies to everything made from them."
        )
    else:
        name = "DINOv3 License" if parent.licence == DINOV3 else parent.licence
        link = LICENCE_LINKS.get(parent.licence)
        linked = f"[{name}]({link})" if link else name
        text = (
            f"These weights were made from {_named(parent)} and stay under its licence: {linked}. Whoever "
            "passes them on passes that licence on with them."
        )
    return f"## Licence\n\n{text}"


def _data(provenance: Mapping[str, Any]) -> str:
    lines = []
    if "images" in provenance:
        lines.append(f"Trained on {provenance['images']:,} images.")
    factors = provenance.get("factors") or {}
    if factors:
        rows = [
            f"| {name} | {factor.get('role', '-')} | {factor.get('kind', '-')} |"
            for name, factor in factors.items()
        ]
        lines += [
            "Metadata factors: an informative factor was encouraged in the features, a spurious one "
            "suppressed, a watched one only measured.",
            "\n".join(["| factor | role | kind |", "|---|---|---|", *rows]),
        ]
    return "## Data\n\n" + "\n\n".join(lines) if lines else ""


def _training(provenance: Mapping[str, Any]) -> str:
    recipe = provenance.get("recipe") or {}
    lines = []
    if "steps" in provenance:
        lines.append(f"- steps: {provenance['steps']:,}")
    train, views = recipe.get("train") or {}, recipe.get("views") or {}
    lines += [
        f"- {key}: {train[key]}" for key in ("batch_size", "lr", "schedule", "precision") if key in train
    ]
    lines += [
        f"- {key}: {views[key]}" for key in ("global_size", "local_size", "local_count") if key in views
    ]
    if not lines:
        return ""
    text = "## Training\n\n" + "\n".join(lines)
    if recipe:
        dumped = yaml.safe_dump(recipe, sort_keys=False)
        text += f"\n\n<details><summary>Recipe</summary>\n\n```yaml\n{dumped}```\n\n</details>"
    return text


def _probes(provenance: Mapping[str, Any]) -> str:
    """Scores of the starting backbone (retention) beside those of this one, if it was probed itself."""
    probes = provenance.get("probes") or {}
    later = probes.get("after") or {}
    probed = bool(later) and later.get("step") == provenance.get("steps", later.get("step"))
    before, after = _scores(probes.get("before") or {}), _scores(later if probed else {})
    names = list(dict.fromkeys([*before, *after]))
    if not names:
        return ""
    measured = (
        "Fitted on the train split: kNN on the CLS token, and a linear probe on CLS and the mean patch token."
    )
    if not probed:
        measured += f" This model (step {provenance.get('steps', 'unknown')}) was not probed at this step."
    rows = [f"| {' | '.join(name)} | {_number(before, name)} | {_number(after, name)} |" for name in names]
    table = ["| measured | probe | metric | starting backbone | this model |", "|---|---|---|---|---|", *rows]
    return f"## Probes on frozen features\n\n{measured}\n\n" + "\n".join(table)


def _scores(record: Mapping[str, Any]) -> dict[tuple[str, str, str], float]:
    """(what, probe, metric) -> value, from :meth:`openfino.evaluation.results.ProbeReport.to_json`."""
    scores = {}
    label = record.get("label") or {}
    for split, result in (label.get("splits") or {}).items():
        for method, metrics in (result.get("scores") or {}).items():
            for metric, value in metrics.items():
                scores[f"{label.get('label', 'label')}, {split}", method, metric] = value
    for factor, reading in (record.get("leakage") or {}).items():
        what = f"{factor}, read from the features"
        for method in ("knn", "linear"):
            if reading.get(f"{method}_accuracy") is not None:
                share = (
                    f"accuracy (majority {reading['majority']:.3f})" if "majority" in reading else "accuracy"
                )
                scores[what, method, share] = reading[f"{method}_accuracy"]
            if reading.get(f"{method}_r2") is not None:
                scores[what, method, "R^2"] = reading[f"{method}_r2"]
    return scores


def _number(scores: Mapping[tuple[str, str, str], float], name: tuple[str, str, str]) -> str:
    return f"{scores[name]:.3f}" if name in scores else "-"


def _preprocessing(model: LoadedModel, door: Door) -> str:
    preprocessing = model.preprocessing
    height, width = preprocessing.size
    normalization = preprocessing.normalization
    if isinstance(normalization, GivenNormalization):
        how = f"subtract the mean {normalization.mean}, divide by the standard deviation {normalization.std}"
    elif normalization == "zscore":
        how = "z-score of each image and channel (its own mean and standard deviation)"
    else:
        how = "ImageNet mean and standard deviation"
    if door.normalizes:
        how += " (the exported model does this step itself)"
    return (
        "## Preprocessing\n\n"
        "1. scale to [0, 1] (8-bit / 255, 16-bit / 65535, floating point as it is)\n"
        f"2. resize the whole image to {height} x {width} (bilinear, antialiased)\n"
        f"3. {how}"
    )


def _limits(written: Written) -> str:
    """What this format cannot hold."""
    return "## Of this format\n\n" + "\n".join(f"- {note}" for note in written.notes) if written.notes else ""
