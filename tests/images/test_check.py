"""Everything that is wrong with a manifest, in one list."""

import numpy as np
import pytest
from PIL import Image

from openfino.images.check import check_manifest
from openfino.manifest import read_manifest
from openfino.recipe import FactorSettings


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def manifest_of(folder, text, **settings):
    (folder / "manifest.csv").write_text(text)
    return read_manifest(folder / "manifest.csv", **settings)


def check(manifest, read_images="exist", factors=None, required=None, progress=None):
    problems = check_manifest(
        manifest,
        factors={name: FactorSettings(**given) for name, given in (factors or {}).items()},
        required_columns=required or {},
        read_images=read_images,
        progress=progress,
    )
    return [str(problem) for problem in problems]


@pytest.mark.parametrize("level", ["none", "exist", "decode"])
def test_a_sound_manifest_has_no_problem(images, level):
    manifest = manifest_of(images, "path,site,label\n0.png,a,x\n1.png,b,\n./2.png,,y\n")
    factors = {"site": {"role": "informative"}}
    assert check(manifest, level, factors, {"label": "probe.label"}) == []


def test_procedural_names_need_no_files(tmp_path):
    assert check(manifest_of(tmp_path, "path\n0-1-32.procedural\n0-2-32.procedural\n"), "decode") == []


def test_every_problem_comes_at_once(images):
    (images / "broken.png").write_bytes((images / "1.png").read_bytes()[:50])
    (images / "empty.png").touch()
    (images / "folder.png").mkdir()
    text = (
        "path,site,age,when,flat,void\n"
        "0.png,a,1.5,2021-03-04,k,\n"
        "0.png,b,2.5,2021-03-05,k,\n"
        ",a,3.5,2021-02-30,k,\n"
        "gone.png,b,abc,2021-03-06,k,\n"
        "\n"
        "empty.png,a,5.5,2021-03-06,,\n"
        "folder.png,b,6.5,2021-03-06,k,\n"
        "broken.png,a,7.5,2021-03-06,k,\n"
        "sub\\1.png,a,8.5,2021-03-06,k,\n"
    )
    factors = {
        "site": {"role": "informative"},
        "age": {"role": "spurious", "kind": "continuous"},
        "when": {"role": "watched", "kind": "continuous"},
        "flat": {"role": "informative"},
        "void": {"role": "informative"},
        "siet": {"role": "informative"},
    }
    required = {"void": "probe.label", "splt": "probe.split"}
    found = check(manifest_of(images, text), "decode", factors, required)
    expected = [
        "manifest.csv, column age: 1 value is neither a number nor a timestamp: line 5 'abc'",
        "manifest.csv, column when: 1 value is neither a number nor a timestamp: line 4 '2021-02-30'",
        "manifest.csv, column flat: holds one value only, 'k'",
        "manifest.csv, column void: every value is missing. ",
        "factors.siet: there is no column 'siet' in manifest.csv. Did you mean 'site'?",
        "manifest.csv, column void: every value is missing, but probe.label needs them",
        "probe.split: there is no column 'splt'",
        "manifest.csv, column path: there is no path in 1 row: line 4",
        "manifest.csv, column path: 1 row repeats the image of an earlier row: line 3 '0.png'",
        "manifest.csv line 5: gone.png: there is no such file",
        "manifest.csv line 7: empty.png: the file is empty",
        "manifest.csv line 8: folder.png: is no file",
        "manifest.csv line 9: ",
        "manifest.csv line 10: sub\\1.png: there is no such file; write / between folders",
    ]
    assert len(found) == len(expected), found
    for text in expected:
        assert sum(problem.startswith(text) for problem in found) == 1, (text, found)
    assert "broken.png" in next(problem for problem in found if "line 9" in problem)


def test_only_decoding_finds_a_corrupt_image(images):
    (images / "broken.png").write_bytes((images / "1.png").read_bytes()[:50])
    manifest = manifest_of(images, "path\n0.png\nbroken.png\n")
    assert check(manifest, "none") == check(manifest, "exist") == []
    [problem] = check(manifest, "decode")
    assert problem.startswith("manifest.csv line 3: ")


def test_only_looking_at_files_finds_an_absent_one(images):
    manifest = manifest_of(images, "path\n0.png\ngone.png\n")
    assert check(manifest, "none") == []
    assert len(check(manifest, "exist")) == len(check(manifest, "decode")) == 1


def test_channel_counts_must_agree(images):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(images / "grey.png")
    manifest = manifest_of(images, "path\n0.png\ngrey.png\n2.png\n")
    assert check(manifest, "exist") == []
    [problem] = check(manifest, "decode")
    assert problem.startswith(
        "manifest.csv: the number of channels differs: 3 in 2 rows, 1 in 1 row (line 3)"
    )


def test_the_same_image_may_be_written_in_two_ways(images):
    manifest = manifest_of(images, "path\n0.png\n./0.png\nsub/0.png\n", missing=[])
    [problem] = check(manifest, "none")
    assert "line 3" in problem


def test_images_of_several_files_repeat_only_as_a_whole(images):
    columns = ["dna", "er"]
    sound = manifest_of(images, "dna,er\n0.png,1.png\n0.png,2.png\n3.png,1.png\n", path_columns=columns)
    assert check(sound) == []
    manifest = manifest_of(
        images, "dna,er\n0.png,1.png\n0.png,1.png\n3.png,\n4.png,gone.png\n", path_columns=columns
    )
    found = check(manifest)
    assert [problem.split(". ")[0] for problem in found] == [
        "manifest.csv, column er: there is no path in 1 row: line 4",
        "manifest.csv, column dna, er: 1 row repeats the image of an earlier row: line 3 '0.png, 1.png'",
        "manifest.csv line 5: gone.png: there is no such file",
    ]


def test_many_bad_files_are_summarised(images):
    manifest = manifest_of(images, "path\n" + "".join(f"gone{row}.png\n" for row in range(1000)))
    found = check(manifest)
    assert len(found) == 21
    assert "980 more images cannot be read (1,000 in all)" in found[-1]


def test_progress_reaches_the_end(images):
    manifest = manifest_of(images, "path\n" + "".join(f"{row}.png\n" for row in range(6)))
    for level in ("exist", "decode"):
        calls = []
        check(manifest, level, progress=lambda done, total: calls.append((done, total)))  # noqa: B023
        assert calls == [(6, 6)]
