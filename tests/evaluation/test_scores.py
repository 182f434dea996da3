"""Metrics against scikit-learn, torchmetrics and loops; intervals against naive resampling and simulated truth."""

import time

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from openfino.evaluation import scores as scores_module
from openfino.evaluation.measures import METRICS, measures
from openfino.evaluation.metrics import score
from openfino.evaluation.scores import Bootstrap, bootstrap, bootstrap_difference, score_task
from openfino.evaluation.tasks import Predictions, Targets, Task


def names(count):
    return tuple(f"{number:02}" for number in range(count))


def every(values):
    return Targets(values, np.ones(len(values), dtype=bool))


def draw_single(rows, classes, seed=0, ties=False, skill=1.5):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    logits = generator.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += skill
    logits = np.round(logits) if ties else logits
    task = Task("single", "y", names(classes))
    return task, task.predict(torch.from_numpy(logits)), every(truth)


def draw_multi(rows, labels, seed=0, ties=False):
    generator = np.random.default_rng(seed)
    truth = (generator.random((rows, labels)) < 0.3).astype(np.float32)
    logits = generator.normal(size=(rows, labels)) + 1.5 * truth - 0.5
    logits = np.round(logits * 2) / 2 if ties else logits
    task = Task("multi", "y", names(labels))
    return task, task.predict(torch.from_numpy(logits)), every(truth)


def draw_numbers(rows, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.normal(50, 3, (rows, 1)).astype(np.float32)
    task = Task("regression", "y", ("y",), centre=50, scale=3)
    guess = (truth + generator.normal(0, 2, (rows, 1))).astype(np.float32)
    return task, Predictions(guess, guess), every(truth)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_one_class_against_scikit_learn_and_torchmetrics(classes, ties):
    task, predictions, targets = draw_single(200, classes, ties=ties)
    found = score_task(task, predictions, targets)
    truth, chosen = targets.values, predictions.chosen
    one_hot = np.eye(classes)[truth]
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, chosen),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, chosen),
            "macro_f1": sk.f1_score(truth, chosen, average="macro"),
            "macro_auroc": sk.roc_auc_score(one_hot, predictions.scores, average="macro"),
            "map": sk.average_precision_score(one_hot, predictions.scores, average="macro"),
            "calibration_error": found["calibration_error"],
        },
        abs=1e-9,
    )
    probabilities, labels = torch.from_numpy(predictions.scores), torch.from_numpy(truth)
    several = {"num_classes": classes}
    assert found["macro_auroc"] == pytest.approx(
        float(tm.multiclass_auroc(probabilities, labels, **several)), abs=1e-5
    )
    assert found["map"] == pytest.approx(
        float(tm.multiclass_average_precision(probabilities, labels, **several)), abs=1e-5
    )
    assert found["calibration_error"] == pytest.approx(
        float(tm.multiclass_calibration_error(probabilities, labels, n_bins=15, **several)), abs=1e-5
    )
    assert found["macro_f1"] == pytest.approx(
        float(tm.multiclass_f1_score(probabilities, labels, **several)), abs=1e-5
    )


@pytest.mark.parametrize("ties", [False, True])
def test_many_labels_against_scikit_learn_and_torchmetrics(ties):
    task, predictions, targets = draw_multi(150, 4, ties=ties)
    found = score_task(task, predictions, targets)
    truth, chosen = targets.values.astype(int), predictions.chosen
    both = [sk.balanced_accuracy_score(truth[:, label], chosen[:, label]) for label in range(4)]
    assert found == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, chosen),
            "balanced_accuracy": np.mean(both),
            "macro_f1": sk.f1_score(truth, chosen, average="macro"),
            "macro_auroc": sk.roc_auc_score(truth, predictions.scores, average="macro"),
            "map": sk.average_precision_score(truth, predictions.scores, average="macro"),
            "calibration_error": naive_calibration(predictions.scores.astype(np.float64), truth),
        },
        abs=1e-9,
    )
    probabilities, labels = torch.from_numpy(predictions.scores), torch.from_numpy(truth)
    assert found["macro_f1"] == pytest.approx(
        float(tm.multilabel_f1_score(probabilities, labels, num_labels=4)), abs=1e-5
    )
    assert found["macro_auroc"] == pytest.approx(
        float(tm.multilabel_auroc(probabilities, labels, num_labels=4)), abs=1e-5
    )
    assert found["map"] == pytest.approx(
        float(tm.multilabel_average_precision(probabilities, labels, num_labels=4)), abs=1e-5
    )


