import pytest

from openfino.errors import InputProblemsError
from openfino.recipe import build_recipe

BASE = {"manifest": "m.csv", "out": "run", "model": {"config": {}}}
WORDS = "Accepted: 'imagenet', 'zscore', a mapping with mean, std"


def problems(**settings):
    with pytest.raises(InputProblemsError) as caught:
        build_recipe({**BASE, **settings})
    return [(problem.where, problem.what, problem.remedy) for problem in caught.value.problems]


def cyclic(**changes):
    return {"hour": {"role": "watched", "kind": "cyclic", **changes}}


@pytest.mark.parametrize(
    ("settings", "where", "what", "remedy"),
    [
        (
            {"images": {"normalization": "zscor"}},
            "images.normalization",
            "'zscor' is not accepted",
            f"Did you mean 'zscore'? {WORDS}",
        ),
        ({"images": {"normalization": 3}}, "images.normalization", "3 is not accepted", WORDS),
        (
            {"images": {"normalization": {"mean": [0.5]}}},
            "images.normalization.std",
            "required key is absent",
            "Add it to the recipe",
        ),
        (
            {"images": {"normalization": {"mean": [0.5], "std": [0.5], "sdt": 1}}},
            "images.normalization.sdt",
            "unknown key",
            "Did you mean 'std'?",
        ),
        (
            {"images": {"normalization": {"mean": [0.5], "std": [0.0]}}},
            "images.normalization.std.0",
            "0.0 is not accepted",
            "Input should be greater than 0",
        ),
        (
            {"factors": cyclic(period="hours")},
            "factors.hour.period",
            "'hours' is not accepted",
            "Did you mean 'hour'? Accepted: 'hour', 'weekday', 'month', 'day_of_year', a number",
        ),
        (
            {"views": {"preset": "fluoresence"}},
            "views.preset",
            "'fluoresence' is not accepted",
            "Did you mean 'fluorescence'? Accepted: 'natural', 'fluorescence', 'overhead'",
        ),
        (
            {"factors": {"a": "informativ"}},
            "factors.a.role",
            "'informativ' is not accepted",
            "Did you mean 'informative'? Accepted: 'informative', 'spurious', 'watched'",
        ),
        (
            {"train_split": "train", "probe": {"split": "split"}},
            "train_split",
            "'train' is not accepted",
            "Accepted: 'all', a list",
        ),
        ({"koleo": {}}, "koleo", "unknown key", None),
        ({"objective": {"koleo": 0.1}}, "objective.koleo", "0.1 is not accepted", None),
        ({"views": {"global_size": [48]}}, "views.global_size", "[48] has too few values", None),
        ({"train": {"steps": "many"}}, "train.steps", "'many' is not accepted", None),
    ],
)
def test_one_mistake_is_one_problem_in_the_users_terms(settings, where, what, remedy):
    (found,) = problems(**settings)
    assert found[:2] == (where, what)
    assert remedy is None or found[2] == remedy


def test_a_section_that_is_no_mapping_is_told_its_keys():
    found = {where: remedy for where, _, remedy in problems(probe=3, factors={"a": 1})}
    assert "a mapping with label, split, train" in found["probe"]
    assert "a mapping with role, kind, columns" in found["factors.a"]


def test_no_inner_name_of_the_validator_is_shown():
    text = str(
        problems(
            images={"normalization": {"mean": 3, "std": "x"}, "channels": 4},
            views={"global_size": "big", "local_scale": 1},
            factors={**cyclic(period=[]), 3: "watched", "b": None},
            probe={"tests": "test", "label": "y"},
            train_split=[1],
        )
    )
    for word in ("literal", "float", "Settings", "GivenNormalization", "function", "list[", "constrained"):
        assert word not in text, word


def test_different_mistakes_stay_apart():
    found = problems(images={"normalization": "zscor", "chanels": ["a"]}, factors=cyclic(period="x"))
    assert sorted(where for where, _, _ in found) == [
        "factors.hour.period",
        "images.chanels",
        "images.normalization",
    ]
