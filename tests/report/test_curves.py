import json
import re

import pytest
from fake_demo import FACTORS, make_metrics, make_probes, make_recipe, make_results, write_lines

from openfino.report.curves import curves, series

TITLES = [
    "Macro-F1 on test_ood: new plates",
    "Macro-F1 on test_id: training plates, other images",
    "How well antibody can be read",
    "How well plate can be read",
    "Guidance accuracy: antibody",
    "Feature rank",
    "Total loss",
    "DINO",
    "iBOT",
    "SIGReg",
]


@pytest.fixture
def recipes():
    return {arm: make_recipe(factors) for arm, factors in FACTORS.items()}


@pytest.fixture
def results():
    return make_results("export")


@pytest.fixture
def demo(tmp_path, results):
    for arm in FACTORS:
        (tmp_path / arm).mkdir()
        write_lines(tmp_path / arm / "metrics.jsonl", make_metrics(arm))
        write_lines(tmp_path / arm / "probes.jsonl", make_probes(arm, results))
    return tmp_path


def titles(html):
    return re.findall(r"<figcaption><b>(.*?)</b>", html)


def figure_called(html, title):
    return next(part for part in html.split("<figure")[1:] if f"<b>{title}</b>" in part)


def hovers(html, name):
    return re.findall(rf"<title>{name}, step (\d+): (-?[\d.]+)</title>", html)


def test_every_figure_is_drawn(demo, recipes):
    assert titles(curves(demo, recipes)) == TITLES


def test_probes_begin_with_the_frozen_start_and_end_with_the_arm(demo, recipes, results):
    drawn = figure_called(curves(demo, recipes), TITLES[0])
    for arm, name in (("ssl", "SSL"), ("fino", "FINO")):
        for method, probe in (("knn", "kNN"), ("linear", "linear")):
            points = hovers(drawn, f"{name} {probe}")
            assert [step for step, _ in points] == ["0", "20", "40"]
            ends = [results["arms"][end]["test_ood"][method]["macro_f1"] for end in ("frozen", arm)]
            assert [points[0][1], points[-1][1]] == [f"{end:.3f}" for end in ends]


def test_a_line_spans_the_steps_at_which_its_probe_did_not_run(demo, recipes):
    for arm in FACTORS:
        path = demo / arm / "probes.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for split in ("test_id", "test_ood"):
            del records[1]["label"]["splits"][split]["scores"]["linear"]
        write_lines(path, records)
    drawn = figure_called(curves(demo, recipes), TITLES[0])
    assert [step for step, _ in hovers(drawn, "FINO linear")] == ["0", "40"]
    assert [step for step, _ in hovers(drawn, "FINO kNN")] == ["0", "20", "40"]
    (line,) = re.findall(
        r"<path class='line fino dashed' d='(M[^']*)'/></svg>|d='(M[^']*)'/><circle class='point fino dashed'",
        drawn,
    )[-1:]
    assert "L" in "".join(line)


def test_the_reading_of_a_quantity_is_drawn(demo, recipes):
    for arm in FACTORS:
        path = demo / arm / "probes.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record["leakage"]["dose"] = {"knn_accuracy": None, "majority": None, "knn_r2": -0.125}
        write_lines(path, records)
    drawn = figure_called(curves(demo, recipes), "How well dose can be read")
    assert "R^2 of kNN" in drawn
    assert hovers(drawn, "FINO")[0] == ("0", "-0.125")


def test_reading_shows_its_baseline(demo, recipes):
    drawn = figure_called(curves(demo, recipes), "How well plate can be read")
    assert "commonest value <b>0.079</b>" in drawn


def test_metrics_skip_the_records_of_probes_and_break_at_null(demo, recipes):
    html = curves(demo, recipes)
    assert hovers(figure_called(html, "Feature rank"), "SSL") == [
        ("0", "20.0"),
        ("10", "21.0"),
        ("20", "22.0"),
        ("30", "23.0"),
    ]
    assert [step for step, _ in hovers(figure_called(html, "SIGReg"), "FINO")] == ["0", "20", "30"]
    guidance = figure_called(html, "Guidance accuracy: antibody")
    assert (len(hovers(guidance, "FINO")), hovers(guidance, "SSL")) == (4, [])


def test_dino_is_shown_with_the_loss_of_uniform_answers(demo, recipes):
    assert "ln K: nothing learned <b>5.545</b>" in figure_called(curves(demo, recipes), "DINO")


def test_what_was_not_recorded_is_left_out(demo, recipes):
    for arm in FACTORS:
        (demo / arm / "probes.jsonl").unlink()
    assert titles(curves(demo, recipes)) == TITLES[4:]
    (demo / "ssl" / "metrics.jsonl").unlink()
    html = curves(demo, recipes)
    assert titles(html) == TITLES[4:]
    assert "SSL " not in figure_called(html, "DINO")
    (demo / "fino" / "metrics.jsonl").write_text("")
    assert curves(demo, recipes) == "<p>The runs kept no record to draw.</p>"


def test_a_line_cut_off_by_a_kill_is_left_out(demo, recipes):
    path = demo / "fino" / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 40, "loss/total": 1.0})[:-4])
    assert [step for step, _ in hovers(figure_called(curves(demo, recipes), "Total loss"), "FINO")] == [
        "0",
        "10",
        "20",
        "30",
    ]


def test_series_follows_nested_keys():
    records = [{"step": 3, "label": {"splits": {"a": 0.5}}}, {"step": 4, "label": None}, {"step": 5}]
    assert series(records, "label", "splits", "a") == [(3.0, 0.5), (4.0, None), (5.0, None)]
