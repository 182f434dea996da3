"""Gram anchoring in whole runs: every kind of teacher, resuming, pieces, what is told and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import TINY
from openfino.adapt import adapt, describe
from openfino.errors import InputProblemsError, OpenfinoError
from openfino.gram_source import open_named_teacher
from openfino.images.loader import finish_gram_views
from openfino.models.loading import random_backbone
from openfino.models.store import load_model, save_backbone
from openfino.preflight import preflight
from openfino.recipe import GivenNormalization, build_recipe, load_recipe
from openfino.training import loop
from openfino.training.checkpoint import list_checkpoints, load_checkpoint
from tiny_models import tiny_model
from tiny_runs import losses, run_tiny, tiny_settings
from weight_files import random_meta

SEPARABLE = {"koleo": {"weight": 0}, "sigreg": {"weight": 0}}
PLAIN = {"factors": {"site": "watched", "dose": "watched"}}


@pytest.fixture
def start(tmp_path):
    """A folder with the weights that the runs start from."""
    return write_model(tmp_path / "start", tiny_model().backbone)


def write_model(folder, backbone):
    save_backbone(folder, backbone, tiny_model().preprocessing, {})
    return folder


def run(image_set, out, start, gram, *, resume=False, **changes):
    objective = {**SEPARABLE, **changes.pop("objective", {})} | ({} if gram is None else {"gram": gram})
    train = {"steps": 6, "checkpoint_every": 1, "keep_checkpoints": 99, **changes.pop("train", {})}
    model = {"source": str(start), "config": None}
    return run_tiny(
        image_set, out, resume=resume, model=model, objective=objective, train=train, **PLAIN, **changes
    )


def tensors_at(out, step):
    found = {path.name: path for path in list_checkpoints(Path(out) / "checkpoints")}
    return load_checkpoint(found[f"step_{step:08d}"])[0]


def gram_tensors(out, step):
    return {
        name.removeprefix("gram/"): value
        for name, value in tensors_at(out, step).items()
        if name.startswith("gram/")
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def other_model(folder):
    """Wider, with larger patches, and of one channel."""
    return write_model(folder, random_backbone({**TINY, "hidden_size": 48, "patch_size": 16}, 1, seed=5))


TEACHERS = {
    "start": {},
    "ema": {"teacher": "ema"},
    "ema, closer": {"teacher": "ema", "crop_size": 64},
    "other": {"teacher": "OTHER", "crop_size": 64},
    "refreshed": {"refresh_every": 2, "first_refresh": 3, "crop_size": 48},
    "other, refreshed": {
        "teacher": "OTHER",
        "crop_size": 64,
        "refresh_every": 2,
        "max_refreshes": 1,
        "negatives": "drop",
    },
    "masked": {"tokens": "masked", "per_image": False},
}


def gram_settings(name, folder):
    settings = {"weight": 2.0, **TEACHERS[name]}
    if settings.get("teacher") == "OTHER":
        settings["teacher"] = str(other_model(folder / "other"))
    return settings


@pytest.mark.parametrize("name", TEACHERS)
def test_every_teacher_trains_and_resumes_bit_for_bit(image_set, tmp_path, start, name):
    gram = gram_settings(name, tmp_path)
    run(image_set, tmp_path / "straight", start, gram)
    straight = losses(tmp_path / "straight")
    assert all(values["loss/gram"] > 0 for step, values in straight.items() if step > 0)
    assert "loss/gram" in straight[0]
    assert list(straight) == list(range(6))
    for stopped_after in (1, 4):
        again = tmp_path / f"again_{stopped_after}"
        shutil.copytree(tmp_path / "straight", again)
        for path in list_checkpoints(again / "checkpoints")[stopped_after:]:
            shutil.rmtree(path)
        run(image_set, again, start, gram, resume=True)
        assert losses(again) == straight
        assert_equal(tensors_at(again, 6), tensors_at(tmp_path / "straight", 6))


def test_who_the_teacher_is_at_each_step(image_set, tmp_path, start):
    """Stored with each checkpoint: the start until the refresh, then what the averaged teacher was then."""
    gram = {"weight": 2.0, "refresh_every": 2, "first_refresh": 3, "max_refreshes": 1}
    out = tmp_path / "run"
    run(image_set, out, start, gram)
    starting = load_model(start).backbone.state_dict()
    averaged = {
        name.removeprefix("teacher/backbone."): value
        for name, value in tensors_at(out, 4).items()
        if name.startswith("teacher/backbone.")
    }
    for step in range(1, 7):
        assert_equal(gram_tensors(out, step), starting if step < 4 else averaged)
    assert not torch.equal(averaged["model.norm.weight"], starting["model.norm.weight"])


@pytest.mark.parametrize("stopped_after", [2, 3, 4])
def test_a_refresh_at_a_skipped_step_is_made_and_survives_a_kill(
    image_set, tmp_path, start, monkeypatch, stopped_after
):
    """The refresh after step 3, whose loss is NaN; the run is stopped before, during and after that step."""
    make_pieces = loop.make_pieces

    def spoilt(run, batch):
        pieces = make_pieces(run, batch)
        if batch.step == 3:
            pieces[0].global_views[0, 0, 0, 0, 0] = torch.nan
        return pieces

    monkeypatch.setattr(loop, "make_pieces", spoilt)
    gram = {"weight": 2.0, "refresh_every": 2, "first_refresh": 3, "max_refreshes": 1}
    straight, again = tmp_path / "straight", tmp_path / "again"
    assert run(image_set, straight, start, gram)["skipped_steps"] == 1
    averaged = {f"teacher/backbone.{name}": value for name, value in gram_tensors(straight, 4).items()}
    for step in (3, 4):  # the skipped step moved nobody
        assert_equal(averaged, {name: tensors_at(straight, step)[name] for name in averaged})
    with pytest.raises(AssertionError):
        assert_equal(gram_tensors(straight, 3), gram_tensors(straight, 4))
    shutil.copytree(straight, again)
    for path in list_checkpoints(again / "checkpoints")[stopped_after:]:
        shutil.rmtree(path)
    assert run(image_set, again, start, gram, resume=True)["skipped_steps"] == 1
    assert str(losses(again)) == str(losses(straight))  # as text: the loss of the skipped step is no number
    for step in range(stopped_after, 7):
        assert_equal(tensors_at(again, step), tensors_at(straight, step))


def test_a_named_teacher_keeps_its_own_weights(image_set, tmp_path, start):
    """Its patch embedding is fitted to the three channels; nothing else changes, and nothing trains."""
    gram = gram_settings("other", tmp_path)
    run(image_set, tmp_path / "run", start, gram, train={"steps": 2})
    found, theirs = gram_tensors(tmp_path / "run", 2), load_model(gram["teacher"]).backbone.state_dict()
    assert found.keys() == theirs.keys()
    fitted = [name for name, value in theirs.items() if not torch.equal(found[name], value)]
    assert fitted == ["model.embeddings.patch_embeddings.weight"]
    assert found[fitted[0]].shape == (48, 3, 16, 16)


def test_student_and_starting_teacher_begin_as_one(image_set, tmp_path):
    """Without masks, and without positions drawn anew, nothing tells them apart at the first step."""
    backbone = random_backbone({**TINY, "pos_embed_rescale": None}, 3, seed=0)
    start = write_model(tmp_path / "start", backbone)
    gram, ibot = {"weight": 2.0}, {"mask_fraction": 0.0}
    run(
        image_set,
        tmp_path / "run",
        start,
        gram,
        objective={"ibot": ibot},
        train={"drop_path": 0.0, "steps": 3},
    )
    values = [step["loss/gram"] for step in losses(tmp_path / "run").values()]
    assert values[0] < 1e-12
    assert values[2] > 1e-7


def test_without_weight_nothing_changes(image_set, tmp_path, start):
    run(image_set, tmp_path / "plain", start, None)
    run(image_set, tmp_path / "off", start, {"weight": 0.0})
    assert losses(tmp_path / "off") == losses(tmp_path / "plain")
    assert_equal(tensors_at(tmp_path / "off", 6), tensors_at(tmp_path / "plain", 6))


def test_before_its_first_step_nothing_changes(image_set, tmp_path, start):
    run(image_set, tmp_path / "plain", start, None)
    run(
        image_set,
        tmp_path / "late",
        start,
        {"weight": 2.0, "start_step": 2, "ramp_steps": 2, "crop_size": 64},
    )
    plain, late = losses(tmp_path / "plain"), losses(tmp_path / "late")
    assert [step for step, values in late.items() if "loss/gram" in values] == [3, 4, 5]
    assert [late[step] == plain[step] for step in range(5)] == [True, True, True, False, False]
    lines = (tmp_path / "late" / "metrics.jsonl").read_text().splitlines()
    weights = [json.loads(line).get("schedule/gram_weight") for line in lines]
    assert [weight for weight in weights if weight is not None] == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0]


def test_pieces_train_as_the_whole_batch(image_set, tmp_path, start):
    gram = {"weight": 2.0, "crop_size": 64}
    run(image_set, tmp_path / "whole", start, gram, train={"steps": 3})
    run(image_set, tmp_path / "pieces", start, gram, train={"steps": 3, "accumulate": 3})
    whole, pieces = losses(tmp_path / "whole"), losses(tmp_path / "pieces")
    for step, values in whole.items():
        assert "loss/gram" in values
        for name, value in values.items():
            assert pieces[step][name] == pytest.approx(value, rel=5e-5), (step, name)


def test_mixed_precision(image_set, tmp_path, start):
    run(image_set, tmp_path / "exact", start, {"weight": 2.0}, train={"steps": 2})
    run(image_set, tmp_path / "mixed", start, {"weight": 2.0}, train={"steps": 2, "precision": "bfloat16"})
    exact, mixed = (losses(tmp_path / name)[1]["loss/gram"] for name in ("exact", "mixed"))
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.1)


def test_what_is_told_and_recorded(image_set, tmp_path, start):
    gram = gram_settings("other", tmp_path)
    out = tmp_path / "run"
    run(image_set, out, start, gram, train={"steps": 2})
    provenance = json.loads((out / "model" / "openfino.json").read_text())["provenance"]
    assert provenance["gram_teacher"] == {"source": "other", "licence": "unknown"}
    assert str(tmp_path) not in json.dumps(provenance)
    assert provenance["recipe"]["objective"]["gram"]["crop_size"] == [64, 64]
    recipe = build_recipe(
        tiny_settings(
            image_set, out, model={"source": str(start), "config": None}, objective={"gram": {"weight": 2}}
        )
    )
    assert "gram (teacher start) 2" in describe(recipe, preflight(recipe), {})


def problems(image_set, tmp_path, gram, **changes):
    settings = tiny_settings(
        image_set, tmp_path / "run", objective={"gram": {"weight": 2.0, **gram}}, **changes
    )
    with pytest.raises(InputProblemsError) as caught:
        adapt(build_recipe(settings))
    assert not (tmp_path / "run").exists()
    return {problem.where.removeprefix("objective.gram."): str(problem) for problem in caught.value.problems}


def test_everything_wrong_is_said_before_training(image_set, tmp_path):
    found = problems(
        image_set,
        tmp_path,
        {"teacher": str(tmp_path / "absent"), "crop_size": [60, 64], "start_step": 8, "refresh_every": 4},
    )
    assert found.keys() == {"teacher", "crop_size", "start_step", "refresh_every"}
    assert "absent" in found["teacher"]
    assert "start, ema" in found["teacher"]
    assert "another shape" in found["crop_size"]
    assert "start_step: 4" in found["start_step"]
    assert "first_refresh: 4" in found["refresh_every"]


@pytest.mark.parametrize("ibot", [{"mask_fraction": 0.0}, {"mask_ratio": [0.0, 0.0]}])
def test_masked_patches_are_no_aim_where_none_is_masked(image_set, tmp_path, ibot):
    gram = {"teacher": "ema", "tokens": "masked", "per_image": False}
    objective = {"gram": {"weight": 2.0, **gram}, "ibot": ibot}
    settings = tiny_settings(image_set, tmp_path / "run", objective=objective)
    with pytest.raises(InputProblemsError, match=r"1 problem.*\n.*objective\.gram\.tokens: .*ibot\.mask_"):
        preflight(build_recipe(settings))


@pytest.mark.parametrize(
    ("gram", "ibot_weight", "masked"),
    [
        (None, 0.0, False),
        (None, 1.0, True),
        ({"teacher": "ema"}, 0.0, False),
        ({"teacher": "ema", "tokens": "masked", "per_image": False}, 0.0, True),
        ({"teacher": "ema", "tokens": "unmasked", "per_image": False}, 0.0, True),
    ],
)
def test_patches_are_hidden_for_those_who_ask_for_it(
    image_set, tmp_path, start, monkeypatch, gram, ibot_weight, masked
):
    seen = []
    make_pieces = loop.make_pieces

    def watched(run, batch):
        seen.append(bool(batch.masks.any()))
        return make_pieces(run, batch)

    monkeypatch.setattr(loop, "make_pieces", watched)
    objective = {"ibot": {"weight": ibot_weight}}
    gram = gram and {"weight": 2.0, **gram}
    run(image_set, tmp_path / "run", start, gram, objective=objective, train={"steps": 1})
    assert seen == [masked]


def test_random_weights_are_no_teacher(image_set, tmp_path):
    assert "random weights" in problems(image_set, tmp_path, {})["teacher"]
    late = {"start_step": 4, "refresh_every": 2, "first_refresh": 5}
    assert "random weights" in problems(image_set, tmp_path, late)["teacher"]


def test_random_weights_may_learn_first(image_set, tmp_path):
    """The paper's order: train, take a teacher from the run itself, then anchor to it."""
    gram = {"weight": 2.0, "start_step": 3, "refresh_every": 3, "first_refresh": 3, "max_refreshes": 1}
    run_tiny(image_set, tmp_path / "run", objective={"gram": gram})
    assert [step for step, values in losses(tmp_path / "run").items() if "loss/gram" in values] == list(
        range(3, 8)
    )


