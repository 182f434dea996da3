"""What sets the arms apart, and which of them a recipe allows."""

import pytest
from comparisons_small import compare_settings, saved_start

from openfino.compare.arms import EVERY, KINDS, TITLES, recipe_of, why_not
from openfino.recipe import build_recipe
from openfino.settings_layers import merge


@pytest.fixture
def base(tmp_path):
    start = saved_start(tmp_path / "start")
    return build_recipe(merge(compare_settings(tmp_path / "m.csv", tmp_path), {"model": str(start)}))


def facts(recipe):
    return {
        "koleo": recipe.koleo_weight,
        "sigreg": recipe.sigreg_weight,
        "roles": [factor.role for factor in recipe.factors.values()],
        "head": recipe.objective.guidance.discrete_head,
        "pretrained": recipe.model.source is not None,
    }


GUIDED, WATCHED = ["informative", "spurious"], ["watched", "watched"]


@pytest.mark.parametrize(
    ("arm", "koleo", "sigreg", "roles", "head", "pretrained"),
    [
        ("ssl", 0.1, 0.0, WATCHED, "prototypes", True),
        ("ssl_sigreg", 0.0, 0.05, WATCHED, "prototypes", True),
        ("fino", 0.0, 0.05, GUIDED, "prototypes", True),
        ("fino_koleo", 0.1, 0.0, GUIDED, "prototypes", True),
        ("fino_scratch", 0.0, 0.05, GUIDED, "prototypes", False),
        ("fino_mlp", 0.0, 0.05, GUIDED, "classifier", True),
    ],
)
def test_an_arm_differs_in_what_it_is_named_for(base, arm, koleo, sigreg, roles, head, pretrained):
    made = recipe_of(arm, base)
    assert list(facts(made).values()) == [koleo, sigreg, roles, head, pretrained]
    same = {"objective", "factors", "model"}
    assert made.model_dump(exclude=same) == base.model_dump(exclude=same)


def test_given_weights_are_kept(base):
    given = build_recipe(
        merge(
            base.model_dump(mode="json"), {"objective": {"koleo": {"weight": 0.3}, "sigreg": {"weight": 0.2}}}
        )
    )
    assert facts(recipe_of("fino", given))["koleo"] == 0.3
    assert facts(recipe_of("ssl", given)) | {"roles": 0} == facts(recipe_of("ssl", base)) | {
        "koleo": 0.3,
        "roles": 0,
    }


def test_random_weights_have_the_architecture_of_the_source(base):
    from openfino.adapt import starting_backbone

    pretrained, _ = starting_backbone(base, ["r", "g", "b"])
    fresh, _ = starting_backbone(recipe_of("fino_scratch", base), ["r", "g", "b"])
    weights = [each.state_dict() for each in (pretrained, fresh)]
    shapes = [{name: value.shape for name, value in each.items()} for each in weights]
    assert shapes[0] == shapes[1]
    name = next(name for name in shapes[0] if "up_proj.weight" in name)
    assert not (weights[0][name] == weights[1][name]).any()


def test_a_classifier_takes_the_keys_of_prototypes_back(base):
    odd = merge(base.model_dump(mode="json"), {"objective": {"guidance": {"temperature": 0.5}}})
    assert recipe_of("fino_mlp", build_recipe(odd)).objective.guidance.temperature == pytest.approx(0.07 / 3)


def test_what_cannot_run_says_why(base):
    allowed = {arm: why_not(arm, base, domain="site", erased="dose") for arm in EVERY}
    assert not any(allowed.values())
    bare = merge(
        base.model_dump(mode="json"), {"factors": {"site": {"role": "watched"}, "dose": {"role": "watched"}}}
    )
    bare = build_recipe(merge(bare, {"model": {"config": {}}}))
    reasons = {arm: why_not(arm, bare, domain=None, erased=None) for arm in EVERY}
    assert {arm for arm, reason in reasons.items() if reason is None} == {
        "frozen",
        "ssl",
        "ssl_sigreg",
        "finetune",
    }
    assert "random weights already" in reasons["scratch"]
    assert "compare.domain" in reasons["dann"]
    continuous = build_recipe(
        merge(
            base.model_dump(mode="json"),
            {"factors": {"site": {"role": "watched"}, "dose": {"kind": "continuous"}}},
        )
    )
    assert "no discrete factor" in why_not("fino_mlp", continuous, domain=None, erased=None)


def test_every_arm_has_a_title_and_a_kind():
    assert set(KINDS) == set(EVERY)
    assert {arm for arm in EVERY if not arm.endswith("_erased")} == set(TITLES)


def test_guidance_without_pretraining_may_have_a_rate_of_its_own(base):
    own = base.model_copy(update={"compare": base.compare.model_copy(update={"scratch_lr": 0.005})})
    assert recipe_of("fino_scratch", own).train.lr == 0.005
    assert recipe_of("fino_scratch", base).train.lr == base.train.lr
    assert recipe_of("fino", own).train.lr == base.train.lr
