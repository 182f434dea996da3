"""A grid of heads gives what each of its heads would give alone, and what torch would give."""

import math

import numpy as np
import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.evaluation import grid as grid_module
from openfino.evaluation.grid import Grid, best_point, fit_grid, head_logits, row_order, untrained_head
from openfino.evaluation.scores import score_task
from openfino.evaluation.sources import ArraySource
from openfino.evaluation.tasks import Targets, Task

ROWS, PATCHES, WIDTH = 60, 5, 6
TRAIN, VAL, TEST = np.arange(30), np.arange(30, 45), np.arange(45, 60)
GRID = Grid(lrs=(1e-3, 1e-2, 3e-2), weight_decays=(0.0, 0.5))
SMALL = {"width": 8, "heads": 2, "steps": 25, "batch_size": 8}
METRIC = {"single": "macro_f1", "multi": "macro_f1", "regression": "r2"}


class Problem:
    """Features of which the label is a noisy function."""

    def __init__(self, kind):
        generator = np.random.default_rng(7)
        patches = generator.normal(size=(ROWS, PATCHES, 2 * WIDTH)).astype(np.float32)
        linear = generator.normal(size=(ROWS, 3 * WIDTH)).astype(np.float32)
        signal = linear[:, :3] + patches.max(axis=1)[:, :3] + 0.3 * generator.normal(size=(ROWS, 3))
        self.source = ArraySource(np.arange(ROWS) + 100, linear, patches, layers=2)
        valid = np.ones(ROWS, dtype=bool)
        if kind == "single":
            self.task = Task("single", "y", ("a", "b", "c"))
            self.targets = Targets(signal.argmax(axis=1), valid)
        elif kind == "multi":
            self.task = Task("multi", "y", ("a", "b", "c"))
            self.targets = Targets((signal > 0.5).astype(np.float32), valid)
        else:
            self.task = Task("regression", "y", ("y",), centre=20.0, scale=3.0)
            self.targets = Targets((20 + 3 * signal[:, :1]).astype(np.float32), valid)

    def fit(self, head, grid=GRID, **changes):
        options = {"metric": METRIC[self.task.kind], "seed": 3} | SMALL | changes
        return fit_grid(head, self.source, self.targets, TRAIN, VAL, self.task, grid, **options)


