"""Kinds, and everything that is wrong with a factor, before any image is read."""

import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from openfino.errors import InputProblemsError
from openfino.factors.infer import infer_kind
from openfino.factors.spec import FactorSpec, resolve_specs
from openfino.manifest import Manifest
from openfino.recipe import FactorSettings


def table_of(**columns):
    count = len(next(iter(columns.values())))
    table = pl.DataFrame({"path": [f"{row}.png" for row in range(count)], **columns})
    return Manifest(Path("m.csv"), Path("/"), table, ("path",))


def resolve(manifest, **factors):
    settings = {name: FactorSettings(**{"role": "informative", **given}) for name, given in factors.items()}
    return resolve_specs(manifest, settings)


def problems_of(manifest, **factors):
    with pytest.raises(InputProblemsError) as caught:
        resolve(manifest, **factors)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("values", "kind", "reason"),
    [
        ([1, 2, 1, 2, 3, 3], "discrete", "3 distinct whole numbers in 6 rows"),
        (list(range(100)) * 3, "continuous", "100 distinct whole numbers in 300 rows"),
        (list(range(10)), "continuous", "10 distinct whole numbers"),
        ([1.0, 2.0, None, 1.0, 2.0], "discrete", "2 distinct whole numbers in 4 rows"),
        ([0.5, 1.0, 0.5, 1.0], "continuous", "decimal numbers"),
        (["a", "b", None, "a"], "discrete", "2 distinct texts in 3 rows"),
        (["007", "008", "007"], "discrete", "2 distinct texts in 3 rows"),
        (["1.5", "2"], "continuous", "decimal numbers"),
        (["2021-03-04", "2021-03-05T10:00:00"], "continuous", "2 timestamps; .*cyclic and period: hour"),
        ([dt.date(2021, 3, 4), None], "continuous", "1 timestamps"),
        ([dt.datetime(2021, 3, 4, 5)], "continuous", "1 timestamps"),
        ([True, False, None], "discrete", "Boolean"),
    ],
)
def test_inferred_kinds(values, kind, reason):
    inference = infer_kind(pl.Series("x", values))
    assert inference.kind == kind
    assert pl.Series([inference.reason]).str.contains(reason).all(), inference.reason
    assert inference.doubtful is None


def test_a_few_odd_values_make_a_kind_doubtful_and_many_do_not():
    decimals = [f"{row}.5" for row in range(200)]
    doubtful = infer_kind(pl.Series([*decimals, "n/a", "abc"])).doubtful
    assert doubtful is not None
    assert doubtful.unreadable.arg_true().to_list() == [200, 201]
    assert infer_kind(pl.Series([*decimals, *["abc"] * 30])).kind == "discrete"
    labels = ["1", "2", "3"] * 30
    assert infer_kind(pl.Series([*labels, "control"])).doubtful is None


def test_resolved_factors():
    manifest = table_of(
        antibody=["a", "b", "a"],
        hour=[1.0, 5.0, None],
        lat=[1.0, 2.0, 3.0],
        lon=[4.0, 5.0, 7.0],
        age=[1.5, 2.5, 3],
    )
    specs, reasons = resolve(
        manifest,
        antibody={},
        hour={"period": "hour", "role": "spurious", "weight": 0.1},
        position={"columns": ["lat", "lon"], "role": "watched"},
        age={"output": "identity"},
        years={"columns": ["age"], "kind": "continuous"},
    )
    assert specs["antibody"] == FactorSpec("antibody", ("antibody",), "discrete", "informative")
    assert specs["hour"] == FactorSpec("hour", ("hour",), "cyclic", "spurious", "hour", "tanh", 0.1)
    assert specs["position"] == FactorSpec("position", ("lat", "lon"), "vector", "watched", None, "sigmoid")
    assert specs["age"].output == "identity"
    assert specs["years"].columns == ("age",)
    assert list(reasons) == list(specs)
    assert reasons["antibody"] == "Kind inferred: 2 distinct texts in 3 rows."
    assert reasons["years"] == "Kind as declared."


def test_coordinates_are_no_vector_unless_asked_for():
    specs, _ = resolve(table_of(lat=[1.5, 2.5], lon=[4.5, 5.5]), lat={})
    assert specs["lat"].kind == "continuous"


def test_an_identifier_is_allowed_with_a_warning():
    names = [f"id{row}" for row in range(40)]
    _, reasons = resolve(table_of(cell=names, site=["a", "b"] * 20), cell={}, site={})
    assert "Warning: 40 distinct values in 40 rows look like an identifier" in reasons["cell"]
    assert "Warning" not in reasons["site"]


def test_unreadable_values_are_listed_with_their_rows():
    values = ["1", "abc", "2", None, *["x"] * 6]
    [problem] = problems_of(table_of(age=values), age={"kind": "continuous"})
    assert problem.startswith(
        "m.csv, column age: 7 values are neither a number nor a timestamp: row 2 'abc', row 5 'x', "
    )
    assert "row 8 'x' and 2 more" in problem
    assert "factors.age.kind: discrete" in problem


