"""Which model the Gram teacher is, what it is shown, and when it changes."""

import math
from dataclasses import replace

import pytest
import torch
from test_step import IMAGES, make_piece

from openfino.models.ema import make_teacher
from openfino.models.loading import random_backbone
from openfino.objectives.objective import build_objective
from openfino.recipe import GramSettings, build_recipe
from openfino.training.gram import GramTeacher, resize_patches
from openfino.training.step import Student, encode_views, teacher_targets
from tiny_runs import tiny_settings


def cubic(distance):
    """Keys' kernel with a = -0.75, as PyTorch has it."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def taps(place, count, target):
    """Weights of the places of one axis for a place of the target; beyond the border the border repeats."""
    centre = (place + 0.5) * count / target - 0.5
    first = math.floor(centre) - 1
    weights = [0.0] * count
    for tap in range(first, first + 4):
        weights[min(max(tap, 0), count - 1)] += cubic(centre - tap)
    return weights


@pytest.mark.parametrize(("grid", "target"), [((4, 6), (2, 3)), ((3, 2), (5, 7)), ((5, 4), (3, 6))])
def test_features_are_resized_as_maps(grid, target):
    patches = torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0)).double()
    found = resize_patches(patches, grid, target)
    maps = patches.view(2, *grid, 3)
    for row in range(target[0]):
        for column in range(target[1]):
            down, across = taps(row, grid[0], target[0]), taps(column, grid[1], target[1])
            wanted = sum(down[y] * across[x] * maps[:, y, x] for y in range(grid[0]) for x in range(grid[1]))
            torch.testing.assert_close(found[:, row * target[1] + column], wanted, rtol=0, atol=1e-6)


def test_the_same_grid_is_left_alone():
    patches = torch.randn(2, 12, 3)
    assert resize_patches(patches, (3, 4), (3, 4)) is patches


def averaged_teacher(tiny_config, **gram):
    recipe = build_recipe(tiny_settings("m.csv", "out", factors={}, objective={"gram": gram}))
    torch.manual_seed(0)
    student = Student(random_backbone(tiny_config, 3, seed=0), recipe.objective)
    return make_teacher(student), build_objective(recipe, {}, 32)


def targets_of(teacher, objective, gram, piece):
    return teacher_targets(teacher, [piece], 0.07, objective.centering, gram)[0]


def with_gram_views(step=0, size=64):
    piece = make_piece(2, step)
    views = torch.randn(2, IMAGES, 3, size, size, generator=torch.Generator().manual_seed(3))
    return replace(piece, gram_views=views)


def count_calls(backbone):
    calls = []
    backbone.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_averaged_teacher_is_asked_once_for_both(tiny_config):
    teacher, objective = averaged_teacher(tiny_config, weight=2.0)
    gram = GramTeacher(GramSettings(weight=2.0, teacher="ema"), None)
    piece = make_piece(2)
    calls = count_calls(teacher.backbone)
    found = targets_of(teacher, objective, gram, piece).gram_patches
    assert len(calls) == 1
    with torch.no_grad():
        assert torch.equal(found, encode_views(teacher.backbone, piece.global_views).patches)
    assert gram.state_dict() == {}


@pytest.mark.parametrize("step", [0, 4, 5])
def test_a_step_without_weight_asks_nobody(tiny_config, step):
    teacher, objective = averaged_teacher(tiny_config, weight=2.0)
    gram = GramTeacher(GramSettings(weight=2.0, start_step=5), teacher.backbone)
    calls = count_calls(gram.backbone)
    found = targets_of(teacher, objective, gram, make_piece(2, step)).gram_patches
    assert (found is None, len(calls)) == ((True, 0) if step < 5 else (False, 1))


def test_other_targets_do_not_depend_on_it(tiny_config):
    teacher, objective = averaged_teacher(tiny_config, weight=2.0)
    gram = GramTeacher(GramSettings(weight=2.0), random_backbone(tiny_config, 3, seed=9))
    plain, found = (targets_of(teacher, objective, one, make_piece(2)) for one in (None, gram))
    for name in ("probs", "masked_probs", "cls"):
        assert torch.equal(getattr(plain, name), getattr(found, name)), name
    assert plain.gram_patches is None


@pytest.mark.parametrize(("patch", "size", "width"), [(8, 64, 32), (16, 64, 32), (16, 96, 48), (8, 24, 16)])
def test_another_width_grid_and_crop_are_brought_onto_the_student_s_patches(tiny_config, patch, size, width):
    teacher, objective = averaged_teacher(tiny_config, weight=2.0)
    config = {**tiny_config, "patch_size": patch, "hidden_size": width}
    gram = GramTeacher(GramSettings(weight=2.0, crop_size=size), random_backbone(config, 3, seed=9))
    piece = with_gram_views(size=size)
    found = targets_of(teacher, objective, gram, piece).gram_patches
    assert found.shape == (2, IMAGES, 16, width)
    with torch.no_grad():
        seen = gram.backbone(piece.gram_views[1]).patches
    side = size // patch
    wanted = resize_patches(seen, (side, side), (4, 4))
    torch.testing.assert_close(found[1], wanted, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_an_averaged_teacher_may_look_closer(tiny_config):
    teacher, objective = averaged_teacher(tiny_config, weight=2.0)
    gram = GramTeacher(GramSettings(weight=2.0, teacher="ema", crop_size=64), None)
    piece = with_gram_views()
    calls = count_calls(teacher.backbone)
    found = targets_of(teacher, objective, gram, piece).gram_patches
    assert len(calls) == 2
    with torch.no_grad():
        seen = encode_views(teacher.backbone, piece.gram_views).patches.flatten(0, 1)
    torch.testing.assert_close(found.flatten(0, 1), resize_patches(seen, (8, 8), (4, 4)))


def weights_of(module):
    return torch.cat([value.flatten() for value in module.parameters()])


def test_frozen_until_a_refresh_and_again_after_it(tiny_config):
    settings = GramSettings(weight=2.0, refresh_every=2, first_refresh=3, max_refreshes=1)
    averaged = random_backbone({**tiny_config, "hidden_size": 16}, 3, seed=1)
    first = random_backbone(tiny_config, 3, seed=0).train()
    gram = GramTeacher(settings, first)
    assert not gram.backbone.training
    before = weights_of(first).clone()
    refreshed = []
    for step in range(8):
        with torch.no_grad():
            for parameter in (*averaged.parameters(), *first.parameters()):
                parameter += 1.0
        refreshed.append(gram.after_step(step, averaged))
        if not any(refreshed):
            assert torch.equal(weights_of(gram.backbone), before)
        elif refreshed[-1]:
            copied = weights_of(averaged).clone()
        if any(refreshed):
            assert torch.equal(weights_of(gram.backbone), copied)
    assert [step for step, made in enumerate(refreshed) if made] == [3]
    assert not any(parameter.requires_grad for parameter in gram.backbone.parameters())


@pytest.mark.filterwarnings("ignore:.*jit.script_method:DeprecationWarning")  # of the compiler's own modules
def test_a_copy_of_compiled_blocks_is_compiled_for_itself(tiny_config):
    """The compiled blocks of a copy are its own: they do not follow the teacher that they were copied from."""
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    averaged = random_backbone(tiny_config, 3, seed=1).eval()
    averaged.compile_blocks()
    gram = GramTeacher(GramSettings(weight=2.0, refresh_every=1), random_backbone(tiny_config, 3, seed=0))
    gram.compile_blocks()
    # What is called is the compiled block; the compiler itself is not needed.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = averaged(pixels).patches
        assert not torch.equal(gram.backbone(pixels).patches, expected)
        assert gram.after_step(1, averaged)
        for parameter in averaged.parameters():
            parameter += 1.0
        assert torch.equal(gram.backbone(pixels).patches, expected)
        assert not torch.equal(averaged(pixels).patches, expected)
    blocks = gram.backbone.blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    own = {id(parameter) for parameter in gram.backbone.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in averaged.parameters())


@pytest.mark.parametrize("step", [2, 4])
def test_its_weights_come_back_before_and_after_a_refresh(tiny_config, step):
    """After a refresh they have the averaged teacher's shapes, whatever the first Gram teacher was."""
    settings = GramSettings(weight=2.0, refresh_every=3)
    averaged = random_backbone({**tiny_config, "hidden_size": 16}, 3, seed=1)
    gram, again = (GramTeacher(settings, random_backbone(tiny_config, 3, seed=seed)) for seed in (0, 8))
    for done in range(step):
        gram.after_step(done, averaged)
    saved = {name: value.clone() for name, value in gram.state_dict().items()}
    with torch.no_grad():
        for parameter in averaged.parameters():
            parameter += 1.0
    again.load_state_dict(saved, step, averaged)
    assert torch.equal(weights_of(again.backbone), weights_of(gram.backbone))
    assert not again.backbone.training
