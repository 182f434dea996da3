from pathlib import Path

import pytest
import yaml

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.recipe import build_recipe, dump_recipe, load_recipe
from openfino.settings_layers import load_preset, merge, parse_override

FILE = "manifest: data/m.csv\nout: run\n"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where the recipe lies, and where the user stands."""
    for name in ("recipes", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "recipes", tmp_path / "work"


def load(folder, text, *overrides):
    path = folder / "recipe.yaml"
    path.write_text(FILE + text)
    return load_recipe(path, overrides)


# Layers


def test_sections_are_laid_over_key_by_key():
    base = {"train": {"a": 1, "b": [1, 2]}, "views": {"c": 3}, "seed": 0}
    merged = merge(base, {"train": {"b": [5]}, "seed": 4, "out": "run"})
    assert merged == {"train": {"a": 1, "b": [5]}, "views": {"c": 3}, "seed": 4, "out": "run"}
    assert base == {"train": {"a": 1, "b": [1, 2]}, "views": {"c": 3}, "seed": 0}


def test_short_forms_keep_what_is_laid_under_and_over_them():
    base = {"factors": {"antibody": "informative", "hour": {"role": "watched", "kind": "cyclic"}}}
    merged = merge(base, {"factors": {"antibody": {"weight": 0.3}, "hour": "spurious", "plate": "watched"}})
    assert merged["factors"] == {
        "antibody": {"role": "informative", "weight": 0.3},
        "hour": {"role": "spurious", "kind": "cyclic"},
        "plate": {"role": "watched"},
    }


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ("hub/name", {"allow_partial": True}, {"source": "hub/name", "allow_partial": True}),
        ("hub/name", {"config": {"a": 1}}, {"config": {"a": 1}}),
        ({"config": {"a": 1}}, "hub/name", {"source": "hub/name"}),
        ({"config": {"a": 1}}, {"config": {"b": 2}}, {"config": {"a": 1, "b": 2}}),
        # A resolved recipe names both, one of them null.
        ({"source": "a", "config": None}, {"config": {"b": 2}}, {"config": {"b": 2}}),
        ({"config": {"a": 1}}, {"source": "a", "config": None}, {"source": "a", "config": None}),
        (
            {"config": {"a": 1}},
            {"source": "a", "config": {"b": 2}},
            {"source": "a", "config": {"a": 1, "b": 2}},
        ),
    ],
)
def test_source_and_config_replace_each_other(base, over, expected):
    assert merge({"model": base}, {"model": over})["model"] == expected


def test_an_unknown_preset_is_refused():
    with pytest.raises(OpenfinoError, match="paper, small"):
        load_preset("huge")


# Overrides


def test_overrides_are_yaml():
    assert parse_override("train.betas=[0.9, 0.95]") == {"train": {"betas": [0.9, 0.95]}}
    assert parse_override("factors.plate=spurious") == {"factors": {"plate": "spurious"}}


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=3", ".=1"])
def test_overrides_without_a_key_or_a_value_are_refused(text):
    with pytest.raises(OpenfinoError, match="key=value"):
        parse_override(text)


@pytest.mark.parametrize("text", ["views.global_size=[48", "out=a: b: c", "model=@x", "seed='"])
def test_a_value_that_is_no_yaml_names_its_override(text):
    with pytest.raises(OpenfinoError) as caught:
        parse_override(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_short_forms(folders):
    recipe = load(
        folders[0],
        "model: hub/name\nfactors: {antibody: informative}\n",
        "factors.antibody.weight=0.3",
        "model.allow_partial=true",
    )
    assert (recipe.factors["antibody"].role, recipe.factors["antibody"].weight) == ("informative", 0.3)
    assert (recipe.model.source, recipe.model.allow_partial) == ("hub/name", True)


# Paths


@pytest.mark.parametrize("spelling", ["model: start", "model: {source: start}", "model: {source: ./start}"])
def test_paths_are_relative_to_the_file_and_absolute_when_read(folders, spelling):
    recipes, _ = folders
    (recipes / "start").mkdir()
    recipe = load(recipes, f"{spelling}\n")
    assert recipe.manifest == recipes / "data" / "m.csv"
    assert recipe.out == recipes / "run"
    assert recipe.model.source == str(recipes / "start")


@pytest.mark.parametrize("spelling", ["model=start", "model.source=start", "model={source: ../work/start}"])
def test_paths_in_overrides_are_relative_to_the_working_folder(folders, spelling):
    recipes, work = folders
    (work / "start").mkdir()
    recipe = load(recipes, "model: {config: {}}\n", spelling, "out=elsewhere", "manifest=../m.csv")
    assert recipe.out == work / "elsewhere"
    assert recipe.manifest == work.parent / "m.csv"
    assert recipe.model.source == str(work / "start")


def test_a_recipe_named_by_a_relative_path_gives_absolute_paths(folders):
    recipes, _ = folders
    load(recipes, "model: {config: {}}\n")
    recipe = load_recipe(Path("../recipes/recipe.yaml"))
    assert (recipe.manifest, recipe.out) == (recipes / "data" / "m.csv", recipes / "run")


def test_a_hub_name_stays_one(folders):
    recipes, work = folders
    (work / "hub" / "name").mkdir(parents=True)  # in the working folder, where the file does not look
    assert load(recipes, "model: hub/name\n").model.source == "hub/name"
    assert load(recipes, "model: {source: hub/other}\n").model.source == "hub/other"
    assert load(recipes, "model: {config: {}}\n", "model=hub/other").model.source == "hub/other"
    (recipes / "hub" / "name").mkdir(parents=True)
    assert load(recipes, "model: hub/name\n").model.source == str(recipes / "hub" / "name")


def test_what_looks_like_a_path_is_one_even_where_nothing_is(folders, monkeypatch):
    recipes, work = folders
    monkeypatch.setenv("HOME", str(work))
    assert load(recipes, "model: ../absent\n").model.source == str(recipes.parent / "absent")
    assert load(recipes, "model: /absent/model\n").model.source == "/absent/model"
    assert load(recipes, "model: ~/absent\n").model.source == str(work / "absent")


def test_a_linked_manifest_keeps_its_place(folders):
    recipes, work = folders
    (work / "real.csv").write_text("path\n")
    (recipes / "m.csv").symlink_to(work / "real.csv")
    recipe = load(recipes, "model: {config: {}}\n", "manifest=../recipes/m.csv")
    assert recipe.manifest == recipes / "m.csv"


def test_a_resolved_recipe_can_itself_be_used_from_anywhere(folders, monkeypatch):
    recipes, work = folders
    (recipes / "start").mkdir()
    recipe = load(recipes, "model: start\n", "out=run")
    run = work / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    monkeypatch.chdir(recipes.parent)
    assert load_recipe(run / "recipe.yaml") == recipe
    assert build_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert load_recipe(run / "recipe.yaml", ["model.config.hidden_size=64"]).model.source is None


def test_settings_of_a_wrong_kind_are_refused_and_not_read_as_paths(folders):
    with pytest.raises(InputProblemsError) as caught:
        load(folders[0], "model: 3\nfactors: [a]\n", "out=5", "manifest=[x]")
    assert [problem.where for problem in caught.value.problems] == ["manifest", "out", "model", "factors"]
