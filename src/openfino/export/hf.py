"""A Hugging Face folder: ``AutoModel.from_pretrained`` opens it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

import openfino
from openfino.errors import OpenfinoError
from openfino.export.door import Door, Opened, Written
from openfino.export.plain import NO_LOCAL_NORM, foreign_variants, has_local_norm, without_local_norm
from openfino.export.usage import huggingface_usage, is_standard
from openfino.images.normalize import channel_statistics, normalize
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Tokens
from openfino.models.store import LoadedModel, quiet_transformers, save_backbone

BILINEAR = 2  # PIL's number, which transformers writes
PREPROCESSOR = "preprocessor_config.json"


class HuggingFace(Door):
    """config.json, model.safetensors and preprocessor_config.json."""

    name = "hf"
    library = "transformers"
    opened_with = "AutoModel"
    tolerance = 1e-5

    def problems(self, model: LoadedModel) -> list[str]:
        """See :meth:`Door.problems`."""
        return foreign_variants(model.backbone)

    def write(self, model: LoadedModel, folder: Path) -> Written:
        """See :meth:`Door.write`."""
        trimmed = has_local_norm(model.backbone)
        backbone = without_local_norm(model.backbone) if trimmed else model.backbone
        save_backbone(folder, backbone, model.preprocessing, model.provenance)
        config = preprocessor_config(model.preprocessing, model.backbone.processor)
        (folder / PREPROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return Written([NO_LOCAL_NORM] if trimmed else [])

    def open(self, model: LoadedModel, folder: Path) -> Opened:
        """See :meth:`Door.open`."""
        with quiet_transformers():
            opened, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        strays = [str(name) for kind in kinds for name in info[kind]]
        if strays:
            raise OpenfinoError(
                f"the export does not open as it was written: {', '.join(sorted(strays)[:5])}"
            )
        opened.eval()

        def run(images: Tensor) -> Tokens:
            pixels = normalize(images, model.preprocessing.normalization)
            return model.backbone.tokens_of(opened(**model.backbone.inputs_of(pixels)))

        return run

    def usage(self, model: LoadedModel, written: Written) -> str:
        """See :meth:`Door.usage`."""
        return huggingface_usage(model)


def preprocessor_config(preprocessing: Preprocessing, processor: str) -> dict[str, Any]:
    """``preprocessor_config.json``.

    With three channels and a fixed mean and deviation this is what transformers' image processor needs to repeat our
    preprocessing of 8-bit images. It has no per-image z-score and takes RGB alone: in the other cases nothing claims
    to be normalised, and the ``openfino`` section says what the model expects.

    Args:
        preprocessing: ours.
        processor: the class that transformers opens it with.
    """
    height, width = preprocessing.size
    three = is_standard(preprocessing)
    config: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_center_crop": False,
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
