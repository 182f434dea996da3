import math

import pytest
import torch
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

from openfino.errors import OpenfinoError
from openfino.models.rope import (
    RotaryPositions,
    augment_coordinates,
    draw_augmentation,
    patch_coordinates,
    periods_of,
    rope_periods,
    rotary_tables,
)
from openfino.models.variants import Variants

CPU = torch.device("cpu")


def config(head=16, **settings):
    return DINOv3ViTConfig(hidden_size=2 * head, num_attention_heads=2, **{"patch_size": 8, **settings})


def naive_tables(rows, columns, head, base=100.0, over="separate", shift=(0, 0), factor=(1, 1)):
    """One cosine and sine at a time, from dinov3.md 1.3."""
    divisors = {"separate": (rows, columns), "min": [min(rows, columns)] * 2, "max": [max(rows, columns)] * 2}
    cosine, sine = [], []
    for row in range(rows):
        for column in range(columns):
            angles = []
            for axis, place in enumerate((row, column)):
                centre = 2 * (place + 0.5) / divisors[over][axis] - 1
                centre = (centre + shift[axis]) * factor[axis]
                angles += [2 * math.pi * centre / base ** (2 * k / (head / 2)) for k in range(head // 4)]
            cosine.append([math.cos(angle) for angle in angles * 2])
            sine.append([math.sin(angle) for angle in angles * 2])
    return torch.tensor(cosine, dtype=torch.float64), torch.tensor(sine, dtype=torch.float64)


@pytest.mark.parametrize("over", ["separate", "min", "max"])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (4, 4), (6, 1)])
def test_tables_follow_the_definition(over, rows, columns):
    coordinates = patch_coordinates(rows, columns, over, torch.float64)
    shift, jitter, rescale = torch.tensor([0.25, -0.5]), torch.tensor([1.5, 0.5]), torch.tensor([2.0])
    moved = augment_coordinates(coordinates, shift, jitter, rescale)
    cosine, sine = rotary_tables(moved, rope_periods(24, 50.0, dtype=torch.float64))
    expected = naive_tables(rows, columns, 24, 50.0, over, (0.25, -0.5), (3.0, 1.0))
    torch.testing.assert_close(cosine, expected[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(sine, expected[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("head", [16, 64, 128])
@pytest.mark.parametrize("size", [(24, 40), (224, 224), (8, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_the_released_kind_has_transformers_values_to_the_last_bit(head, size, dtype):
    settings = config(head)
    pixels = torch.zeros(1, 3, *size, dtype=dtype)
    theirs = DINOv3ViTRopePositionEmbedding(settings).eval()(pixels)
    ours = RotaryPositions(settings).eval()(pixels)
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))


def test_training_draws_what_transformers_draws_on_the_cpu():
    settings = config(pos_embed_shift=0.3, pos_embed_jitter=1.5, pos_embed_rescale=2.0)
    pixels = torch.zeros(1, 3, 24, 40)
    tables = []
    for module in (DINOv3ViTRopePositionEmbedding(settings), RotaryPositions(settings)):
        torch.manual_seed(4)
        tables.append(module.train()(pixels))
    for own, other in zip(*tables, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
    assert not torch.equal(tables[1][0], RotaryPositions(settings).eval()(pixels)[0])


def test_draws_depend_on_the_seed_and_stay_within_their_ranges():
    torch.manual_seed(0)
    drawn = [draw_augmentation(0.3, 1.5, 2.0, CPU) for _ in range(300)]
    stacked = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    assert stacked["shift"].shape == stacked["jitter"].shape == (300, 2)
    assert stacked["rescale"].shape == (300, 1)
    for name, low, high in (("shift", -0.3, 0.3), ("jitter", 2 / 3, 1.5), ("rescale", 0.5, 2.0)):
        values = stacked[name]
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high >= values.max() > high - 0.1 * (high - low)
    assert abs(stacked["rescale"].log().mean()) < 0.1  # log-uniform
    torch.manual_seed(0)
    again = draw_augmentation(0.3, 1.5, 2.0, CPU)
    assert all(torch.equal(again[name], drawn[0][name]) for name in again)
    assert draw_augmentation(None, None, None, CPU) == {}


def test_evaluation_draws_nothing():
    settings = config(pos_embed_rescale=2.0)
    pixels = torch.zeros(1, 3, 24, 40)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    first, second = (RotaryPositions(settings).eval()(pixels)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(1), before)


def test_what_the_variants_say_reaches_the_tables():
    variants = Variants(rope_coords="max", rope_periods=(0.5, 90.0))
    settings = config(24, **variants.as_config())
    pixels = torch.zeros(1, 3, 24, 40, dtype=torch.float64)
    cosine, _ = RotaryPositions(settings).eval()(pixels)
    periods = torch.tensor([0.5 * 180 ** (k / 5) for k in range(6)], dtype=torch.float64)
    expected, _ = rotary_tables(patch_coordinates(3, 5, "max", torch.float64), periods)
    torch.testing.assert_close(cosine, expected)
    low = config(24, **Variants(rope_dtype="bfloat16").as_config())
    tables = RotaryPositions(low).eval()(torch.zeros(1, 3, 24, 40))
    assert {table.dtype for table in tables} == {torch.bfloat16}


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("base", "bounds"),
    [(100.0, None), (10_000.0, None), (42.0, None), (100.0, (0.5, 90.0)), (100.0, (2.0, 3.0))],
)
def test_periods_are_recognised(base, bounds, rounded):
    periods = rope_periods(64, base, bounds)
    found_base, found = periods_of(periods.bfloat16() if rounded else periods)
    tolerance = 0.01 if rounded else 1e-4
    assert found_base == pytest.approx(base, rel=tolerance)
    assert found == (None if bounds is None else pytest.approx(bounds, rel=tolerance))


@pytest.mark.parametrize(
    "values", [[1.0, 5.0, 6.0, 7.0], [-1.0, 2.0, 4.0, 8.0], [1.0, 3.0, float("nan"), 27.0]]
)
def test_other_periods_are_refused(values):
    with pytest.raises(OpenfinoError, match="not the periods of a DINOv3 model"):
        periods_of(torch.tensor(values))


def test_one_export_serves_every_size():
    module = RotaryPositions(config()).eval()
    sizes = {2: 8 * torch.export.Dim("rows", max=64), 3: 8 * torch.export.Dim("columns", max=64)}
    program = torch.export.export(module, (torch.zeros(1, 3, 24, 40),), dynamic_shapes=(sizes,)).module()
    for size in ((24, 40), (64, 16), (136, 136)):
        pixels = torch.zeros(1, 3, *size)
        assert all(
            torch.equal(own, other) for own, other in zip(program(pixels), module(pixels), strict=True)
        )


@pytest.mark.parametrize("over", ["min", "max"])
def test_the_shared_divisors_are_exported_too(over):
    module = RotaryPositions(config(**Variants(rope_coords=over).as_config())).eval()
    sizes = {2: 8 * torch.export.Dim("rows", max=64), 3: 8 * torch.export.Dim("columns", max=64)}
    program = torch.export.export(module, (torch.zeros(1, 3, 24, 40),), dynamic_shapes=(sizes,)).module()
    for size in ((24, 40), (64, 16)):
        pixels = torch.zeros(1, 3, *size)
        torch.testing.assert_close(program(pixels), module(pixels))
