"""Whole runs with ``centering: softmax``: its centres are part of the run's state."""

import shutil

import pytest
import torch

from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_runs import losses, run_tiny

CENTERS = [f"model/objective.centering.{head}.center" for head in ("dino", "ibot")]
# Without factors and without the terms that compare the images of a batch.
PLAIN = {
    "factors": {"site": "watched", "dose": "watched"},
    "objective": {"centering": "softmax", "koleo": {"weight": 0}},
}


def final_tensors(out):
    return load_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0]


def test_a_run_goes_on_from_its_checkpoint_with_the_same_centers(image_set, tmp_path):
    out, changes = tmp_path / "run", {**PLAIN, "train": {"steps": 5}}  # checkpoints after steps 3 and 5
    run_tiny(image_set, out, **changes)
    straight, written = final_tensors(out), losses(out)
    shutil.rmtree(list_checkpoints(out / "checkpoints")[-1])
    assert not torch.equal(final_tensors(out)[CENTERS[0]], straight[CENTERS[0]])
    run_tiny(image_set, out, resume=True, **changes)
    assert losses(out) == written
    resumed = final_tensors(out)
    assert resumed.keys() == straight.keys()
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name
    for name in CENTERS:
        assert straight[name].any()


def test_pieces_of_a_batch_move_the_centers_as_the_batch_does(image_set, tmp_path):
    for name, accumulate in (("whole", 1), ("pieces", 3)):  # 8 images in 3, 3, 2
        run_tiny(image_set, tmp_path / name, **PLAIN, train={"steps": 2, "accumulate": accumulate})
    whole, pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    for step, values in whole.items():
        for name, value in values.items():
            assert pieces[step][name] == pytest.approx(value, rel=2e-5), (step, name)
    found, expected = final_tensors(tmp_path / "pieces"), final_tensors(tmp_path / "whole")
    for name in CENTERS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)
