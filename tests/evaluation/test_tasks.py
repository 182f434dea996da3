from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from openfino.errors import InputProblemsError
from openfino.evaluation.tasks import Task, resolve_task
from openfino.manifest import Manifest


def manifest(column):
    return Manifest(
        Path("t.csv"), Path("/"), pl.DataFrame({"path": ["x"] * len(column), "y": column}), ("path",)
    )


@pytest.mark.parametrize(
    ("column", "kind", "names"),
    [
        (["b", "a", None], "single", ("a", "b")),
        ([2, 10, None], "single", ("10", "2")),
        ([2.0, 10.0, None], "single", ("10", "2")),
        ([True, False, None], "single", ("false", "true")),
        (["b|a", "c", None], "multi", ("a", "b", "c")),
        (["b; a", "c", None], "multi", ("a", "b", "c")),
        ([["b", "a"], [], None], "multi", ("a", "b")),
        ([[1, 2], [None, 3], None], "multi", ("1", "2", "3")),
        ([0.5, 2.0, None], "regression", ("y",)),
    ],
)
def test_the_kind_follows_from_the_column(column, kind, names):
    task = resolve_task(manifest(column), "y")
    assert (task.kind, task.names, task.outputs, task.label) == (kind, names, len(names), "y")
    targets = task.targets(manifest(column).table, np.arange(3))
    np.testing.assert_array_equal(targets.valid, [True, True, False])


def test_the_kind_can_be_given():
    assert resolve_task(manifest(["a|b", "c"]), "y", "single").names == ("a|b", "c")
    assert resolve_task(manifest(["a", "b"]), "y", "multi").names == ("a", "b")
    assert resolve_task(manifest([3, 4]), "y", "regression").names == ("y",)
    assert resolve_task(manifest([3, 4]), "y", "multi").names == ("3", "4")


def test_a_pipe_separates_before_a_semicolon():
    assert resolve_task(manifest(["a;b|c", "d"]), "y").names == ("a;b", "c", "d")


def test_targets_of_many_labels():
    column = ["b| a", None, "", "c|", "|"]
    task = resolve_task(manifest(column), "y")
    targets = task.targets(manifest(column).table, np.array([4, 3, 1, 0]))
    np.testing.assert_array_equal(targets.values, [[0, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(targets.valid, [True, True, False, True])
    assert targets.values.dtype == np.float32


def test_arrays_of_labels():
    column = pl.Series("y", [["a", "b"], ["b", "b"]], dtype=pl.Array(pl.String, 2))
    table = pl.DataFrame({"path": ["x", "x"], "y": column})
    task = resolve_task(Manifest(Path("t.csv"), Path("/"), table, ("path",)), "y")
    np.testing.assert_array_equal(task.targets(table, np.arange(2)).values, [[1, 1], [0, 1]])


def test_targets_of_another_table_are_by_name():
    task = resolve_task(manifest(["a", "b", "c"]), "y")
    targets = task.targets(manifest(["c", "new", "a", None]).table, np.arange(4))
    np.testing.assert_array_equal(targets.values, [2, -1, 0, -1])
    np.testing.assert_array_equal(targets.valid, [True, False, True, False])
    np.testing.assert_array_equal(targets.at(np.array([2, 0])).values, [0, 2])


def test_numbers_are_scaled_by_the_rows_that_train():
    column = [1.5, 2.5, 100.0, None, float("inf")]
    task = resolve_task(manifest(column), "y", "regression", rows=np.array([0, 1, 3]))
    assert (task.centre, task.scale) == (2.0, 0.5)
    targets = task.targets(manifest(column).table, np.arange(5))
    np.testing.assert_array_equal(targets.values[:, 0], [1.5, 2.5, 100, 0, 0])
    np.testing.assert_array_equal(targets.valid, [True, True, True, False, False])
    logits = torch.tensor([[0.0], [1.0]])
    np.testing.assert_allclose(task.predict(logits).scores[:, 0], [2.0, 2.5])
    assert task.loss(logits, torch.tensor([[2.0], [1.5]])) == pytest.approx((0 + 2**2) / 2)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (["a", "a", None], None, "holds 1 different labels; 2 or more"),
        ([None, None], None, "holds 0 different labels"),
        ([[], None], "multi", "holds 0 different labels; 1 or more"),
        (["a", "b"], "regression", "holds String, not numbers"),
        ([True, False], "regression", "holds Boolean, not numbers"),
        ([3.5, 3.5], "regression", "its 2 numbers in the rows that train are all the same"),
        ([["a"], ["b"]], "single", "not one class"),
        ([["a"], ["b"]], "regression", "not numbers"),
    ],
)
def test_what_cannot_be_learnt_is_refused(column, kind, message):
    with pytest.raises(InputProblemsError, match=message) as caught:
        resolve_task(manifest(column), "y", kind)
    assert "column y" in str(caught.value)


def test_a_missing_column_is_refused():
    with pytest.raises(InputProblemsError, match="no column 'z'"):
        resolve_task(manifest(["a", "b"]), "z")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_one_class_is_that_of_torch(smoothing):
    task = Task("single", "y", ("a", "b", "c"))
    logits, values = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    losses = task.losses(logits, values, smoothing)
    assert losses.shape == (2, 7)
    for own, found in zip(logits, losses, strict=True):
        expected = F.cross_entropy(own, values, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        task.loss(logits[0], values, smoothing), F.cross_entropy(logits[0], values, label_smoothing=smoothing)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_many_labels_against_a_loop(smoothing):
    task = Task("multi", "y", ("a", "b"))
    generator = torch.Generator().manual_seed(1)
    logits, values = (
        torch.randn(3, 4, 2, generator=generator),
        torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]]),
    )
    losses = task.losses(logits, values, smoothing)
    for g in range(3):
        for n in range(4):
            total = 0.0
            for t in range(2):
                wanted = float(values[n, t]) * (1 - smoothing) + smoothing / 2
                share = 1 / (1 + np.exp(-float(logits[g, n, t])))
                total -= wanted * np.log(share) + (1 - wanted) * np.log(1 - share)
            assert losses[g, n] == pytest.approx(total / 2, rel=1e-5)


def test_losses_keep_double_precision_and_have_gradients():
    for kind, names, values in [
        ("single", ("a", "b", "c"), torch.tensor([0, 2])),
        ("multi", ("a", "b", "c"), torch.tensor([[0.0, 1, 0], [1, 1, 0]])),
        ("regression", ("y",), torch.tensor([[3.0], [5.0]])),
    ]:
        task = Task(kind, "y", names, centre=1.0, scale=2.0)
        logits = torch.randn(2, len(names), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda x, task=task, values=values: task.losses(x, values, 0.1), logits
        )


def test_predictions():
    single = Task("single", "y", ("a", "b", "c")).predict(torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(single.chosen, [1, 0])
    np.testing.assert_allclose(single.scores.sum(axis=1), 1, rtol=1e-6)
    multi = Task("multi", "y", ("a", "b")).predict(torch.tensor([[0.1, -0.1], [0.0, 3.0]]))
    np.testing.assert_array_equal(multi.chosen, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(multi.at(np.array([1])).chosen, [[0, 1]])
