"""How to use an export: the part of the card that differs between formats. ``FOLDER`` stands for where it lies."""

from openfino.images.preprocess import Preprocessing
from openfino.models.siglip import NaflexBackbone, SiglipBackbone
from openfino.models.store import LoadedModel

WITH_OPENFINO = """With openfino:

```python
from pathlib import Path
from openfino.models.store import load_model

model = load_model("FOLDER")
pixels = model.preprocessing.load([Path("image.png")])[None]
tokens = model.backbone(pixels)  # tokens.cls, tokens.patches
```

or `openfino embed FOLDER manifest.csv --out features.parquet`."""


def is_standard(preprocessing: Preprocessing) -> bool:
    """Whether it is what image processors of other libraries do: three channels, a fixed mean and deviation."""
    return len(preprocessing.channels) == 3 and preprocessing.normalization != "zscore"


def shape_of(model: LoadedModel) -> str:
    """One image as the preprocessing gives it, as code: ``1, C, H, W``."""
    return ", ".join(map(str, (1, len(model.preprocessing.channels), *model.preprocessing.size)))


def huggingface_usage(model: LoadedModel) -> str:
    """For ``AutoModel``."""
    backbone = model.backbone
    if isinstance(backbone, NaflexBackbone):
        return (
            "`AutoModel.from_pretrained` opens it; this architecture reads images cut into patches, of any aspect "
            f"ratio, while this model was made with whole images resized as above.\n\n{WITH_OPENFINO}"
        )
    cls, patches = "output.last_hidden_state[:, 0]", f"output.last_hidden_state[:, {1 + backbone.registers}:]"
    if isinstance(backbone, SiglipBackbone):
        head = (
            "output.pooler_output" if backbone.config.vision_use_head else "output.last_hidden_state.mean(1)"
        )
        cls, patches = head, "output.last_hidden_state"
    options = ", interpolate_pos_encoding=True" if isinstance(backbone, SiglipBackbone) else ""
    note = (
        "`AutoImageProcessor` (it needs torchvision) does this preprocessing for 8-bit RGB images."
        if is_standard(model.preprocessing)
        else "`AutoImageProcessor` cannot do this: prepare the pixels as above, or use openfino."
    )
    return f"""With transformers:

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
pixels = torch.zeros({shape_of(model)})  # preprocessed as above
with torch.inference_mode():
    output = model(pixel_values=pixels{options})
cls, patches = {cls}, {patches}
```

{note}

{WITH_OPENFINO}"""


def timm_usage(model: LoadedModel) -> str:
    """For ``timm.create_model``."""
    note = (
        "`timm.data.create_transform(**timm.data.resolve_model_data_config(model))` does this preprocessing for 8-bit "
        "RGB images."
        if is_standard(model.preprocessing)
        else "timm's transforms cannot do this: prepare the pixels as above, or use openfino."
    )
    return f"""With timm:

```python
import timm
import torch

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
pixels = torch.zeros({shape_of(model)})  # preprocessed as above
with torch.inference_mode():
    tokens = model.forward_features(pixels)
cls, patches = tokens[:, 0], tokens[:, {1 + model.backbone.registers}:]
```

{note}

{WITH_OPENFINO}"""


def onnx_usage(model: LoadedModel, outputs: list[str], sizes: str) -> str:
    """For onnxruntime."""
    return f"""With onnxruntime:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx", providers=["CPUExecutionProvider"])
pixels = np.zeros(({shape_of(model)}), dtype=np.float32)  # values in [0, 1], resized as above
{", ".join(outputs)} = session.run({_quoted(outputs)}, {{"pixels": pixels}})
```

{sizes} The metadata of the graph (`session.get_modelmeta().custom_metadata_map`) holds the preprocessing."""


def torch_usage(model: LoadedModel, outputs: list[str], sizes: str) -> str:
    """For ``torch.export.load``."""
    return f"""With PyTorch alone:

```python
import torch

facts = {{"openfino.json": ""}}  # receives the preprocessing
model = torch.export.load("FOLDER/model.pt2", extra_files=facts).module()
pixels = torch.zeros({shape_of(model)})  # values in [0, 1], resized as above
with torch.inference_mode():
    output = model(pixels)
{", ".join(outputs)} = (output[name] for name in {_quoted(outputs)})
```

{sizes}"""


def _quoted(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
