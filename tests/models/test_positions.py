import pytest
import torch
from transformers import Dinov2Config

from openfino.errors import OpenfinoError
from openfino.models.positions import refuse_oblong_positions, resize_positions


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("side", [2, 5, 16, 37])
def test_the_stored_grid_stays_bit_for_bit(mode, antialias, side):
    stored = torch.randn(side * side, 6)
    assert torch.equal(resize_positions(stored, (side, side), mode, antialias=antialias), stored)


@pytest.mark.parametrize(("grid", "antialias"), [((3, 5), True), ((3, 5), False), ((1, 6), True)])
def test_places_go_row_by_row_and_gradients_reach_the_store(grid, antialias):
    rows = torch.arange(16.0).div(4, rounding_mode="floor")  # the row of each place
    stored = torch.stack([rows, torch.ones(16)], dim=1).requires_grad_()
    resized = resize_positions(stored, grid, "bilinear", antialias=antialias)
    assert resized.shape == (grid[0] * grid[1], 2)
    by_row = resized[:, 0].unflatten(0, grid)
    assert torch.allclose(by_row, by_row[:, :1].expand_as(by_row))
    assert (by_row[1:, 0] > by_row[:-1, 0]).all()
    assert torch.allclose(resized[:, 1], torch.ones(()))
    resized[:, 1].sum().backward()
    assert (stored.grad.sum() - grid[0] * grid[1]).abs() < 1e-4


def test_half_precision_is_resized_in_float32():
    stored = torch.randn(16, 4).bfloat16()
    resized = resize_positions(stored, (3, 5), "bicubic", antialias=True)
    exact = resize_positions(stored.float(), (3, 5), "bicubic", antialias=True)
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized, exact.bfloat16())


def test_oblong_stores_are_refused():
    with pytest.raises(OpenfinoError, match="image_size 32 x 16"):
        refuse_oblong_positions(Dinov2Config(image_size=(32, 16), patch_size=8))
