import pytest
import torch

from openfino.models.channels import expand_channels, expand_filters
from openfino.models.loading import random_backbone


def naive(filters, channels):
    dim, old, height, width = filters.shape
    out = torch.zeros(dim, channels, height, width, dtype=filters.dtype)
    for unit in range(dim):
        mean = sum(filters[unit, c] for c in range(old)) / old
        for c in range(channels):
            source = filters[unit, c] if c < old and channels > old else mean
            out[unit, c] = source * old / channels
    return out


@pytest.mark.parametrize(("old", "new"), [(3, 4), (3, 5), (1, 3), (3, 1), (3, 2), (4, 3)])
def test_expansion_matches_the_definition(old, new):
    filters = torch.randn(6, old, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(expand_filters(filters, new), naive(filters, new))


@pytest.mark.parametrize("new", [1, 2, 4, 7])
def test_the_response_to_a_grey_image_stays(new):
    filters = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    patch = torch.randn(4, 4, dtype=torch.float64)
    before = (filters * patch).sum(dim=(1, 2, 3))
    after = (expand_filters(filters, new) * patch).sum(dim=(1, 2, 3))
    torch.testing.assert_close(before, after)


def test_the_same_count_is_a_copy():
    filters = torch.randn(2, 3, 4, 4)
    assert torch.equal(expand_filters(filters, 3), filters)


def test_what_is_no_patch_filter_is_refused():
    with pytest.raises(ValueError, match="cannot expand"):
        expand_filters(torch.randn(2, 3, 4), 4)
    with pytest.raises(ValueError, match="cannot expand"):
        expand_filters(torch.randn(2, 3, 4, 4), 0)


def test_a_model_is_expanded_with_its_configuration(tiny_config):
    backbone = random_backbone(tiny_config, 3, seed=0)
    bias = backbone.model.embeddings.patch_embeddings.bias.clone()
    expand_channels(backbone, 5)
    assert backbone.channels == 5
    assert torch.equal(backbone.model.embeddings.patch_embeddings.bias, bias)
    assert backbone(torch.randn(2, 5, 32, 32)).cls.shape == (2, 32)


@pytest.mark.parametrize("new", [2, 4])
def test_filters_may_keep_their_size(new):
    filters = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    expanded = expand_filters(filters, new, keep_grey_response=False)
    torch.testing.assert_close(expanded * 3 / new, expand_filters(filters, new))
    if new > 3:
        assert torch.equal(expanded[:, :3], filters)
