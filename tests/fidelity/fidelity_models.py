"""Rotary positions and whole vision transformers, loaded from a file as users do, against the authors' modules."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from comparisons import Compared, authors_recipe, component, leaf
from torch import Tensor
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

from golden_data import Case, golden_cases
from openfino.models.backbone import Backbone, Tokens
from openfino.models.formats.meta import from_meta, to_meta
from openfino.models.loading import pretrained_backbone
from openfino.models.rope import augment_coordinates, patch_coordinates, rope_periods, rotary_tables
from openfino.models.vit import DINOv3ViTModel
from openfino.recipe import RopeSettings

PARAMETERS = "params/"
DRAWS = (
    "In training theirs draws shift, jitter and rescale anew in every block and for every size of crop, ours once per "
    "forward pass (as transformers does), keyed by the step: compared with the stored draws. Ours also takes "
    "`model.rope.coords`, `shift`, `jitter`, `rescale` and the period bounds of a file."
)
BFLOAT16 = (
    "Theirs always trains with tables and rotation in bfloat16, whatever its configuration says; its hub models use "
    "float32. Ours is float32; `model.rope.dtype: bfloat16` gives theirs. A rounding of float32 in the queries decides "
    "here and there over one of bfloat16, hence the wide bound of one case."
)


def parameters_of(case: Case) -> dict[str, Tensor]:
    """The stored state dict of a case."""
    names = (name.removeprefix(f"{case.name}/") for name in case.tensors)
    return {name.removeprefix(PARAMETERS): case[name] for name in names if name.startswith(PARAMETERS)}


def inputs(name: str) -> Tensor:
    """An input that the cases of the vision transformer share."""
    return next(case for case in golden_cases("vit.safetensors") if case.name == "inputs")[name]


def loaded(case: Case, precision: torch.dtype, **rope: Any) -> Backbone:
    """Our backbone, from a training checkpoint with the case's weights."""
    hparams = case.hparams
    epsilon = 1e-5 if "norm_layer" in hparams else 1e-6  # "layernorm", their default, has the latter
    state = {f"backbone.{name}": tensor for name, tensor in parameters_of(case).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher_checkpoint.pth"
        torch.save({"teacher": {**state, "dino_head.last_layer.weight": torch.zeros(2, 2)}}, path)
        backbone, report = pretrained_backbone(str(path), layer_norm_eps=epsilon)
    assert (report.fraction, report.missing, report.unexpected) == (1.0, [], [])
    backbone.set_rope(RopeSettings(coords=hparams["pos_embed_rope_normalize_coords"], rescale=1, **rope))
    return backbone.to(precision)


def named(tokens: Tokens) -> dict[str, Tensor]:
    """Tokens under the names of the authors."""
    return {"cls": tokens.cls, "storage": tokens.registers, "patch": tokens.patches}


@component(
    "rotary positions",
    ours="models.rope.rotary_tables",
    source="DINOv3 sec. 3.2",
    cases={"rope.safetensors": ["separate_*", "min_*", "max_*", "train_*"]},
    double=True,
    deviation=DRAWS,
)
def rotary_positions(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    hparams = case.hparams
    low = hparams["dtype"] == "bfloat16"
    if dtype == torch.float64 and "sin_f64" not in case:
        return
    dtype = torch.bfloat16 if low else dtype
    bounds = (hparams["min_period"], hparams["max_period"]) if hparams["base"] is None else None
    periods = rope_periods(hparams["D_head"], hparams["base"] or 100.0, bounds, dtype)
    coordinates = patch_coordinates(hparams["H"], hparams["W"], hparams["normalize_coords"], dtype)
    drawn = {name: f"{name}_hw" if f"{name}_hw" in case else name for name in ("shift", "jitter", "rescale")}
    drawn = {name: case[stored] for name, stored in drawn.items() if stored in case}
    cosine, sine = rotary_tables(augment_coordinates(coordinates, **drawn), periods)
    wide = torch.float32 if low else dtype
    if "periods" in case:
        yield Compared("periods", periods.to(wide))
    yield Compared("cos", cosine.to(wide))
    yield Compared("sin", sine.to(wide))


@component(
    "attention with rotary positions",
    ours="models.vit.DINOv3ViTModel",
    source="DINOv3 sec. 3.2",
    cases={"rope.safetensors": ["attention_*"]},
    double=True,
    deviation="None. CLS and registers are rotated in neither.",
)
def rotary_attention(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    hparams = case.hparams
    config = DINOv3ViTConfig(
        hidden_size=hparams["dim"],
        num_attention_heads=hparams["num_heads"],
        num_hidden_layers=1,
        intermediate_size=8,
        key_bias=True,
    )
    state = to_meta(DINOv3ViTModel(config).state_dict(), config)
    state |= {f"blocks.0.attn.{name}": tensor for name, tensor in parameters_of(case).items()}
    model = DINOv3ViTModel(config).eval()
    model.load_state_dict(from_meta(state).state)
    pixels = torch.zeros(1, 3, 16 * hparams["H"], 16 * hparams["W"], dtype=dtype)
    cosine, sine = model.rope_embeddings(pixels)
    queries, keys = apply_rotary_pos_emb(case["q"].to(dtype), case["k"].to(dtype), cosine, sine)
    tokens = leaf(case, "x", dtype)
    mixed, _ = model.to(dtype).model.layer[0].attention(tokens, position_embeddings=(cosine, sine))
    mixed.square().mean().backward()
    yield Compared("cos", cosine)
    yield Compared("sin", sine)
    yield Compared("q_rot", queries)
    yield Compared("k_rot", keys)
    yield Compared("attn_out", mixed)
    yield Compared("grad_x", tokens.grad)


@component(
    "vision transformer",
    ours="models.dinov3.Dinov3Backbone",
    source="DINOv3 sec. 3.2",
    cases={"vit.safetensors": ["inputs", "mlp", "swiglu"]},
    double=True,
    deviation=(
        "None. A file of weights does not hold the epsilon of its norms: ours takes that of the released models, 1e-5; "
        "`model.layer_norm_eps: 1e-6` for models trained with `norm_layer: layernorm`, as here."
    ),
)
def vision_transformer(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    if case.name == "inputs":
        return
    backbone = loaded(case, dtype)
    for size in ("64x64", "48x80"):
        pixels, mask = inputs(f"img_{size}").to(dtype), inputs(f"mask_{size}")
        with Recorded(backbone) as recorded:
            for name, tokens in named(backbone(pixels)).items():
                yield Compared(f"{size}/nomask/{name}", tokens)
        yield Compared(f"{size}/nomask/prenorm", recorded.hidden[-1])
        for name, tokens in named(backbone(pixels, mask)).items():
            yield Compared(f"{size}/mask/{name}", tokens)
    for block in (0, 2):  # of the image of 48 x 80
        tokens = backbone.model.norm(recorded.hidden[block])
        maps = tokens[:, 1 + backbone.registers :].transpose(1, 2).unflatten(2, (3, 5))
        yield Compared(f"intermediate/{block}/patch_map", maps)
        yield Compared(f"intermediate/{block}/cls", tokens[:, 0])
        yield Compared(f"intermediate/{block}/storage", tokens[:, 1 : 1 + backbone.registers])
    yield from gradients(case, backbone, dtype)


class Recorded:
    """The hidden states after every block, while it is entered."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.hidden: list[Tensor] = []

    def __enter__(self) -> "Recorded":
        keep = self.hidden.append
        self.hooks = [
            block.register_forward_hook(lambda _block, _inputs, output: keep(output))
            for block in self.backbone.blocks
        ]
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self.hooks:
            hook.remove()


def gradients(case: Case, backbone: Backbone, dtype: torch.dtype) -> Iterator[Compared]:
    """Of the sum of tokens times the stored probe; per parameter under the authors' names."""
    pixels = inputs("img_64x64").to(dtype).requires_grad_()
    tokens = backbone(pixels, inputs("mask_64x64"))
    every = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    loss = (every * inputs("probe").to(dtype)).sum()
    backbone.zero_grad()
    loss.backward()
    ours = {name: value.grad for name, value in backbone.model.named_parameters()}
    fused = to_meta(ours, backbone.config)
    yield Compared("grad/probe_loss", loss)
    assert pixels.grad is not None
    yield Compared("grad/img_64x64_channel0", pixels.grad[:, 0])
    names = case.hparams["grad_norm_names"]
    yield Compared("grad/norms", torch.stack([fused[name].norm() for name in names]))
    for name in names:
        if f"grad/{name}" in case:
            yield Compared(f"grad/{name}", fused[name])


@component(
    "vision transformer with bfloat16 rotation",
    ours="models.rope.LowPrecisionRotation",
    source="DINOv3 sec. 3.2",
    cases={"vit.safetensors": ["mlp", "swiglu"]},
    deviation=BFLOAT16,
)
def low_precision_rotation(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    pixels, rotation = inputs("img_64x64"), authors_recipe().model.rope.dtype
    tokens = named(loaded(case, dtype, dtype=rotation)(pixels))
    exact = named(loaded(case, torch.float64, dtype=rotation)(pixels.double()))
    for name in ("cls", "patch"):
        noise = (tokens[name] - exact[name]).abs().max().item()  # of our own run: theirs stored none
        yield Compared(f"rope_bf16/64x64/{name}", tokens[name], noise=noise)


@component(
    "norms of CLS and of local crops, masked key bias",
    ours="models.vit.DINOv3ViTModel",
    source="DINOv3 sec. 3.2; dinov3.md 1.2",
    cases={"vit.safetensors": ["list_untied_kbias_4ch"]},
    double=True,
    deviation="None. Global and local crops pass one after the other in ours, as one list in theirs.",
)
def untied_norms(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    backbone = loaded(case, dtype)
    local = case["img_local"].to(dtype)
    backbone.train()
    crops = {
        "train/global": backbone(case["img_global"].to(dtype), case["mask_global"]),
        "train/local": backbone(local, local=True),
    }
    for place, tokens in crops.items():
        for name, values in named(tokens).items():
            yield Compared(f"{place}/{name}", values)
    yield Compared("eval/local/cls", backbone.eval()(local, local=True).cls)


@component(
    "RMSNorm, no biases, no registers, no layer scale",
    ours="models.vit.DINOv3ViTModel",
    source="dinov3.md 1.2",
    cases={"vit.safetensors": ["rmsnorm_nobias_nostorage"]},
    double=True,
)
def root_mean_square_norms(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    tokens = named(loaded(case, dtype)(inputs("img_48x80").to(dtype), inputs("mask_48x80")))
    for name in ("cls", "patch"):
        yield Compared(f"48x80/mask/{name}", tokens[name])
