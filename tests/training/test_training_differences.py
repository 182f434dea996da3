"""Where the authors' training code does something else than it says: what it does, and what ours does."""

import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.models.loading import random_backbone
from openfino.recipe import TemperatureSettings, TrainSettings
from openfino.training import guards, loop
from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from openfino.training.optimizer import build_optimizer, set_rates
from openfino.training.schedules import Schedules
from tiny_runs import run_tiny

RAMP = 4


def decayed(tiny_config, name, **changes):
    """Which share of a parameter each step takes away when no gradient pulls at it."""
    train = TrainSettings(
        steps=2 + RAMP,
        freeze_steps=2,
        unfreeze_ramp_steps=RAMP,
        warmup_steps=0,
        lr=0.1,
        lr_scaling="none",
        weight_decay=0.5,
        layer_decay=1.0,
        **changes,
    )
    backbone = random_backbone(tiny_config, 3, seed=0)
    parameter = torch.nn.init.ones_(backbone.model.get_parameter(name))
    optimizer = build_optimizer({"backbone": backbone}, train)
    plan = Schedules(train, TemperatureSettings())
    shares = []
    for step in range(train.steps):
        for each in backbone.parameters():
            each.grad = torch.zeros_like(each)
        before = parameter.detach().double().norm()
        set_rates(optimizer, plan.rates(step))
        optimizer.step()
        shares.append(1 - (parameter.detach().double().norm() / before).item())
    return shares


def test_decay_ramps_with_the_rate_and_not_with_its_square(tiny_config):
    full = 0.1 * 0.5
    ours = decayed(tiny_config, "model.layer.0.mlp.up_proj.weight")
    theirs = decayed(tiny_config, "model.layer.0.mlp.up_proj.weight", ramp_decay=True)
    ramp = [(step + 1) / RAMP for step in range(RAMP)]
    assert ours == pytest.approx([0, 0, *(full * part for part in ramp)], abs=1e-6)
    assert theirs == pytest.approx([0, 0, *(full * part**2 for part in ramp)], abs=1e-6)


@pytest.mark.parametrize("token", ["cls_token", "register_tokens", "mask_token"])
def test_tokens_are_not_pulled_to_zero(tiny_config, token):
    name = f"embeddings.{token}"
    assert decayed(tiny_config, name) == [0.0] * (2 + RAMP)
    theirs = decayed(tiny_config, name, decay_tokens=True)
    assert theirs[-1] == pytest.approx(0.05, abs=1e-6)


def checkpoints(out):
    return [load_checkpoint(path)[0] for path in list_checkpoints(out / "checkpoints")]


def spoil(monkeypatch, bad_step):
    """One pixel of one image is NaN at ``bad_step``."""
    make_pieces = loop.make_pieces

    def spoilt(run, batch):
        pieces = make_pieces(run, batch)
        if batch.step == bad_step:
            pieces[0].global_views[0, 0, 0, 0, 0] = torch.nan
        return pieces

    monkeypatch.setattr(loop, "make_pieces", spoilt)


def test_a_step_that_is_not_finite_touches_nothing(image_set, tmp_path, monkeypatch):
    train = {"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 9}
    bad_step = (
        2  # by then every value has its prototype: a first image gives it one before the step is judged
    )
    spoil(monkeypatch, bad_step)
    run_tiny(image_set, tmp_path / "ours", train=train)
    saved = checkpoints(tmp_path / "ours")
    before, after = saved[bad_step - 1 : bad_step + 1]
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(bool(value.isfinite().all()) for value in saved[-1].values())

    # Theirs steps first and counts afterwards: one such step is the end of student, teacher and moments.
    monkeypatch.setattr(guards.NonFiniteGuard, "accepts", lambda *_: True)
    with pytest.raises(OpenfinoError, match="features are not finite"):
        run_tiny(image_set, tmp_path / "theirs", train=train)
    last = checkpoints(tmp_path / "theirs")[-1]
    for root in ("model/student.dino_head.", "teacher/dino_head.", "optimizer/student.dino_head."):
        lost = [not bool(value.isfinite().all()) for name, value in last.items() if name.startswith(root)]
        assert any(lost), root


def test_the_heads_of_the_factors_are_clipped_with_the_rest(image_set, tmp_path):
    """Theirs clips backbone, DINO and iBOT head, and lets the heads of the factors take any step."""
    limit = 1e-3
    norms = {}
    for name, clip in (("clipped", limit), ("free", 1e9)):
        run_tiny(image_set, tmp_path / name, train={"steps": 1, "clip_norm": clip})
        (tensors,) = checkpoints(tmp_path / name)
        # After one step from zero the first moment is the gradient times 1 - beta1.
        moments = {key: value / (1 - 0.9) for key, value in tensors.items() if key.endswith("/exp_avg")}
        heads = [value for key, value in moments.items() if ".guidance.heads." in key]
        norms[name] = [torch.nn.utils.get_total_norm(part).item() for part in (moments.values(), heads)]
    (whole, heads), (free_whole, free_heads) = norms["clipped"], norms["free"]
    assert whole == pytest.approx(limit, rel=1e-3)
    assert free_heads > limit
    assert heads == pytest.approx(free_heads * limit / free_whole, rel=1e-3)


def test_stage_one_may_freeze_the_whole_backbone(image_set, tmp_path):
    train = {"steps": 4, "freeze_steps": 2, "freeze_patch_embedding": True, "checkpoint_every": 2}
    run_tiny(image_set, tmp_path / "run", train=train)
    first, last = checkpoints(tmp_path / "run")
    weight = "model/student.backbone.model.embeddings.patch_embeddings.weight"
    assert not any(name.startswith("optimizer/student.backbone.") for name in first)
    assert any(name.startswith("optimizer/student.dino_head.") for name in first)
    assert not torch.equal(first[weight], last[weight])
