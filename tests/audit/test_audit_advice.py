import json

import numpy as np
import polars as pl
import pytest
import yaml
from simulated import simulate_atlas

from openfino.audit.advice import Table
from openfino.audit.analysis import run_audit
from openfino.audit.recipes import recipe_text
from openfino.recipe import build_recipe
from openfino.sampledata.screen import CELL_LINES, LOCALIZATIONS, plan_screen


@pytest.fixture(scope="module")
def sample():
    """The table of the sample set, without its images: what the screen's plan says, a tenth missing."""
    screen = plan_screen(2400, 0)
    rng = np.random.default_rng(0)
    rows = []
    for shot in screen.shots:
        plate, antibody = screen.plates[shot.plate], screen.antibodies[shot.antibody]
        values = {
            "antibody": antibody.name,
            "cell_line": CELL_LINES[plate.cell_line].name,
            "plate": plate.name,
            "acquired": shot.acquired,
            "operator": shot.operator,
        }
        known = {name: value if rng.random() > 0.1 else None for name, value in values.items()}
        fixed = {"localization": LOCALIZATIONS[antibody.pattern], "well": shot.well, "split": shot.split}
        rows.append({"path": f"images/{shot.number:05d}.tif", **known, **fixed})
    return pl.DataFrame(rows)


@pytest.fixture(scope="module")
def audit(sample):
    return run_audit(sample)


def test_the_audit_finds_that_the_plate_determines_the_cell_line_and_holds_antibodies(audit):
    assert audit.table.u("cell_line", "plate").u_adjusted == pytest.approx(1)
    held = audit.table.u("antibody", "plate")
    assert 0.5 < held.interval[0] < held.u_adjusted < held.u < 0.7
    plate = audit.advice["plate"]
    assert plate.role == "entangled: suppress only with anchor antibody, never alone"
    assert "determines cell_line (U 1.00" in plate.reason
    assert "holds antibody" in plate.reason
    assert audit.advice["antibody"].role == "informative candidate"
    assert audit.advice["acquired"].anchor == "antibody"
    assert audit.advice["operator"].role == "safe to suppress"
    assert audit.advice["split"].role == "useless"


def test_the_cell_line_does_not_explain_the_plates_hold_on_the_antibody(audit):
    (found,) = (
        item
        for item in audit.conditional
        if item.both.given == ("plate", "cell_line") and item.both.of == "antibody"
    )
    assert not found.asked
    assert not found.explained
    assert found.both.u == pytest.approx(found.alone.u, abs=0.02)
    explained = [item for item in audit.conditional if item.both.given == ("antibody", "plate")]
    assert any(item.both.of == "cell_line" and item.explained for item in explained)


def test_a_column_that_gives_the_label_away_is_named(sample, audit):
    told = run_audit(sample, label="localization").advice
    assert told["antibody"].role == "leak of the label"
    assert "Otherwise: informative candidate" in told["antibody"].reason
    assert told["localization"].role == "label"
    assert told["plate"].role == audit.advice["plate"].role
    assert told["cell_line"].role == audit.advice["cell_line"].role


def test_the_user_knows_better_than_names(sample):
    renamed = sample.rename({"plate": "antigen", "antibody": "slide"})
    advice = run_audit(renamed, keep=["slide"], forget=["antigen"]).advice
    assert advice["antigen"].anchor == "slide"
    assert advice["antigen"].reason.startswith("You named it as one to forget")
    assert advice["slide"].role == "informative candidate"


def test_what_only_settles_others_can_have_no_anchor():
    rng = np.random.default_rng(0)
    site = rng.integers(0, 12, 900)
    advice = run_audit(pl.DataFrame({"site": site, "country": [f"c{code % 4}" for code in site]})).advice
    assert advice["site"].role == "entangled: never suppress"
    assert "whatever forgets it forgets country" in advice["site"].reason


def test_few_rows_are_not_called_independent():
    rng = np.random.default_rng(0)
    few = pl.DataFrame({"scanner": rng.integers(0, 3, 24), "tissue": rng.choice(["a", "b", "c"], 24)})
    assert "24 rows are too few" in run_audit(few).advice["scanner"].reason
    many = pl.DataFrame({"scanner": rng.integers(0, 3, 2400), "tissue": rng.choice(["a", "b", "c"], 2400)})
    assert run_audit(many).advice["scanner"].role == "safe to suppress"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"v{row // 3 if row < 300 else row}" for row in range(1000)], "only one with their value"),
        (["a"] * 998 + ["b"] * 2, "99.8% of the images have one value"),
        ([None] * 970 + ["a", "b"] * 15, "97.0% of its values are missing"),
    ],
)
def test_columns_that_nothing_can_be_learned_from_are_useless(values, why):
    rng = np.random.default_rng(0)
    found = run_audit(pl.DataFrame({"x": values, "y": rng.choice(["a", "b"], 1000)})).advice["x"]
    assert found.role == "useless"
    assert why in found.reason


