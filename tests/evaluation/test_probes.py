import json

import numpy as np
import polars as pl
import pytest
from sklearn.neighbors import KNeighborsClassifier

from openfino.errors import InputProblemsError, OpenfinoError
from openfino.evaluation.features import Features, extract_features
from openfino.evaluation.leakage import read_factor, read_quantity
from openfino.evaluation.probes import probe_model, run_probe
from openfino.evaluation.results import FactorReading, ProbeReport
from openfino.evaluation.splits import HELD_OUT, check_probe, plan_splits
from openfino.factors.encode import encode, fit_vocabulary
from openfino.factors.spec import FactorSpec
from openfino.manifest import read_manifest
from openfino.recipe import ProbeSettings
from tiny_models import tiny_model, write_arrays, write_manifest

SETTINGS = ProbeSettings(label="label", split="split", val="val", tests=["near", "far"], group="site", k=3)


def as_features(vectors, rows=None):
    vectors = np.asarray(vectors, dtype=np.float32)
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows)
    return Features(rows, vectors, vectors * 2 + 1, None, [], [])


def spec(column, kind="discrete", name=None, **more):
    columns = (column,) if isinstance(column, str) else tuple(column)
    return FactorSpec(name or columns[0], columns, kind, "watched", **more)


def encoded(values, kind, **more):
    """A factor of one column per key of ``values``, encoded."""
    table = pl.DataFrame(values)
    factor = spec(table.columns, kind, "factor", **more)
    return encode(table, factor, fit_vocabulary(table, factor))


