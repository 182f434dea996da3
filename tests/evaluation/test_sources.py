import numpy as np
import pytest
import torch

from openfino.evaluation.sources import ArraySource, FeatureSource


def test_an_array_source_gives_its_parts_by_position():
    generator = np.random.default_rng(0)
    linear = generator.normal(size=(5, 2 * 3 + 3)).astype(np.float32)
    patches = generator.normal(size=(5, 4, 6)).astype(np.float32)
    source: FeatureSource = ArraySource(np.array([3, 1, 7, 9, 2]), linear, patches, layers=2)
    asked = [4, 0, 4]
    assert torch.equal(source.take(asked, "linear"), torch.from_numpy(linear[asked]))
    assert torch.equal(source.take(np.array(asked), "patches"), torch.from_numpy(patches[asked]))
    assert source.take([], "patches").shape == (0, 4, 6)
    assert (source.cls() == linear[:, 3:6]).all()  # of the later of the two blocks
    source.take([0], "linear").zero_()
    assert linear[0].any()  # a batch is a copy


def test_half_precision_comes_out_as_float32():
    source = ArraySource(np.arange(2), np.ones((2, 10), dtype=np.float16), layers=4)
    assert source.take([0], "linear").dtype == torch.float32
    assert source.cls().dtype == np.float32
    with pytest.raises(ValueError, match="no patch tokens"):
        source.take([0], "patches")
