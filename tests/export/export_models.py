"""Models with a history, for the tests of export."""

import re

from PIL import Image

from openfino.models.store import quiet_transformers, save_backbone
from tiny_models import tiny_model

PARENT = {"source": "facebook/dinov3-vits16-pretrain-lvd1689m", "licence": "dinov3-license"}


def probe_record(knn, linear, plate, step=0):
    scores = {"knn": {"macro_f1": knn}, "linear": {"macro_f1": linear, "accuracy": 0.5}}
    reading = {"knn_accuracy": plate, "majority": 0.3, "chance": 0.1}
    return {
        "step": step,
        "label": {"label": "organelle", "splits": {"test": {"scores": scores}}},
        "unreadable": 1,
        "causes": ["/home/someone/secret/patient_7.tif: cannot identify image file"],
        "leakage": {
            "plate": reading,
            "dose": {"knn_accuracy": None, "knn_r2": 0.25 if step == 0 else 0.125, "linear_r2": 0.5},
        },
    }


PROVENANCE = {
    "source": PARENT["source"],
    "parent": PARENT,
    "images": 12345,
    "steps": 678,
    "factors": {
        "antibody": {"role": "informative", "kind": "discrete"},
        "plate": {"role": "spurious", "kind": "discrete"},
    },
    "recipe": {
        "manifest": "/home/someone/secret/manifest.csv",
        "out": "/home/someone/runs/a",
        "model": {"source": PARENT["source"]},
        "train": {"batch_size": 96, "lr": 5e-5, "schedule": "constant"},
        "views": {"global_size": [224, 224], "local_count": 8},
    },
    "probes": {"before": probe_record(0.111, 0.222, 0.999), "after": probe_record(0.333, 0.444, 0.777, 678)},
}


def save(folder, model):
    save_backbone(folder, model.backbone, model.preprocessing, model.provenance)
    return folder


def save_run(folder):
    """A run's folder with a model and a history."""
    save(folder / "model", tiny_model(provenance=PROVENANCE))
    return folder


def run_snippets(folder, monkeypatch):
    """Run the code on the card of an export; the shapes of the patches that each piece made."""
    Image.new("RGB", (40, 30), (200, 30, 60)).save(folder.parent / "image.png")
    monkeypatch.chdir(folder.parent)
    shapes = []
    with quiet_transformers():
        for snippet in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
            names = {}
            exec(snippet.replace("FOLDER", folder.name), names)  # the card is ours
            found = names if "patches" in names else vars(names["tokens"])
            assert found["cls"].shape == found["patches"].shape[::2]
            shapes.append(tuple(found["patches"].shape))
    return shapes
