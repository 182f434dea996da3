"""The adapted backbone as a Hugging Face folder, re-opened and compared before it is handed over."""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

import openfino
from openfino.errors import OpenfinoError
from openfino.export.card import model_card
from openfino.images.normalize import channel_statistics
from openfino.images.preprocess import Preprocessing
from openfino.keyed import Purpose, keyed_generator
from openfino.models.backbone import Backbone
from openfino.models.store import SIDECAR, LoadedModel, load_model, quiet_transformers, save_backbone

TOLERANCE = 1e-5
CHECKED_IMAGES = 2
BILINEAR = 2  # PIL's number, which transformers writes
CARD = "README.md"
PREPROCESSOR = "preprocessor_config.json"
# The released DINOv3 checkpoints carry this name: every transformers since 4.56 resolves it.
PROCESSOR = "DINOv3ViTImageProcessorFast"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it gives back the features.

    Attributes:
        folder: the folder.
        files: its files.
        max_abs: largest absolute difference of any output token's value between the folder, opened with
            ``AutoModel``, and the backbone in memory.
        min_cosine: smallest cosine similarity of two corresponding tokens.
        scale: root mean square of the tokens' values.
    """

    folder: str
    files: list[str]
    max_abs: float
    min_cosine: float
    scale: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"wrote {self.folder} ({', '.join(self.files)})\n"
            f"re-opened with AutoModel: largest difference {self.max_abs:.2g} at feature scale "
            f"{self.scale:.2g}, smallest cosine {self.min_cosine:.7f}"
        )


def export_huggingface(source: Path | str, out: Path, *, overwrite: bool = False) -> ExportReport:
    """Write the backbone of a run or model folder as a folder that ``AutoModel.from_pretrained`` opens.

    Files: config.json, model.safetensors, preprocessor_config.json, README.md (the model card) and
    openfino.json (preprocessing and provenance). They are written beside ``out``, opened again and compared,
    and take the name ``out`` only if the features are the same.

    Raises:
        OpenfinoError: if ``source`` holds no model, if ``out`` is in the way, or if the features differ by
            more than 1e-5 of their root mean square.
    """
    out = Path(out)
    model = load_model(source)
    _refuse_occupied(out, model.folder, overwrite=overwrite)
    staging = out.with_name(f".{out.name}.export")
    shutil.rmtree(staging, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_backbone(staging, model.backbone, model.preprocessing, model.provenance)
        processor = json.dumps(preprocessor_config(model.preprocessing), indent=2)
        (staging / PREPROCESSOR).write_text(processor + "\n", encoding="utf-8")
        (staging / CARD).write_text(model_card(model), encoding="utf-8")
        difference = compare_with_folder(model, staging)
        if not difference.max_abs <= TOLERANCE * difference.scale:  # also when it is NaN
            raise OpenfinoError(
                f"{out} was not written: opened with AutoModel, the features of {source} differ by "
                f"{difference.max_abs:.3g} (scale {difference.scale:.3g}, smallest cosine "
                f"{difference.min_cosine:.6f}). Check that the installed transformers opens this architecture"
            )
        files = _move_into_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ExportReport(str(out), files, difference.max_abs, difference.min_cosine, difference.scale)


def _refuse_occupied(out: Path, source: Path | None, *, overwrite: bool) -> None:
    """Only an empty folder is taken, or an earlier export when overwriting: nothing else is ever deleted.

    Raises:
        OpenfinoError: if ``out`` is a file, the source itself, or a folder that may not be replaced.
    """
    if out.is_file():
        raise OpenfinoError(f"{out} is a file; name a folder for the export")
    if source is not None and source.resolve().is_relative_to(out.resolve()):
        raise OpenfinoError(f"{out} holds the model to export; choose another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    is_export = (out / "config.json").is_file() and (out / SIDECAR).is_file()
    if not overwrite:
        remedy = "allow overwriting, or choose another folder" if is_export else "choose another folder"
        raise OpenfinoError(f"{out} is not empty; {remedy}")
    if not is_export:
        raise OpenfinoError(
            f"{out} is not empty and no earlier export; nothing in it was touched. Choose another"
        )


def _move_into_place(staging: Path, out: Path) -> list[str]:
    """Put the checked files under their name; files of others in an earlier export (such as .git) stay."""
    files = sorted(path.name for path in staging.iterdir())
    if not out.exists():
        os.replace(staging, out)
        return files
    for stale in out.glob("model*.safetensors*"):
        stale.unlink()
    for name in files:
        os.replace(staging / name, out / name)
    return files


def preprocessor_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """``preprocessor_config.json``.

    With three channels and a fixed mean and deviation this is what transformers' DINOv3 image processor needs
    to repeat our preprocessing of 8-bit images. It has no per-image z-score and takes RGB alone: in the other
    cases nothing claims to be normalised, and the ``openfino`` section says what the model expects.
    """
    height, width = preprocessing.size
    three = len(preprocessing.channels) == 3 and preprocessing.normalization != "zscore"
    config: dict[str, Any] = {
        "image_processor_type": PROCESSOR,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": three,
    }
    if three:
        config["image_mean"], config["image_std"] = channel_statistics(preprocessing.normalization, 3)
    config["openfino"] = {
        **preprocessing.to_json(),
        "order": "scale to the value range, resize the whole image (bilinear, antialiased), normalise",
        "value_range": "[0, 1] before normalisation: 8-bit / 255, 16-bit / 65535, floating point as it is",
        "version": openfino.__version__,
    }
    return config


@dataclass(frozen=True)
class Difference:
    """Two backbones' outputs compared, see :class:`ExportReport`."""

    max_abs: float
    min_cosine: float
    scale: float


@torch.inference_mode()
def compare_with_folder(model: LoadedModel, folder: Path) -> Difference:
    """Outputs of ``model`` against those of ``folder`` opened with ``AutoModel``, on fixed random images.

    Raises:
        OpenfinoError: if the folder lacks a tensor of the architecture, or holds a stray one.
    """
    with quiet_transformers():
        opened, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    strays = [
        str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]
    ]
    if strays:
        raise OpenfinoError(f"the export does not open as it was written: {', '.join(sorted(strays)[:5])}")
    size = (CHECKED_IMAGES, model.backbone.channels, *model.preprocessing.size)
    pixels = torch.from_numpy(keyed_generator(0, Purpose.PROBE).standard_normal(size).astype("float32"))
    ours = _all_tokens(model.backbone, pixels)
    theirs = opened.eval()(pixel_values=pixels).last_hidden_state
    cosine = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
    return Difference(
        max_abs=float((ours - theirs).abs().max()),
        min_cosine=float(cosine.min()),
        scale=float(ours.square().mean().sqrt()),
    )


def _all_tokens(backbone: Backbone, pixels: Tensor) -> Tensor:
    """CLS, registers and patches [B, 1 + R + P, D], the order of ``last_hidden_state``."""
    tokens = backbone(pixels)
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
