import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

import openfino
from openfino.audit.advice import holds
from openfino.audit.analysis import run_audit
from openfino.audit.command import parse_given, parse_kinds
from openfino.audit.page import page_html
from openfino.audit.terminal import print_audit
from openfino.cli import app
from openfino.errors import InputProblemsError
from openfino.recipe import build_recipe

EVIL = "<script>alert('x')</script> & \"more\""


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    plate = rng.integers(0, 9, 400)
    frame = pl.DataFrame(
        {
            "path": [f"{row}.png" for row in range(400)],
            "plate": [f"P{code}" for code in plate],
            "line": [f"L{code % 3}" for code in plate],
            "drug": [f"D{code}" for code in (plate + rng.integers(0, 2, 400) * 4) % 12],
            "angle": rng.uniform(0, 360, 400).round(1),
            "note": [EVIL if row % 2 else "plain" for row in range(400)],
            "split": rng.choice(["train", "test"], 400),
        }
    )
    frame = frame.with_columns(pl.when(pl.int_range(pl.len()) % 8 > 0).then("drug").alias("drug"))
    frame.write_csv(tmp_path / "table.csv")
    return tmp_path / "table.csv"


def invoke(*arguments):
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_json_is_what_the_function_returns(manifest):
    said = json.loads(invoke(manifest, "--json", "--label", "line").stdout)
    assert said == json.loads(json.dumps(run_audit(manifest, label="line").to_json()))
    assert said["advice"]["plate"]["role"] == "leak of the label"


def test_the_terminal_shows_columns_pairs_bins_splits_and_advice(manifest):
    console = Console(record=True, width=220, file=io.StringIO())
    print_audit(run_audit(manifest, given=[("plate", "line", "drug")]), console)
    text = console.export_text()
    assert "table.csv: 400 rows, 7 columns" in text
    assert "angle in 7 quantile bins: " in text
    assert re.search(r"plate\s+│ line\s+│\s+1\.000 │\s+1\.000 │\s+0\.\d{3} to 1\.000 │", text)
    assert "line does not explain what plate says about drug: U(drug | plate, line)" in text
    assert "entangled: suppress only with" in text
    assert "test: 9 values of plate with images in train too" in text


def test_files_are_written_and_not_overwritten_unasked(manifest, tmp_path):
    recipe, page = tmp_path / "runs" / "recipe.yaml", tmp_path / "page.html"
    options = (manifest, "--write", recipe, "--html", page, "--json")
    written = invoke(*options)
    assert f"wrote {recipe}" in written.stderr
    assert json.loads(written.stdout)["columns"]
    settings = yaml.safe_load(recipe.read_text())
    assert settings["manifest"] == "../table.csv"
    assert build_recipe(settings).factors["plate"].role == "watched"
    with pytest.raises(openfino.errors.OpenfinoError, match="exists already"):
        invoke(*options)
    invoke(*options, "--overwrite")


def test_kinds_and_triples_are_parsed():
    assert parse_kinds(["a=b=continuous", "t=cyclic:hour", "angle=cyclic:360"]) == {
        "a=b": ("continuous", None),
        "t": ("cyclic", "hour"),
        "angle": ("cyclic", 360.0),
    }
    assert parse_given(["antibody|plate, line"]) == [("plate", "line", "antibody")]
    with pytest.raises(InputProblemsError) as caught:
        parse_kinds(["dose", "dose=number", "t=cyclic", "t=cyclic:-1", "t=discrete:3", "p=vector"])
    assert len(caught.value.problems) == 6
    with pytest.raises(InputProblemsError) as caught:
        parse_given(["a|b", "a|b,b", "a,b|c", "|a,b"])
    assert len(caught.value.problems) == 4


def test_a_declared_cycle_is_binned_and_kept_in_the_recipe(manifest, tmp_path):
    invoke(manifest, "--kind", "angle=cyclic:360", "--write", tmp_path / "r.yaml")
    assert yaml.safe_load((tmp_path / "r.yaml").read_text())["factors"]["angle"]["period"] == 360


def test_the_package_is_the_function_and_imports_nothing_heavy():
    code = (
        "import sys, openfino\n"
        "room = openfino.audit\n"
        "assert callable(room), room\n"
        "print([name for name in ('torch', 'polars', 'numpy') if name in sys.modules])\n"
        "import openfino.audit.advice\n"
        "assert openfino.audit is room and callable(room)\n"
        "import openfino.audit.analysis\n"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\nFalse\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = openfino.nothing


# The page


class Page(HTMLParser):
    """Tags that close in order, the text, and every address."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.addresses, self.scripts = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_every_figure_and_loads_nothing(manifest):
    audit = run_audit(manifest, given=[("plate", "line", "drug")], label="line")
    page = Page(page_html(audit))
    assert (page.open, page.addresses, page.scripts) == ([], [], 0)
    text = " ".join("".join(page.words).split())
    for pair in audit.dependence:
        low, high = pair.interval
        for figure in (
            f"{pair.u:.3f}",
            f"{pair.u_adjusted:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{pair.rows:,}",
        ):
            assert figure in text
    for name, column in audit.columns.items():
        assert name in text
        assert f"{column.missing:,} ({column.missing / column.rows:.1%})" in text
        assert column.reason in text
        assert all(label in text for label in column.bins or [])
    for item in audit.advice.values():
        assert item.role in text
        assert item.reason in text
    for sentence in [*audit.splits.sentences(), *map(str, audit.conditional)]:
        assert sentence in text


def test_what_a_table_says_stays_text(manifest, tmp_path):
    table = pl.read_csv(manifest).rename({"drug": EVIL})
    text = page_html(run_audit(table))
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text


def test_the_graph_has_an_arrow_for_every_hold(manifest):
    audit = run_audit(manifest)
    text = page_html(audit)
    held = [pair for pair in audit.dependence if holds(pair)]
    assert text.count("<path class='edge'") == text.count("<polygon class='tip'") == len(held) > 3
    assert "Tied to nothing: angle" in text


@pytest.mark.parametrize(
    "columns", [{"a": ["x", "y"] * 30}, {"a": ["x"] * 60}, {"a": ["x", "y"] * 30, "b": [1, 2, 3] * 20}]
)
def test_small_tables_have_a_page_and_a_terminal_too(columns):
    audit = run_audit(pl.DataFrame(columns))
    assert Page(page_html(audit)).open == []
    print_audit(audit, Console(quiet=True))
