import pytest
import torch

from openfino.evaluation.taps import tap_layers, tapped_tokens
from tiny_models import TINY_FAMILIES, tiny_family

DEEP = {"num_hidden_layers": 5}
UNIFORM = [name for name in TINY_FAMILIES if name != "dinov3_convnext"]


def images(backbone, count=2, size=(32, 48)):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, backbone.channels, *size, generator=generator)


def naive(backbone, pixels, layers):
    """From transformers' own ``output_hidden_states``: tokens [B, L, T, D] after the norm that the model ends with."""
    output = backbone.model(**backbone.inputs_of(pixels), output_hidden_states=True)
    name = {"dinov3_vit": "norm", "dinov2": "layernorm", "dinov2_with_registers": "layernorm"}
    norm = backbone.model.get_submodule(name.get(backbone.family, "post_layernorm"))
    # transformers may normalise the last of them already; the model's answer is taken for that one.
    states = [norm(hidden) for hidden in output.hidden_states[-layers:-1]] + [output.last_hidden_state]
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("layers", [1, 3, 4])
@pytest.mark.parametrize("name", UNIFORM)
def test_taps_are_the_hidden_states_after_the_final_norm(name, layers):
    backbone = tiny_family(name, **DEEP)
    pixels = images(backbone)
    with torch.no_grad():
        taps = tapped_tokens(backbone, pixels, layers)
        states = naive(backbone, pixels, layers)
    registers = {"dinov3_vit": 2, "dinov2_with_registers": 3}.get(name, 0)
    if name.startswith("siglip"):  # no CLS token: the pooling head reads every block
        head = backbone.model.head
        wanted = torch.stack([head(states[:, layer]) for layer in range(layers)], dim=1)
        patches = states
    else:
        wanted, patches = states[:, :, 0], states[:, :, 1 + registers :]
    side_by_side = torch.cat([patches[:, layer] for layer in range(layers)], dim=-1)
    assert taps.cls.shape == (2, layers, 32)
    assert taps.patches.shape == (2, 4 * 6, layers * 32)
    torch.testing.assert_close(taps.cls, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(taps.patches, side_by_side, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(taps.mean, patches[:, -1].mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(taps.linear, torch.cat([wanted.flatten(1), taps.mean], dim=1))


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_the_last_block_gives_the_tokens_of_the_model(name):
    backbone = tiny_family(name, **(DEEP if name in UNIFORM else {}))
    pixels = images(backbone, size=(64, 96))
    with torch.no_grad():
        taps, tokens = tapped_tokens(backbone, pixels), backbone(pixels)
    assert torch.equal(taps.cls[:, -1], tokens.cls)
    assert torch.equal(taps.patches[..., -tokens.patches.shape[-1] :], tokens.patches)
    assert torch.equal(taps.mean, tokens.patches.mean(dim=1))


def test_how_many_blocks():
    assert tap_layers(tiny_family("dinov2", **DEEP)) == 4
    assert tap_layers(tiny_family("dinov2", **DEEP), 2) == 2
    assert tap_layers(tiny_family("dinov2")) == 2  # it has no more
    convolutions = tiny_family("dinov3_convnext")
    assert tap_layers(convolutions) == 1  # their stages differ in width
    assert tapped_tokens(convolutions, images(convolutions, size=(64, 64))).cls.shape == (2, 1, 32)
    with pytest.raises(ValueError, match="1 or more"):
        tap_layers(convolutions, 0)


def test_norms_of_their_own_for_cls_and_patches():
    backbone = tiny_family("dinov3_vit", **DEEP)
    backbone.model.cls_norm = torch.nn.LayerNorm(32)
    torch.nn.init.constant_(backbone.model.cls_norm.bias, 5.0)
    pixels = images(backbone)
    with torch.no_grad():
        taps = tapped_tokens(backbone, pixels, 3)
    means = taps.cls.mean(dim=-1)
    torch.testing.assert_close(means, torch.full_like(means, 5.0), atol=1e-4, rtol=0)
    assert taps.patches.unflatten(-1, (3, 32)).mean(dim=-1).abs().max() < 1


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_gradients_reach_the_pixels_and_every_block(name):
    backbone = tiny_family(name)
    pixels = images(backbone, size=(64, 64)).requires_grad_()
    taps = tapped_tokens(backbone.train(), pixels)
    (taps.linear.square().mean() + taps.patches.square().mean()).backward()
    assert pixels.grad.abs().max() > 0
    for block in backbone.blocks:
        assert all(value.grad is not None and value.grad.abs().max() > 0 for value in block.parameters())
    assert backbone.training


def test_the_first_tap_does_not_see_the_last_block():
    backbone = tiny_family("dinov2", **DEEP)
    taps = tapped_tokens(backbone, images(backbone), 2)
    taps.cls[:, 0].sum().backward()
    reached = [any(value.grad.any() for value in block.parameters()) for block in backbone.blocks]
    assert reached == [True, True, True, True, False]


@pytest.mark.parametrize("way", ["recomputed", "compiled"])
def test_recomputed_and_compiled_blocks_give_the_same(way):
    backbone = tiny_family("dinov3_vit", **DEEP)
    pixels = images(backbone)
    wanted = tapped_tokens(backbone, pixels, 3)
    wanted.linear.sum().backward()
    gradient = backbone.filters.grad.clone()
    backbone.zero_grad()
    if way == "recomputed":
        backbone.checkpoint_activations()
    else:
        for block in backbone.blocks:
            block._compiled_call_impl = block.forward  # as block.compile() does: later hooks are not seen
    found = tapped_tokens(backbone, pixels, 3)
    torch.testing.assert_close(found.patches, wanted.patches, atol=1e-5, rtol=1e-4)
    found.linear.sum().backward()
    torch.testing.assert_close(backbone.filters.grad, gradient, atol=1e-4, rtol=1e-3)
    if way == "compiled":
        assert all(block._compiled_call_impl is not None for block in backbone.blocks)


def test_nothing_stays_on_the_backbone():
    backbone = tiny_family("dinov3_vit", **DEEP)
    tapped_tokens(backbone, images(backbone))
    assert not any(block._forward_hooks for block in backbone.blocks)
    with pytest.raises(RuntimeError):
        tapped_tokens(backbone, torch.zeros(1, 7, 32, 32))  # an error in between
    assert not any(block._forward_hooks for block in backbone.blocks)
