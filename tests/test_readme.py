"""What the README says is run as it stands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from openfino.cli import app
from openfino.recipe import build_recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[1]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def recipes():
    """File name and text of every recipe in the README."""
    return {block.splitlines()[0].removeprefix("# "): block for block in blocks("yaml")}


def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipes()["recipe.yaml"])
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "openfino"
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    for written in (
        "run/best/model.safetensors",
        "longer/summary.json",
        "features.parquet",
        "model/config.json",
    ):
        assert Path(written).is_file(), written


@pytest.mark.parametrize("name", list(recipes()))
def test_the_recipes_are_valid(name):
    assert build_recipe(yaml.safe_load(recipes()[name])).factors


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
