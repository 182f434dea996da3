import copy
import json

import pytest
import torch
from transformers import AutoModel, DINOv3ViTConfig
from transformers import DINOv3ViTModel as PlainModel

from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.dinov3 import Dinov3Backbone
from openfino.models.ema import make_teacher
from openfino.models.families import FAMILIES
from openfino.models.formats.meta import to_meta
from openfino.models.loading import pretrained_backbone, random_backbone
from openfino.models.rope import LowPrecisionRotation
from openfino.models.store import load_model, quiet_transformers, save_backbone
from openfino.models.variants import Variants
from openfino.models.vit import DINOv3ViTModel
from openfino.recipe import RopeSettings
from weight_files import random_meta

PREPROCESSING = Preprocessing(size=(32, 32), normalization="imagenet", channels=["r", "g", "b"])
NORMS = {name: torch.linspace(0.5, 2, 32) for name in ("cls_norm.weight", "local_cls_norm.bias")}
OWN_NORMS = NORMS | {"cls_norm.bias": torch.ones(32), "local_cls_norm.weight": torch.ones(32)}
CHANGES = {
    "released": {},
    "norms of CLS and local crops": OWN_NORMS,
    "local norm": {name: tensor for name, tensor in OWN_NORMS.items() if name.startswith("local")},
    "rmsnorm": "no biases of norms",
    "periods": {"rope_embed.periods": torch.tensor([0.5, 1.5, 4.5, 13.5])},
}


def from_file(folder, change, **rope):
    """A backbone from a file of Meta with one of the changes."""
    state = random_meta()
    if isinstance(change, str):
        state = {name: tensor for name, tensor in state.items() if not ("norm" in name and "bias" in name)}
    else:
        state |= change
    torch.save(state, folder / "weights.pth")
    backbone, report = pretrained_backbone(str(folder / "weights.pth"))
    assert (report.fraction, report.unexpected) == (1.0, [])
    backbone.set_rope(RopeSettings(rescale=1, **rope))
    return backbone, state


def tokens(backbone, **options):
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24)
    found = backbone(pixels, **options)
    return torch.cat([found.cls[:, None], found.registers, found.patches], dim=1)


@pytest.mark.parametrize("change", CHANGES)
def test_every_variant_is_kept_through_save_load_and_copies(change, tmp_path):
    backbone, state = from_file(tmp_path, CHANGES[change], coords="max", dtype="bfloat16", shift=0.5)
    with quiet_transformers():
        save_backbone(tmp_path / "model", backbone, PREPROCESSING, {})
        loaded = load_model(tmp_path / "model").backbone
    assert Variants.of(loaded.config) == Variants.of(backbone.config)
    assert loaded.config.pos_embed_shift == 0.5
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    copied = make_teacher(copy.deepcopy(loaded))
    for mode in (False, True):
        for other in (loaded, copied):
            torch.manual_seed(0)
            expected = tokens(backbone.train(mode), local=True)
            torch.manual_seed(0)
            assert torch.equal(tokens(other.train(mode), local=True), expected)
    back = to_meta(loaded.model.state_dict(), loaded.config)
    assert back.keys() == state.keys()
    assert not [name for name in state if "periods" not in name and not torch.equal(back[name], state[name])]


def test_a_model_of_the_released_kind_is_an_ordinary_folder(tmp_path):
    backbone, _ = from_file(tmp_path, {})
    with quiet_transformers():
        save_backbone(tmp_path / "model", backbone, PREPROCESSING, {})
        opened, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "openfino" not in config
    assert config["architectures"] == ["DINOv3ViTModel"]
    assert type(opened) is PlainModel
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24)
    assert torch.equal(opened(pixels).last_hidden_state, tokens(backbone))


def test_variants_say_only_what_differs():
    plain = DINOv3ViTConfig()
    Variants().store(plain)
    assert not hasattr(plain, "openfino")
    assert Variants.of(plain) == Variants()
    assert Variants(norm="rmsnorm", rope_periods=(1.0, 9.0)).to_json() == {
        "norm": "rmsnorm",
        "rope_periods": [1.0, 9.0],
    }
    Variants(cls_norm=True).store(plain)
    assert plain.openfino == {"cls_norm": True}
    Variants().store(plain)
    assert not hasattr(plain, "openfino")


