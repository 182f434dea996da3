import copy

import pytest
import torch

from openfino.models.loading import random_backbone
from openfino.objectives.objective import build_objective
from openfino.recipe import build_recipe
from openfino.training.step import Piece, Student, TrainableModel, teacher_targets
from tiny_runs import tiny_settings

IMAGES = 4


def make_model(tiny_config, drop_path):
    """A model in training, the same each time."""
    recipe = build_recipe(tiny_settings("m.csv", "out", factors={}))
    backbone = random_backbone(tiny_config, 3, seed=0)
    backbone.install_drop_path(drop_path)
    torch.manual_seed(0)
    student = Student(backbone, recipe.objective)
    objective = build_objective(recipe, {}, backbone.embed_dim)
    return TrainableModel(student, objective, seed=0).train()


def make_piece(local_count, step=0):
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(2, IMAGES, 16, generator=generator) < 0.3
    return Piece(
        step=step,
        global_views=torch.randn(2, IMAGES, 3, 32, 32, generator=generator),
        local_views=torch.randn(local_count, IMAGES, 3, 16, 16, generator=generator),
        masks=masks,
        masked=masks.flatten().nonzero().squeeze(1),
        factors={},
        slots=torch.arange(IMAGES),
        batch_size=IMAGES,
        valid_counts={},
    )


def gradients(model, piece):
    teacher = copy.deepcopy(model.student).eval()
    targets = teacher_targets(teacher, [piece], temperature=0.07, centering=model.objective.centering)
    total, _ = model(piece, targets[0])
    total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("local_count", [2, 3])
def test_recomputed_blocks_see_the_draws_of_their_own_pass(tiny_config, local_count):
    """Two local crops: as many rows as the global pass has, so that wrong draws would fit."""
    kept, recomputed = (make_model(tiny_config, drop_path=0.3) for _ in range(2))
    recomputed.student.backbone.checkpoint_activations()
    piece = make_piece(local_count)
    runs = []
    for model in (kept, recomputed):
        mlp = model.student.backbone.model.model.layer[1].mlp
        mlp.register_forward_hook(lambda *_, model=model: runs.append(model))
    expected, found = gradients(kept, piece), gradients(recomputed, piece)
    # Once more in each of the two passes; the teacher is a copy with the same hook.
    assert runs.count(recomputed) == runs.count(kept) + 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    block = "student.backbone.model.model.layer.0.attention.q_proj.weight"
    assert expected[block].abs().sum() > 0
