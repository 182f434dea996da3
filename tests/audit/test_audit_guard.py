import io
import json

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from openfino.adapt import adapt
from openfino.check import check_source
from openfino.errors import InputProblemsError
from openfino.preflight import preflight
from openfino.recipe import build_recipe
from tiny_runs import recipe_file, tiny_settings


@pytest.fixture
def screen(image_set):
    """The images of ``image_set`` as a screen: a plate has one line and two of the drugs; the operator is random."""
    rng = np.random.default_rng(0)
    table = pl.read_csv(image_set)
    table = pl.concat([table] * 5)
    paths = [f"images/{row:03d}.png" for row in range(200)]
    for path in paths[40:]:
        (image_set.parent / path).symlink_to(image_set.parent / f"images/{int(path[7:10]) % 40:03d}.png")
    plate = rng.integers(0, 8, 200)
    drug = (plate + rng.integers(0, 2, 200) * 3) % 8
    table = table.with_columns(
        path=pl.Series(paths),
        plate=pl.Series([f"P{code}" for code in plate]),
        line=pl.Series([f"L{code % 2}" for code in plate]),
        drug=pl.Series([f"D{code}" for code in drug]),
        operator=pl.Series(rng.choice(["AK", "BN"], 200)),
        split=pl.Series(["train"] * 200),
    ).drop("label", "site", "dose")
    table.write_csv(image_set)
    return image_set


def problems(screen, factors, **changes):
    settings = tiny_settings(screen, screen.parent / "run", **changes)
    try:
        ready = preflight(build_recipe({**settings, "factors": factors}))
    except InputProblemsError as error:
        return [problem for problem in error.problems if problem.where.startswith("factors")]
    return ready.entangled


def test_a_spurious_factor_that_determines_an_informative_one_is_refused(screen):
    (problem,) = problems(screen, {"plate": "spurious", "line": "informative"})
    assert problem.where == "factors.plate"
    assert "determines line, which is informative: U(line | plate) = 1.000, corrected 1.000 [" in problem.what
    assert "entangled: record" in problem.remedy


@pytest.mark.parametrize("others", [{}, {"drug": "watched"}])
def test_a_spurious_factor_without_an_anchor_is_refused(screen, others):
    (problem,) = problems(screen, {"plate": "spurious", **others})
    assert "without an anchor: forgetting it would erase part of drug: U(drug | plate) = " in problem.what
    assert problem.remedy.startswith("Make drug informative beside it, or plate watched")


@pytest.mark.parametrize(
    "factors",
    [
        {"plate": "spurious", "drug": "informative"},
        {"plate": "watched", "line": "informative"},
        {"plate": "informative", "line": "spurious"},
        {"operator": "spurious", "drug": "informative"},
        {"operator": "spurious"},
    ],
)
def test_what_takes_nothing_along_passes(screen, factors):
    assert problems(screen, factors) == []


def test_check_lists_it_too(screen, tmp_path):
    settings = tiny_settings(screen, tmp_path / "run")
    settings["factors"] = {"plate": "spurious", "line": "informative"}
    found, _ = check_source(recipe_file(tmp_path, settings))
    assert [problem.where for problem in found] == ["factors.plate"]


def test_overridden_it_is_recorded_with_the_run(screen, tmp_path):
    settings = tiny_settings(screen, tmp_path / "run", entangled="record", train={"steps": 1})
    settings["factors"] = {"plate": "spurious", "line": "informative"}
    console = Console(record=True, width=300, file=io.StringIO())
    adapt(build_recipe(settings), console=console)
    (recorded,) = json.loads((tmp_path / "run" / "summary.json").read_text())["entangled"]
    assert recorded.startswith("factors.plate: is spurious but determines line")
    assert "entangled, recorded: factors.plate" in console.export_text()
