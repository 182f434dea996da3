import pytest
import torch
from export_models import save, save_run

from openfino.errors import OpenfinoError
from openfino.export import export
from openfino.models.store import load_model
from tiny_models import tiny_model

FILES = ["README.md", "config.json", "model.safetensors", "openfino.json", "preprocessor_config.json"]


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "run")


def test_an_earlier_export_is_replaced_only_when_allowed(run_folder, tmp_path):
    out = tmp_path / "out"
    export(run_folder, out)
    (out / "notes.txt").write_text("mine")
    (out / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier, larger model")
    with pytest.raises(OpenfinoError, match="allow overwriting"):
        export(run_folder, out)
    other = save(tmp_path / "other", tiny_model(seed=9))
    export(other, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "notes.txt"])
    found, wanted = load_model(out).backbone.state_dict(), load_model(other).backbone.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_of_the_user_is_ever_touched(run_folder, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OpenfinoError, match="is not empty"):
            export(run_folder, mine, overwrite=overwrite)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    with pytest.raises(OpenfinoError, match="is a file"):
        export(run_folder, mine / "thesis.txt", overwrite=True)
    for source in (run_folder, run_folder / "model"):
        with pytest.raises(OpenfinoError, match="holds the model to export"):
            export(run_folder, source, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert export(run_folder, tmp_path / "empty").files == FILES
    with pytest.raises(OpenfinoError, match="holds no model"):
        export(mine, tmp_path / "new")
