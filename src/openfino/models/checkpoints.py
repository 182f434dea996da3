"""Weights in files: Meta's ``.pth`` and timm's safetensors, told apart by what is in them and never unpickled.

A prefix (``teacher.backbone.``) or a wrapper (``{"teacher": ...}``) of any depth is found by looking for the patch
embedding; nothing is ever loaded silently in part.
"""

import json
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import DINOv3ViTConfig

from openfino.errors import OpenfinoError
from openfino.models.formats.converted import State
from openfino.models.formats.meta import EPSILON, from_meta
from openfino.models.formats.timm import from_timm

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# The first that is there is taken; averages before others. Where both are there (distillation), "teacher" is the
# frozen one, and "model_ema" the result.
WRAPPERS = ("model_ema", "state_dict_ema", "teacher", "model", "student", "state_dict")
AVERAGED = (re.compile(r"(^|[._])ema[._]"), re.compile("teacher"))
GRAM = "gram"
PATCH_EMBEDDING = "patch_embed.proj.weight"
# torch.compile, DDP, FSDP and activation checkpointing put these between a module and its parameters.
WRAPPED = re.compile(r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool)
META_SIGNS = ("rope_embed.periods", "storage_tokens", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.bias_mask")
TIMM_SIGNS = ("blocks.0.gamma_1", "reg_token", "blocks.0.mlp.fc1_g.weight")
UNREADABLE = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)
SATELLITE = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}


@dataclass
class Checkpoint:
    """Weights that were found in a file.

    Attributes:
        config: of the model.
        state: tensors under the names of ``DINOv3ViTModel``, still on disk as far as they are not needed.
        unexpected: tensors that have no place in the model.
        notes: what was assumed, and what was left out on purpose.
        processor: as in ``preprocessor_config.json``: mean, deviation, size, as far as they are known.
    """

    config: DINOv3ViTConfig
    state: State
    unexpected: list[str]
    notes: list[str]
    processor: dict[str, Any] = field(default_factory=dict)


def is_timm_name(source: str) -> bool:
    """Whether ``source`` names a timm model on the hub."""
    return source.startswith(("timm/", *HUB_PREFIXES)) and not Path(source).exists()


def open_checkpoint(source: str, *, layer_norm_eps: float | None = None) -> Checkpoint | None:
    """Open a weights file, a timm folder or a timm hub name; None for what transformers opens by itself.

    Args:
        source: path or hub name.
        layer_norm_eps: of the norms of a Meta file, which does not say; 1e-5 when not given.

    Raises:
        OpenfinoError: if it holds no DINOv3 ViT, or cannot be read without unpickling objects.
    """
    path = Path(_download(source) if is_timm_name(source) else source)
    if path.is_dir():
        refuse_distributed(path)
        config = _read_json(path / CONFIG)
        if not _is_timm(config):
            return None
        files = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not files:
            raise OpenfinoError(f"model.source: {source} has timm's config.json but no {WEIGHTS[0]}")
        path = files[0]
    elif path.is_file():
        config = _read_json(path.parent / CONFIG) if path.name in WEIGHTS else {}
        if "model_type" in config:
            return None
    elif path.suffix in SUFFIXES:
        raise OpenfinoError(f"model.source: there is no file {source}")
    else:
        return None
    try:
        return _understood(_read_tensors(path), path, config, layer_norm_eps)
    except OpenfinoError as error:
        raise OpenfinoError(f"model.source: cannot load {source}: {error}") from None


def transformers_source(source: str) -> str:
    """The folder, where ``source`` is the weights file of a transformers folder; else ``source``."""
    path = Path(source)
    if path.is_file() and path.name in WEIGHTS and "model_type" in _read_json(path.parent / CONFIG):
        return str(path.parent)
    return source


def refuse_distributed(folder: Path) -> None:
    """Refuse a folder that ``torch.distributed.checkpoint`` wrote.

    Raises:
        OpenfinoError: saying how to make a file of it.
    """
    if (folder / ".metadata").is_file() and not (folder / CONFIG).is_file():
        raise OpenfinoError(
            f"model.source: {folder} is a checkpoint of torch.distributed. Make a file of it with 'python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} checkpoint.pth' and name that file"
        )