def test_a_ramp_must_end_within_the_run(image_set, tmp_path):
    found = problems(image_set, tmp_path, {"teacher": "ema", "start_step": 3, "ramp_steps": 6})
    assert list(found) == ["ramp_steps"]


@pytest.mark.parametrize(
    ("patch", "gram", "remedy"),
    [
        (16, {"crop_size": 72}, "crop_size: [64, 64]"),
        (12, {}, "crop_size: [48, 48]"),
        (12, {"crop_size": 36, "refresh_every": 2}, "crop_size: [48, 48]"),
        (16, {}, "crop_size: [64, 64]"),
        (12, {"crop_size": 36}, "crop_size: [48, 48]"),
        (4, {"crop_size": 24, "refresh_every": 2}, "crop_size: [32, 32]"),
    ],
)
def test_crops_must_be_whole_patches_of_the_teacher_and_as_many_as_the_student_s(
    image_set, tmp_path, patch, gram, remedy
):
    teacher = write_model(tmp_path / "other", random_backbone({**TINY, "patch_size": patch}, 3, seed=5))
    found = problems(image_set, tmp_path, {"teacher": str(teacher), **gram})
    assert list(found) == ["crop_size"]
    assert remedy in found["crop_size"]


def test_a_teacher_without_its_weights_is_named(image_set, tmp_path, start):
    other = other_model(tmp_path / "other")
    (other / "model.safetensors").unlink()
    with pytest.raises(OpenfinoError, match=r"^objective\.gram\.teacher: cannot load"):
        run(image_set, tmp_path / "run", start, {"weight": 2.0, "teacher": str(other), "crop_size": 64})
    assert not (tmp_path / "run").exists()


