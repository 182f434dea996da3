"""A batch cut into pieces trains as the whole batch does."""

import polars as pl
import pytest
import torch

from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_runs import losses, run_tiny

# Without the terms that compare the images of a batch.
SEPARABLE = {"koleo": {"weight": 0}, "sigreg": {"weight": 0}}


def drop_values(manifest):
    """Two of three sites and one of two doses are missing."""
    table = pl.read_csv(manifest).with_row_index("row")
    kept = {"site": pl.col("row") % 3 == 0, "dose": pl.col("row") % 2 == 0}
    table = table.with_columns(
        pl.when(keep).then(pl.col(name)).otherwise(None).alias(name) for name, keep in kept.items()
    )
    table.drop("row").write_csv(manifest)


def run_both(image_set, tmp_path, *, steps, **guidance):
    drop_values(image_set)
    objective = {**SEPARABLE, "guidance": {"regressor_dropout": 0.5, **guidance}}
    for name, accumulate in (("whole", 1), ("pieces", 3)):  # 8 images in 3, 3, 2
        train = {"steps": steps, "accumulate": accumulate, "drop_path": 0.3, "freeze_steps": 0}
        run_tiny(image_set, tmp_path / name, train=train, objective=objective)


def final_tensors(out):
    return load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0]


def test_losses_and_weights_are_those_of_the_whole_batch(image_set, tmp_path):
    run_both(image_set, tmp_path, steps=3, balance=False)
    whole, pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    assert "loss/guidance" in whole[0]
    for step, values in whole.items():
        for name, value in values.items():
            assert pieces[step][name] == pytest.approx(value, rel=2e-5), (step, name)
    found = final_tensors(tmp_path / "pieces")
    for name, value in final_tensors(tmp_path / "whole").items():
        if "prototypes" in name or "counts" in name:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_balancing_measures_the_whole_batch(image_set, tmp_path):
    run_both(image_set, tmp_path, steps=1)
    whole, pieces = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "pieces")
    norms = [name for name in whole if ".balance." in name]
    assert len(norms) == 2
    for name in norms:
        assert whole[name] > 0
        torch.testing.assert_close(pieces[name], whole[name], rtol=2e-5, atol=0, msg=name)


def test_guidance_is_logged_for_the_whole_batch(image_set, tmp_path):
    run_both(image_set, tmp_path, steps=1)
    whole, pieces = losses(tmp_path / "whole")[0], losses(tmp_path / "pieces")[0]
    names = [name for name in whole if name.startswith(("guidance/", "dino/"))]
    assert {"guidance/site/accuracy", "guidance/dose/mae", "guidance/dose/gradient_norm"} <= set(names)
    assert 0 < whole["guidance/site/valid_fraction"] < 1
    for name in names:
        if not name.endswith("/scale"):
            assert pieces[name] == pytest.approx(whole[name], rel=2e-5), name
