"""Settings that would do nothing, or could not, beside the others of the recipe."""

import pytest
import yaml

from conftest import TINY
from openfino.errors import InputProblemsError
from openfino.preflight import preflight
from openfino.recipe import build_recipe, dump_recipe
from openfino.recipe.effects import settings_without_effect
from openfino.training.schedules import Schedules
from tiny_runs import tiny_settings

BASE = {"manifest": "m.csv", "out": "run", "model": {"config": {}}}


def without_effect(**settings):
    return {problem.where: problem for problem in settings_without_effect(build_recipe({**BASE, **settings}))}


CLASSIFIER = {"discrete_head": "classifier"}


@pytest.mark.parametrize(
    ("key", "value", "other", "idle", "active"),
    [
        ("train.warmup_from_zero", True, "train.schedule", "classical_cosine", "cosine"),
        ("train.trainable_blocks_alone", True, "train.trainable_blocks", None, 2),
        ("objective.center_momentum", 0.8, "objective.centering", "sinkhorn", "softmax"),
        ("objective.sinkhorn_iterations", 5, "objective.centering", "softmax", "sinkhorn"),
        (
            "objective.guidance.bank",
            "concentration",
            "objective.guidance.discrete_head",
            "binary_classifier",
            "prototypes",
        ),
        ("objective.guidance.momentum", 0.5, "objective.guidance.discrete_head", "classifier", "prototypes"),
        ("objective.guidance.balance_momentum", 0.0, "objective.guidance.balance", False, True),
        ("objective.guidance.balance_weighted_losses", True, "objective.guidance.balance", False, True),
    ],
)
def test_a_setting_that_another_one_silences_is_refused(key, value, other, idle, active):
    def settings(beside):
        found = {**BASE}
        for dotted, each in ((key, value), (other, beside)):
            node = found
            *sections, last = dotted.split(".")
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = each
        return build_recipe(found)

    assert settings_without_effect(settings(active)) == []
    (problem,) = settings_without_effect(settings(idle))
    assert problem.where == key
    assert f"{other}: {yaml.safe_dump(idle).split()[0]}" in problem.what


def test_what_only_a_preset_says_is_not_refused():
    silenced = {
        "objective": {"guidance": {**CLASSIFIER, "balance": False}},
        "train": {"schedule": "classical_cosine"},
    }
    assert without_effect(preset="authors", **silenced) == {}
    # Nor when the resolved recipe, which spells everything out, is read again.
    dumped = yaml.safe_load(dump_recipe(build_recipe({**BASE, "preset": "authors", **silenced})))
    assert settings_without_effect(build_recipe(dumped)) == []
    silenced["objective"]["guidance"]["bank"] = "spherical"
    found = without_effect(preset="authors", **silenced)
    assert list(found) == ["objective.guidance.bank"]
    assert "concentration" in found["objective.guidance.bank"].remedy


def test_the_last_temperature_must_be_reached():
    late = {"warmup_steps": 25_001}
    found = without_effect(objective={"teacher_temperature": late})
    assert "warmup_steps: 7500" in found["objective.teacher_temperature.warmup_steps"].remedy
    assert without_effect(objective={"teacher_temperature": {"warmup_steps": 25_000}}) == {}
    assert without_effect(objective={"teacher_temperature": {**late, "start": 0.07}}) == {}


def test_all_that_is_wrong_with_training_is_said_at_once():
    train = {"steps": 100, "final_lr": 1e-6, "cosine_stretch": 0.5, "freeze_steps": 0, "warmup_steps": 101}
    with pytest.raises(InputProblemsError) as caught:
        build_recipe({**BASE, "train": train})
    text = str(caught.value)
    for word in (
        "final_lr has no effect",
        "cosine_stretch has no effect",
        "warmup_steps: 5",
        "unfreeze_ramp_steps: 10",
    ):
        assert word in text, word


