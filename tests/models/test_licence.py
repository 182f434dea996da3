import json

import pytest
from transformers import DINOv3ViTConfig

from openfino.models.licence import Parent, card_header, licence_of, parent_of


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3-license"),
        ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", "dinov3-license"),
        ("timm/vit_small_patch16_dinov3.lvd1689m", "dinov3-license"),
        ("/data/weights/dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "dinov3-license"),
        ("/cache/models--facebook--dinov3-vits16-pretrain-lvd1689m/snapshots/0a1b", "dinov3-license"),
        ("facebook/dinov2-small", "apache-2.0"),
        ("C:\\models\\facebook\\dinov2-with-registers-base", "apache-2.0"),
        ("google/siglip2-base-patch16-224", "apache-2.0"),
        ("/cache/models--google--siglip2-base-patch16-naflex/snapshots/0a1b", "apache-2.0"),
        ("someone/dinov2-like", "unknown"),
        ("my/own-dinov3", "unknown"),
        (None, None),
    ],
)
def test_known_names(source, licence):
    assert licence_of(source) == licence


def write_card(folder, header):
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# Model\n\nlicense: mit\n")


def test_what_a_folder_says_of_itself_counts_first(tmp_path):
    folder = tmp_path / "dinov3-vits16-pretrain-lvd1689m"
    write_card(folder, "license: cc-by-4.0")
    assert licence_of(folder) == licence_of(str(folder)) == "cc-by-4.0"
    write_card(folder, "license: other\nlicense_name: my-licence")
    assert licence_of(folder) == "my-licence"
    write_card(folder, "license: [mit, apache-2.0]")
    assert licence_of(folder) == "mit, apache-2.0"
    write_card(folder, "license: other")
    assert licence_of(folder) == "unknown"


@pytest.mark.parametrize("header", ["tags: [x]", "license: [unclosed", "- a list", ""])
def test_a_card_that_names_no_licence_leaves_the_question_to_the_name(tmp_path, header):
    write_card(tmp_path / "dinov3-vits16-pretrain-lvd1689m", header)
    assert licence_of(tmp_path / "dinov3-vits16-pretrain-lvd1689m") == "dinov3-license"


def test_the_text_of_a_card_is_no_header(tmp_path):
    (tmp_path / "README.md").write_text("# Model\n---\nlicense: mit\n---\n")
    assert card_header(tmp_path / "README.md") == {}
    assert licence_of(tmp_path) == "unknown"


@pytest.mark.parametrize("inner", [".", "model", "best"])
@pytest.mark.parametrize("licence", ["dinov3-license", None])
def test_a_run_hands_its_parents_licence_on(tmp_path, inner, licence):
    provenance = {"parent": {"source": "facebook/dinov3-x", "licence": licence}}
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / inner / "openfino.json").write_text(json.dumps({"provenance": provenance}))
    assert licence_of(tmp_path) == licence


def test_the_configuration_may_know_where_a_folder_came_from(tmp_path):
    config = DINOv3ViTConfig(hidden_size=32)
    assert licence_of(tmp_path, config) == "unknown"
    config._name_or_path = "facebook/dinov2-small"
    assert licence_of(tmp_path, config) == "apache-2.0"
    assert licence_of(None, config) is None


def test_the_parent_is_the_one_recorded_else_the_model_itself():
    recorded = {"source": "x", "parent": {"source": "facebook/dinov2-base", "licence": "mit"}}
    assert parent_of(recorded) == Parent("facebook/dinov2-base", "mit")
    assert parent_of({"parent": {"source": "facebook/dinov2-base"}}).licence == "apache-2.0"
    assert parent_of({"parent": {"source": None, "licence": None}}) == Parent(None, None)
    assert parent_of({"source": "facebook/dinov3-vits16"}) == Parent(
        "facebook/dinov3-vits16", "dinov3-license"
    )
    assert parent_of({}) == Parent(None, "unknown")
