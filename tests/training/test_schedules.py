import math

import pytest

from golden_data import golden_cases
from openfino.recipe import TemperatureSettings, TrainSettings
from openfino.training.schedules import Schedules, cosine, linear_ramp


def schedules(temperature=None, **train):
    if "steps" in train:  # the defaults are for long runs
        train = {"warmup_steps": 0, "unfreeze_ramp_steps": 0, **train}
    return Schedules(TrainSettings(**train), temperature or TemperatureSettings())


def test_the_rate_warms_up_then_stays_constant():
    plan = schedules(steps=100, freeze_steps=0, warmup_steps=10, lr=1.0, lr_scaling="none")
    assert plan.lr(0) == pytest.approx(0.1)
    assert plan.lr(4) == pytest.approx(0.5)
    assert plan.lr(9) == plan.lr(50) == plan.lr(99) == 1.0


def test_the_cosine_rate_ends_at_zero():
    plan = schedules(steps=101, freeze_steps=0, warmup_steps=0, lr=1.0, lr_scaling="none", schedule="cosine")
    assert plan.lr(0) == 1.0
    assert plan.lr(50) == pytest.approx(0.5)
    assert plan.lr(100) == pytest.approx(0.0)


def test_the_rate_scales_with_the_root_of_the_batch():
    assert schedules(batch_size=256, lr=1.0).peak_lr == pytest.approx(0.5)
    assert schedules(batch_size=4096, lr=1.0).peak_lr == pytest.approx(2.0)


def test_the_backbone_is_frozen_then_ramps():
    plan = schedules(steps=100, freeze_steps=10, unfreeze_ramp_steps=5, warmup_steps=0)
    assert [plan.backbone_factor(step) for step in (0, 9)] == [0.0, 0.0]
    assert [plan.backbone_factor(step) for step in (10, 12, 14, 15, 99)] == pytest.approx(
        [0.2, 0.6, 1.0, 1.0, 1.0]
    )
    assert plan.backbone_frozen(9)
    assert not plan.backbone_frozen(10)


def test_without_stages_the_backbone_trains_from_the_first_step():
    plan = schedules(steps=10, freeze_steps=0, unfreeze_ramp_steps=0)
    assert plan.backbone_factor(0) == 1.0


def test_teacher_temperature_and_momentum():
    plan = schedules(TemperatureSettings(start=0.04, end=0.07), steps=1000, freeze_steps=0)
    assert plan.teacher_temperature(0) == pytest.approx(0.04)
    assert plan.teacher_temperature(150) == pytest.approx(0.055)
    assert plan.teacher_temperature(300) == plan.teacher_temperature(999) == pytest.approx(0.07)
    assert plan.momentum(0) == pytest.approx(0.994)
    assert plan.momentum(999) == pytest.approx(1.0)
    assert 0.994 < plan.momentum(500) < 1.0


def test_a_ramp_of_no_length_is_over():
    assert linear_ramp(0, 0) == 1.0


@pytest.mark.golden
def test_the_cosine_agrees_with_the_authors():
    case = next(case for case in golden_cases("schedules.safetensors") if case.name == "lwcd_momentum")
    values = case["values"].tolist()
    total = case.hparams["total_iterations"]
    ours = [cosine(case.hparams["start"], case.hparams["end"], step, total) for step in range(total)]
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(ours, values, strict=True))
