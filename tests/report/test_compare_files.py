import csv
import io
import re

import pytest
from fake_compare import ARMS, EVIL, make_result, regression_result

from openfino.report.compare_files import csv_text, latex, latex_text
from openfino.report.compare_result import Comparison


def rows_of(result):
    return list(csv.DictReader(io.StringIO(csv_text(Comparison(result)))))


def test_the_csv_has_every_digit_of_every_score():
    result = make_result()
    rows = rows_of(result)
    found = {(row["arm"], row["split"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    expected = {
        (arm, split, metric): reading
        for arm, splits in result["arms"].items()
        for split, metrics in splits.items()
        for metric, reading in metrics.items()
        if reading["mean"] is not None
    }
    assert set(found) == set(expected)
    for key, reading in expected.items():
        row = found[key]
        assert [float(row[name]) for name in ("mean", "low", "high")] == [
            reading[n] for n in ("mean", "low", "high")
        ]
        assert [float(value) for value in row["seeds"].split()] == reading["seeds"]
        assert (row["title"], row["kind"]) == ARMS[key[0]][:2]


def test_the_csv_has_the_differences():
    result = make_result()
    found = {(row["arm"], row["split"], row["metric"]): row for row in rows_of(result)}
    for entry in result["differences"]:
        if entry["arm"] == "fino":
            row = found[entry["than"], entry["split"], entry["metric"]]
            names = ("fino_minus_arm", "fino_minus_arm_low", "fino_minus_arm_high")
            assert row["within_noise_of_fino"] == ("no" if entry["beyond_noise"] else "yes")
        else:
            row = found[entry["arm"], entry["split"], entry["metric"]]
            names = ("arm_minus_frozen", "arm_minus_frozen_low", "arm_minus_frozen_high")
            assert row["within_noise_of_frozen"] == ("no" if entry["beyond_noise"] else "yes")
        assert [float(row[name]) for name in names] == [entry[key] for key in ("difference", "low", "high")]
    own = found["fino", "test_ood", "macro_f1"]
    assert own["fino_minus_arm"] == own["within_noise_of_fino"] == ""


@pytest.mark.parametrize(
    ("result", "columns", "tables"), [(make_result(), 6, 2), (regression_result(), 1, 1)]
)
def test_the_latex_has_a_cell_for_every_column(result, columns, tables):
    text = latex_text(Comparison(result))
    found = re.findall(
        r"\\begin\{tabular\}\{(l+c+)\}\n\\toprule\n(.*?)\\bottomrule\n\\end\{tabular\}", text, re.S
    )
    assert len(found) == tables
    for spec, body in found:
        assert spec == "l" + "c" * columns
        lines = [line for line in body.splitlines() if line != "\\midrule"]
        assert len(lines) == 1 + len(result["arms"])
        assert all(line.endswith(" \\\\") and len(re.findall(r"(?<!\\)&", line)) == columns for line in lines)
        assert body.count("\\midrule") == len({result["kinds"][arm] for arm in result["arms"]})
        assert body.count("\\mathbf") == columns
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")


def test_the_latex_holds_the_scores():
    result = make_result()
    text = latex_text(Comparison(result)).split("\\toprule")[1]
    line = next(line for line in text.splitlines() if line.startswith("FINO with KoLeo"))
    for metric, reading in result["arms"]["fino_koleo"]["test_ood"].items():
        cell = f"{reading['mean']:.3f}"
        assert (
            f"${cell}^{{\\approx}}$ {{\\scriptsize [${reading['low']:.3f}$, ${reading['high']:.3f}$]}}"
            in line
        ), metric
    assert "R$^2$" in latex_text(Comparison(regression_result()))


def test_names_are_text_in_latex():
    assert (
        latex(EVIL)
        == r"\textless{}script\textgreater{}alert('x \& " + '"y"' + r"')\textless{}/script\textgreater{}"
    )
    assert latex("a_b 50% $x$ #1 {~^\\}\n%") == (
        r"a\_b 50\% \$x\$ \#1 \{\textasciitilde{}\textasciicircum{}\textbackslash{}\} \%"
    )
