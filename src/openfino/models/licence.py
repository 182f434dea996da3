"""Under which licence a parent's weights may be used: it travels with everything made from them.

openfino's own licence (Apache-2.0) covers the code, never the weights that a user starts from.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

UNKNOWN = "unknown"
DINOV3 = "dinov3-license"

LICENCE_LINKS = {
    DINOV3: "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}

# Released DINOv3 weights carry the name of their training set wherever they are repackaged (timm, .pth files).
_NAMES = (
    (re.compile(r"(^|/)facebook/dinov3|dinov3.*(lvd1689m|sat493m)", re.IGNORECASE), DINOV3),
    (re.compile(r"(^|/)facebook/dinov2", re.IGNORECASE), "apache-2.0"),
)


def licence_of(source: str | Path | None, config: Mapping[str, Any] | None = None) -> str | None:
    """The licence of the weights at ``source``, as the Hugging Face hub writes it.

    What a folder says of itself counts first (the ``license`` of its README.md, then the parent's licence in its
    openfino.json); then the name of the source, then the name that ``config`` remembers.

    Args:
        source: hub name or folder; None for random weights.
        config: the model's configuration, where at hand; only its ``_name_or_path`` is read.

    Returns:
        ``dinov3-license``, ``apache-2.0``, ...; None for random weights (they are the user's own); ``unknown``
        where nothing names a licence: the user must find out before passing the weights on.
    """
    if source is None:
        return None
    folder = Path(source)
    if folder.is_dir():
        declared = _declared_in_card(folder / "README.md")
        if declared is not None:
            return declared
        known, inherited = _inherited(folder / "openfino.json")
        if known:
            return inherited
    for name in (str(source), str((config or {}).get("_name_or_path") or "")):
        flat = name.replace("\\", "/").replace("--", "/")  # "--": how the hub's cache writes "/"
        for pattern, licence in _NAMES:
            if pattern.search(flat):
                return licence
    return UNKNOWN


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
