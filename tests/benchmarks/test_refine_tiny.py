"""The recipe that refines ``tiny``, on a small stand-in for what the pretraining leaves."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import tiny_data
from idx_files import write_source
from openfino.adapt import adapt
from openfino.check import check_source
from openfino.models.store import load_model, save_backbone
from openfino.recipe import load_recipe
from tiny_models import tiny_model

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = RECIPES / "refine-tiny.yaml"


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """A table of a few images and an untrained network of two blocks."""
    folder = tmp_path_factory.mktemp("refine")
    source = write_source(folder, train=3000, test=10)
    manifest = tiny_data.write_tiny_data(folder / "data", source, images=40)
    model = tiny_model(size=(64, 64))
    save_backbone(folder / "pretrain" / "model", model.backbone, model.preprocessing, {})
    return [f"manifest={manifest}", f"out={folder / 'refined'}", f"model={folder / 'pretrain'}"]


def test_it_passes_the_check_as_it_is(overrides):
    problems, _ = check_source(RECIPE, overrides)
    assert problems == []


def test_it_goes_on_with_what_the_pretraining_did():
    before, after = load_recipe(RECIPES / "pretrain-tiny.yaml"), load_recipe(RECIPE)
    assert Path(after.model.source) == Path(before.out)
    assert (after.manifest, after.train_split) == (before.manifest, before.train_split)
    assert after.seed != before.seed
    for term in ("dino", "ibot", "koleo", "teacher_temperature"):
        assert getattr(after.objective, term) == getattr(before.objective, term)
    assert after.views.global_size > before.views.global_size
    sizes = {"global_size": None, "local_size": None}
    assert after.views.model_copy(update=sizes) == before.views.model_copy(update=sizes)
    assert after.train.lr < before.train.lr


def test_its_gram_teacher_is_renewed_while_it_counts():
    recipe = load_recipe(RECIPE)
    gram, train = recipe.objective.gram, recipe.train
    assert gram.start_step >= train.freeze_steps
    assert gram.crop_size == tuple(2 * side for side in recipe.views.global_size)
    assert gram.refreshes(gram.first_weighted_step) == 0
    assert gram.refreshes(train.steps - 1) >= 1


def test_it_runs_with_fewer_steps(overrides, tmp_path):
    few = [
        *("train.steps=6", "train.batch_size=4", "train.freeze_steps=1", "train.unfreeze_ramp_steps=1"),
        *(
            "train.warmup_steps=1",
            "train.workers=0",
            "train.threads=1",
            "train.log_every=1",
            "probe.max_rows=200",
        ),
        *("objective.gram.start_step=1", "objective.gram.refresh_every=2", "objective.gram.first_refresh=4"),
        *("probe.every=null", f"out={tmp_path / 'run'}"),
    ]
    said = Console(record=True, width=200, file=io.StringIO())
    adapt(load_recipe(RECIPE, [*overrides, *few]), console=said)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gram = [record.get("loss/gram", 0.0) for record in records if "loss/total" in record]
    assert gram[0] == 0.0
    assert all(value > 0 for value in gram[1:])
    assert "the Gram teacher is now a copy of the averaged teacher" in said.export_text()
    assert load_model(tmp_path / "run").backbone.channels == 3