def naive_calibration(confidence, outcome):
    """Guo et al. 2017, eq. 3, over all pairs of confidence and outcome."""
    pairs = list(zip(np.ravel(confidence), np.ravel(outcome), strict=True))
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [(c, o) for c, o in pairs if low < c <= high or (number == 0 and c == 0)]
        if inside:
            error += (
                abs(np.mean([o for _, o in inside]) - np.mean([c for c, _ in inside]))
                * len(inside)
                / len(pairs)
            )
    return error


def test_calibration_error_of_certainty():
    task = Task("single", "y", ("a", "b"))
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    found = score_task(task, task.predict_scores(scores), every(np.array([0, 0, 1, 0])))
    assert found["calibration_error"] == pytest.approx(0.25)


def test_numbers_against_scikit_learn():
    task, predictions, targets = draw_numbers(80)
    assert score_task(task, predictions, targets) == pytest.approx(
        {"r2": sk.r2_score(targets.values, predictions.scores)}, rel=1e-6
    )


def test_names_and_values_are_those_of_the_older_metrics():
    task, predictions, targets = draw_single(120, 4)
    groups = np.random.default_rng(0).integers(-1, 5, 120)
    found = score_task(task, predictions, targets, groups)
    for name, value in score(targets.values, predictions.chosen, groups).items():
        assert found[name] == pytest.approx(value)
    assert list(found) == list(METRICS["single"])


def test_worst_group_of_many_labels():
    task, predictions, targets = draw_multi(60, 2)
    groups = np.arange(60) % 4 - 1
    right = (predictions.chosen == targets.values).all(axis=1)
    expected = min(right[groups == group].mean() for group in range(3))
    assert score_task(task, predictions, targets, groups)["worst_group_accuracy"] == pytest.approx(expected)


def test_classes_that_a_split_lacks():
    """A class with no row has no recall, F1, AUROC or precision there: the means are over the others."""
    task, predictions, targets = draw_single(100, 4)
    kept = targets.values != 2
    predictions, targets = predictions.at(kept), targets.at(kept)
    found = score_task(task, predictions, targets)
    truth, chosen = targets.values, predictions.chosen
    assert 2 in chosen
    present = [0, 1, 3]
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, chosen, labels=present, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.recall_score(truth, chosen, labels=present, average="macro")
    )
    auroc = [sk.roc_auc_score(truth == kind, predictions.scores[:, kind]) for kind in present]
    assert found["macro_auroc"] == pytest.approx(np.mean(auroc))
    precision = [sk.average_precision_score(truth == kind, predictions.scores[:, kind]) for kind in present]
    assert found["map"] == pytest.approx(np.mean(precision))


def test_labels_that_all_rows_have_or_none():
    task, predictions, targets = draw_multi(50, 3)
    values = targets.values.copy()
    values[:, 0], values[:, 2] = 1, 0
    found = score_task(task, predictions, every(values))
    assert found["macro_auroc"] == pytest.approx(sk.roc_auc_score(values[:, 1], predictions.scores[:, 1]))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(values[:, 1], predictions.chosen[:, 1])
    )
    one = sk.f1_score(values[:, :2], predictions.chosen[:, :2], average="macro")
    assert found["macro_f1"] == pytest.approx(one)


def test_what_is_not_defined_is_left_out():
    task, predictions, targets = draw_single(20, 3)
    single = targets.at(targets.values == 1), predictions.at(targets.values == 1)
    assert set(score_task(task, single[1], single[0], np.full(len(single[0]), -1))) == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "map",
        "calibration_error",
    }
    task, predictions, _ = draw_numbers(20)
    constant = every(np.full((20, 1), 48.3, dtype=np.float32))
    assert score_task(task, predictions, constant) == {}
    assert bootstrap(task, predictions, constant, seed=0, draws=10) == {}
    assert bootstrap_difference(task, predictions, predictions, constant, seed=0, draws=10) == {}


