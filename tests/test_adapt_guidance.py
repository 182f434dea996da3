"""Whole runs with guidance other than the default: resumed, and resumed on a table with new values."""

import polars as pl
import pytest
import torch

from openfino.factors.encode import load_vocabularies
from openfino.objectives.guidance.concentration import ConcentrationBank
from openfino.settings_layers import load_preset
from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_runs import losses, run_tiny

HEADS = {
    "concentration": {"bank": "concentration"},
    "classifier": {"discrete_head": "classifier"},
    "binary_classifier": {"discrete_head": "binary_classifier"},
}
ROWS = {
    "concentration": ("centroids", "concentration", "counts"),
    "classifier": ("classifier.layers.2.weight", "classifier.layers.2.bias"),
    "binary_classifier": ("classifier.layers.2.weight", "classifier.layers.2.bias"),
}
EXTENDABLE = {"schedule": "constant", "teacher_momentum": [0.9, 0.9]}


def head_state(out):
    """What the last checkpoint holds of the head of factor ``site``."""
    tensors = load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0]
    prefix = "model/objective.terms.guidance.heads.factor:site."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("head", HEADS)
def test_a_resumed_run_goes_on_as_if_never_stopped(image_set, tmp_path, head):
    changes = {"objective": {"guidance": {"ramp": "constant", **HEADS[head]}}}
    run_tiny(image_set, tmp_path / "straight", train={**EXTENDABLE, "steps": 5}, **changes)
    run_tiny(image_set, tmp_path / "stopped", train={**EXTENDABLE, "steps": 3}, **changes)
    run_tiny(image_set, tmp_path / "stopped", resume=True, train={**EXTENDABLE, "steps": 5}, **changes)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    straight, stopped = head_state(tmp_path / "straight"), head_state(tmp_path / "stopped")
    assert all(torch.equal(straight[name], stopped[name]) for name in straight)


@pytest.mark.parametrize("head", HEADS)
def test_new_values_in_the_table_get_rows_of_their_own(image_set, tmp_path, head):
    out = tmp_path / "run"
    changes = {"objective": {"guidance": {"ramp": "constant", **HEADS[head]}}}
    run_tiny(image_set, out, train={**EXTENDABLE, "steps": 3}, **changes)
    old = head_state(out)
    table = pl.read_csv(image_set)
    site = pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("a new site")).otherwise(pl.col("site"))
    table.with_columns(site=site).write_csv(image_set)
    run_tiny(image_set, out, resume=True, train={**EXTENDABLE, "steps": 6}, **changes)
    new, values = head_state(out), load_vocabularies(out / "factors.json")["site"].values
    assert values == ["site0", "site1", "site2", "site3", "a new site"]
    for name in ROWS[head]:
        assert len(new[name]) == len(old[name]) + 1
        assert new[name].isfinite().all()
    rows = ROWS[head][0]
    cosines = torch.nn.functional.cosine_similarity(new[rows][:4], old[rows])
    assert cosines.min() > 0.9
    if head == "concentration":
        keyed = ConcentrationBank(5, 32).centroids
        assert new["counts"][4] > 0
        assert not torch.equal(new["centroids"][4], keyed[4])


def test_the_authors_guidance_trains(image_set, tmp_path):
    settings = load_preset("authors")["objective"]["guidance"]
    summary = run_tiny(image_set, tmp_path / "run", objective={"guidance": settings})
    assert summary["steps"] == 8
    last = losses(tmp_path / "run")[7]
    assert last["guidance/site/scale"] != 1.0
