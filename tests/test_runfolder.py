import pytest

from openfino.errors import OpenfinoError
from openfino.recipe import build_recipe
from openfino.runfolder import claim_folder
from openfino.training.checkpoint import save_checkpoint


def recipe(tmp_path, **settings):
    base = {"manifest": "m.csv", "out": str(tmp_path / "run"), "preset": "small", "model": {"config": {}}}
    return build_recipe({**base, **settings})


def claim(recipe, *, resume=False, overwrite=False):
    return claim_folder(recipe, resume=resume, overwrite=overwrite)


def test_a_fresh_folder_gets_the_recipe(tmp_path):
    assert claim(recipe(tmp_path)) is None
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_a_run_is_refused_unless_asked(tmp_path):
    claim(recipe(tmp_path))
    with pytest.raises(OpenfinoError, match=r"--resume.*--overwrite"):
        claim(recipe(tmp_path))


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("the user's own recipe")
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(OpenfinoError, match="not a run of openfino"):
            claim(recipe(tmp_path), **options)
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_overwriting_starts_anew(tmp_path):
    claim(recipe(tmp_path))
    (tmp_path / "run" / "metrics.jsonl").write_text("old")
    assert claim(recipe(tmp_path, seed=5), overwrite=True) is None
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resuming_finds_the_last_checkpoint(tmp_path):
    claim(recipe(tmp_path))
    assert claim(recipe(tmp_path), resume=True) is None  # killed before the first checkpoint
    for step in (3, 6):
        save_checkpoint(tmp_path / "run" / "checkpoints", step, {}, {}, keep=2)
    assert claim(recipe(tmp_path), resume=True).name == "step_00000006"


def test_resuming_refuses_another_recipe_and_names_the_keys(tmp_path):
    claim(recipe(tmp_path, train={"steps": 100}))
    with pytest.raises(OpenfinoError, match=r"train\.lr \(0\.001 -> 0\.5\)"):
        claim(recipe(tmp_path, train={"steps": 100, "lr": 0.5}), resume=True)
    with pytest.raises(OpenfinoError, match=r"factors\.plate"):
        claim(recipe(tmp_path, train={"steps": 100}, factors={"plate": "spurious"}), resume=True)
    claim(recipe(tmp_path, train={"steps": 100, "workers": 7}), resume=True)


def test_a_run_whose_schedules_ignore_its_length_may_end_elsewhere(tmp_path):
    constant = {"schedule": "constant", "steps": 100, "teacher_momentum": [0.99, 0.99]}
    claim(recipe(tmp_path, train=constant))
    claim(recipe(tmp_path, train={**constant, "steps": 200}), resume=True)
    claim(recipe(tmp_path, train={**constant, "steps": 60}), resume=True)


def test_a_decay_over_the_whole_run_forbids_extending_it(tmp_path):
    constant = {
        "schedule": "constant",
        "steps": 100,
        "teacher_momentum": [0.99, 0.99],
        "weight_decay": [0, 1],
    }
    claim(recipe(tmp_path, train=constant))
    with pytest.raises(OpenfinoError, match=r"train\.steps"):
        claim(recipe(tmp_path, train={**constant, "steps": 200}), resume=True)


def test_a_ramp_over_the_whole_run_forbids_extending_it(tmp_path):
    constant = {"schedule": "constant", "steps": 100, "teacher_momentum": [0.99, 0.99]}
    guided = {"factors": {"a": "informative"}}
    claim(recipe(tmp_path, train=constant, **guided))
    with pytest.raises(OpenfinoError, match=r"train\.steps"):
        claim(recipe(tmp_path, train={**constant, "steps": 200}, **guided), resume=True)


def test_nothing_that_a_run_reads_may_lie_in_its_folder(tmp_path):
    (tmp_path / "m.csv").write_text("path\n")
    (tmp_path / "start").mkdir()
    for settings in ({"out": str(tmp_path)}, {"out": str(tmp_path / "start")}):
        inside = recipe(
            tmp_path, manifest=str(tmp_path / "m.csv"), model={"source": str(tmp_path / "start")}, **settings
        )
        with pytest.raises(OpenfinoError, match="holds the"):
            claim(inside, overwrite=True)
    assert (tmp_path / "m.csv").is_file()


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    claim(recipe(tmp_path))
    with pytest.raises(OpenfinoError, match="write one of them"):
        claim(recipe(tmp_path), resume=True, overwrite=True)