def test_rows_without_a_label_are_not_scored():
    task, predictions, targets = draw_single(40, 3)
    valid = np.arange(40) % 3 > 0
    found = score_task(
        task, predictions, Targets(np.where(valid, targets.values, -1), valid), np.arange(40) % 2
    )
    assert found == score_task(task, predictions.at(valid), targets.at(valid), (np.arange(40) % 2)[valid])
    with pytest.raises(ValueError, match="no row has a label"):
        score_task(task, predictions, Targets(targets.values, np.zeros(40, dtype=bool)))
    with pytest.raises(ValueError, match="different lengths"):
        score_task(task, predictions.at(valid), targets)
    with pytest.raises(ValueError, match="different lengths"):
        bootstrap(task, predictions, targets, clusters=np.zeros(3, dtype=int), seed=0)


def test_order_does_not_matter():
    task, predictions, targets = draw_single(90, 4, ties=True)
    order = np.random.default_rng(5).permutation(90)
    groups = np.arange(90) % 7
    assert score_task(task, predictions.at(order), targets.at(order), groups[order]) == pytest.approx(
        score_task(task, predictions, targets, groups)
    )


@pytest.mark.parametrize("draw", [draw_single, draw_multi, draw_numbers])
def test_a_weight_is_a_repetition(draw):
    """Every metric with counts is the same metric of the rows repeated as often."""
    task, predictions, targets = draw(40, 3, ties=True) if draw is not draw_numbers else draw(40)
    groups = np.arange(40) % 5
    counts = np.random.default_rng(2).integers(0, 3, (40, 6))
    prepared = measures(task, predictions, targets, groups)
    assert set(prepared) == set(METRICS[task.kind])
    for name, measure in prepared.items():
        found = measure(counts.astype(np.float64))
        for number in range(6):
            rows = np.repeat(np.arange(40), counts[:, number])
            repeated = score_task(task, predictions.at(rows), targets.at(rows), groups[rows])
            assert found[number] == pytest.approx(repeated[name], abs=1e-9), name


def naive_draws(rows, clusters, draws, seed):
    """How often each row counts, one draw after another."""
    members = np.unique(clusters)
    generator = scores_module.probe_generator(seed, "bootstrap")
    for drawn in generator.integers(0, len(members), (draws, len(members))):
        yield np.concatenate([np.flatnonzero(clusters == members[number]) for number in drawn])


@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_are_those_of_naive_resampling(clustered, monkeypatch):
    task, predictions, targets = draw_single(30, 3)
    groups = np.arange(30) % 3
    clusters = np.arange(30) // 4 if clustered else None
    monkeypatch.setattr(scores_module, "CELLS", 30 * 7)  # several chunks
    found = bootstrap(task, predictions, targets, clusters=clusters, groups=groups, draws=40, seed=1)
    resampled = {}
    for rows in naive_draws(30, np.arange(30) if clusters is None else clusters, 40, 1):
        for name, value in score_task(task, predictions.at(rows), targets.at(rows), groups[rows]).items():
            resampled.setdefault(name, []).append(value)
    assert set(found) == set(METRICS["single"])
    estimates = score_task(task, predictions, targets, groups)
    for name, interval in found.items():
        low, high = np.quantile(resampled[name], [0.025, 0.975])
        if name in ("worst_group_accuracy", "calibration_error"):
            reach = max(estimates[name] - low, high - estimates[name])
            low, high = max(0, estimates[name] - reach), min(1, estimates[name] + reach)
        assert interval == pytest.approx((low, high), abs=1e-9), name


def test_rows_without_a_cluster_are_drawn_by_themselves():
    task, predictions, targets = draw_single(50, 3)
    alone = bootstrap(task, predictions, targets, seed=0, draws=50)
    assert bootstrap(task, predictions, targets, clusters=np.arange(50) * 3, seed=0, draws=50) == alone
    half = np.where(np.arange(50) < 25, -1, 4)
    drawn = next(scores_module.row_draws(50, half, 50, 0))
    assert (drawn[25:] == drawn[25]).all()
    assert not (drawn[:25] == drawn[0]).all()
    assert drawn.sum(axis=0).std() > 0


