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


def test_the_names_of_a_bank_are_those_that_grow():
    factor = GuidedFactor("si.te", "informative", "discrete", 3)
    guidance = Guidance({"si.te": factor}, 4, GuidanceSettings(), seed=0, unfreeze_step=0, total_steps=1)
    names = [name for name in Objective([guidance]).state_dict() if ".heads." in name]
    assert len(names) == 3
    assert all(BANK_NAME.fullmatch(f"objective.{name}") for name in names)


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