HALF = GivenNormalization(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])


def halved_model(folder):
    """Of three channels, for images from -1 to 1."""
    preprocessing = tiny_model(normalization=HALF).preprocessing
    save_backbone(folder, random_backbone(TINY, 3, seed=5), preprocessing, {})
    return folder


def test_a_named_teacher_s_crops_are_normalised_as_it_knows_them(image_set, tmp_path, start, monkeypatch):
    """Until it is refreshed: then it is a copy of the averaged teacher, which knows the run's."""
    seen = []

    def watched(batch, normalization):
        seen.append(normalization)
        return finish_gram_views(batch, normalization)

    monkeypatch.setattr(loop, "finish_gram_views", watched)
    gram = {"weight": 2.0, "teacher": str(halved_model(tmp_path / "half")), "crop_size": 64}
    refreshed = {"refresh_every": 2, "max_refreshes": 1}
    run(image_set, tmp_path / "run", start, {**gram, **refreshed}, train={"steps": 4})
    assert seen == [HALF, HALF, "imagenet", "imagenet"]
    run(image_set, tmp_path / "run", start, {**gram, **refreshed}, train={"steps": 4}, resume=True)
    # Of one channel: its one mean says nothing of the three.
    seen.clear()
    gram["teacher"] = str(other_model(tmp_path / "other"))
    run(image_set, tmp_path / "one", start, gram, train={"steps": 1})
    assert seen == ["imagenet"]


