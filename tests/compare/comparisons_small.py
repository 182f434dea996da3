"""A comparison of seconds."""

from conftest import TINY
from tiny_runs import recipe_file, tiny_settings

COMPARE = {
    "seeds": 1,
    "fractions": [0.5, 1.0],
    "fraction_arms": ["frozen", "finetune"],
    "draws": 60,
    "domain": "site",
    "umap": False,
    "layers": 2,
    "neighbours": [3],
    "head": {"width": 16, "heads": 2},
    "grid": {
        "lrs": [1e-3, 1e-2],
        "linear_lrs": [1e-2],
        "weight_decays": [0.01],
        "steps": 20,
        "batch_size": 16,
    },
    "baselines": {
        "lrs": [1e-3],
        "steps": 6,
        "batch_size": 8,
        "validations": 2,
        "dann": [0.1],
        "coral": [0.1],
        "groupdro": [0.1],
        "discriminator_width": 16,
    },
}


def compare_settings(manifest, folder, **changes):
    """Settings of a recipe with a label, a group and every split."""
    probe = {"label": "label", "val": "val", "tests": ["test"], "pictures": 1, "k": 3, "group": "site"}
    settings = {"train": {"steps": 4}, "probe": probe, "train_split": None, "compare": COMPARE}
    return tiny_settings(manifest, folder / "run", **{**settings, **changes})


def compare_recipe(manifest, folder, **changes):
    """The file of such a recipe."""
    return recipe_file(folder, compare_settings(manifest, folder, **changes))


def saved_start(folder):
    """A model with weights of its own, so that there is something to leave out for 'no pretraining'."""
    from openfino.images.preprocess import Preprocessing
    from openfino.models.loading import random_backbone
    from openfino.models.store import save_backbone

    preprocessing = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
    save_backbone(folder, random_backbone(TINY, 3, 7), preprocessing, {"source": None})
    return folder
