"""An ONNX graph: pixels in [0, 1] in, named tokens out, the normalisation inside."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import openfino
from openfino.errors import OpenfinoError
from openfino.export.door import Door, Opened, Written, uncovered
from openfino.export.program import as_tokens, output_names, sizes_taken, torch_may_warn, trace
from openfino.export.usage import onnx_usage
from openfino.models.backbone import Tokens
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.licence import parent_of
from openfino.models.store import LoadedModel
from openfino.models.variants import Variants

GRAPH = "model.onnx"
# A protobuf holds no more than 2 GiB; beyond this the weights lie beside it, in model.onnx.data.
LARGEST_ALONE = 1.5 * 2**30


class Onnx(Door):
    """model.onnx, run by onnxruntime on the CPU for the comparison."""

    name = "onnx"
    library = "onnx"
    opened_with = "onnxruntime"
    normalizes = True
    packages = ("onnx", "onnxscript", "onnxruntime")

    def problems(self, model: LoadedModel) -> list[str]:
        """See :meth:`Door.problems`."""
        problems = uncovered(model)
        if isinstance(model.backbone, Dinov3Backbone):
            dtype = Variants.of(model.backbone.config).rope_dtype
            if dtype != "float32":
                problems.append(f"rotary positions computed in {dtype}, for which onnxruntime has no kernels")
        return problems

    def write(self, model: LoadedModel, folder: Path) -> Written:
        """See :meth:`Door.write`."""
        traced = trace(model)
        with torch_may_warn(), _quiet_exporter():
            graph: Any = torch.onnx.export(
                traced.program,
                dynamo=True,
                input_names=["pixels"],
                output_names=output_names(model),
                dynamic_shapes=traced.dynamic_shapes,  # for the names alone
                verbose=False,
            )
            if traced.any_size:
                patches = graph.model.graph.outputs[1]
                patches.shape[1] = "rows*columns"
            graph.model.metadata_props.update(metadata(model))
            large = sum(tensor.nbytes for tensor in model.backbone.parameters()) > LARGEST_ALONE
            graph.save(folder / GRAPH, external_data=large)
        return Written(traced.notes, traced.any_size)

    def open(self, model: LoadedModel, folder: Path) -> Opened:
        """See :meth:`Door.open`."""
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for every status
            raise OpenfinoError(f"the export does not open as it was written: {error}") from None
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor) -> Tokens:
            values = session.run(names, {"pixels": images.numpy()})
            return as_tokens(
                {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
            )

        return run

    def usage(self, model: LoadedModel, written: Written) -> str:
        """See :meth:`Door.usage`."""
        return onnx_usage(model, output_names(model), sizes_taken(model, written.any_size))


def metadata(model: LoadedModel) -> dict[str, str]:
    """What the graph says about itself: everything that is needed to feed it, and its licence."""
    height, width = model.preprocessing.size
    facts = model.preprocessing.to_json()
    parent = parent_of(model.provenance, model.backbone.config)
    return {
        "openfino_version": openfino.__version__,
        "channels": json.dumps(facts["channels"]),
        "size": f"{height}x{width}",
        "patch_size": str(model.backbone.patch_size),
        "value_range": "[0, 1]: 8-bit / 255, 16-bit / 65535, floating point as it is",
        "normalization": json.dumps(facts["normalization"]),
        "normalization_inside": "true",
        "licence": parent.licence or "",
    }


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter from reporting what it skips (operators of torchvision, constants it does not fold)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
