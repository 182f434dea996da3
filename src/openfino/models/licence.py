"""Under which licence a parent's weights may be used: it travels with everything made from them.

openfino's own licence (Apache-2.0) covers the code, never the weights that a user starts from.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from openfino import tiny
from openfino.models.checkpoints import WEIGHTS, timm_json

UNKNOWN = "unknown"
DINOV3 = "dinov3-license"

LICENCE_LINKS = {
    DINOV3: "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}

# Released DINOv3 weights carry the name of their training set wherever they are repackaged (timm, .pth
# files).
_NAMES = (
    (re.compile(r"(^|/)facebook/dinov3|dinov3.*(lvd1689m|sat493m)", re.IGNORECASE), DINOV3),
    (re.compile(r"(^|/)facebook/dinov2", re.IGNORECASE), "apache-2.0"),
    (re.compile(r"(^|/)google/siglip", re.IGNORECASE), "apache-2.0"),
)


def licence_of(source: str | Path | None, config: PreTrainedConfig | None = None) -> str | None:
    """The licence of the weights at ``source``, as the Hugging Face hub writes it.

    What a folder says of itself counts first (the ``license`` of its README.md, then the parent's licence in
    its openfino.json; for a run, of its model; then what timm's config.json states); then the name of the source,
    then the name that ``config`` remembers.

    Args:
        source: hub name, folder or file, or ``tiny``; None for random weights.
        config: the model's configuration, where at hand: it may know the hub name behind a folder.

    Returns:
        ``dinov3-license``, ``apache-2.0``, ...; None for random weights (they are the user's own);
        ``unknown`` where nothing names a licence: the user must find out before passing the weights on.
    """
    if source is None:
        return None
    if tiny.is_tiny(source):
        return tiny.LICENCE
    place = Path(source).parent if Path(source).name in WEIGHTS else Path(source)
    for folder in (place, Path(source, "best"), Path(source, "model")):
        declared = _declared_in_card(folder / "README.md")
        if declared is not None:
            return declared
        known, inherited = _inherited(folder / "openfino.json")
        if known:
            return inherited
    stated = timm_json(str(source))
    pretrained = stated.get("pretrained_cfg") or {}
    if pretrained.get("license"):
        return str(pretrained["license"])
    timm_name = f"{stated.get('architecture')}.{pretrained.get('tag')}"
    for name in (str(source), timm_name, str(getattr(config, "_name_or_path", ""))):
        flat = name.replace("\\", "/").replace("--", "/")  # "--": how the hub's cache writes "/"
        for pattern, licence in _NAMES:
            if pattern.search(flat):
                return licence
    return UNKNOWN


@dataclass(frozen=True)
class Parent:
    """What a model was made from.

    Attributes:
        source: hub name or folder, ``openfino/tiny`` for the shipped backbone; None for random weights.
        licence: as in :func:`licence_of`.
    """

    source: str | None
    licence: str | None


def parent_of(provenance: Mapping[str, Any], config: PreTrainedConfig | None = None) -> Parent:
    """The parent that a model's provenance records; the model itself where it was only loaded."""
    recorded = provenance.get("parent")
    if isinstance(recorded, Mapping):
        source = recorded.get("source")
        return Parent(source, recorded["licence"] if "licence" in recorded else licence_of(source, config))
    source = provenance.get("source")
    return Parent(source, UNKNOWN if source is None else licence_of(source, config))


def public_name(source: str | None) -> str | None:
    """The name of a folder or file, not its place: what is written of it travels with the exported model."""
    if tiny.is_tiny(source):
        return tiny.PUBLIC_NAME
    is_place = source is not None and (Path(source).exists() or Path(source).is_absolute())
    return tiny.as_source(Path(Path(source).name)) if source and is_place else source


def public_provenance(
    provenance: Mapping[str, Any], config: PreTrainedConfig | None = None
) -> dict[str, Any]:
    """``provenance`` with its parent and licence, and without places on a disk: what leaves with an export.

    Runs record no places, but a model that was only loaded knows where it lies.
    """
    parent = parent_of(provenance, config)
    public = {**provenance, "parent": {"source": public_name(parent.source), "licence": parent.licence}}
    if "source" in public:
        public["source"] = public_name(public["source"])
    if isinstance(recipe := public.get("recipe"), Mapping):
        kept = {key: value for key, value in recipe.items() if key not in ("manifest", "out")}
        model = kept.get("model")
        if isinstance(model, Mapping) and model.get("source"):
            kept["model"] = {**model, "source": public_name(model["source"])}
        public["recipe"] = kept
    if isinstance(probes := public.get("probes"), Mapping):
        # "causes" name the images that could not be read.
        public["probes"] = {
            when: {key: value for key, value in record.items() if key != "causes"}
            if isinstance(record, Mapping)
            else record
            for when, record in probes.items()
        }
    return public


def card_header(card: Path) -> dict[str, Any]:
    """The YAML header of a model card; empty where there is none."""
    if not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    try:
        header = yaml.safe_load(match.group(1))
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def _declared_in_card(card: Path) -> str | None:
    """``license`` of a card's header; ``license_name`` where that says no more than "other"."""
    header = card_header(card)
    licence = header.get("license")
    if licence == "other":
        licence = header.get("license_name") or UNKNOWN
    if isinstance(licence, list):
        licence = ", ".join(str(part) for part in licence)
    return str(licence) if licence else None


def _inherited(sidecar: Path) -> tuple[bool, str | None]:
    """Whether one of our own folders records its parent's licence, and which one."""
    if not sidecar.is_file():
        return False, None
    parent = json.loads(sidecar.read_text(encoding="utf-8")).get("provenance", {}).get("parent")
    if not isinstance(parent, dict) or "licence" not in parent:
        return False, None
    return True, parent["licence"]
