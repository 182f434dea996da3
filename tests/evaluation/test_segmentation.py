import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from openfino.errors import OpenfinoError
from openfino.evaluation import grid as grid_module
from openfino.evaluation.grid import Grid, row_order
from openfino.evaluation.segmentation import (
    class_ious,
    confusion,
    fit_segmentation,
    mean_iou,
    patch_classes,
    pixel_classes,
)
from openfino.evaluation.sources import ArraySource

TRAIN, VAL, TEST = np.arange(16), np.arange(16, 24), np.arange(24, 36)
GRID = Grid(lrs=(1e-3, 3e-2), weight_decays=(0.0, 0.1))


def scenes(noise=0.5, seed=0):
    """36 images of 9 patches, whose class lies in two of six dimensions of odd scale, and some patches are unknown."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, (36, 9))
    corners = np.array([[0, 0], [1, 0], [0, 1]])[classes]
    tokens = generator.normal(size=(36, 9, 6))
    tokens[:, :, :2] = corners + noise * tokens[:, :, :2] * 0.5
    tokens = tokens * np.array([1, 30, 0.01, 1, 0, 5]) + np.array([0, 100, 0, -3, 2, 0])
    classes[generator.random((36, 9)) < 0.2] = -1
    classes[3] = -1  # an image of which nothing is known
    return ArraySource(np.arange(36), np.zeros((36, 6), np.float32), tokens.astype(np.float32)), classes


def test_a_patch_has_the_class_of_most_of_its_pixels():
    mask = np.zeros((8, 16), dtype=np.uint8)
    mask[0:4, 8:16] = 1
    mask[4:7, 8:16] = 2
    np.testing.assert_array_equal(patch_classes(mask, 8, 3), [[0, 1]])
    np.testing.assert_array_equal(patch_classes(mask, 4, 3), [[0, 0, 1, 1], [0, 0, 2, 2]])
    mask[:, :4] = 255  # not known
    np.testing.assert_array_equal(patch_classes(mask, 4, 3), [[-1, 0, 1, 1], [-1, 0, 2, 2]])


def test_mean_iou():
    truth = np.array([0, 0, 1, 1])
    assert mean_iou(truth, np.array([0, 1, 1, 1])) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert mean_iou(truth, np.array([0, 2, 1, 1])) == pytest.approx((1 / 2 + 1) / 2)
    assert mean_iou(np.array([0, 0, 1, -1]), np.array([0, 1, 1, 1])) == pytest.approx((1 / 2 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="no patch has a known class"):
        mean_iou(np.array([-1]), np.array([0]))


def test_mean_iou_is_that_of_scikit_learn():
    truth, predicted = np.random.default_rng(0).integers(0, 5, (2, 300))
    assert mean_iou(truth, predicted) == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    table = confusion(truth, predicted, 5)
    np.testing.assert_array_equal(table, confusion_matrix(truth, predicted))
    np.testing.assert_allclose(class_ious(table), jaccard_score(truth, predicted, average=None))


def test_pixels_between_two_patches_belong_to_the_nearer():
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_array_equal(pixel_classes(logits, (1, 2), (2, 8)), [[[0] * 4 + [1] * 4] * 2])


def naive_layer(source, classes, lr, decay, steps, batch_size, seed):
    """Standardisation, a linear layer and torch's optimizer, patch by patch."""
    train = np.setdiff1d(TRAIN, [3])
    tokens = torch.from_numpy(source.patches[train]).flatten(0, 1).double()
    mean, scale = tokens.mean(dim=0), tokens.std(dim=0, correction=0)
    scale[4] = 1.0
    layer = torch.nn.Linear(6, 3)
    first = fit_segmentation(source, classes, TRAIN, VAL, 3, Grid((0.0,), (0.0,)), steps=1, seed=seed).head
    with torch.no_grad():  # a learning rate of zero leaves the first weights
        layer.weight.copy_(first.weight * scale)
        layer.bias.copy_(first.bias + first.weight @ mean.float())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows in row_order(train, batch_size, steps, seed):
        known = classes[rows] >= 0
        inputs = ((torch.from_numpy(source.patches[rows])[known] - mean) / scale).float()
        loss = torch.nn.functional.cross_entropy(layer(inputs), torch.from_numpy(classes[rows][known]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return lambda rows: layer(((torch.from_numpy(source.patches[rows]) - mean) / scale).float()).detach()


@pytest.mark.parametrize("apart", [False, True])
def test_every_point_is_what_torch_gives_alone(apart, monkeypatch):
    if apart:
        monkeypatch.setattr(grid_module, "ACTIVATIONS", 1)
    source, classes = scenes()
    fitted = fit_segmentation(source, classes, TRAIN, VAL, 3, GRID, steps=30, batch_size=4, seed=1)
    for (lr, decay), score in zip(fitted.points, fitted.val_scores, strict=True):
        alone = naive_layer(source, classes, lr, decay, 30, 4, 1)
        predicted = alone(VAL).argmax(dim=2).numpy()
        assert score == pytest.approx(mean_iou(classes[VAL], predicted), abs=1e-6)
        if (lr, decay) == (fitted.lr, fitted.weight_decay):
            torch.testing.assert_close(
                torch.cat(list(fitted.logits(TEST))), alone(TEST), rtol=1e-3, atol=1e-3
            )
            np.testing.assert_array_equal(fitted.predict(TEST), alone(TEST).argmax(dim=2).numpy())
    assert max(fitted.val_scores) > min(fitted.val_scores)


def test_what_the_patches_hold_is_found():
    source, classes = scenes(noise=0.2)
    fitted = fit_segmentation(source, classes, TRAIN, VAL, 3, GRID, epochs=40, batch_size=4)
    assert mean_iou(classes[TEST], fitted.predict(TEST)) > 0.9
    untrained = fit_segmentation(source, classes, TRAIN, VAL, 3, Grid((0.0,), (0.0,)), steps=1)
    assert mean_iou(classes[TEST], untrained.predict(TEST)) < 0.5


def test_what_cannot_be_fitted_is_refused():
    source, classes = scenes()
    with pytest.raises(OpenfinoError, match="both trained on and chosen by"):
        fit_segmentation(source, classes, TRAIN, np.arange(15, 20), 3)
    with pytest.raises(OpenfinoError, match="no image with a known patch"):
        fit_segmentation(source, classes, np.array([3]), VAL, 3)
