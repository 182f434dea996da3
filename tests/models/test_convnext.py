import pytest
import torch

from openfino.models.drop_path import draw_drop_path
from tiny_models import tiny_family


@pytest.fixture
def backbone():
    return tiny_family("dinov3_convnext")


def test_a_position_of_the_last_map_stands_for_32_pixels(backbone):
    assert (backbone.patch_size, backbone.embed_dim, backbone.registers) == (32, 32, 0)
    assert backbone(torch.zeros(1, 3, 64, 96)).patches.shape == (1, 6, 32)
    shallow = tiny_family("dinov3_convnext", depths=[1, 1], hidden_sizes=[8, 16])
    assert (shallow.patch_size, shallow.embed_dim) == (8, 16)
    assert shallow(torch.zeros(1, 3, 64, 96)).patches.shape == (1, 96, 16)


def test_cls_is_the_norm_of_the_mean_of_the_last_map(backbone):
    seen = []
    backbone.blocks[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        tokens = backbone(torch.randn(2, 3, 64, 96))
        norm = backbone.model.layer_norm
        torch.testing.assert_close(tokens.cls, norm(seen[0].mean(dim=(2, 3))))
        torch.testing.assert_close(tokens.patches[:, 4], norm(seen[0][:, :, 1, 1]))


def test_a_mask_is_refused_because_it_would_hide_nothing(backbone):
    assert not backbone.can_mask
    with pytest.raises(ValueError, match="cannot be masked"):
        backbone(torch.zeros(1, 3, 64, 64), torch.ones(1, 4, dtype=torch.bool))
    pixels = torch.zeros(1, 3, 96, 96)
    changed = pixels.clone()
    changed[..., 32:64, 32:64] = 1.0  # the middle: seen from everywhere
    with torch.no_grad():
        moved = (backbone(changed).patches - backbone(pixels).patches).abs().amax(dim=-1)
    assert moved.gt(1e-4).all()


def test_layers_count_through_the_stages(backbone):
    layers = {
        "stages.0.downsample_layers.0.weight": 0,
        "stages.0.downsample_layers.1.weight": 0,
        "stages.0.layers.0.gamma": 1,
        "stages.1.downsample_layers.1.weight": 2,
        "stages.1.layers.0.gamma": 2,
        "stages.2.downsample_layers.0.weight": 3,
        "stages.2.layers.0.gamma": 3,
        "stages.2.layers.1.gamma": 4,
        "stages.3.downsample_layers.0.weight": 5,
        "stages.3.layers.0.gamma": 5,
    }
    names = {key for key, _ in backbone.named_parameters()}
    for name, layer in layers.items():
        assert f"model.model.{name}" in names
        assert backbone.layer_of(f"model.model.{name}") == layer, name
    assert backbone.layer_of("model.layer_norm.weight") == 6


def test_a_dropped_branch_is_scaled_as_defined(backbone):
    backbone.install_drop_path(0.5)
    backbone.train()
    draw_drop_path(backbone.blocks, seed=2, rows=torch.arange(4), total_rows=4, device=torch.device("cpu"))
    block = backbone.blocks[2]
    keep = block.drop_path.keep
    assert keep.shape == (1, 4, 1, 1)
    assert set(keep.unique().tolist()) == {0.0, 2.0}
    features = torch.randn(4, 24, 5, 6)
    found = block(features)
    branch = block.eval()(features) - features
    torch.testing.assert_close(found, features + keep[0, :, :, :, None] * branch)
