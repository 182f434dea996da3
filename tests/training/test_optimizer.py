import pytest
import torch

from openfino.models.head import ProjectionHead
from openfino.models.loading import random_backbone
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.objective import Objective
from openfino.recipe import GuidanceSettings, HeadSettings, TrainSettings
from openfino.training.optimizer import (
    backbone_groups,
    build_optimizer,
    freeze_for_stage,
    gradient_norm,
    set_rates,
)
from openfino.training.schedules import Rates


@pytest.fixture
def backbone(tiny_config):
    return random_backbone({**tiny_config, "num_hidden_layers": 3}, 3, seed=0)


def test_rates_decay_with_depth(backbone):
    groups = backbone_groups(backbone, TrainSettings(layer_decay=0.9, patch_embedding_lr=0.2))
    multiplier = {name.removeprefix("model."): key.lr_multiplier for name, key in groups.items()}
    assert multiplier["embeddings.cls_token"] == pytest.approx(0.9**4)
    assert multiplier["embeddings.patch_embeddings.weight"] == pytest.approx(0.9**4 * 0.2)
    assert multiplier["model.layer.0.mlp.up_proj.weight"] == pytest.approx(0.9**3)
    assert multiplier["model.layer.2.mlp.up_proj.weight"] == pytest.approx(0.9)
    assert multiplier["norm.weight"] == 1.0


def test_norms_biases_scales_and_tokens_do_not_decay(backbone):
    groups = backbone_groups(backbone, TrainSettings())
    decaying = {name for name, key in groups.items() if key.decays}
    assert decaying
    assert all(name.endswith("weight") and "norm" not in name for name in decaying)
    for token in ("cls_token", "register_tokens", "mask_token"):
        assert not groups[f"model.embeddings.{token}"].decays


def test_every_parameter_is_in_one_group(backbone):
    head = ProjectionHead(32, HeadSettings(prototypes=8, hidden=8, bottleneck=4))
    optimizer = build_optimizer({"backbone": backbone, "head": head}, TrainSettings())
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wanted = [*backbone.parameters(), *head.parameters()]
    assert len(listed) == len(wanted)
    assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in wanted}


def test_rates_of_a_stage(backbone):
    head = ProjectionHead(32, HeadSettings(prototypes=8, hidden=8, bottleneck=4))
    optimizer = build_optimizer({"backbone": backbone, "head": head}, TrainSettings(layer_decay=1.0))
    set_rates(optimizer, Rates(lr=1.0, weight_decay=0.04, backbone=0.0, last_layer_frozen=True))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(backbone.model.norm.weight)] == 0.0
    assert rates[id(backbone.model.embeddings.patch_embeddings.weight)] == pytest.approx(0.2)
    assert rates[id(head.last_layer.weight)] == 0.0
    assert rates[id(head.mlp[0].weight)] == 1.0
    set_rates(optimizer, Rates(lr=1.0, weight_decay=0.04, backbone=0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(backbone.model.norm.weight)] == 0.5
    assert rates[id(head.last_layer.weight)] == 1.0


def test_a_factor_called_last_layer_does_not_stand_still_with_the_prototypes():
    factor = GuidedFactor("last_layer", "informative", "continuous", 1)
    settings = GuidanceSettings(regressor_hidden=[4])
    guidance = Guidance({"last_layer": factor}, 4, settings, seed=0, unfreeze_step=0, total_steps=1)
    optimizer = build_optimizer({"objective": Objective([guidance])}, TrainSettings())
    set_rates(optimizer, Rates(lr=1.0, weight_decay=0.04, last_layer_frozen=True))
    assert {group["lr"] for group in optimizer.param_groups} == {1.0}


def trainable(backbone):
    return {name.removeprefix("model.") for name, p in backbone.named_parameters() if p.requires_grad}


def test_stage_one_trains_the_patch_embedding_alone(backbone):
    freeze_for_stage(backbone, TrainSettings(), stage_one=True)
    assert trainable(backbone) == {"embeddings.patch_embeddings.weight", "embeddings.patch_embeddings.bias"}
    freeze_for_stage(backbone, TrainSettings(), stage_one=False)
    assert len(trainable(backbone)) == len(list(backbone.parameters()))


def test_only_the_last_blocks_unfreeze_when_asked(backbone):
    freeze_for_stage(backbone, TrainSettings(trainable_blocks=1), stage_one=False)
    names = trainable(backbone)
    assert any("layer.2." in name for name in names)
    assert not any("layer.1." in name or "layer.0." in name for name in names)
    assert "norm.weight" in names
    assert "embeddings.cls_token" not in names


def test_the_last_blocks_may_train_alone(backbone):
    settings = TrainSettings(trainable_blocks=1, trainable_blocks_alone=True)
    for stage_one in (True, False):
        freeze_for_stage(backbone, settings, stage_one=stage_one)
        names = trainable(backbone)
        assert bool(names) != stage_one
        assert all("layer.2." in name for name in names)
    freeze_for_stage(backbone, TrainSettings(trainable_blocks_alone=True), stage_one=False)
    assert len(trainable(backbone)) == len(list(backbone.parameters()))


def test_stage_one_may_freeze_the_patch_embedding(backbone):
    settings = TrainSettings(freeze_patch_embedding=True)
    freeze_for_stage(backbone, settings, stage_one=True)
    assert not trainable(backbone)
    freeze_for_stage(backbone, settings, stage_one=False)
    assert len(trainable(backbone)) == len(list(backbone.parameters()))
    assert all(key.backbone for key in backbone_groups(backbone, settings).values())


def test_the_weight_decay_is_that_of_the_step_where_it_applies(backbone):
    optimizer = build_optimizer({"backbone": backbone}, TrainSettings())
    for decay in (0.04, 0.4):
        set_rates(optimizer, Rates(lr=1.0, weight_decay=decay, backbone=0.5))
        decays = {group["decays"]: group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {True: decay, False: 0.0}


def test_the_norm_is_over_everything_and_shows_nan():
    first, second = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert gradient_norm([first, second, torch.nn.Parameter(torch.zeros(1))]).item() == pytest.approx(5.0)
    second.grad[0] = torch.nan
    assert torch.isnan(gradient_norm([first, second]))
