import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from openfino.cli import app, main
from tiny_runs import recipe_file, tiny_settings


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_imports_nothing_heavy():
    heavy = ("torch", "polars", "transformers", "numpy")
    code = f"import sys, openfino.cli; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_help_lists_every_command():
    text = invoke("--help").output
    for command in ("demo", "sample", "audit", "check", "adapt", "probe", "embed", "viz", "export"):
        assert command in text


def test_a_users_mistake_is_one_message_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["adapt", str(tmp_path / "absent.yaml")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "absent.yaml" in said
    assert "Traceback" not in said


def test_check_lists_problems_and_fails(image_set, tmp_path):
    (image_set.parent / "images" / "003.png").unlink()
    recipe = recipe_file(
        tmp_path, tiny_settings(image_set, tmp_path / "run", factors={"sight": "informative"})
    )
    result = invoke("check", recipe, "--json")
    assert result.exit_code == 1
    text = json.dumps(json.loads(result.output)["problems"])
    assert "003.png" in text
    assert "sight" in text


def test_check_of_a_sound_recipe_says_so(image_set, tmp_path):
    result = invoke("check", recipe_file(tmp_path, tiny_settings(image_set, tmp_path / "run")), "--decode")
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output
    assert "site: informative, discrete" in result.output


def test_a_manifest_alone_can_be_checked(image_set):
    broken = image_set.parent / "images" / "007.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert invoke("check", image_set).exit_code == 0
    decoded = invoke("check", image_set, "--decode")
    assert decoded.exit_code == 1
    assert "007.png" in decoded.output


def test_adapt_prints_its_summary_as_json(image_set, tmp_path):
    recipe = recipe_file(tmp_path, tiny_settings(image_set, tmp_path / "run"))
    result = CliRunner().invoke(app, ["adapt", str(recipe), "train.steps=2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2