def test_infinite_numbers_are_unreadable():
    [problem] = problems_of(table_of(age=[1.0, float("inf"), 2.0]), age={"kind": "continuous"})
    assert "1 value is neither a number nor a timestamp: row 2 inf" in problem


def test_an_undeclared_column_with_few_odd_values_is_refused():
    manifest = table_of(age=[*[f"{row}.5" for row in range(30)], "unknwon"])
    [problem] = problems_of(manifest, age={})
    assert "holds numbers except in 1 row: row 31 'unknwon'" in problem
    assert resolve(manifest, age={"kind": "discrete"})[0]["age"].kind == "discrete"


def test_unparsable_dates_are_listed():
    manifest = table_of(when=[*["2021-03-04T05:06:07"] * 20, "2021-02-30", "2021-03-05"])
    [problem] = problems_of(manifest, when={"kind": "continuous"})
    assert "1 value is neither" in problem
    assert "row 21 '2021-02-30'" in problem
    assert "ISO 8601" in problem


def test_seconds_are_no_hours():
    [problem] = problems_of(table_of(t=[1.6e9, 3.0, 5.0]), t={"period": "hour"})
    assert (
        "1 value is neither a timestamp nor a number from 0 to 24 (period: hour): row 1 1600000000.0"
        in problem
    )


@pytest.mark.parametrize(
    ("values", "given"),
    [
        (["a", "a", None], {}),
        ([1.0, 1.0, None], {"kind": "discrete"}),
        ([3, 3, 3], {"kind": "continuous"}),
        ([0.0, 360.0, 720.0], {"kind": "cyclic", "period": 360}),
        (["2021-03-04T05:00", "2021-03-05T05:00", None], {"period": "hour"}),
    ],
)
def test_a_single_value_is_refused(values, given):
    [problem] = problems_of(table_of(x=values), x=given)
    assert "column x: holds one value only" in problem
    assert repr(values[0]) in problem


def test_a_vector_with_one_flat_column_names_it():
    manifest = table_of(lat=[1.0, 1.0], lon=[1.0, 2.0])
    [problem] = problems_of(manifest, at={"columns": ["lat", "lon"]})
    assert "column lat: holds one value only" in problem


def test_a_vector_that_is_never_complete_is_refused():
    manifest = table_of(lat=[1.0, 2.0, None, None], lon=[None, None, 1.0, 2.0])
    [problem] = problems_of(manifest, at={"columns": ["lat", "lon"]})
    assert "no row has a value in each of lat, lon" in problem


@pytest.mark.parametrize("values", [[None, None], pl.Series([None, None], dtype=pl.String)])
def test_an_empty_column_is_refused(values):
    [problem] = problems_of(table_of(x=values), x={})
    assert "column x: every value is missing" in problem


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "vector", "columns": ["age"]}, "at least two columns, not 1"),
        ({"kind": "discrete", "columns": ["age", "site"]}, "a discrete factor has one column, not 2"),
        ({"kind": "cyclic", "columns": ["age"]}, "a cyclic factor needs a period"),
        (
            {"kind": "continuous", "columns": ["age"], "period": 24},
            "period has no meaning for a continuous factor",
        ),
        ({"columns": ["age"], "period": 0}, "0.0 is no length"),
        ({"columns": ["age"], "period": float("inf")}, "inf is no length"),
        ({"columns": ["site"], "output": "tanh"}, "output has no meaning for a discrete factor"),
        ({"columns": []}, "does not name each column once"),
        ({"columns": ["age", "age"]}, "does not name each column once"),
        ({"columns": ["path"]}, "'path' holds the image paths"),
        ({"columns": ["agee"]}, "no column 'agee' in m.csv. Did you mean 'age'?"),
        ({"columns": ["tags"]}, "holds List(Int64), not one value per row"),
    ],
)
def test_contradictory_settings(given, message):
    manifest = table_of(age=[1.5, 2.5, 3.5], site=["a", "b", "a"], tags=[[1], [2], [3]])
    [problem] = problems_of(manifest, x=given)
    assert message in problem


def test_all_problems_of_all_factors_come_at_once():
    manifest = table_of(age=["1.5", "abc", "2"], site=["a", "a", "a"])
    found = problems_of(
        manifest,
        age={"kind": "continuous"},
        site={},
        absent={},
        path={},
        odd={"columns": ["age", "site"], "kind": "cyclic"},
    )
    assert len(found) == 6


def test_lines_of_the_file_are_named():
    table = pl.DataFrame({"path": ["a", "b"], "x": ["1", "abc"]})
    manifest = Manifest(Path("m.csv"), Path("/"), table, ("path",), lines=np.array([2, 7]))
    [problem] = problems_of(manifest, x={"kind": "continuous"})
    assert "line 7 'abc'" in problem
