import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model

from openfino.models.loading import pretrained_backbone
from openfino.models.store import quiet_transformers
from tiny_models import MASKABLE, VIT, tiny_family

kinds = pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers"])


def naive_embedding(backbone, pixels, masks):
    """CLS, registers and patches as they enter the first block, patch by patch."""
    parts = backbone.model.embeddings
    filters, bias = backbone.filters, parts.patch_embeddings.projection.bias
    rows, columns = (side // 8 for side in pixels.shape[-2:])
    stored = parts.position_embeddings[0]
    side = round((len(stored) - 1) ** 0.5)
    positions = stored[1:].T.reshape(1, -1, side, side)
    if (rows, columns) != (side, side):
        antialias = backbone.family == "dinov2_with_registers"
        positions = F.interpolate(positions, (rows, columns), mode="bicubic", antialias=antialias)
    out = []
    for image, mask in zip(pixels, masks, strict=True):
        tokens = [parts.cls_token[0, 0] + stored[0]]
        tokens += list(parts.register_tokens[0]) if backbone.registers else []
        for row in range(rows):
            for column in range(columns):
                patch = image[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                seen = (filters * patch).sum(dim=(1, 2, 3)) + bias
                chosen = parts.mask_token[0] if mask[row * columns + column] else seen
                tokens.append(chosen + positions[0, :, row, column])
        out.append(torch.stack(tokens))
    return torch.stack(out)


@kinds
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (16, 64)])
def test_masked_images_enter_as_defined(name, size):
    backbone = tiny_family(name).double()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    masks = torch.rand(2, size[0] * size[1] // 64, generator=generator) < 0.4
    entered = []
    backbone.blocks[0].register_forward_pre_hook(lambda _m, inputs: entered.append(inputs[0]))
    with torch.no_grad():
        tokens = backbone(pixels, masks)
        naive = naive_embedding(backbone, pixels, masks)
    torch.testing.assert_close(entered[0], naive)
    encoded = backbone.model.layernorm(backbone.model.encoder(naive).last_hidden_state)
    torch.testing.assert_close(tokens.cls, encoded[:, 0])


@kinds
@pytest.mark.parametrize("size", [(32, 32), (16, 64), (40, 24)])
def test_the_position_embeddings_learn_at_every_size(name, size):
    backbone = tiny_family(name)
    backbone(torch.randn(2, 3, *size)).patches.square().sum().backward()
    gradient = backbone.model.embeddings.position_embeddings.grad[0]
    assert gradient.abs().sum(dim=1).gt(0).all()  # CLS and every place of the grid


def test_a_checkpoint_without_a_mask_token_gets_a_zero_one(tmp_path):
    config = Dinov2Config(**VIT, mlp_ratio=2, image_size=32, use_mask_token=False)
    model = Dinov2Model(config).eval()
    with quiet_transformers():
        model.save_pretrained(tmp_path)
        backbone, report = pretrained_backbone(str(tmp_path))
    assert report.missing == ["embeddings.mask_token"]
    assert report.total - report.matched == 32
    assert backbone.model.embeddings.mask_token.abs().max() == 0
    assert backbone.config.use_mask_token
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels).cls, model(pixels).pooler_output)
    backbone(pixels, torch.ones(1, 16, dtype=torch.bool)).cls[0, 0].backward()
    assert backbone.model.embeddings.mask_token.grad.abs().max() > 0


def test_the_swiglu_of_the_largest_is_loaded(tmp_path):
    backbone = tiny_family("dinov2", use_swiglu_ffn=True)
    with quiet_transformers():
        backbone.model.save_pretrained(tmp_path)
        loaded, report = pretrained_backbone(str(tmp_path))
    assert (report.missing, report.unexpected) == ([], [])
    pixels = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).patches, backbone(pixels).patches)


def test_a_patch_size_of_two_numbers_is_read():
    for name in MASKABLE[1:]:
        backbone = tiny_family(name, patch_size=[8, 8])
        assert backbone.patch_size == 8
        assert backbone(torch.zeros(1, 3, 16, 24)).patches.shape == (1, 6, 32)
