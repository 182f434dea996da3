"""Crops for a Gram teacher: the regions of the global crops, and no other draw changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loader import VIEWS, loader, tensors, write_images

from openfino.images.loader import finish_gram_views, finish_views
from openfino.images.normalize import normalize
from openfino.recipe import GramSettings

LARGE = (64, 96)  # twice the global crops
GRAM = GramSettings(weight=2.0, crop_size=LARGE)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(params=["natural", "overhead"])
def views(request):
    return VIEWS.model_copy(update={"preset": request.param})


def test_no_other_draw_changes(images, views):
    plain = list(loader(images, views))
    with_crops = list(loader(images, views, gram=GRAM))
    for one, other in zip(plain, with_crops, strict=True):
        assert one.gram_crops is None
        assert other.gram_crops.shape == (2, 6, 3, *LARGE)
        assert other.gram_crops.dtype == torch.uint8
        named = tensors(other)
        for name, values in tensors(one).items():
            assert torch.equal(values, named[name]), name


def test_the_same_region_turned_alike(images, views):
    """Cut at the size of the global crops they are those very crops; larger ones shrink to nearly the same."""
    same = GramSettings(weight=2.0, crop_size=VIEWS.global_size)
    for batch in loader(images, views, gram=same):
        assert torch.equal(batch.gram_crops, batch.global_crops)
    for batch in loader(images, views, gram=GRAM):
        large = batch.gram_crops.flatten(0, 1).float()
        small = torch.nn.functional.interpolate(large, VIEWS.global_size, mode="bicubic", antialias=True)
        wanted = batch.global_crops.flatten(0, 1).float()
        apart = (small - wanted).abs().mean(dim=(1, 2, 3))
        turned = (small.flip(3) - wanted).abs().mean(dim=(1, 2, 3))
        sharp = torch.from_numpy(np.tile(batch.rows.numpy() != 0, 2))  # image 0 is smaller than every crop
        assert (apart < 0.5 * turned)[sharp].all()


def test_only_at_steps_at_which_the_term_has_a_weight(images):
    late = GramSettings(weight=2.0, crop_size=LARGE, start_step=1, ramp_steps=2)
    assert [batch.gram_crops is not None for batch in loader(images, gram=late)] == [
        False,
        False,
        True,
        True,
    ]
    own = GramSettings(weight=2.0)
    assert all(batch.gram_crops is None for batch in loader(images, gram=own))


def test_ranks_and_pieces_share_them(images):
    whole = next(iter(loader(images, gram=GRAM)))
    parts = [next(iter(loader(images, gram=GRAM, rank=rank, world_size=2))) for rank in range(2)]
    assert torch.equal(torch.cat([part.gram_crops for part in parts], dim=1), whole.gram_crops)
    for rank, part in enumerate(parts):
        assert torch.equal(whole.slice(3 * rank, 3 * rank + 3).gram_crops, part.gram_crops)
    assert whole.to("cpu").gram_crops is not None


def test_workers_send_them(images):
    here, there = (list(loader(images, gram=GRAM, workers=workers, stop_step=2)) for workers in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.gram_crops, other.gram_crops)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_they_are_normalised_and_not_distorted(tmp_path, dtype):
    batch = next(iter(loader(write_images(tmp_path, dtype=dtype), gram=GRAM)))
    scale = 255 if dtype == np.uint8 else 1
    found = finish_gram_views(batch, "imagenet")
    torch.testing.assert_close(found, normalize(batch.gram_crops.float() / scale, "imagenet"))
    # Same pixels in, but the global ones went through photometric operations.
    same = replace(batch, gram_crops=batch.global_crops)
    distorted = finish_views(same, VIEWS, "imagenet")[0]
    assert not torch.allclose(finish_gram_views(same, "imagenet"), distorted, atol=0.05)
    assert finish_gram_views(replace(batch, gram_crops=None), "imagenet") is None