@pytest.mark.parametrize("change", ["norms of CLS and local crops", "local norm"])
def test_each_token_goes_through_its_norm(change, tmp_path):
    backbone, state = from_file(tmp_path, CHANGES[change])
    hidden = []
    backbone.model.model.register_forward_hook(lambda *given: hidden.append(given[-1].last_hidden_state))

    def normed(name):
        return torch.nn.functional.layer_norm(
            hidden[-1], (32,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5
        )

    own = "cls_norm" if "cls_norm.weight" in state else "norm"
    for training, local, prefix in (
        (True, True, "local_cls_norm"),
        (True, False, own),
        (False, True, own),
        (False, False, own),
    ):
        found = tokens(backbone.train(training), local=local)
        expected = torch.cat([normed(prefix)[:, :5], normed("norm")[:, 5:]], dim=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_without_local_crops_their_norm_still_gets_a_gradient_of_zero(tmp_path):
    backbone, _ = from_file(tmp_path, CHANGES["local norm"])
    tokens(backbone.train()).sum().backward()
    assert torch.equal(backbone.model.local_cls_norm.weight.grad, torch.zeros(32))
    backbone.zero_grad()
    tokens(backbone.train(), local=True).square().sum().backward()
    assert backbone.model.local_cls_norm.weight.grad.abs().max() > 0


def test_low_precision_rotation_is_put_in_and_taken_out():
    backbone = random_backbone({"patch_size": 8, "hidden_size": 32, "num_attention_heads": 2}, 3, seed=0)
    expected = tokens(backbone)
    parameters = {name: id(value) for name, value in backbone.named_parameters()}
    backbone.set_rope(RopeSettings(dtype="bfloat16"))
    assert all(type(block.attention) is LowPrecisionRotation for block in backbone.blocks)
    difference = (tokens(backbone) - expected).abs().max()
    assert 1e-6 < difference < 1e-2
    backbone.set_rope(RopeSettings(dtype="float32"))
    assert torch.equal(tokens(backbone), expected)
    assert {name: id(value) for name, value in backbone.named_parameters()} == parameters
    assert "openfino" not in backbone.config.to_diff_dict()


def test_low_precision_rotation_keeps_the_attention_of_transformers():
    settings = DINOv3ViTConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = DINOv3ViTModel(settings).eval()
    ours = copy.deepcopy(plain)
    Variants(rope_dtype="bfloat16").store(ours.config)
    ours.set_rotation()
    hidden = torch.randn(2, 7, 32)
    # Angles of zero: what remains is the rounding of queries and keys.
    tables = (torch.ones(6, 16), torch.zeros(6, 16))
    attend = plain.model.layer[0].attention
    with torch.no_grad():
        for projection in (attend.q_proj, attend.k_proj, ours.model.layer[0].attention.q_proj):
            projection.weight.copy_(projection.weight.bfloat16())
    expected, _ = attend(hidden, position_embeddings=tables)
    found, _ = ours.model.layer[0].attention(hidden, position_embeddings=tuple(t.bfloat16() for t in tables))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert not torch.equal(found, expected)


def test_settings_that_are_not_given_leave_the_model_as_it_is(tmp_path):
    backbone, _ = from_file(tmp_path, {}, coords="min", shift=0.25, jitter=1.5)
    before = (Variants.of(backbone.config), backbone.config.pos_embed_shift, backbone.config.pos_embed_jitter)
    assert before == (Variants(rope_coords="min"), 0.25, 1.5)
    assert backbone.config.pos_embed_rescale is None  # 1 was given
    backbone.set_rope(RopeSettings())
    after = (Variants.of(backbone.config), backbone.config.pos_embed_shift, backbone.config.pos_embed_jitter)
    assert after == before
    backbone.set_rope(RopeSettings(coords="separate", shift=0, jitter=1, rescale=3))
    assert Variants.of(backbone.config) == Variants()
    assert backbone.config.pos_embed_shift is backbone.config.pos_embed_jitter is None
    assert backbone.config.pos_embed_rescale == 3


def test_the_mask_token_reaches_masked_patches_through_every_variant(tmp_path):
    backbone, _ = from_file(tmp_path, CHANGES["norms of CLS and local crops"])
    masks = torch.zeros(2, 6, dtype=torch.bool)
    masks[:, 4] = True
    assert not torch.equal(tokens(backbone, masks=masks), tokens(backbone))


def test_only_rotary_positions_can_be_changed():
    backbone = random_backbone(
        {
            "model_type": "dinov2",
            "patch_size": 8,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "image_size": 32,
        },
        3,
        seed=0,
    )
    backbone.set_rope(RopeSettings())
    with pytest.raises(OpenfinoError, match=r"model\.rope\.jitter: only a DINOv3 vision transformer"):
        backbone.set_rope(RopeSettings(jitter=1.2))


def test_the_family_builds_the_model_that_knows_variants():
    assert FAMILIES["dinov3_vit"].model_class is DINOv3ViTModel
    assert FAMILIES["dinov3_vit"].backbone is Dinov3Backbone