def timm_json(source: str) -> dict[str, Any]:
    """timm's config.json at a folder, beside a weights file or in the hub's cache; empty where there is none."""
    path = Path(source)
    if is_timm_name(source):
        cached = try_to_load_from_cache(_hub_name(source), CONFIG)
        config = _read_json(Path(cached)) if isinstance(cached, str) else {}
    else:
        config = _read_json((path.parent if path.name in WEIGHTS else path) / CONFIG)
    return config if _is_timm(config) else {}


def _is_timm(config: Mapping[str, Any]) -> bool:
    return "model_type" not in config and ("architecture" in config or "pretrained_cfg" in config)


def _download(source: str) -> str:
    """The files of a timm model on the hub, in the hub's cache."""
    name = _hub_name(source)
    try:
        return snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS[0]])
    except (OSError, ValueError) as error:
        raise OpenfinoError(f"model.source: cannot download {name!r} from the hub: {error}") from None


def _hub_name(source: str) -> str:
    for prefix in HUB_PREFIXES:
        source = source.removeprefix(prefix)
    return source


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OpenfinoError(f"model.source: {path} is no JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def kind_of_file(path: Path) -> str:
    """What reads a file of weights, by its first bytes: ``safetensors`` or ``torch``.

    Raises:
        OpenfinoError: for an empty file, or one of another kind (a pointer of Git LFS, a web page).
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith((b"PK", b"\x80")):
        return "torch"
    if not head:
        raise OpenfinoError("it is empty")
    if head.startswith(b"version https://git-lfs"):
        raise OpenfinoError("it is a pointer of Git LFS; fetch what it stands for with 'git lfs pull'")
    shown = head[:24].decode(errors="replace")
    raise OpenfinoError(f"it is neither a file of safetensors nor of PyTorch: it begins with {shown!a}")


def _read_tensors(path: Path) -> State:
    """Every tensor of a file by its name, without wrappers; mapped, not read, where the format allows it."""
    if kind_of_file(path) == "safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise OpenfinoError(why_unreadable(error)) from None
    state = _unwrapped(_load_pickled(path))
    if not state:
        raise OpenfinoError("there is no tensor in it")
    return state


def _load_pickled(path: Path) -> Any:
    """``torch.load`` of tensors and plain values alone."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of files that are refused anyway
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, **options)  # written before PyTorch 1.6
    except UNREADABLE as error:
        raise OpenfinoError(why_unreadable(error)) from None


def why_unreadable(error: Exception) -> str:
    """In one line, why a file of weights cannot be read."""
    said = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"GLOBAL (\S+) was not an allowed", said)
        what = f"objects of its own ({wanted[1]})" if wanted else "more than tensors"
        return (
            f"it holds {what}, and unpickling these would run code from the file. Save the state dict alone: "
            "torch.save(model.state_dict(), PATH)"
        )
    if "TorchScript" in said:
        return (
            "it is a program of TorchScript. Save the state dict alone: torch.save(model.state_dict(), PATH)"
        )
    reason = said.split(". ")[0].rstrip(".") or type(error).__name__
    if isinstance(error, SafetensorError):
        return f"it is no safetensors file, or not the whole of one ({reason})"
    return f"it is damaged, or not whole: PyTorch cannot read it ({reason})"


def _unwrapped(loaded: Any) -> State:
    """The tensors of a state dict, or of the one inside a checkpoint of training."""
    if not isinstance(loaded, Mapping):
        raise OpenfinoError(f"it holds a {type(loaded).__name__} and no state dict")
    for name in WRAPPERS:
        if isinstance(loaded.get(name), Mapping):
            return _unwrapped(loaded[name])
    return dict(_flat(loaded))


