"""Every component against the authors' modules, and ``docs/fidelity.md`` against both."""

import fnmatch

import all_components  # noqa: F401
import pytest
from comparisons import COMPONENTS, agreements, outputs_of
from page import COLUMNS, FLOAT32, FLOAT64, PAGE, described

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
        excused = [name for name in missing if any(fnmatch.fnmatchcase(name, why) for why in chosen.left_out)]
        assert sorted(missing) == sorted(excused), case.name


@pytest.mark.golden
def test_no_reference_case_is_left_out():
    require_golden()
    stood_for = {(case.file, case.name) for part in COMPONENTS for case in part.golden()}
    every = {(file, case.name) for file in golden_files() for case in golden_cases(file)}
    assert not every - stood_for


def test_the_page_names_every_component():
    rows = written_rows()
    assert all(len(cells) == len(COLUMNS) for cells in rows)
    expected = [(*described(part), part.deviation or "None.") for part in COMPONENTS]
    stale = [(*cells[:FLOAT32], cells[-1]) for cells in rows]
    assert stale == expected, "docs/fidelity.md is stale: run make fidelity"


@pytest.mark.golden
@numbered
def test_the_page_states_errors_that_hold(number):
    cells = written_rows()[number]
    for column, double in ((FLOAT32, False), (FLOAT64, True)):
        errors = [one.error for one in agreements(number) if one.double == double]
        assert (cells[column] == "-") == (not errors), "docs/fidelity.md is stale: run make fidelity"
        # A machine that sums in another order may land just above a limit that was rounded up here.
        assert not errors or max(errors) <= 10 * float(cells[column]) + 1e-15
