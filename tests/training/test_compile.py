import shutil

import pytest
import torch

from conftest import TINY
from tiny_runs import losses, run_tiny


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile on a CPU needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_blocks_change_no_loss(image_set, tmp_path, monkeypatch):
    """With all that touches a block: drop path, two sizes of crops, recomputation in the backward pass."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    changes = {"model": {"config": {**TINY, "num_hidden_layers": 1}}}
    train = {"steps": 2, "drop_path": 0.3, "freeze_steps": 0}
    run_tiny(image_set, tmp_path / "eager", train=train, **changes)
    compiled = {**train, "compile": True, "activation_checkpointing": True}
    run_tiny(image_set, tmp_path / "compiled", train=compiled, **changes)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # teacher, global and local crops
    torch._dynamo.reset()
    expected, found = losses(tmp_path / "eager"), losses(tmp_path / "compiled")
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step