def _flat(tree: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, those in dicts of its own under dotted names."""
    for name, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{place}{name}", value.detach()
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")


def _understood(
    state: State, path: Path, config_json: Mapping[str, Any], layer_norm_eps: float | None
) -> Checkpoint:
    """The backbone among the tensors of a file, in the names of transformers."""
    state = {WRAPPED.sub("", name): tensor for name, tensor in state.items()}
    prefix, others = _prefix(state)
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    _refuse_packed(own)
    notes = _left_out(name for name in state if not name.startswith((prefix, *others)))
    if others:
        notes.insert(0, f"the backbone {prefix!r} is taken, not {', '.join(map(repr, others))}")
    if any(sign in own for sign in TIMM_SIGNS):
        if layer_norm_eps is not None:
            raise OpenfinoError("model.layer_norm_eps is for files of Meta; timm's DINOv3 has 1e-5")
        found, processor = from_timm(own, config_json), _timm_processor(config_json)
    elif any(sign in own for sign in META_SIGNS) and "pos_embed" not in own:
        found = from_meta(own, layer_norm_eps=EPSILON if layer_norm_eps is None else layer_norm_eps)
        processor = dict(SATELLITE) if "sat493m" in path.name.lower() else {}
    else:
        raise OpenfinoError(_what_it_is(own))
    return Checkpoint(
        DINOv3ViTConfig(**found.config), found.state, found.unexpected, [*notes, *found.notes], processor
    )


def _refuse_packed(own: State) -> None:
    """Refuse tensors that are not plain floating-point numbers."""
    packed = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')}{'' if tensor.layout == torch.strided else ', sparse'})"
        for name, tensor in own.items()
        if name.startswith("blocks.") and (tensor.layout != torch.strided or tensor.dtype not in PRECISIONS)
    ]
    if packed:
        raise OpenfinoError(
            f"it is quantised or packed: {', '.join(packed[:3])}. Start from weights of 16 or 32 bits"
        )


def _prefix(state: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """What stands before the names of the backbone (the averaged one's where there are several), and of others."""
    prefixes = [
        name.removesuffix(PATCH_EMBEDDING)
        for name in state
        if name == PATCH_EMBEDDING or name.endswith(f".{PATCH_EMBEDDING}")
    ]
    if not prefixes:
        raise OpenfinoError(_what_it_is(state))
    candidates = [prefix for prefix in prefixes if GRAM not in prefix] or prefixes
    for word in AVERAGED:
        candidates = [prefix for prefix in candidates if word.search(prefix)] or candidates
    if len(candidates) > 1:
        raise OpenfinoError(
            f"it holds several backbones ({', '.join(map(repr, candidates))}); save the state dict of one of them"
        )
    return candidates[0], [prefix for prefix in prefixes if prefix != candidates[0]]


def _left_out(names: Any) -> list[str]:
    counts = Counter(name.split(".")[0] for name in names)
    return [f"{count} tensor{'s' * (count > 1)} of {module} left out" for module, count in counts.items()]


def _what_it_is(state: Mapping[str, Tensor]) -> str:
    """Why a state dict cannot be used."""
    names = list(state)
    if any("patch_embeddings" in name for name in names):
        return (
            "these are the names of transformers; its config.json must be beside the weights, and the folder is "
            "what to name"
        )
    if any(re.search(r"(^|\.)(downsample_layers|stages)\.", name) for name in names):
        return "this is a ConvNeXt; start from its Hugging Face name or folder (facebook/dinov3-convnext-...)"
    if "pos_embed" in names:
        return (
            "it has absolute position embeddings (pos_embed): this is another vision transformer than DINOv3. Start "
            "from its Hugging Face name or folder (facebook/dinov2-...)"
        )
    if PATCH_EMBEDDING in names:
        return (
            "it has a patch embedding, but neither rotary periods nor registers nor layer scale: this is another "
            "vision transformer than DINOv3"
        )
    shown = ", ".join(names[:3])
    return (
        f"none of its {len(names)} tensors ({shown}, ...) is the patch embedding of a DINOv3 vision transformer "
        f"({PATCH_EMBEDDING}, after any prefix)"
    )


def _timm_processor(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's ``pretrained_cfg`` says of the images, in the words of transformers."""
    stated = config_json.get("pretrained_cfg") or {}
    processor: dict[str, Any] = {}
    for ours, theirs in (("image_mean", "mean"), ("image_std", "std")):
        if isinstance(stated.get(theirs), list | tuple):
            processor[ours] = [float(value) for value in stated[theirs]]
    return processor