def test_a_difference_is_paired():
    """Two arms that err on nearly the same rows differ by more than noise where their own intervals overlap."""
    task, better, targets = draw_single(400, 3, skill=2)
    wrong = np.flatnonzero(better.chosen == targets.values)[:12]
    scores = better.scores.copy()
    scores[wrong, targets.values[wrong]] = 0
    worse = task.predict_scores(scores)
    found = bootstrap_difference(task, better, worse, targets, seed=0, metrics=["accuracy"])["accuracy"]
    assert found.difference == pytest.approx(12 / 400)
    assert found.beyond_noise
    assert 0 < found.low < found.difference < found.high
    own = [
        bootstrap(task, each, targets, seed=0, metrics=["accuracy"])["accuracy"] for each in (better, worse)
    ]
    assert own[0][0] < own[1][1]
    back = bootstrap_difference(task, worse, better, targets, seed=0, metrics=["accuracy"])["accuracy"]
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    none = bootstrap_difference(task, better, better, targets, seed=0)
    assert not any(each.beyond_noise for each in none.values())


def test_seeds_are_drawn_with_the_rows():
    task, _, targets = draw_single(300, 3)
    seeds = [draw_single(300, 3, skill=skill)[1] for skill in (0.5, 1.5, 2.5)]
    found = Bootstrap(
        task, {"arm": seeds, "same": seeds, "one": seeds[:1]}, targets, seed=0, metrics=["accuracy"]
    )
    each = [score_task(task, own, targets)["accuracy"] for own in seeds]
    assert found.mean("arm", "accuracy") == pytest.approx(np.mean(each))
    np.testing.assert_allclose(found.estimates["arm"]["accuracy"], each)
    low, high = found.interval("arm", "accuracy")
    rows_alone = bootstrap(task, seeds[1], targets, seed=0, metrics=["accuracy"])["accuracy"]
    assert high - low > 2 * (rows_alone[1] - rows_alone[0])  # these seeds differ a lot
    same = found.difference("arm", "same", "accuracy")
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    other = found.difference("arm", "one", "accuracy")
    assert other.difference == pytest.approx(np.mean(each) - each[0])


def test_the_spread_over_seeds_is_that_of_new_seeds():
    """Where rows add nothing, the interval is Student's for a mean of S: t s / sqrt(S)."""
    values = np.random.default_rng(0).normal(size=(3, 1))
    found = Bootstrap.__new__(Bootstrap)
    found.draws, found.seed = 20_000, 0
    drawn = found._over_seeds(np.repeat(values, 20_000, axis=1), "arm")
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.05)
    student = 4.3027 / 1.95996
    assert drawn.std() == pytest.approx(student * values.std(ddof=1) / np.sqrt(3), rel=0.03)


def covered(simulate, truth, metric, repeats=300):
    """How often the interval holds the truth."""
    hits = 0
    for seed in range(repeats):
        low, high = simulate(seed)[metric]
        hits += low <= truth <= high
    return hits / repeats


def test_intervals_hold_the_truth_as_often_as_they_say():
    """300 simulated test sets: 95 % +- 2.5 % (two standard errors)."""
    task = Task("single", "y", names(2))
    skill = [0.9, 0.6]  # right answers in each class
    truth_f1 = _population_f1(skill)

    def simulate(seed):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 2, 200)
        right = generator.random(200) < np.array(skill)[truth]
        scores = np.eye(2, dtype=np.float32)[np.where(right, truth, 1 - truth)]
        return bootstrap(
            task,
            task.predict_scores(scores),
            every(truth),
            seed=seed,
            draws=300,
            metrics=["accuracy", "macro_f1"],
        )

    assert covered(simulate, 0.75, "accuracy") == pytest.approx(0.945, abs=0.03)
    assert covered(simulate, truth_f1, "macro_f1") == pytest.approx(0.945, abs=0.03)


def _population_f1(skill):
    """F1 of both classes, equally frequent, found with these probabilities."""
    first = 2 * skill[0] / (1 + skill[0] + (1 - skill[1]))
    second = 2 * skill[1] / (1 + skill[1] + (1 - skill[0]))
    return (first + second) / 2


