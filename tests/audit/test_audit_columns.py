import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import openfino
from openfino.audit.analysis import run_audit
from openfino.audit.words import names_a_condition, names_a_group, split_column
from openfino.errors import InputProblemsError, OpenfinoError

ROWS = 200


def table(**columns):
    rng = np.random.default_rng(0)
    base = {
        "path": [f"day{row % 4}/img_{row:04d}.png" for row in range(ROWS)],
        "drug": rng.choice(["dmso", "taxol", "nocodazole"], ROWS, p=[0.6, 0.3, 0.1]).tolist(),
        "dose": rng.lognormal(size=ROWS),
    }
    return pl.DataFrame(base | columns)


def column(name, values, **options):
    return run_audit(table(**{name: values}), **options).columns[name]


def test_a_discrete_column_is_described():
    found = column("site", ["a"] * 120 + ["b"] * 60 + ["c"] + [None] * 19)
    assert (found.kind, found.values, found.missing, found.singletons) == ("discrete", 3, 19, 1)
    assert found.imbalance == pytest.approx(120 / 181)
    assert found.entropy == pytest.approx(0.966, abs=0.01)
    assert found.examples[:2] == ["a (120)", "b (60)"]
    assert "3 distinct texts in 181 rows" in found.reason


def test_a_quantity_is_described():
    found = column("age", np.linspace(20, 80, ROWS).round(1).tolist())
    assert (found.kind, found.range, found.singletons) == ("continuous", ("20", "80"), None)
    assert len(found.bins) == 6
    assert found.set_aside is None


def test_timestamps_have_readable_bins():
    found = column("acquired", [f"2024-03-{1 + row % 28:02d}T08:{row % 60:02d}:00" for row in range(ROWS)])
    assert found.kind == "continuous"
    assert found.range[0] == "2024-03-01 08:00"
    assert found.bins[0].startswith("2024-03-01 08:00 to 2024-03-")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([f"K{row}" for row in range(ROWS)], "identifier"),
        (list(range(1000, 1000 + ROWS)), "identifier"),
        (["same"] * ROWS, "constant: same"),
        ([3.5] * ROWS, "constant: 3.5"),
        ([None] * ROWS, "every value is missing"),
        ([f"img_{row:04d}.png" for row in range(ROWS)], "names of files"),
        ([f"a cell of shape {row} was seen here" for row in range(ROWS)], "free text"),
        ([[1, 2]] * ROWS, "holds List"),
        ([f"img_{row:04d}" for row in range(ROWS)], "part of the file name"),
    ],
)
def test_columns_without_meaning_are_set_aside(values, why):
    audit = run_audit(table(odd=values))
    assert why in audit.columns["odd"].set_aside
    assert "odd" not in audit.measured
    assert audit.advice["odd"].role == "useless"
    assert audit.columns["odd"].set_aside in audit.advice["odd"].reason


def test_what_the_file_name_tells_is_named():
    audit = run_audit(
        table(day=[f"day{row % 4}" for row in range(ROWS)], row=[f"{row:04d}" for row in range(ROWS)])
    )
    assert audit.columns["day"].in_path
    assert audit.columns["day"].set_aside is None  # folders often are what matters
    assert not audit.columns["drug"].in_path
    assert audit.columns["path"].kind == "path"


def test_a_part_of_the_file_name_that_names_the_image_is_set_aside():
    names = [f"s{row}" for row in range(ROWS)]
    paths = [f"run/{name}.png" for name in names]
    found = run_audit(table(path=paths, stem=names))
    assert "part of the file name" in found.columns["stem"].set_aside
    assert found.columns["stem"].in_path


def test_copies_are_set_aside_but_measured():
    drugs = table()["drug"].to_list()
    doses = table()["dose"]
    audit = run_audit(table(code=[drug.upper() for drug in drugs], micrograms=doses * 1000))
    assert audit.columns["code"].set_aside == "is a copy of drug under other names"
    assert "copy of dose" in audit.columns["micrograms"].set_aside
    assert audit.columns["drug"].set_aside is None
    assert audit.table.u("drug", "code").u_adjusted == pytest.approx(1)


def test_bins_that_correspond_are_no_copy():
    rng = np.random.default_rng(0)
    doses = table()["dose"]
    order = doses.rank("ordinal").to_numpy()
    within = (order - 1) // 34 * 34 + rng.permutation(34)[(order - 1).astype(int) % 34]
    assert run_audit(table(other=within.astype(float) + 0.5)).columns["other"].set_aside is None


