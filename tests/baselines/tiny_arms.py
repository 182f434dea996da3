"""Small arms for the tests of the baselines: drawn images, a tiny random backbone, a few steps."""

import numpy as np

from openfino.baselines.training import train_baseline
from openfino.evaluation.splits import encode_column
from openfino.evaluation.tasks import resolve_task
from openfino.manifest import read_manifest
from openfino.recipe import build_recipe
from openfino.settings_layers import merge
from tiny_runs import tiny_settings

COMPARE = {
    "layers": 2,
    "head": {"width": 32, "heads": 2},
    "baselines": {
        "lrs": [3e-3],
        "steps": 12,
        "batch_size": 12,
        "validations": 3,
        "dann": [1.0],
        "coral": [1.0],
        "groupdro": [0.1],
        "discriminator_width": 32,
        "domains_per_batch": 3,
    },
}
BUILDERS = {"train": {"log_every": 4}, "probe": {"label": "label", "val": "val", "tests": ["test"]}}


def tiny_recipe(manifest, out, **changes):
    """A recipe whose baselines take a second."""
    settings = {**tiny_settings(manifest, out, **BUILDERS, compare=COMPARE), "factors": {}}
    return build_recipe(merge(settings, changes))


def run_arm(recipe, method, out, *, seed=0, label="label", domain="site", **options):
    """Train an arm on the rows of split ``train``, validated on ``val``, unless ``options`` say otherwise."""
    manifest = read_manifest(recipe.manifest)
    task = resolve_task(manifest, label)
    options = {
        "train_rows": manifest.rows_where("split", ["train"]),
        "val_rows": manifest.rows_where("split", ["val"]),
        "groups": encode_column(manifest.table["site"]),
        "domain": domain,
        **options,
    }
    targets = options.pop("targets", None) or task.targets(manifest.table, np.arange(len(manifest)))
    return train_baseline(recipe, method, task=task, targets=targets, out=out, seed=seed, **options)
