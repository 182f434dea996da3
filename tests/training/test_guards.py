import math

import pytest
import torch

from openfino.training.guards import (
    UNEXPLAINED,
    CollapseWatch,
    NonFiniteGuard,
    agreed_cause,
    collapse_metrics,
    explain_non_finite,
    feature_rank,
    write_replay,
)

ONE = torch.tensor(1.0)


def test_non_finite_steps_are_counted_and_three_in_a_row_exhaust():
    guard = NonFiniteGuard(skipped=4)
    assert guard.accepts(ONE, ONE)
    assert not guard.accepts(torch.tensor(math.nan), ONE)
    assert not guard.accepts(ONE, torch.tensor(math.inf))
    assert guard.accepts(ONE, ONE)
    for _ in range(3):
        assert not guard.exhausted
        guard.accepts(ONE, torch.tensor(math.nan))
    assert guard.exhausted
    assert guard.skipped == 9


def explain(terms=None, views=None, weights=None):
    views = views if views is not None else {"global": torch.ones(2, 3, 1, 2, 2)}
    return explain_non_finite(terms or {}, views, torch.tensor([10, 11, 12]), weights or {})


def test_the_cause_names_images_weights_or_terms():
    views = torch.ones(2, 3, 1, 2, 2)
    views[1, 2, 0, 0, 0] = torch.nan
    assert "rows [12]" in explain(views={"global": views})
    assert "diverged" in explain(weights={"w": torch.tensor([math.inf])})
    assert "koleo" in explain(terms={"dino": ONE, "koleo": torch.tensor(math.nan)})
    assert "gradient" in explain(terms={"dino": ONE})


def test_a_replay_loads_without_pickle(tmp_path):
    path = tmp_path / "replay" / "step.pt"
    write_replay(path, {"step": 3, "global": torch.ones(2), "terms": {"dino": ONE}})
    assert torch.load(path, weights_only=True)["step"] == 3


def test_feature_rank_counts_the_directions():
    basis = torch.eye(8)
    points = torch.cat([basis[:4], -basis[:4]])
    assert feature_rank(points).item() == pytest.approx(4.0, abs=1e-3)
    assert feature_rank(
        torch.ones(8, 1) * basis[:1] * torch.linspace(-1, 1, 8)[:, None]
    ).item() == pytest.approx(1.0)
    assert feature_rank(torch.ones(6, 8)).item() == pytest.approx(1.0)


def test_entropy_is_relative_to_uniform():
    cls = torch.randn(2, 4, 8)
    uniform = torch.full((2, 4, 16), 1 / 16)
    assert collapse_metrics(cls, uniform)["watch/target_entropy"].item() == pytest.approx(1.0)
    sharp = torch.nn.functional.one_hot(torch.zeros(2, 4, dtype=torch.long), 16).float()
    assert collapse_metrics(cls, sharp)["watch/target_entropy"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("rank", "entropy", "advice"),
    [(1.2, 0.5, "koleo"), (30.0, 0.999, "unit_norm_prototypes"), (30.0, 0.5, None)],
)
def test_a_lasting_collapse_is_said_once_with_a_remedy(rank, entropy, advice):
    watch = CollapseWatch()
    metrics = {"watch/feature_rank": rank, "watch/target_entropy": entropy}
    assert watch.look(metrics, after_warmup=False) is None
    said = [watch.look(metrics, after_warmup=True) for _ in range(12)]
    warnings = [text for text in said if text]
    assert len(warnings) == (1 if advice else 0)
    if advice:
        assert said.index(warnings[0]) == CollapseWatch.PATIENCE - 1
        assert advice in warnings[0]


def test_the_rank_that_knows_the_cause_is_believed():
    assert (
        agreed_cause([UNEXPLAINED, "the term koleo is not finite", UNEXPLAINED])
        == "the term koleo is not finite"
    )
    assert agreed_cause([UNEXPLAINED, UNEXPLAINED]) == UNEXPLAINED


def test_a_streak_of_skips_goes_on_after_a_resume():
    guard = NonFiniteGuard(skipped=2, consecutive=2)
    assert not guard.accepts(torch.tensor(math.nan), ONE)
    assert guard.exhausted
