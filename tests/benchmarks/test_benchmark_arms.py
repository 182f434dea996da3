"""The helpers of benchmarks that train several arms over several seeds."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import arms

TESTS = ("test_id", "test_ood")


def record(step, value):
    scores = {method: {"accuracy": value, "macro_f1": value / 2} for method in ("knn", "linear")}
    splits = {split: {"rows": 1, "scores": scores} for split in TESTS}
    return {"step": step, "label": {"splits": splits}, "leakage": {"scanner": {"knn_accuracy": value / 4}}}


def write_probes(out, values):
    for (arm, seed), (before, after) in values.items():
        run = out / arms.run_name(arm, seed)
        run.mkdir()
        lines = [record(0, before), record(5, after)]
        (run / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_scores_are_summarised_over_seeds(tmp_path):
    write_probes(
        tmp_path,
        {("ssl", 0): (0.1, 0.4), ("ssl", 1): (0.2, 0.6), ("fino", 0): (0.1, 0.8), ("fino", 1): (0.2, 0.8)},
    )
    summary = arms.summarise(arms.collect_scores(tmp_path, ["ssl", "fino"], [0, 1]))
    assert list(summary) == ["frozen", "ssl", "fino"]
    assert summary["frozen"]["test_id/knn/accuracy"]["values"] == [0.1, 0.2]
    ssl = summary["ssl"]["test_ood/linear/accuracy"]
    assert (ssl["mean"], ssl["sd"]) == (pytest.approx(0.5), pytest.approx(0.2 / math.sqrt(2)))
    assert summary["fino"]["leakage/scanner"] == {"mean": pytest.approx(0.2), "sd": 0.0, "values": [0.2, 0.2]}
    text = arms.markdown_table(summary, {"kNN": "test_id/knn/macro_f1", "scanner": "leakage/scanner"})
    assert "| ssl | 0.250 +- 0.071 | 0.125 +- 0.035 |" in text
    assert "| fino | 0.400 +- 0.000 |" in text


def test_factors_of_every_kind_are_summarised_by_what_was_measured(tmp_path):
    run = tmp_path / arms.run_name("ssl", 0)
    run.mkdir()
    start = record(0, 0.1)
    start["leakage"] |= {
        "brightness": {"knn_accuracy": None, "knn_r2": 0.5},
        "slide": {"knn_accuracy": None, "knn_r2": None},
    }
    (run / "probes.jsonl").write_text(json.dumps(start) + "\n")
    frozen = arms.summarise(arms.collect_scores(tmp_path, ["ssl"], [0]))["frozen"]
    assert frozen["leakage/brightness"]["values"] == [0.5]
    assert "leakage/scanner" in frozen
    assert "leakage/slide" not in frozen


def test_one_seed_has_no_spread(tmp_path):
    write_probes(tmp_path, {("ssl", 0): (0.1, 0.4)})
    summary = arms.summarise(arms.collect_scores(tmp_path, ["ssl"], [0]))
    assert arms.markdown_table(summary, {"scanner": "leakage/scanner"}).splitlines() == [
        "| arm | scanner |",
        "| --- | ---: |",
        "| frozen | 0.025 |",
        "| ssl | 0.100 |",
    ]


def test_runs_train_two_by_two_in_order(monkeypatch):
    started = []
    monkeypatch.setattr(arms, "train_arms", lambda recipes, steps, console: started.append(list(recipes)))
    arms.train_two_at_a_time({name: Path(name) for name in "abcde"}, 5, None)
    assert started == [["a", "b"], ["c", "d"], ["e"]]