def test_clusters_matter_and_are_covered():
    """Images of a plate are right or wrong together: rows drawn alone claim far too much, plates do not."""
    task = Task("single", "y", names(2))
    plates = np.repeat(np.arange(40), 10)

    def simulate(clusters):
        def one(seed):
            generator = np.random.default_rng(seed)
            truth = generator.integers(0, 2, 400)
            level = np.clip(0.7 + 0.25 * generator.choice([-1, 1], 40), 0, 1)
            right = generator.random(400) < level[plates]
            scores = np.eye(2, dtype=np.float32)[np.where(right, truth, 1 - truth)]
            return bootstrap(
                task,
                task.predict_scores(scores),
                every(truth),
                clusters=clusters,
                seed=seed,
                draws=300,
                metrics=["accuracy"],
            )

        return one

    assert covered(simulate(plates), 0.7, "accuracy") == pytest.approx(0.94, abs=0.035)
    assert covered(simulate(None), 0.7, "accuracy") < 0.85


@pytest.mark.parametrize(("worst", "expected"), [(0.4, 0.95), (0.7, 0.9)])
def test_the_interval_of_a_worst_group_holds_even_where_groups_are_equal(worst, expected):
    """The middle of the draws would hold the truth in one of five of the latter cases."""
    task = Task("single", "y", names(2))

    def simulate(seed):
        generator = np.random.default_rng(seed)
        truth, groups = generator.integers(0, 2, 300), generator.integers(0, 6, 300)
        right = generator.random(300) < np.where(groups == 0, worst, 0.7)
        scores = np.eye(2, dtype=np.float32)[np.where(right, truth, 1 - truth)]
        return bootstrap(
            task,
            task.predict_scores(scores),
            every(truth),
            groups=groups,
            seed=seed,
            draws=300,
            metrics=["worst_group_accuracy"],
        )

    assert covered(simulate, worst, "worst_group_accuracy") > expected - 0.03


def test_a_difference_of_nothing_is_called_noise_as_often_as_it_says():
    task = Task("single", "y", names(2))

    def simulate(seed):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 2, 150)
        common = generator.random(150) < 0.5
        arms = []
        for _ in range(2):
            right = generator.random(150) < np.where(common, 0.95, 0.5)
            arms.append(task.predict_scores(np.eye(2, dtype=np.float32)[np.where(right, truth, 1 - truth)]))
        found = bootstrap_difference(task, *arms, every(truth), seed=seed, draws=300, metrics=["accuracy"])
        return {"accuracy": (found["accuracy"].low, found["accuracy"].high)}

    assert covered(simulate, 0, "accuracy") == pytest.approx(0.95, abs=0.03)


def test_with_three_seeds_a_difference_of_nothing_is_called_noise():
    """Both arms come from the same distribution of seeds, which differ by more than the rows do."""
    task = Task("single", "y", names(2))

    def simulate(count):
        def one(seed):
            generator = np.random.default_rng(seed)
            truth = generator.integers(0, 2, 400)
            ease = generator.random(400)
            arms = []
            for _ in range(2):
                right = [
                    0.7 * ease + 0.3 * generator.random(400) < 0.65 + 0.05 * generator.normal()
                    for _ in range(count)
                ]
                scores = [np.eye(2, dtype=np.float32)[np.where(each, truth, 1 - truth)] for each in right]
                arms.append([task.predict_scores(each) for each in scores])
            found = bootstrap_difference(
                task, *arms, every(truth), seed=seed, draws=200, metrics=["accuracy"]
            )
            return {"accuracy": (found["accuracy"].low, found["accuracy"].high)}

        return one

    assert covered(simulate(3), 0, "accuracy", 200) > 0.91
    assert covered(simulate(1), 0, "accuracy", 200) < 0.6  # one seed says nothing about others


def test_a_thousand_draws_of_ten_thousand_rows_take_seconds():
    task, predictions, targets = draw_single(10_000, 30)
    start = time.process_time()
    found = bootstrap(task, predictions, targets, clusters=np.arange(10_000) // 20, seed=0)
    assert time.process_time() - start < 20  # 3 to 5 s on one core
    assert all(low < high for low, high in found.values())
