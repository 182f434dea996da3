import math
import statistics

import numpy as np
import pytest
from fake_compass import MEANS, fake_compass, validation
from scipy import stats

from openfino.compass.plan import CONTROL
from openfino.compass.verdict import Change, change_of, helping_roles, quadrant_of, spread_of


def change(mean, noise=0.01):
    return Change((mean - 0.001, mean + 0.001), noise)


@pytest.mark.parametrize(
    ("informative", "spurious", "quadrant"),
    [
        (0.05, 0.02, "always beneficial"),
        (0.05, 0.005, "informative only"),
        (0.05, -0.05, "informative only"),
        (-0.05, 0.02, "spurious only"),
        (0.005, 0.02, "spurious only"),
        (-0.05, -0.02, "always harmful"),
        (0.005, -0.02, "always harmful"),
        (0.005, -0.005, "within noise"),
    ],
)
def test_every_place_has_its_quadrant(informative, spurious, quadrant):
    assert quadrant_of({"informative": change(informative), "spurious": change(spurious)}) == quadrant


def test_a_change_as_large_as_the_noise_is_noise():
    assert Change((0.01, 0.01), 0.01).effect == "within noise"
    assert Change((-0.011, -0.011), 0.01).effect == "hurts"


def test_the_spread_is_the_residual_of_a_randomised_block_design():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(5, 3))
    spread = spread_of(scores)
    total = 0.0
    for arm in range(5):
        for seed in range(3):
            fitted = statistics.fmean(scores[arm]) + statistics.fmean(scores[:, seed]) - scores.mean()
            total += (scores[arm, seed] - fitted) ** 2
    assert spread.freedom == 8
    assert spread.deviation == pytest.approx(math.sqrt(total / 8))
    # What a seed does to all arms alike, and what an arm does on all seeds alike, is no noise.
    shifted = scores + np.array([10.0, 0.0, -3.0]) + np.arange(5)[:, None]
    assert spread_of(shifted).deviation == pytest.approx(spread.deviation)


def test_the_noise_is_a_t_interval_shared_by_the_comparisons():
    spread = spread_of(np.random.default_rng(1).normal(size=(7, 2)))
    one = stats.t.ppf(0.975, 6) * spread.deviation * math.sqrt(2 / 2)
    assert spread.noise(1) == pytest.approx(one)
    error = 1 - 0.95 ** (1 / 6)
    assert spread.noise(6) == pytest.approx(stats.t.ppf(1 - error / 2, 6) * spread.deviation)


def test_chance_alone_is_called_noise_in_nineteen_of_twenty_compasses():
    generator, named, trials = np.random.default_rng(2), 0, 1500
    for _ in range(trials):
        scores = generator.normal(size=(7, 3)) + generator.normal(size=3)
        noise = spread_of(scores).noise(6)
        named += any(abs(change_of(arm, scores[0], noise).mean) > noise for arm in scores[1:])
    # Changes share the control, so that they err together: at most the rate, not far below it.
    assert 0.02 < named / trials < 0.065


def test_a_factor_that_helps_either_way_takes_its_better_role():
    factors = {
        "a": {"informative": change(0.02), "spurious": change(0.05)},
        "b": {"informative": change(0.03), "spurious": change(0.02)},
        "c": {"informative": change(0.001), "spurious": change(-0.2)},
    }
    assert helping_roles(factors) == {"a": "spurious", "b": "informative"}


def test_what_helps_is_combined_and_measured_on_the_test():
    compass = fake_compass()
    chosen = compass.recommendation
    assert dict(chosen.arm.roles) == {"antibody": "informative", "plate": "spurious"}
    assert chosen.arm.name.startswith("combined-")
    assert list(chosen.tests) == ["test"]
    assert chosen.tests["test"].mean == pytest.approx(0.13)
    assert chosen.tests["test"].effect == "helps"


def test_a_combination_that_does_worse_than_its_best_part_is_not_advised():
    chosen = fake_compass(combined=(0.2, 0.05, 0.9)).recommendation
    assert dict(chosen.arm.roles) == {"antibody": "informative"}
    assert chosen.tests["test"].mean == pytest.approx(0.09)  # the test took no part in the choice
    assert "better there alone" in chosen.why


def test_one_helping_role_needs_no_further_arm():
    compass = fake_compass({name: MEANS[name] for name in ("antibody", "operator")})
    assert compass.recommendation.arm.name == "01-antibody-informative"


def test_without_help_the_control_is_advised():
    chosen = fake_compass({name: MEANS[name] for name in ("operator", "dose")}).recommendation
    assert chosen.arm == CONTROL
    assert not chosen.tests
    assert "No factor clearly helps" in chosen.why


def test_without_an_out_of_distribution_part_the_other_decides():
    compass = fake_compass(own=validation(parts=("in",)))
    assert compass.deciding == "in"
    assert dict(compass.recommendation.arm.roles)["plate"] == "informative"


def test_the_json_holds_every_change_and_the_rule():
    found = fake_compass().to_json()
    plate = found["factors"]["plate"]
    assert plate["quadrant"] == plate["quadrants"]["out"] == "spurious only"
    assert plate["quadrants"]["in"] == "always beneficial"
    assert plate["spurious"]["out"]["delta"] == pytest.approx(0.06)
    assert len(plate["spurious"]["out"]["per_seed"]) == 3
    assert found["noise"]["out"]["degrees_of_freedom"] == 16
    assert found["recommendation"]["tests"]["test"]["effect"] == "helps"


def test_a_budget_that_teaches_nothing_is_warned_of():
    assert not fake_compass().warnings
    (warning,) = fake_compass(start=0.31).to_json()["warnings"]
    assert (
        "60 steps taught the model nothing out of distribution (macro_f1 0.310 before, 0.300 after)"
        in warning
    )
