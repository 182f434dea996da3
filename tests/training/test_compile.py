import shutil
import subprocess

import pytest

from conftest import TINY
from tiny_runs import command, environment, losses, recipe_file, run_tiny, tiny_settings


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile on a CPU needs a C++ compiler"
)
def test_compiled_blocks_change_no_loss(image_set, tmp_path):
    """With all that touches a block: drop path, two sizes of crops, recomputation, a refreshed Gram teacher."""
    train = {"steps": 2, "drop_path": 0.3, "freeze_steps": 0}
    changes = {"model": {"config": {**TINY, "num_hidden_layers": 1}}}
    changes |= {"train_split": None, "probe": {"split": None}}
    gram = {"weight": 2.0, "start_step": 1, "refresh_every": 1, "first_refresh": 1, "max_refreshes": 1}
    changes["objective"] = {"gram": gram}
    run_tiny(image_set, tmp_path / "eager", train=train, **changes)
    train |= {"compile": True, "activation_checkpointing": True}
    settings = tiny_settings(image_set, tmp_path / "compiled", train=train, **changes)
    # In a process of its own: the compiler keeps headers in the folder for temporary files.
    cache = tmp_path / "kernels"
    folders = {"TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    said = {**environment(), **folders, "TORCH_LOGS": "graph_breaks"}
    done = subprocess.run(
        command(recipe_file(tmp_path, settings)), env=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Graph break" not in done.stderr
    assert list(cache.glob("**/*.so"))
    expected, found = losses(tmp_path / "eager"), losses(tmp_path / "compiled")
    assert expected[1]["loss/gram"] > 0
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step
