import pytest
import torch

from openfino.errors import OpenfinoError
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor
from openfino.objectives.objective import Objective
from openfino.recipe import GuidanceSettings
from openfino.training.checkpoint import BANK as BANK_NAME
from openfino.training.checkpoint import (
    grow_rows,
    list_checkpoints,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    strip,
)


def test_a_checkpoint_reads_back_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"model/a": torch.full((2,), float(step))}, {"skipped": 1}, keep=2)
    found = list_checkpoints(tmp_path)
    assert [path.name for path in found] == ["step_00000010", "step_00000015"]
    tensors, state = load_checkpoint(found[-1])
    assert tensors["model/a"].tolist() == [15.0, 15.0]
    assert state == {"step": 15, "skipped": 1}


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    save_checkpoint(tmp_path, 5, {"model/a": torch.zeros(1)}, {}, keep=2)
    (tmp_path / ".step_00000010.partial").mkdir()
    (tmp_path / ".step_00000010.partial" / "state.json").write_text("{}")
    (tmp_path / "step_00000010").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000005"]


def test_the_optimizer_goes_on_as_if_never_stopped():
    def model():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer, number):
        optimizer.zero_grad()
        layer(torch.full((1, 3), float(number))).sum().backward()
        optimizer.step()

    straight, optimizer = model()
    for number in range(4):
        step(straight, optimizer, number)
    resumed, first = model()
    for number in range(2):
        step(resumed, first, number)
    names = {parameter: name for name, parameter in resumed.named_parameters()}
    stored = {name: value.clone() for name, value in optimizer_tensors(first, names).items()}
    second = torch.optim.AdamW(resumed.parameters(), lr=0.1)
    load_optimizer_tensors(second, stored, dict(resumed.named_parameters()))
    for number in range(2, 4):
        step(resumed, second, number)
    assert torch.equal(straight.weight, resumed.weight)


BANK = "objective.terms.guidance.heads.factor:site"


def test_banks_grow_by_empty_rows():
    saved = {
        f"{BANK}.prototypes": torch.ones(2, 3),
        f"{BANK}.seen": torch.tensor([True, False]),
        f"{BANK}.counts": torch.tensor([4, 0]),
    }
    wanted = {
        f"{BANK}.prototypes": torch.zeros(4, 3),
        f"{BANK}.seen": torch.zeros(4),
        f"{BANK}.counts": torch.zeros(4),
    }
    grown = grow_rows(saved, wanted)
    assert grown[f"{BANK}.prototypes"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert grown[f"{BANK}.seen"].tolist() == [True, False, False, False]
    assert grown[f"{BANK}.counts"].tolist() == [4, 0, 0, 0]
    assert grown[f"{BANK}.seen"].dtype == torch.bool


def make_objective(size, **settings):
    factor = GuidedFactor("si.te", "informative", "discrete", size)
    chosen = GuidanceSettings(**{"regressor_hidden": [5, 4], **settings})
    return Objective([Guidance({"si.te": factor}, 4, chosen, seed=0, unfreeze_step=0, total_steps=1)])


@pytest.mark.parametrize(
    ("settings", "number"), [({}, 3), ({"bank": "concentration"}, 3), ({"discrete_head": "classifier"}, 6)]
)
def test_the_names_of_a_discrete_head_are_those_that_grow(settings, number):
    names = [name for name in make_objective(3, **settings).state_dict() if ".heads." in name]
    assert len(names) == number
    assert all(BANK_NAME.fullmatch(f"objective.{name}") for name in names)


@pytest.mark.parametrize("settings", [{"bank": "concentration"}, {"discrete_head": "classifier"}])
def test_new_values_have_what_a_new_run_would_give_them(settings):
    """For the authors' bank random unit vectors and the temperature, never zeros."""
    small, large = make_objective(3, **settings), make_objective(6, **settings)
    saved = {f"objective.{name}": value + 1 for name, value in small.state_dict().items()}
    fresh = {f"objective.{name}": value.clone() for name, value in large.state_dict().items()}
    grown = grow_rows(saved, fresh)
    large.load_state_dict({name.removeprefix("objective."): value for name, value in grown.items()})
    grew = [name for name in saved if saved[name].shape != fresh[name].shape]
    assert len(grew) == {"bank": 3, "discrete_head": 2}[next(iter(settings))]
    for name in saved:
        rows = slice(len(saved[name])) if saved[name].dim() else ...
        assert torch.equal(grown[name][rows], saved[name])
    for name in grew:
        assert torch.equal(grown[name][3:], fresh[name][3:])


def test_new_rows_of_a_classifier_begin_with_zero_moments():
    small, large = (make_objective(size, discrete_head="classifier") for size in (3, 5))
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (small, large)]
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    names = {parameter: f"objective.{name}" for name, parameter in small.named_parameters()}
    stored = optimizer_tensors(optimizers[0], names)
    parameters = {f"objective.{name}": parameter for name, parameter in large.named_parameters()}
    load_optimizer_tensors(optimizers[1], stored, parameters)
    last = parameters["objective.terms.guidance.heads.factor:si%2Ete.classifier.layers.2.weight"]
    moments = optimizers[1].state[last]["exp_avg"]
    assert moments.shape == (5, 4)
    assert (moments[:3] > 0).all()
    assert not moments[3:].any()
    for parameter in large.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[1].step()
    assert all(parameter.isfinite().all() for parameter in large.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "objective.terms.guidance.heads.factor:dose.layers.0.weight",
        "objective.terms.other.counts",
        "student.weight",
    ],
)
def test_nothing_else_changes_shape(name):
    """A regressor that lost its weights to zeros would train on without a word."""
    assert grow_rows({name: torch.ones(2, 3)}, {name: torch.zeros(4, 3)})[name].shape == (2, 3)


def test_a_foreign_checkpoint_is_refused():
    with pytest.raises(OpenfinoError, match="teacher"):
        strip({"model/a": torch.zeros(1)}, "teacher")
