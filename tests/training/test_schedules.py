import numpy as np
import pytest

from openfino.errors import InputProblemsError
from openfino.recipe import TemperatureSettings, TrainSettings, build_recipe
from openfino.training.schedules import Schedules, classical_cosine, linear_ramp, warmup_cosine


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


@pytest.mark.parametrize(
    ("warmup", "total", "length"), [(0, 7, None), (3, 10, None), (4, 20, 6), (2, 3, None)]
)
def test_a_cosine_takes_in_both_ends(warmup, total, length):
    """Beside arrays: a line without its end point, half a wave with both of its own, then the end."""
    steps = total - warmup if length is None else length
    wave = 2.0 + (5.0 - 2.0) * (1 + np.cos(np.linspace(0, np.pi, steps))) / 2
    line = np.linspace(1.0, 5.0, warmup, endpoint=False)
    expected = np.concatenate([line, wave, np.full(total - warmup - steps + 3, 2.0)])
    found = [
        warmup_cosine(step, start=1.0, peak=5.0, end=2.0, warmup=warmup, total=total, cosine_steps=length)
        for step in range(total + 3)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("stretch", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("warmup", "total"), [(0, 8), (3, 11), (1, 5), (4, 5)])
def test_a_classical_cosine_ends_one_step_late_or_is_cut(warmup, total, stretch):
    steps = total - warmup
    wave = (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    if stretch and steps > 1:
        longer = (1 + np.cos(np.linspace(0, np.pi, int((1 + stretch) * steps)))) / 2
        wave = (longer[:steps] - longer[steps - 1]) / (1 - longer[steps - 1])
    expected = np.concatenate([np.linspace(1.0, 5.0, warmup), 2.0 + (5.0 - 2.0) * wave, [2.0, 2.0]])
    found = [
        classical_cosine(step, start=1.0, peak=5.0, end=2.0, warmup=warmup, total=total, stretch=stretch)
        for step in range(total + 2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_warm_up_may_begin_at_zero():
    train = {"steps": 100, "freeze_steps": 0, "warmup_steps": 10, "lr": 1.0, "lr_scaling": "none"}
    plan = schedules(**train, warmup_from_zero=True)
    assert [plan.lr(step) for step in (0, 5, 9, 10)] == pytest.approx([0.0, 0.5, 0.9, 1.0])
    plan = schedules(**train, schedule="classical_cosine")
    assert [plan.lr(step) for step in (0, 3, 9)] == pytest.approx([0.0, 3 / 9, 1.0])


def test_the_rate_may_fall_to_something_and_stay():
    train = {"steps": 101, "freeze_steps": 0, "lr": 1.0, "lr_scaling": "none", "schedule": "cosine"}
    plan = schedules(**train, final_lr=0.2, cosine_steps=51)
    assert [plan.lr(step) for step in (0, 25, 50, 100)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert schedules(**{**train, "lr_scaling": "sqrt_1024"}, final_lr=0.2, batch_size=256).lr(
        100
    ) == pytest.approx(0.1)


def test_weight_decay_is_a_number_or_a_cosine():
    train = {"steps": 101, "freeze_steps": 0}
    assert {schedules(**train, weight_decay=0.1).weight_decay(step) for step in (0, 50, 100)} == {0.1}
    plan = schedules(**train, weight_decay=(0.04, 0.4))
    assert [plan.weight_decay(step) for step in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4])


def test_the_ramp_scales_decay_only_when_asked():
    train = {"steps": 100, "freeze_steps": 10, "unfreeze_ramp_steps": 4}
    rates = schedules(**train).rates(11)
    assert (rates.backbone, rates.backbone_decay) == (0.5, 1.0)
    rates = schedules(**train, ramp_decay=True).rates(11)
    assert (rates.backbone, rates.backbone_decay) == (0.5, 0.5)


def test_rates_are_those_of_the_step():
    plan = schedules(steps=100, freeze_steps=10, warmup_steps=20, last_layer_freeze_steps=5)
    for step in (0, 4, 5, 10, 50):
        rates = plan.rates(step)
        assert (rates.lr, rates.weight_decay) == (plan.lr(step), plan.weight_decay(step))
        assert (rates.backbone, rates.last_layer_frozen) == (plan.backbone_factor(step), step < 5)


def test_the_recipe_of_vit_l_on_imagenet_can_be_written():
    """dinov3.md section 3, column "ViT-L im1k": 100 epochs of 1,250 steps, 2,048 images each."""
    train = {
        "steps": 125_000, "batch_size": 2048, "lr": 1e-3, "final_lr": 1e-6, "lr_scaling": "sqrt_1024_x4",
        "schedule": "classical_cosine", "warmup_steps": 12_500, "weight_decay": [0.04, 0.4],
        "teacher_momentum": [0.992, 1.0], "freeze_steps": 0, "unfreeze_ramp_steps": 0,
        "last_layer_freeze_steps": 1250, "layer_decay": 0.9, "drop_path": 0.3,
    }  # fmt: skip
    temperature = {"start": 0.04, "end": 0.07, "warmup_steps": 37_500}
    recipe = build_recipe(
        {
            "manifest": "m.csv",
            "out": "run",
            "model": {"config": {}},
            "train": train,
            "objective": {"teacher_temperature": temperature},
        }
    )
    plan = Schedules(recipe.train, recipe.objective.teacher_temperature)
    peak = 1e-3 * 4 * 2**0.5
    assert peak == pytest.approx(5.66e-3, rel=1e-3)
    for step in (0, 1249, 12_499, 12_500, 60_000, 124_999):
        whole = (1 + np.cos(np.pi * step / 125_000)) / 2
        after = (1 + np.cos(np.pi * (step - 12_500) / 112_500)) / 2
        low = peak * 1e-3
        rate = peak * step / 12_499 if step < 12_500 else low + (peak - low) * after
        assert plan.lr(step) == pytest.approx(rate)
        assert plan.weight_decay(step) == pytest.approx(0.4 - 0.36 * whole)
        assert plan.momentum(step) == pytest.approx(1.0 - 0.008 * whole)
        assert plan.teacher_temperature(step) == pytest.approx(0.04 + 0.03 * min(step / 37_499, 1))
        assert plan.last_layer_frozen(step) == (step < 1250)


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ({"final_lr": 1e-6}, "final_lr"),
        ({"schedule": "classical_cosine", "cosine_steps": 10}, "cosine_steps"),
        ({"schedule": "cosine", "cosine_stretch": 0.25}, "cosine_stretch"),
    ],
)
def test_a_key_without_effect_is_refused(train, key):
    with pytest.raises(InputProblemsError, match=f"{key} has no effect"):
        build_recipe({"manifest": "m.csv", "out": "run", "model": {"config": {}}, "train": train})