def torch_alone(problem, head_kind, lr, decay, steps, batch_size, seed, smoothing=0.0):
    """One head with torch's own optimizer and schedule."""
    head = untrained_head(head_kind, problem.source, problem.task, seed=seed, width=8, heads=2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    part = "patches" if head_kind == "attentive" else "linear"
    for rows in row_order(TRAIN, batch_size, steps, seed):
        values = torch.from_numpy(problem.targets.values[rows])
        loss = problem.task.loss(head(problem.source.take(rows, part)), values, smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
@pytest.mark.parametrize("head_kind", ["linear", "attentive"])
def test_every_point_is_what_torch_gives_alone(kind, head_kind, monkeypatch):
    problem = Problem(kind)
    kept = []
    choose = grid_module.best_point
    monkeypatch.setattr(
        grid_module,
        "best_point",
        lambda scores, losses, metric: kept.append(losses) or choose(scores, losses, metric),
    )
    fitted = problem.fit(head_kind)
    part = "patches" if head_kind == "attentive" else "linear"
    truth = problem.targets.at(VAL)
    for number, (lr, decay) in enumerate(GRID.points):
        alone = torch_alone(problem, head_kind, lr, decay, 25, 8, 3)
        logits = head_logits(alone, problem.source, VAL, part)
        predictions = problem.task.predict(logits)
        expected = score_task(problem.task, predictions, truth)[METRIC[kind]]
        assert fitted.val_scores[number] == pytest.approx(expected, abs=1e-5)
        expected_loss = float(problem.task.loss(logits, torch.from_numpy(truth.values)))
        assert fitted.val_losses[number] == pytest.approx(expected_loss, rel=1e-4)
        if (lr, decay) == (fitted.lr, fitted.weight_decay):
            theirs = head_logits(alone, problem.source, TEST, part)
            torch.testing.assert_close(fitted.logits(TEST), theirs, rtol=1e-3, atol=1e-4)
    assert len(set(np.round(fitted.val_losses, 6))) == len(GRID.points)  # else all of this would prove little


@pytest.mark.parametrize("head_kind", ["linear", "attentive"])
def test_a_point_is_not_changed_by_its_neighbours_or_by_memory(head_kind, monkeypatch):
    problem = Problem("single")
    together = problem.fit(head_kind, smoothing=0.1)
    monkeypatch.setattr(grid_module, "ACTIVATIONS", 1)  # every point in its own stack
    monkeypatch.setattr(grid_module, "KEPT_LOGITS", 1)
    apart = problem.fit(head_kind, smoothing=0.1)
    np.testing.assert_allclose(together.val_losses, apart.val_losses, rtol=1e-5)
    assert together.val_scores == apart.val_scores
    for lr, decay in GRID.points:
        alone = problem.fit(head_kind, Grid((lr,), (decay,)), smoothing=0.1)
        number = GRID.points.index((lr, decay))
        assert alone.val_losses[0] == pytest.approx(together.val_losses[number], rel=1e-5)
        if number == GRID.points.index((together.lr, together.weight_decay)):
            torch.testing.assert_close(alone.logits(TEST), together.logits(TEST), rtol=1e-4, atol=1e-5)


def test_a_point_that_diverges_takes_no_other_with_it():
    problem = Problem("regression")
    alone = problem.fit("linear", Grid((1e-2,), (0.0,)))
    beside = problem.fit("linear", Grid((1e-2, 1e30), (0.0,)))
    assert math.isnan(beside.val_scores[1])
    assert (beside.lr, beside.val_losses[0]) == (1e-2, pytest.approx(alone.val_losses[0], rel=1e-6))
    with pytest.raises(OpenfinoError, match="every point of the grid diverged"):
        problem.fit("linear", Grid((1e30,), (0.0,)))


def test_the_best_score_wins_then_the_lower_loss_then_the_first():
    assert best_point([0.1, 0.5, 0.4], [1, 9, 1], "accuracy") == 1
    assert best_point([0.5, 0.5, 0.4], [2, 1, 0], "accuracy") == 1
    assert best_point([0.5, 0.5], [1, 1], "accuracy") == 0
    assert best_point([math.nan, 0.2], [0, 1], "accuracy") == 1
    assert best_point([0.3, 0.2], [0, 1], "calibration_error") == 1


def test_the_chosen_point_is_the_best_on_validation_by_the_metric():
    problem = Problem("single")
    groups = np.random.default_rng(0).integers(0, 3, ROWS)
    fitted = problem.fit("linear", metric="worst_group_accuracy", groups=groups)
    best = max(fitted.val_scores)
    assert fitted.val_scores[fitted.points.index((fitted.lr, fitted.weight_decay))] == best
    own = score_task(
        problem.task, problem.task.predict(fitted.logits(VAL)), problem.targets.at(VAL), groups[VAL]
    )
    assert own["worst_group_accuracy"] == pytest.approx(best)
    assert fitted.at_the_edge == (fitted.lr in (1e-3, 3e-2))
    assert best > min(fitted.val_scores)


def test_the_label_is_learnt():
    problem = Problem("single")
    fitted = problem.fit("linear", steps=200)
    untrained = head_logits(
        untrained_head("linear", problem.source, problem.task), problem.source, TEST, "linear"
    )
    scores = [
        score_task(problem.task, problem.task.predict(logits), problem.targets.at(TEST))["accuracy"]
        for logits in (untrained, fitted.logits(TEST))
    ]
    assert scores[1] > scores[0] + 0.1


def test_rows_without_a_label_do_not_train():
    problem = Problem("single")
    known = np.ones(ROWS, dtype=bool)
    known[[2, 5, 31]] = False
    values = np.where(known, problem.targets.values, -1)
    lacking = problem.targets
    problem.targets = Targets(values, known)
    fitted = problem.fit("linear", Grid((1e-2,), (0.0,)))
    without = fit_grid(
        "linear",
        problem.source,
        lacking,
        np.setdiff1d(TRAIN, [2, 5]),
        np.setdiff1d(VAL, [31]),
        problem.task,
        Grid((1e-2,), (0.0,)),
        metric="macro_f1",
        seed=3,
        **SMALL,
    )
    assert fitted.val_losses == without.val_losses


def test_no_test_row_is_read_before_it_is_asked_for():
    problem = Problem("single")
    asked = []

    class Watched(ArraySource):
        def take(self, positions, part):
            asked.extend(np.asarray(positions).tolist())
            return super().take(positions, part)

    problem.source = Watched(problem.source.rows, problem.source.linear, problem.source.patches, layers=2)
    problem.fit("linear")
    assert set(asked) == {*TRAIN.tolist(), *VAL.tolist()}
    # 25 steps of 8 rows for six points: every batch is read once, and so is every validation row.
    assert len(asked) <= 25 * 8 + len(VAL) + 2


def test_few_labels_do_not_make_reading_slow():
    """Two rows that train are a batch of two; validation and test rows are still read many at a time."""
    problem = Problem("single")
    sizes = []

    class Watched(ArraySource):
        def take(self, positions, part):
            sizes.append(len(positions))
            return super().take(positions, part)

    source = Watched(problem.source.rows, problem.source.linear, problem.source.patches, layers=2)
    options = {"metric": "accuracy", "steps": 3, "batch_size": 8}
    fitted = fit_grid("linear", source, problem.targets, TRAIN[:2], VAL, problem.task, GRID, **options)
    assert sizes[-2:] == [8, 7]
    assert (fitted.batch_size, sizes[-5:-2]) == (2, [2, 2, 2])
    fitted.logits(TEST)
    assert sizes[-2:] == [8, 7]


def test_one_epoch_shows_every_row_once():
    order = list(row_order(TRAIN, 8, 15, seed=0))
    assert all(len(rows) == 8 for rows in order)
    seen = np.concatenate(order)
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(seen[30 * epoch : 30 * (epoch + 1)]), TRAIN)
    assert not np.array_equal(seen[:30], seen[30:60])
    assert len(Problem("single").fit("linear", steps=None, epochs=2.0).val_scores) == 6
    assert Problem("single").fit("linear", steps=None, epochs=2.0).steps == math.ceil(2 * 30 / 8)
    assert Problem("single").fit("linear", steps=None, epochs=2.0, batch_size=1000).batch_size == 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "r2"}, "metric r2: a single label is scored by one of accuracy"),
        ({"metric": "worst_group_accuracy"}, "name the column of the groups"),
        (
            {"metric": "worst_group_accuracy", "groups": np.full(ROWS, -1)},
            "not defined on the 15 validation rows",
        ),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(changes, message):
    with pytest.raises(OpenfinoError, match=message):
        Problem("single").fit("linear", **changes)


def test_sharing_an_image_is_refused():
    problem = Problem("single")
    with pytest.raises(OpenfinoError, match=r"1 images are both trained on and chosen by, such as row 130"):
        fit_grid(
            "linear",
            problem.source,
            problem.targets,
            TRAIN,
            np.arange(29, 40),
            problem.task,
            metric="accuracy",
        )


def test_a_split_without_labels_is_refused():
    problem = Problem("single")
    problem.targets = Targets(problem.targets.values, np.arange(ROWS) < 30)
    with pytest.raises(OpenfinoError, match="no image with a label and with features to choose a probe by"):
        problem.fit("linear")


@pytest.mark.parametrize("values", [(), (-1.0,), (float("nan"),)])
def test_a_grid_of_nothing_is_refused(values):
    with pytest.raises(OpenfinoError, match="grid: lrs"):
        Grid(values, (0.0,))
