import json

import pytest

from openfino.models.pretraining import default_preprocessing, pretraining_normalization
from openfino.models.store import load_model, quiet_transformers, source_normalization
from tiny_models import TINY_FAMILIES, tiny_family

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write(folder, name="dinov2", channels=3, processor=None):
    with quiet_transformers():
        tiny_family(name, channels).model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def plain(normalization):
    return normalization if isinstance(normalization, str) else normalization.model_dump()


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_without_a_file_the_family_says(name, tmp_path):
    folder = write(tmp_path, name)
    preprocessing = load_model(folder).preprocessing
    assert preprocessing.size == ((64, 64) if name == "dinov3_convnext" else (32, 32))
    assert plain(preprocessing.normalization) == (HALF if name.startswith("siglip") else "imagenet")
    assert preprocessing.channels == ["red", "green", "blue"]
    assert pretraining_normalization(str(folder)) == preprocessing.normalization


@pytest.mark.parametrize("name", ["dinov2", "siglip_vision_model"])
def test_other_channels_are_z_scored(name, tmp_path):
    folder = write(tmp_path, name, 4, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    preprocessing = load_model(folder).preprocessing
    assert (preprocessing.normalization, len(preprocessing.channels)) == ("zscore", 4)
    assert source_normalization(folder) == "zscore"


@pytest.mark.parametrize(
    ("processor", "size", "normalization"),
    [
        # As DINOv2, SigLIP 2 and DINOv3 are released.
        (
            {
                "crop_size": {"height": 24, "width": 16},
                "do_center_crop": True,
                "size": {"shortest_edge": 40},
                **IMAGENET,
            },
            (24, 16),
            "imagenet",
        ),
        (
            {"size": {"height": 48, "width": 40}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            (48, 40),
            HALF,
        ),
        ({"do_center_crop": False, "crop_size": 8, "size": {"shortest_edge": 40}}, (40, 40), "imagenet"),
        ({"size": 56, "image_mean": [0.1, 0.2, 0.3], "image_std": [1.0] * 3}, (56, 56), None),
        ({"do_normalize": False, **IMAGENET}, (32, 32), {"mean": [0.0] * 3, "std": [1.0] * 3}),
        ({"size": {"longest_edge": 9}, "image_mean": None}, (32, 32), "imagenet"),
        ([1], (32, 32), "imagenet"),
    ],
)
def test_the_file_beside_the_weights_counts_first(processor, size, normalization, tmp_path):
    preprocessing = load_model(write(tmp_path, processor=processor)).preprocessing
    assert preprocessing.size == size
    expected = normalization or {"mean": [0.1, 0.2, 0.3], "std": [1.0] * 3}
    assert plain(preprocessing.normalization) == expected


def test_a_broken_file_is_passed_over(tmp_path):
    folder = write(tmp_path)
    (folder / "preprocessor_config.json").write_text("{")
    assert default_preprocessing(load_model(folder).backbone, str(folder)).normalization == "imagenet"
