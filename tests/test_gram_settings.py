import itertools

import pytest

from openfino.errors import InputProblemsError
from openfino.recipe import GramSettings, build_recipe
from openfino.training.schedules import warmup_cosine
from tiny_runs import tiny_settings


def test_off_unless_it_has_a_weight():
    recipe = build_recipe(tiny_settings("m.csv", "out"))
    assert recipe.objective.gram.weight == 0
    assert {recipe.objective.gram.weight_at(step) for step in range(20)} == {0.0}


@pytest.mark.parametrize(("start", "ramp"), [(0, 0), (3, 0), (0, 4), (5, 6), (2, 1), (2, 2)])
def test_the_weight_is_the_cosine_of_the_authors(start, ramp):
    gram = GramSettings(weight=2.0, start_step=start, ramp_steps=ramp)
    for step in range(15):
        theirs = warmup_cosine(step, peak=0.0, end=2.0, warmup=start, total=20, cosine_steps=ramp)
        assert gram.weight_at(step) == pytest.approx(theirs), step
    weighted = [step for step in range(15) if gram.weight_at(step) > 0]
    assert weighted == list(range(gram.first_weighted_step, 15))
    assert gram.weight_at(14) == 2.0


def naive_refreshes(every, first, most, steps):
    """The authors' rule, step by step: the steps after which a refresh happens."""
    made = []
    for step in range(steps):
        if step + 1 >= first and (step + 1) % every == 0 and len(made) < most:
            made.append(step)
    return made


@pytest.mark.parametrize(
    ("every", "first", "most"), list(itertools.product((1, 3, 10), (1, 3, 4, 9, 10, 25), (1, 3, None)))
)
def test_refreshes_follow_the_rule(every, first, most):
    gram = GramSettings(weight=2.0, refresh_every=every, first_refresh=first, max_refreshes=most)
    wanted = naive_refreshes(every, first, most or 10**9, 60)
    assert wanted
    assert [step for step in range(60) if gram.refreshes(step + 1) > gram.refreshes(step)] == wanted
    assert gram.refreshes(0) == 0
    assert gram.refreshes(60) == len(wanted)


def test_the_paper_s_stage():
    """Weight from a million steps on; refreshed after 1.01, 1.02 and 1.03 million."""
    gram = GramSettings(weight=2.0, start_step=10**6, ramp_steps=1000, refresh_every=10_000, max_refreshes=3)
    around = [1_009_999, 1_010_000, 1_020_000, 1_030_000, 1_200_000]
    assert [gram.refreshes(steps) for steps in around] == [0, 1, 2, 3, 3]
    assert [gram.weight_at(step) for step in (10**6, 10**6 + 999, 1_200_000)] == [0.0, 2.0, 2.0]


def test_what_does_not_fit_together_is_said_at_once():
    wrong = {"weight": 2, "teacher": "ema", "refresh_every": 5, "tokens": "masked", "crop_size": 0}
    with pytest.raises(InputProblemsError) as caught:
        build_recipe(tiny_settings("m.csv", "out", objective={"gram": wrong}))
    for word in ("objective.gram", "leave out refresh_every", "per_image: false", "crop_size"):
        assert word in str(caught.value), word
    with pytest.raises(InputProblemsError, match=r"first_refresh.*max_refreshes"):
        build_recipe(
            tiny_settings("m.csv", "out", objective={"gram": {"first_refresh": 2, "max_refreshes": 3}})
        )


def test_a_side_is_a_square():
    assert GramSettings(weight=2, crop_size=64).crop_size == (64, 64)


@pytest.mark.parametrize(("teacher", "source"), [("start", None), ("ema", None), ("hub/name", "hub/name")])
def test_only_a_named_model_is_opened(teacher, source):
    assert GramSettings(teacher=teacher, weight=2).source == source


def test_settings_of_a_term_without_weight_are_refused():
    """But not those that are what they would be anyway: a resolved recipe spells them out."""
    off = GramSettings(weight=0).model_dump()
    assert GramSettings(**off) == GramSettings()
    with pytest.raises(ValueError, match=r"'gram' has weight 0: teacher, crop_size would have no effect"):
        GramSettings(**{**off, "teacher": "ema", "crop_size": 64})
