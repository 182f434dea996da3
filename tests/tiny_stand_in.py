"""A small run on procedural images, as those are from which ``tiny`` is packed."""

import sys
from pathlib import Path

import polars as pl
from rich.console import Console

from conftest import make_image_set
from openfino.adapt import adapt
from openfino.procedural import image_name
from openfino.recipe import build_recipe
from openfino.settings_layers import merge
from tiny_runs import tiny_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from build_tiny import package

PROBE = {"label": "label", "split": "split", "train": "reference", "tests": ["real"], "every": 2}
TRAIN = {"steps": 4, "checkpoint_every": 4}


def make_table(folder):
    """A manifest of 16 procedural images, which train, and of 40 files, on which training is watched."""
    files = pl.read_csv(make_image_set(folder)).select("path", "label", split=pl.col("split"))
    files = files.with_columns(
        split=pl.when(pl.col("split") == "train").then(pl.lit("reference")).otherwise(pl.lit("real"))
    )
    drawn = pl.DataFrame({"path": [image_name(0, index, 40) for index in range(16)]})
    drawn = drawn.with_columns(label=pl.lit(None, dtype=pl.String), split=pl.lit("procedural"))
    pl.concat([drawn, files]).write_parquet(folder / "table.parquet")
    return folder / "table.parquet"


def pretrain(table, out, **changes):
    """A run of four steps from random weights; returns its folder."""
    settings = tiny_settings(table, out, train_split=["procedural"], probe=PROBE, train=TRAIN)
    settings = merge({**settings, "factors": {}}, changes)
    adapt(build_recipe(settings), console=Console(quiet=True))
    return out


def make_stand_in(folder):
    """A packed stand-in for ``tiny``, 32 wide, in ``folder / "tiny"``."""
    run = pretrain(make_table(folder / "data"), folder / "pretrain")
    package(run, folder / "tiny")
    return folder / "tiny"