def make_table(rows=120, spread=0.3, seed=0):
    """Three labels, four splits, three sites; features that tell the label but for some noise."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 3, rows)
    splits = np.repeat(["train", "val", "near", "far"], [rows // 2, rows // 6, rows // 6, rows // 6])
    sites = np.array(["a", "b", "c"])[generator.integers(0, 3, rows)]
    vectors = np.eye(3, 8)[codes] + spread * generator.normal(size=(rows, 8))
    labels = [f"class {code}" for code in codes]
    return pl.DataFrame({"label": labels, "split": splits, "site": sites}), as_features(vectors)


def nearest(features, fitted, labels, tested):
    """Predictions of the nearest neighbour by cosine, straight from scikit-learn."""
    model = KNeighborsClassifier(1, metric="cosine").fit(features.cls[fitted], labels[fitted])
    return model.predict(features.cls[tested])


def test_each_split_is_scored_on_its_own_rows():
    table, features = make_table(spread=0.6)
    settings = SETTINGS.model_copy(update={"k": 1})
    result = run_probe(features, table, settings)
    labels, splits, sites = (table[name].to_numpy() for name in ("label", "split", "site"))
    fitted = np.flatnonzero(splits == "train")
    assert (result.train_rows, result.classes, list(result.splits)) == (60, 3, ["val", "near", "far"])
    for name, found in result.splits.items():
        tested = np.flatnonzero(splits == name)
        right = nearest(features, fitted, labels, tested) == labels[tested]
        worst = min(right[sites[tested] == site].mean() for site in "abc")
        assert (found.rows, found.missing_label, found.unseen_label, found.missing_group) == (20, 0, 0, 0)
        assert found.scores["knn"]["accuracy"] == pytest.approx(right.mean())
        assert found.scores["knn"]["worst_group_accuracy"] == pytest.approx(worst)
        assert 0 < right.mean() < 1
        assert set(found.scores) == {"knn", "linear"}


def test_the_linear_probe_sees_the_mean_too():
    table, features = make_table()
    blind = Features(features.rows, np.ones_like(features.cls), features.mean, None, [], [])
    result = run_probe(blind, table, SETTINGS)
    assert result.splits["near"].scores["linear"]["accuracy"] > 0.9
    assert result.splits["near"].scores["knn"]["accuracy"] < 0.7
    assert result.penalty is not None
    assert result.converged


def test_test_rows_cannot_change_what_is_fitted():
    table, features = make_table(spread=0.6)
    other = features.cls.copy()
    other[np.flatnonzero(table["split"] == "far")] = 100.0
    changed = Features(features.rows, other, features.mean, None, [], [])
    first, second = run_probe(features, table, SETTINGS), run_probe(changed, table, SETTINGS)
    assert first.penalty == second.penalty
    assert first.splits["near"] == second.splits["near"]
    assert first.splits["far"].scores != second.splits["far"].scores


def test_missing_labels_are_left_out_and_counted():
    table, features = make_table()
    labels = table["label"].to_list()
    for row in (0, 1, 2, 61, 100, 101):
        labels[row] = None
    result = run_probe(features, table.with_columns(pl.Series("label", labels)), SETTINGS)
    assert (result.train_rows, result.train_missing_label) == (57, 3)
    counts = {name: (split.rows, split.missing_label) for name, split in result.splits.items()}
    assert counts == {"val": (19, 1), "near": (20, 0), "far": (18, 2)}


def test_labels_that_training_never_saw_count_as_wrong():
    table, features = make_table(spread=0.01)
    labels = table["label"].to_list()
    labels[100:105] = ["new"] * 5
    result = run_probe(features, table.with_columns(pl.Series("label", labels)), SETTINGS)
    far = result.splits["far"]
    assert (far.unseen_label, far.rows, result.classes) == (5, 20, 3)
    assert far.scores["knn"]["accuracy"] == pytest.approx(15 / 20)
    assert result.splits["near"].scores["knn"] == {
        "accuracy": 1.0,
        "macro_f1": 1.0,
        "worst_group_accuracy": 1.0,
    }


def test_rows_without_features_are_counted():
    table, features = make_table()
    kept = np.setdiff1d(np.arange(120), [3, 4, 70, 90])
    partial = Features(kept, features.cls[kept], features.mean[kept], None, [], [])
    result = run_probe(partial, table, SETTINGS)
    assert (result.train_rows, result.train_without_features) == (58, 2)
    assert [split.without_features for split in result.splits.values()] == [1, 1, 0]
    shuffled = np.random.default_rng(0).permutation(kept)
    again = Features(shuffled, features.cls[shuffled], features.mean[shuffled], None, [], [])
    assert run_probe(again, table, SETTINGS).splits["near"].scores == result.splits["near"].scores


def test_rows_without_a_group_count_for_the_other_metrics_alone():
    table, features = make_table(spread=0.01)
    sites = [None if row >= 110 else site for row, site in enumerate(table["site"])]
    result = run_probe(features, table.with_columns(pl.Series("site", sites)), SETTINGS)
    assert result.splits["far"].missing_group == 10
    everywhere = table.with_columns(pl.Series("site", [None] * 100 + sites[100:], dtype=pl.String))
    near = run_probe(features, everywhere, SETTINGS).splits["near"]
    assert (near.missing_group, "worst_group_accuracy" in near.scores["knn"]) == (20, False)


def test_numbers_and_text_mean_the_same_label():
    table, features = make_table()
    numbers = table.with_columns(label=pl.col("label").str.slice(6).cast(pl.Int64))
    assert run_probe(features, numbers, SETTINGS).splits == run_probe(features, table, SETTINGS).splits


def test_without_a_named_split_a_fifth_of_every_class_is_held_out():
    table, features = make_table()
    settings = ProbeSettings(label="label")
    train, tests = plan_splits(table, settings, "label", seed=0)
    held = tests[HELD_OUT].rows
    assert list(tests) == [HELD_OUT]
    assert sorted([*train.rows, *held]) == list(range(120))
    for label, count in table["label"].value_counts().iter_rows():
        assert (table["label"].gather(held) == label).sum() == int(0.2 * count)
    assert list(plan_splits(table, settings, "label", seed=0)[1][HELD_OUT].rows) == list(held)
    assert list(plan_splits(table, settings, "label", seed=1)[1][HELD_OUT].rows) != list(held)
    assert run_probe(features, table, settings).splits[HELD_OUT].rows == len(held)


def test_at_most_so_many_labelled_rows_of_each_split():
    table, _ = make_table()
    labels = [None if row % 2 else label for row, label in enumerate(table["label"])]
    table = table.with_columns(pl.Series("label", labels))
    limited = SETTINGS.model_copy(update={"max_rows": 12})
    train, tests = plan_splits(table, limited, "label", seed=4)
    assert [len(split.rows) for split in (train, *tests.values())] == [12, 10, 10, 10]
    assert all(row % 2 == 0 for row in train.rows)
    assert (train.rows == np.unique(train.rows)).all()
    assert (plan_splits(table, limited, "label", seed=4)[0].rows == train.rows).all()
    without_val = limited.model_copy(update={"val": None, "tests": ["far"]})
    assert (plan_splits(table, without_val, "label", seed=4)[0].rows == train.rows).all()


def test_a_probe_with_nothing_to_learn_from_is_refused():
    table, features = make_table()
    with pytest.raises(OpenfinoError, match="1 different labels among the 60 usable rows"):
        run_probe(features, table.with_columns(label=pl.lit("same")), SETTINGS)
    kept = np.flatnonzero(table["split"] != "far")
    partial = Features(kept, features.cls[kept], features.mean[kept], None, [], [])
    with pytest.raises(OpenfinoError, match="no usable row to score in split far"):
        run_probe(partial, table, SETTINGS)
    with pytest.raises(OpenfinoError, match=r"probe\.label"):
        run_probe(features, table, ProbeSettings())


# Reading a factor


def test_a_factor_written_into_the_features_is_read_back():
    values = pl.Series(["a"] * 30 + ["b"] * 10)
    found = read_factor(as_features(np.repeat(np.eye(2), [30, 10], axis=0)), values, k=5)
    assert (found.rows, found.values, found.left_out) == (20, 2, 0)
    assert (found.knn_accuracy, found.majority, found.chance) == (1.0, 15 / 20, 0.5)


def test_a_factor_that_is_not_there_is_read_no_better_than_by_guessing():
    generator = np.random.default_rng(0)
    values = pl.Series(generator.integers(0, 4, 2000))
    found = read_factor(as_features(generator.normal(size=(2000, 8))), values)
    assert abs(found.knn_accuracy - 0.25) < 0.05


def test_no_row_is_read_with_the_help_of_itself():
    """Every row has its own direction; a value is shared by two rows that point the opposite ways."""
    vectors = np.concatenate([np.eye(20), -np.eye(20)])
    values = pl.Series([f"value {row % 20}" for row in range(40)])
    assert read_factor(as_features(vectors), values, k=1).knn_accuracy == 0.0


def test_missing_values_and_values_of_one_row_are_left_out():
    values = pl.Series(["a"] * 10 + ["b"] * 10 + [None] * 4 + ["once"])
    found = read_factor(as_features(np.random.default_rng(0).normal(size=(25, 4))), values, k=3)
    assert (found.rows, found.values, found.left_out) == (10, 2, 5)
    nothing = read_factor(as_features(np.eye(6)), pl.Series([0.1, 0.2, 0.3, 0.4, None, None]))
    assert (nothing.rows, nothing.values, nothing.left_out) == (0, 0, 6)
    assert (nothing.knn_accuracy, nothing.majority, nothing.chance) == (None, None, None)


def on_circle(turns):
    """Features that hold the phase, and nothing else."""
    return as_features(np.stack([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], axis=1))


def test_a_quantity_written_into_the_features_is_read_back():
    turns = np.random.default_rng(0).random(400)
    arc = on_circle(turns / 4)
    dose = encoded({"dose": [None, *(5 + 1000 * turns[1:])]}, "continuous")
    found = read_quantity(arc, dose, k=5)
    assert (found.rows, found.left_out, found.values) == (199, 1, 399)
    assert found.knn_r2 > 0.99
    assert (found.knn_accuracy, found.majority, found.chance) == (None, None, None)
    place = {"x": np.sin(turns), "y": np.cos(3 * turns)}
    assert read_quantity(arc, encoded(place, "vector"), k=5).knn_r2 > 0.99


def test_the_hour_before_midnight_is_close_to_the_hour_after():
    turns = np.random.default_rng(0).random(400)
    assert read_quantity(on_circle(turns), encoded({"h": 24 * turns}, "cyclic", period=24), k=5).knn_r2 > 0.99
    assert read_quantity(on_circle(turns), encoded({"h": 24 * turns}, "continuous"), k=5).knn_r2 < 0.99


def test_no_quantity_is_read_with_the_help_of_its_own_row():
    """Every row has its own direction; a value is shared by two rows that point the opposite ways."""
    vectors = np.tile(np.eye(2), (20, 1))
    dose = encoded({"dose": np.tile([0.0, 1.0], 20)}, "continuous")
    right = read_quantity(as_features(vectors), dose, k=1)
    assert right.knn_r2 == 1.0
    lonely = as_features(np.concatenate([np.eye(20), -np.eye(20)]))
    nothing = read_quantity(lonely, encoded({"dose": [*range(20), *range(20)]}, "continuous"), k=20)
    assert nothing.knn_r2 < 0.0


def test_a_quantity_that_is_not_there_has_no_r2():
    generator = np.random.default_rng(0)
    features = as_features(generator.normal(size=(2000, 8)))
    found = read_quantity(features, encoded({"dose": generator.random(2000)}, "continuous"))
    assert -0.2 < found.knn_r2 < 0.05


def test_a_quantity_with_hardly_a_value_is_not_read():
    few = read_quantity(as_features(np.eye(4)), spec_values([0.1, None, None, None]))
    assert (few.rows, few.left_out, few.knn_r2) == (0, 4, None)
    same = read_quantity(as_features(np.eye(4)), spec_values([0.1] * 4))
    assert (same.rows, same.left_out, same.knn_r2) == (2, 0, None)


def spec_values(values):
    """A continuous factor that was fitted on other rows too."""
    factor = spec("dose", "continuous")
    vocabulary = fit_vocabulary(pl.DataFrame({"dose": [0.0, 1.0]}), factor)
    return encode(pl.DataFrame({"dose": values}), factor, vocabulary)


# From images to a report


def test_a_model_is_probed_from_its_images(image_set):
    model, manifest = tiny_model(provenance={"source": "tiny"}), read_manifest(image_set)
    settings = ProbeSettings(label="label", split="split", val="val", tests=["test"], group="site", k=5)
    factors = {"clinic": spec("site", name="clinic"), "dose": spec("dose", "continuous")}
    report = probe_model(model, manifest, settings, factors=factors, batch_size=16)
    features = extract_features(model, manifest, range(40))
    assert report.label == run_probe(features, manifest.table, settings)
    # Factors are read within the train split: 20 rows, 5 of each site, 2 of them read.
    train = features.at(manifest.rows_where("split", ["train"]))
    sites = manifest.table["site"].gather(train.rows)
    assert report.leakage["clinic"] == read_factor(train, sites, k=5)
    dose = encode(manifest.table, factors["dose"], fit_vocabulary(manifest.table, factors["dose"]))
    inside = type(dose)(
        dose.spec, dose.vocabulary, dose.values[train.rows], dose.valid[train.rows], dose.unseen
    )
    assert report.leakage["dose"] == read_quantity(train, inside, k=5)
    assert (report.leakage["clinic"].rows, report.leakage["dose"].rows) == (8, 10)
    assert report.score("test", "knn", "macro_f1") == report.label.splits["test"].scores["knn"]["macro_f1"]
    assert report.model == "tiny"
    assert json.loads(json.dumps(report.to_json()))["label"]["splits"]["val"]["rows"] == 10
    with pytest.raises(OpenfinoError, match="no macro_f1 of knn on split 'train'"):
        report.score("train", "knn", "macro_f1")


def test_probing_twice_gives_the_same_report(image_set):
    manifest = read_manifest(image_set)
    settings = ProbeSettings(label="label", max_rows=25)
    reports = [
        probe_model(tiny_model(), manifest, settings, factors={"site": spec("site")}, seed=3, workers=workers)
        for workers in (0, 2)
    ]
    assert reports[0] == reports[1]
    knn = probe_model(tiny_model(), manifest, settings, seed=3, methods=["knn"]).label
    assert knn.splits[HELD_OUT].scores == {"knn": reports[0].label.splits[HELD_OUT].scores["knn"]}
    assert (knn.penalty, knn.converged) == (None, None)


def test_only_images_that_a_probe_needs_are_read(image_set):
    manifest = read_manifest(image_set)
    asked = []
    settings = ProbeSettings(label="label", split="split", tests=["test"])
    probe_model(tiny_model(), manifest, settings, progress=lambda done, total: asked.append(total))
    assert asked[-1] == 30  # the ten rows of val take no part
    report = probe_model(tiny_model(), manifest, ProbeSettings(split="split"), factors={"site": spec("site")})
    assert report.label is None
    assert report.leakage["site"].rows == 8


def test_unreadable_images_are_counted_and_named(tmp_path):
    names = write_arrays(tmp_path, 24, channels=4)
    (tmp_path / names[3]).write_bytes(b"")
    manifest = write_manifest(tmp_path, {"path": names, "label": ["x", "y"] * 12})
    report = probe_model(tiny_model(4, "zscore"), manifest, ProbeSettings(label="label", k=3))
    assert report.unreadable == 1
    assert names[3] in report.causes[0]
    without = [report.label.train_without_features, report.label.splits[HELD_OUT].without_features]
    assert sum(without) == 1
    assert "1 images were left out" in report.table()


def test_every_problem_is_reported_before_an_image_is_read(image_set):
    manifest = read_manifest(image_set)
    settings = ProbeSettings(label="lable", split="splits", tests=["test"], group="cite")
    with pytest.raises(InputProblemsError) as caught:
        probe_model(tiny_model(), manifest, settings, factors={"batch": spec("plate", name="batch")})
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ["probe.label", "probe.split", "probe.group", "leakage"]
    assert "Did you mean 'label'?" in str(caught.value)
    with pytest.raises(OpenfinoError, match="nothing to probe"):
        probe_model(tiny_model(), manifest, ProbeSettings())


def test_splits_and_labels_are_checked(image_set):
    manifest = read_manifest(image_set)

    def problems(**changes):
        settings = ProbeSettings(**{"label": "label", "split": "split", "tests": ["test"], **changes})
        return [str(problem) for problem in check_probe(manifest, settings)]

    assert problems() == []
    wrong = problems(train="training", val="valid", tests=["test", "ood"])
    assert len(wrong) == 3
    assert all("Values there: test, train, val" in problem for problem in wrong)
    assert "fitted on" in problems(tests=["train"])[0]
    table = manifest.table.with_columns(
        only=pl.when(pl.col("split") == "train").then(pl.lit("one")), empty=pl.lit(None, pl.String)
    )
    object.__setattr__(manifest, "table", table)
    assert [problem.split(":")[0] for problem in problems(label="only")] == [
        "column only, split train",
        "column only, split test",
    ]
    assert "no value" in problems(group="empty")[0]


def test_the_table_shows_every_score():
    table, features = make_table()
    result = run_probe(features, table, SETTINGS)
    report = ProbeReport("model", result, {"plate": FactorReading(10, 2, 1, 0.625, 0.5, 0.25)}, 0, [])
    lines = report.table().splitlines()
    near = next(line for line in lines if line.startswith("near") and "linear" in line)
    scores = result.splits["near"].scores["linear"].values()
    assert near.split() == ["near", "20", "0", "linear", *(f"{score:.3f}" for score in scores)]
    plate = next(line for line in lines if line.startswith("plate"))
    assert plate.split() == ["plate", "10", "2", "0.625", "0.500", "0.250"]
    assert "knn_r2" not in report.table()
    readings = {**report.leakage, "dose": FactorReading(10, 9, 0, None, None, None, -0.0625)}
    dose = ProbeReport("model", None, readings, 0, []).table().splitlines()[-1]
    assert dose.split() == ["dose", "10", "9", "-", "-", "-", "-0.062"]
