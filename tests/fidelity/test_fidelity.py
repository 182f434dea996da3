"""Every component against the authors' modules, and ``docs/fidelity.md`` against both."""

import all_components  # noqa: F401
import page
import pytest
from comparisons import COMPONENTS, NOTHING, agreements, outputs_of
from page import COLUMNS, FLOAT32, FLOAT64, PAGE, SMALLEST, SMALLEST_DOUBLE, described, limit

from golden_data import golden_cases, golden_files, require_golden

numbered = pytest.mark.parametrize("number", range(len(COMPONENTS)), ids=[part.name for part in COMPONENTS])


def written_rows():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines[2:]]


@pytest.mark.golden
@numbered
def test_agrees_with_the_authors(number):
    found = agreements(number)
    assert found, "no case was compared"
    assert not [one for one in found if not one.error <= one.bound]


@pytest.mark.golden
@numbered
def test_every_output_of_its_cases_is_compared(number):
    chosen = COMPONENTS[number]
    compared = {
        (one.file, one.case, one.tensor)
        for other, part in enumerate(COMPONENTS)
        if set(part.cases) & set(chosen.cases)
        for one in agreements(other)
    }
    for case in chosen.golden():
        missing = [name for name in outputs_of(case) if (case.file, case.name, name) not in compared]
        assert not missing, case.name


@pytest.mark.golden
def test_every_case_has_outputs():
    cases = [case for file in golden_files() for case in golden_cases(file)]
    assert [case.name for case in cases if not outputs_of(case)] == ["3to1_raises", "not_4d_raises", "inputs"]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("file", "name", "outputs"),
    [
        (
            "param_groups.json",
            "dino_head",
            ["always_frozen", "is_frozen_backbone", "is_last_layer", "lr_multiplier", "wd_multiplier"],
        ),
        (
            "mask_generation.json",
            "collate_B8_p0.5",
            ["masked_counts_sorted", "n_masked_patches", "sum_masks_weight", "upperbound"],
        ),
    ],
)
def test_outputs_of_a_json_case_are_its_keys_but_for_what_was_given(file, name, outputs):
    (case,) = [case for case in golden_cases(file) if case.name == name]
    assert sorted(key.removeprefix("groups.") for key in outputs_of(case)) == outputs


@pytest.mark.golden
def test_no_reference_case_is_left_out():
    require_golden()
    stood_for = {(case.file, case.name) for part in COMPONENTS for case in part.golden()}
    every = {(file, case.name) for file in golden_files() for case in golden_cases(file)}
    assert not every - stood_for


def test_the_page_names_every_component():
    rows = written_rows()
    assert all(len(cells) == len(COLUMNS) for cells in rows)
    expected = [(*described(part), part.deviation) for part in COMPONENTS]
    stale = [(*cells[:FLOAT32], cells[-1]) for cells in rows]
    assert stale == expected, "docs/fidelity.md is stale: run make fidelity"


def test_the_page_says_what_stands_around_its_table():
    text = PAGE.read_text()
    assert text.startswith(page.HEADER), "docs/fidelity.md is stale: run make fidelity"
    assert text.endswith(page.FOOTER), "docs/fidelity.md is stale: run make fidelity"


def test_deviations_are_sentences():
    for part in COMPONENTS:
        assert part.deviation.endswith("."), part.name
        assert part.deviation.startswith(NOTHING) == part.deviation.startswith("None"), part.name


def test_a_limit_claims_no_more_than_its_precision_holds():
    assert [limit([0.0], smallest) for smallest in (SMALLEST, SMALLEST_DOUBLE)] == ["1e-7", "1e-13"]
    assert [limit(errors, SMALLEST) for errors in ([], [1e-6], [0.0, 1.1e-6])] == ["-", "1e-6", "1e-5"]


def test_the_page_is_written_without_arguments_only(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(page, "page", lambda: "text")
    for arguments in (["--help"], ["other.md"]):
        with pytest.raises(SystemExit):
            page.main(arguments)
    assert not page.PAGE.exists()
    page.main([])
    assert page.PAGE.read_text() == "text"


@pytest.mark.golden
@numbered
def test_the_page_states_errors_that_hold(number):
    cells = written_rows()[number]
    for column, double in ((FLOAT32, False), (FLOAT64, True)):
        errors = [one.error for one in agreements(number) if one.double == double]
        assert (cells[column] == "-") == (not errors), "docs/fidelity.md is stale: run make fidelity"
        # A machine that sums in another order may land just above a limit that was rounded up here.
        assert not errors or max(errors) <= 10 * float(cells[column])
