"""The contact sheet and the command that draws it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openfino.sampledata import contact_sheet, draw_sample


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_sample(tmp_path_factory.mktemp("sheet"), images=160, size=16)


def test_every_localisation_has_a_row_of_pictures(manifest: Path, tmp_path: Path) -> None:
    with Image.open(contact_sheet(manifest, tmp_path / "new" / "sheet.png")) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[0] == 34 + 10 * 131
    for row in range(10):
        top = 34 + row * 131
        composite, protein = (
            pixels[top : top + 128, 132:260],
            pixels[top : top + 128, 132 + 5 * 131 :][:, :128],
        )
        assert composite.std() > 5
        assert protein.std() > 1
        assert np.ptp(protein.astype(int), axis=2).max() <= 16  # grey up to the rounding of the file


def test_a_sample_without_some_localisation_still_has_a_sheet(tmp_path: Path) -> None:
    few = draw_sample(tmp_path / "few", images=20, size=16)
    assert contact_sheet(few, tmp_path / "sheet.png").stat().st_size > 1000


def test_the_command_draws_the_same_sheet(manifest: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "openfino.sampledata", str(manifest), str(tmp_path / "a.png")]
    subprocess.run(command, check=True)
    contact_sheet(manifest, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    wrong = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "usage" in wrong.stderr