def test_whole_numbers_called_plate_are_names():
    values = np.random.default_rng(0).integers(0, 90, ROWS).tolist()
    assert column("plate", values).kind == "discrete"
    assert column("cells", values).kind == "continuous"


def test_kinds_can_be_declared():
    angles = np.random.default_rng(0).uniform(0, 360, ROWS).tolist()
    audit = run_audit(table(angle=angles), kinds={"angle": ("cyclic", 360.0)})
    assert (audit.columns["angle"].kind, audit.columns["angle"].reason) == ("cyclic", "kind as declared")
    assert len(audit.columns["angle"].bins) == 6


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same(tmp_path, suffix):
    file = tmp_path / f"table.{suffix}"
    frame = table(plate=[f"{row % 7:03d}" for row in range(ROWS)], stained=[None, "yes"] * (ROWS // 2))
    writers = {
        "csv": frame.write_csv,
        "tsv": lambda path: frame.write_csv(path, separator="\t"),
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
    }
    writers[suffix](file)
    found, expected = openfino.audit(str(file)).to_json(), run_audit(frame).to_json()
    assert found["dependence"] == expected["dependence"]
    assert found["columns"]["stained"]["set_aside"].startswith("is constant")
    assert found["columns"]["plate"]["examples"][0] == "000 (29)"


def test_stored_types_of_every_kind_can_be_audited():
    rng = np.random.default_rng(0)
    hours = rng.integers(0, 900, ROWS).tolist()
    audit = run_audit(
        table(
            flag=rng.random(ROWS) > 0.5,
            day=pl.Series([date(2020, 1, 1) + timedelta(days=hour) for hour in hours]),
            zoned=pl.Series([datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in hours]),
            lasted=pl.Series([timedelta(seconds=hour) for hour in hours]),
            price=pl.Series(rng.integers(0, 9, ROWS)).cast(pl.Decimal(10, 2)),
            state=pl.Series(rng.choice(["u", "v"], ROWS), dtype=pl.Enum(["u", "v", "w"])),
            reading=np.where(rng.random(ROWS) > 0.9, np.inf, rng.normal(size=ROWS)),
        )
    )
    kinds = {name: column.kind for name, column in audit.columns.items()}
    assert [kinds[name] for name in ("flag", "price", "state")] == ["discrete"] * 3
    assert [kinds[name] for name in ("day", "zoned", "lasted", "reading")] == ["continuous"] * 4
    assert audit.columns["reading"].missing > 0  # infinite
    assert audit.columns["zoned"].range[0].startswith("2020-01-01")
    assert {"zoned", "lasted"} <= {
        name for name, column in audit.columns.items() if column.set_aside
    }  # copies of day
    json.dumps(audit.to_json(), allow_nan=False)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_rows_are_no_table_to_fail_on(rows):
    audit = run_audit(table().head(rows))
    assert audit.rows == rows
    json.dumps(audit.to_json(), allow_nan=False)


def test_missing_tokens_are_no_values():
    assert column("site", ["a", "b", "unknown", "c"] * 50, missing=["unknown"]).missing == 50


def test_a_folder_and_a_manifest_can_be_audited(image_set):
    from openfino.manifest import read_manifest

    assert run_audit(image_set.parent / "images").columns["folder"].set_aside.startswith("is constant")
    manifest = read_manifest(image_set)
    assert run_audit(manifest).to_json() == run_audit(image_set).to_json()


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(OpenfinoError, match="no such file"):
        run_audit(tmp_path / "absent.csv")
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(OpenfinoError, match="not a readable Parquet file"):
        run_audit(tmp_path / "broken.parquet")
    table().head(0).write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(OpenfinoError, match="holds no row"):
        run_audit(tmp_path / "empty.parquet")


def test_absent_columns_are_named_all_at_once():
    with pytest.raises(InputProblemsError) as caught:
        run_audit(table(), label="lable", keep=["drog"], given=[("drug", "dose", "plat")], path_columns=[])
    assert [problem.where for problem in caught.value.problems] == ["--label", "--given", "--keep"]
    with pytest.raises(InputProblemsError, match=r"--path-column.*'file'"):
        run_audit(table(), path_columns=["file"])


def test_names_say_what_a_column_is():
    assert all(
        map(names_a_condition, ["plate", "Plate_ID", "scannerModel", "acquisition_date", "batch2", "sites"])
    )
    assert not any(map(names_a_condition, ["antibody", "cell_line", "template", "dose", "daylight"]))
    assert names_a_group("patientId")
    assert not names_a_group("well")
    assert split_column(["a", "Split", "fold"]) == "Split"
    assert split_column(["a"]) is None
