"""``--small``: every arm, every probe and every part of the report, at a budget that shows only that they work."""

from typing import Any

from openfino.compass.plan import paced
from openfino.recipe import Recipe, build_recipe
from openfino.settings_layers import merge

STEPS, BATCH, ROWS = 10, 16, 160


def smaller(recipe: Recipe) -> Recipe:
    """The recipe with a budget of seconds for each arm, one seed, and at most ``ROWS`` rows of each split."""
    train = recipe.train
    changes: dict[str, Any] = {
        "train": {"batch_size": min(train.batch_size, BATCH), "accumulate": 1, "log_every": 1},
        "probe": {"max_rows": min(recipe.probe.max_rows or ROWS, ROWS)},
        "compare": {
            "seeds": 1,
            "fractions": [0.5, 1.0],
            "draws": 200,
            "umap": False,  # its compilation would cost a third of the time
            "grid": {
                "lrs": recipe.compare.grid.lrs[-2:],
                "linear_lrs": recipe.compare.grid.linear_lrs[-2:],
                "weight_decays": recipe.compare.grid.weight_decays[:1],
                "steps": min(recipe.compare.grid.steps, 40),
                "batch_size": min(recipe.compare.grid.batch_size, 32),
            },
            "head": {"width": 64, "heads": 4},
            "baselines": {
                "steps": STEPS,
                "batch_size": BATCH,
                "lrs": recipe.compare.baselines.lrs[-1:],
                "scratch_lrs": None,
                "dann": recipe.compare.baselines.dann[-1:],
                "coral": recipe.compare.baselines.coral[-1:],
                "groupdro": recipe.compare.baselines.groupdro[-1:],
                "validations": 2,
            },
        },
    }
    fewer = paced(recipe, min(train.steps, STEPS))
    return build_recipe(merge(fewer.model_dump(mode="json"), changes))
