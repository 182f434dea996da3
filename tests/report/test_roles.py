import re

import polars as pl
import pytest
from fake_demo import EVIL, FACTORS, make_recipe, make_table

from openfino.manifest import read_manifest
from openfino.report.roles import role_section, uncertainty_removed


def column(text):
    return pl.Series([None if value == "-" else value for value in text])


def test_a_determining_column_removes_all_uncertainty():
    assert uncertainty_removed(column("aabb"), column("1234")) == pytest.approx(1.0)


def test_an_independent_column_removes_none():
    assert uncertainty_removed(column("aabb"), column("1212")) == pytest.approx(0.0)


def test_the_direction_matters():
    # H(X) of four values = 2 bits; Y leaves one bit of them.
    assert uncertainty_removed(column("1234"), column("aabb")) == pytest.approx(0.5)


def test_only_rows_with_both_values_count():
    assert uncertainty_removed(column("aabb-a"), column("1212" + "3-")) == pytest.approx(0.0)


@pytest.mark.parametrize("target", ["aaaa", "----"])
def test_nothing_uncertain_gives_zero(target):
    assert uncertainty_removed(column(target), column("1234")) == 0.0


@pytest.fixture
def section(tmp_path):
    recipes = {arm: make_recipe(factors) for arm, factors in FACTORS.items()}
    return role_section(read_manifest(make_table(tmp_path / "data")), recipes)


def cells_of(section, name):
    row = next(row for row in section.split("<tr>") if f"<code>{name}</code>" in row)
    return [re.sub("<.*?>", "", cell).strip() for cell in re.split("<td[^>]*>", row)]


def test_every_column_has_its_use_in_both_arms(section):
    assert cells_of(section, "path") == ["path", "60", "0%", "image", "image", ""]
    assert cells_of(section, "antibody")[1:5] == ["6", "10%", "watched", "informative, weight 0.3"]
    assert cells_of(section, "plate")[1:5] == ["6", "0%", "watched", "watched"]
    assert cells_of(section, "localization")[3:] == [
        "label of the probes",
        "label of the probes",
        "What the probes ask for. Training never sees it.",
    ]
    assert cells_of(section, "cell_line")[3:5] == ["not used", "not used"]
    assert cells_of(section, "split")[3:5] == ["split", "split"]


def test_the_reasons_carry_the_numbers_of_the_train_rows(section):
    assert "antibody: informative" in section
    assert "U(localization | antibody) = 1.00" in section
    assert "plate: watched" in section
    assert "U(cell_line | plate) = 1.00" in section
    assert "its own panel of 3 antibodies" in section
    assert "each antibody is on 2 of the 4 plates" in section
    assert EVIL not in section
