import json

import numpy as np
import pytest
import torch
from PIL import Image

from openfino.images.preprocess import Preprocessing
from openfino.images.read import ImageReadError
from openfino.recipe import GivenNormalization

PLAIN = GivenNormalization(mean=[0.0] * 3, std=[1.0] * 3)


def write_image(path, height=40, width=60):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_an_image_is_resized_as_a_whole_then_normalised(tmp_path):
    pixels = write_image(tmp_path / "a.png")
    plain = Preprocessing(size=(20, 24), normalization=PLAIN, channels=["r", "g", "b"])
    loaded = plain.load([tmp_path / "a.png"])
    assert loaded.shape == (3, 20, 24)
    assert loaded.dtype == torch.float32
    # Pillow's bilinear resize is antialiased; it rounds to 8 bits after each of two passes.
    expected = Image.fromarray(pixels).resize((24, 20), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(loaded.permute(1, 2, 0).numpy() * 255, np.asarray(expected), atol=1.01)
    normalised = Preprocessing(size=(20, 24), normalization="imagenet", channels=["r", "g", "b"])
    torch.testing.assert_close(
        normalised.load([tmp_path / "a.png"])[1], (loaded[1] - 0.456) / 0.224, atol=1e-5, rtol=0
    )


def test_bit_depth_makes_no_difference(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 33, 21), dtype=np.uint8)
    np.save(tmp_path / "eight.npy", pixels)
    np.save(tmp_path / "sixteen.npy", pixels.astype(np.uint16) * 257)
    transform = Preprocessing(size=(16, 16), normalization="zscore", channels=list("abcd"))
    torch.testing.assert_close(
        transform.load([tmp_path / "eight.npy"]),
        transform.load([tmp_path / "sixteen.npy"]),
        atol=1e-4,
        rtol=0,
    )


def test_small_images_are_enlarged(tmp_path):
    np.save(tmp_path / "dot.npy", np.full((3, 5, 4), 51, np.uint8))
    transform = Preprocessing(size=(16, 8), normalization=PLAIN, channels=list("rgb"))
    torch.testing.assert_close(transform.load([tmp_path / "dot.npy"]), torch.full((3, 16, 8), 0.2))


def test_another_channel_count_is_refused(tmp_path):
    write_image(tmp_path / "a.png")
    transform = Preprocessing(size=(16, 16), normalization="zscore", channels=list("abcd"))
    with pytest.raises(ImageReadError, match=r"a.png: the image has 3 channels, the model expects 4"):
        transform.load([tmp_path / "a.png"])


@pytest.mark.parametrize("normalization", ["zscore", "imagenet", PLAIN])
def test_json_round_trip(normalization):
    transform = Preprocessing(size=(48, 32), normalization=normalization, channels=["r", "g", "b"])
    stored = json.loads(json.dumps(transform.to_json()))
    assert Preprocessing.from_json(stored) == transform
    assert stored["size"] == [48, 32]
