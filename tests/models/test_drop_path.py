import pytest
import torch

from openfino.models.drop_path import DropPath, draw_drop_path
from openfino.models.loading import random_backbone


@pytest.fixture
def backbone(tiny_config):
    backbone = random_backbone(tiny_config, 3, seed=0)
    backbone.install_drop_path(0.5)
    return backbone.train()


def test_a_branch_is_kept_or_dropped_sample_by_sample():
    module = DropPath(0.5).train()
    module.keep = torch.tensor([[2.0, 0.0], [0.0, 2.0]])[:, :, None, None]
    hidden = torch.ones(2, 3, 4)
    assert module(hidden)[:, 0, 0].tolist() == [2.0, 0.0]  # attention
    assert module(hidden)[:, 0, 0].tolist() == [0.0, 2.0]  # feed-forward
    assert module(hidden)[:, 0, 0].tolist() == [2.0, 0.0]
    assert torch.equal(module.eval()(hidden), hidden)


def test_the_mean_of_the_draws_is_one(backbone):
    draw_drop_path(
        backbone.blocks, seed=1, rows=torch.arange(4000), total_rows=4000, device=torch.device("cpu")
    )
    for layer in backbone.blocks:
        keep = layer.drop_path.keep
        assert set(keep.unique().tolist()) == {0.0, 2.0}
        assert keep.mean().item() == pytest.approx(1.0, abs=0.1)


def test_half_the_batch_draws_half_the_numbers(backbone):
    images = torch.randn(6, 3, 32, 32)
    backbone.config.pos_embed_rescale = None
    whole = run(backbone, images, torch.arange(6))
    parts = [run(backbone, images[rows], rows) for rows in (torch.arange(3), torch.arange(3, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)


def run(backbone, images, rows):
    draw_drop_path(backbone.blocks, seed=7, rows=rows, total_rows=6, device=torch.device("cpu"))
    return backbone(images).cls


def test_checkpointed_activations_draw_the_same(backbone):
    backbone.config.pos_embed_rescale = None
    images = torch.randn(4, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            backbone.checkpoint_activations()
        backbone.zero_grad()
        draw_drop_path(
            backbone.blocks, seed=3, rows=torch.arange(4), total_rows=4, device=torch.device("cpu")
        )
        backbone(images).cls.square().sum().backward()
        gradients.append(backbone.model.embeddings.patch_embeddings.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_all_blocks_share_one_copy_of_the_draws(backbone):
    """A copy for each block would make a GPU's host wait as many times."""
    draw_drop_path(backbone.blocks, seed=1, rows=torch.arange(5), total_rows=5, device=torch.device("cpu"))
    first, second = (layer.drop_path.keep for layer in backbone.blocks)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.shape == (2, 5, 1, 1)