# Splits


def test_splits_are_compared_with_training(audit):
    coverage = audit.splits
    assert (coverage.column, coverage.train) == ("split", "train")
    unseen = coverage.splits["test_ood"].unseen["plate"]
    assert unseen.values == 10
    assert len(unseen.examples) == 3
    assert "antibody" not in coverage.splits["test_ood"].unseen
    assert coverage.splits["test_id"].shared["plate"].values == 24
    assert "plate" not in coverage.splits["test_ood"].shared
    assert coverage.separating.keys() == {"plate"}
    assert any(
        said.startswith("test_ood: 10 values of plate never seen in train") for said in coverage.sentences()
    )


def test_training_and_groups_can_be_named():
    frame = pl.DataFrame(
        {
            "who": list("aabbccdd") * 10,
            "fold": ["0", "0", "0", "1", "1", "1", "1", "1"] * 10,
            "x": list("pqrs") * 20,
        }
    )
    found = run_audit(frame, train="0", groups=["who"]).splits
    assert (found.train, found.train_rows) == ("0", 30)
    assert (found.splits["1"].shared["who"].values, found.splits["1"].shared["who"].rows) == (1, 10)
    assert found.splits["1"].unseen["who"].values == 2
    assert run_audit(frame).splits.train == "1"  # the larger one
    assert run_audit(frame.drop("fold")).splits is None


# Output


def test_json_has_the_documented_form(audit):
    result = json.loads(json.dumps(audit.to_json()))
    assert {"columns", "dependence", "advice"} <= result.keys()
    assert result["columns"].keys() == {"path", *audit.advice}
    names = 7
    assert len(result["dependence"]) == names * (names - 1)
    assert all(row.keys() == {"given", "of", "u", "u_adjusted", "interval"} for row in result["dependence"])
    assert all(item.keys() == {"role", "reason"} for item in result["advice"].values())
    (row,) = (row for row in result["dependence"] if (row["given"], row["of"]) == ("plate", "antibody"))
    assert row["interval"][0] <= row["u_adjusted"] <= row["interval"][1]


def test_the_written_recipe_is_valid_and_says_why(audit):
    text = recipe_text(audit, "manifest.csv")
    recipe = build_recipe(yaml.safe_load(text))
    roles = {name: factor.role for name, factor in recipe.factors.items()}
    assert roles["antibody"] == roles["cell_line"] == "informative"
    assert roles["plate"] == roles["acquired"] == "watched"
    assert roles["operator"] == "spurious"
    assert "split" not in roles
    assert (recipe.probe.split, recipe.probe.train) == ("split", "train")
    assert "spurious only while antibody is informative" in " ".join(text.replace("#", "").split())
    assert max(map(len, text.splitlines())) <= 120


def test_a_recipe_of_odd_names_is_valid_too():
    rng = np.random.default_rng(0)
    odd = pl.DataFrame(
        {
            "file_name": [f"{row}.png" for row in range(90)],
            "yes": rng.choice(["a", "b"], 90),
            "x: y #": rng.choice(["a", "b"], 90),
        }
    )
    recipe = build_recipe(yaml.safe_load(recipe_text(run_audit(odd), "my table.csv")))
    assert recipe.factors.keys() == {"yes", "x: y #"}
    assert recipe.images.path_columns == ["file_name"]
    assert recipe.manifest.name == "my table.csv"


def test_cyclic_factors_keep_their_period():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"angle": rng.uniform(0, 360, 90), "site": rng.choice(["a", "b"], 90)})
    text = recipe_text(run_audit(frame, kinds={"angle": ("cyclic", 360.0)}), "table.csv")
    assert build_recipe(yaml.safe_load(text)).factors["angle"].period == 360


def test_the_atlas_is_advised_in_time(audit):
    # Not a measurement of speed (benchmarks/audit.py is): the pairs are all there.
    assert len(run_audit(simulate_atlas(images_per_well=1)).dependence) == 6
    assert isinstance(audit.table, Table)