@pytest.mark.parametrize(
    ("schedule", "longest", "aim"),
    [
        ({}, 100, "the learning rate"),
        ({"warmup_from_zero": True}, 99, "the learning rate"),
        ({"schedule": "cosine"}, 99, "final_lr"),
        ({"schedule": "classical_cosine"}, 99, "final_lr"),
    ],
)
def test_a_warm_up_may_take_the_run_up_to_what_it_leads_to(schedule, longest, aim):
    def train(warmup_steps):
        given = {"freeze_steps": 0, "unfreeze_ramp_steps": 0, "schedule": "constant", **schedule}
        changed = {"steps": 100, "warmup_steps": warmup_steps, **given}
        return build_recipe({**BASE, "train": changed})

    recipe = train(longest)
    schedules = Schedules(recipe.train, recipe.objective.teacher_temperature)
    assert max(schedules.lr(step) for step in range(100)) == pytest.approx(schedules.peak_lr)
    with pytest.raises(InputProblemsError, match=f"warmup_steps {longest + 1} {aim} would never be reached"):
        train(longest + 1)


def test_the_cosine_must_end_within_the_run():
    train = {"preset": "small", "steps": 100, "schedule": "cosine", "warmup_steps": 20}
    preset = train.pop("preset")
    build_recipe({**BASE, "preset": preset, "train": {**train, "cosine_steps": 80}})
    with pytest.raises(InputProblemsError, match=r"cosine_steps 81 .*; write cosine_steps: 80, or"):
        build_recipe({**BASE, "preset": preset, "train": {**train, "cosine_steps": 81}})


def problems(image_set, tmp_path, **changes):
    recipe = build_recipe(tiny_settings(image_set, tmp_path / "run", **changes))
    try:
        preflight(recipe)
    except InputProblemsError as error:
        return {problem.where: str(problem) for problem in error.problems}
    return {}


def test_they_are_found_before_training(image_set, tmp_path):
    changes = {"objective": {"center_momentum": 0.5}, "train": {"trainable_blocks_alone": True}}
    found = problems(image_set, tmp_path, **changes)
    assert found.keys() == {"objective.center_momentum", "train.trainable_blocks_alone"}


def test_the_size_of_local_crops_matters_where_there_are_any(image_set, tmp_path):
    assert "views.local_size" in problems(image_set, tmp_path, views={"local_size": 20})
    assert problems(image_set, tmp_path, views={"local_size": 20, "local_count": 0}) == {}


def test_no_more_blocks_unfreeze_than_there_are(image_set, tmp_path):
    depth = TINY["num_hidden_layers"]
    assert problems(image_set, tmp_path, train={"trainable_blocks": depth}) == {}
    found = problems(image_set, tmp_path, train={"trainable_blocks": depth + 1})
    assert f"trainable_blocks: {depth}" in found["train.trainable_blocks"]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "fitting"),
    [(8, 8, 4), (8, 7, None), (8, 3, None), (9, 4, None), (7, 3, 2), (9, 9, 3), (2, 2, 1)],
)
def test_koleo_needs_two_images_in_every_piece(image_set, tmp_path, batch_size, accumulate, fitting):
    train = {"batch_size": batch_size, "accumulate": accumulate}
    on = {"koleo": {"weight": 0.1}}
    size = -(-batch_size // accumulate)
    pieces = [min(size, batch_size - start) for start in range(0, batch_size, size)]
    assert (min(pieces) < 2) == (fitting is not None)
    found = problems(image_set, tmp_path, train=train, objective=on)
    if fitting is None:
        assert found == {}
    else:
        assert list(found) == ["train.accumulate"]
        assert f"accumulate: {fitting}," in found["train.accumulate"]
        fits = {"batch_size": batch_size, "accumulate": fitting}
        assert problems(image_set, tmp_path, train=fits, objective=on) == {}
    off = {"koleo": {"weight": 0.0}}
    assert problems(image_set, tmp_path, train=train, objective=off) == {}


@pytest.mark.parametrize(("group", "others"), [(None, 7), (16, 7), (4, 3)])
def test_koleo_has_no_more_neighbours_than_others(image_set, tmp_path, group, others):
    def found(neighbours):
        koleo = {"weight": 0.1, "group_size": group, "neighbours": neighbours}
        return problems(image_set, tmp_path, objective={"koleo": koleo})

    assert found(others) == {}
    assert f"neighbours: {others} or less" in found(others + 1)["objective.koleo.neighbours"]