def test_a_teacher_that_knows_other_pixels_needs_crops_of_its_own(image_set, tmp_path):
    teacher = {"teacher": str(halved_model(tmp_path / "half"))}
    assert "crop_size: [32, 32]" in problems(image_set, tmp_path, teacher)["teacher"]
    known = {"images": {"normalization": HALF.model_dump()}}
    objective = {"gram": {"weight": 2.0, **teacher}}
    preflight(build_recipe(tiny_settings(image_set, tmp_path / "run", objective=objective, **known)))
    objective["gram"]["crop_size"] = 32
    preflight(build_recipe(tiny_settings(image_set, tmp_path / "run", objective=objective)))


def stopped_run(image_set, tmp_path, start, steps):
    """A run of six steps, refreshed once after the third, stopped after ``steps``; then its teacher's folder goes."""
    other = other_model(tmp_path / "other")
    (other / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    gram = {"weight": 2.0, "teacher": str(other), "crop_size": 64}
    gram |= {"refresh_every": 3, "max_refreshes": 1}
    run(image_set, tmp_path / "straight", start, gram)
    shutil.copytree(tmp_path / "straight", tmp_path / "again")
    for path in list_checkpoints(tmp_path / "again" / "checkpoints")[steps:]:
        shutil.rmtree(path)
    shutil.rmtree(other)
    return gram


def test_a_refreshed_run_goes_on_without_the_model_that_it_began_with(image_set, tmp_path, start):
    gram = stopped_run(image_set, tmp_path, start, steps=4)
    run(image_set, tmp_path / "again", start, gram, resume=True)
    assert losses(tmp_path / "again") == losses(tmp_path / "straight")
    assert_equal(tensors_at(tmp_path / "again", 6), tensors_at(tmp_path / "straight", 6))
    provenance = json.loads((tmp_path / "again" / "model" / "openfino.json").read_text())["provenance"]
    assert provenance["gram_teacher"] == {"source": "other", "licence": "apache-2.0"}
    assert str(tmp_path) not in json.dumps(provenance)


def test_before_its_refresh_a_run_needs_the_model(image_set, tmp_path, start):
    gram = stopped_run(image_set, tmp_path, start, steps=2)
    with pytest.raises(InputProblemsError, match=r"objective\.gram\.teacher: cannot load") as caught:
        run(image_set, tmp_path / "again", start, gram, resume=True)
    text = str(caught.value)
    assert "there is no such folder or file" in text
    assert ".." not in text
    assert "Repo id" not in text


@pytest.mark.parametrize("eps", [None, 1e-6])
def test_a_teacher_in_a_file_of_meta_has_the_epsilon_of_the_recipe(image_set, tmp_path, eps):
    for name in ("start.pth", "teacher.pth"):
        torch.save(random_meta(), tmp_path / name)
    folder = write_model(tmp_path / "folder", tiny_model().backbone)
    found = []
    for teacher in (tmp_path / "teacher.pth", folder):
        model = {"source": str(tmp_path / "start.pth"), "config": None, "layer_norm_eps": eps}
        objective = {"gram": {"weight": 2.0, "teacher": str(teacher)}}
        recipe = build_recipe(tiny_settings(image_set, tmp_path / "run", model=model, objective=objective))
        found.append(open_named_teacher(recipe, 3).backbone.config.layer_norm_eps)
    assert found == [eps or 1e-5, 1e-5]


def test_a_folder_is_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "early").mkdir()
    (tmp_path / "ema").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "manifest: m.csv\nout: run\nmodel: hub/name\nobjective: {gram: {weight: 2, teacher: TEACHER}}\n"
    found = {}
    for word in ("early", "./later", "ema", "hub/name"):
        (tmp_path / "recipe.yaml").write_text(text.replace("TEACHER", word))
        found[word] = load_recipe(tmp_path / "recipe.yaml").objective.gram.teacher
    early, later = (str(tmp_path.resolve() / name) for name in ("early", "later"))
    assert found == {"early": early, "./later": later, "ema": "ema", "hub/name": "hub/name"}


def test_the_teacher_s_folder_is_never_overwritten(image_set, tmp_path, start):
    run(image_set, tmp_path / "run", start, None, train={"steps": 2})
    gram = {"weight": 2.0, "teacher": str(tmp_path / "run")}
    settings = tiny_settings(image_set, tmp_path / "run", objective={"gram": gram})
    with pytest.raises(OpenfinoError, match=r"holds the objective\.gram\.teacher"):
        adapt(build_recipe(settings), overwrite=True)
    run(image_set, tmp_path / "second", start, gram, train={"steps": 2})
