import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from simulated import simulate_atlas
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

import openfino.audit.contingency as contingency
from openfino.audit.analysis import run_audit
from openfino.audit.coding import bins_for, code_column, join
from openfino.audit.dependence import measure_given, measure_pair


def textbook(of, given):
    """U(Y|X) = 1 - H(Y|X) / H(Y), value by value, over the rows where both are known."""
    rows = [(y, x) for y, x in zip(of, given, strict=True) if y is not None and x is not None]

    def entropy(values):
        return -sum(n / len(values) * math.log2(n / len(values)) for n in Counter(values).values())

    total = entropy([y for y, _ in rows])
    remaining = 0.0
    for value in {x for _, x in rows}:
        group = [y for y, x in rows if x == value]
        remaining += len(group) / len(rows) * entropy(group)
    return 1 - remaining / total


def coded(name, values, kind="discrete"):
    return code_column(pl.Series(name, values), kind)


def draw(rng, rows, values, missing=0.1):
    share = rng.dirichlet(np.full(values, 0.7))
    drawn = [f"v{code}" for code in rng.choice(values, rows, p=share)]
    return [None if rng.random() < missing else value for value in drawn]


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_agrees_with_the_textbook_and_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    x = draw(rng, 400, 7)
    y = [None if value is None or rng.random() < 0.1 else f"{value[1:]}{rng.integers(0, 3)}" for value in x]
    pair = measure_pair(coded("x", x), coded("y", y))
    both = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    a, b = zip(*both, strict=True)
    assert pair.forward.rows == len(both)
    assert pair.forward.u == pytest.approx(textbook(y, x), abs=1e-12)
    assert pair.backward.u == pytest.approx(textbook(x, y), abs=1e-12)
    information = mutual_info_score(a, b)
    assert pair.forward.u == pytest.approx(information / mutual_info_score(b, b), abs=1e-12)
    # scikit-learn's AMI is the same correction with the smaller entropy as the most that can be known.
    least = min(mutual_info_score(a, a), mutual_info_score(b, b))
    direction = pair.forward if least == mutual_info_score(b, b) else pair.backward
    assert direction.u_adjusted == pytest.approx(
        adjusted_mutual_info_score(a, b, average_method="min"), abs=1e-9
    )


def test_three_columns_agree_with_the_textbook():
    rng = np.random.default_rng(0)
    x, y, z = (draw(rng, 300, values) for values in (5, 6, 3))
    known = [None if a is None or c is None else (a, c) for a, c in zip(x, z, strict=True)]
    found = measure_given([coded("x", x), coded("z", z)], coded("y", y))
    assert found.u == pytest.approx(textbook(y, known), abs=1e-12)
    joined = measure_pair(join([coded("x", x), coded("z", z)], "xz"), coded("y", y)).forward
    assert joined.u_adjusted == pytest.approx(found.u_adjusted, abs=1e-12)


def test_sorting_and_counting_cell_by_cell_agree(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = coded("x", draw(rng, 500, 30)), coded("y", draw(rng, 500, 40))
    dense = measure_pair(x, y)
    monkeypatch.setattr(contingency, "_DENSE_CELLS", 0)
    assert measure_pair(x, y).forward == dense.forward


def test_more_cells_than_64_bits_number_are_counted_too(monkeypatch):
    rng = np.random.default_rng(0)
    x, y, z = (coded(name, draw(rng, 300, 9)) for name in "xyz")
    plain = measure_given([x, z], y)
    monkeypatch.setattr(contingency, "_KEY_LIMIT", 10)
    assert measure_given([x, z], y).u == pytest.approx(plain.u)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(2, 1500),
    cells=st.tuples(st.integers(2, 1500), st.integers(2, 1500)),
    seed=st.integers(0, 10**9),
)
def test_unrelated_columns_of_any_cardinality_have_zero_in_their_interval(rows, cells, seed):
    rng = np.random.default_rng(seed)
    x, y = (
        rng.choice(size, rows, p=rng.dirichlet(np.full(size, rng.choice([0.2, 1, 10])))) for size in cells
    )
    pair = measure_pair(coded("x", x), coded("y", y))
    for found in (pair.forward, pair.backward):
        low, high = found.interval
        assert low <= 0 <= high, found
        assert low <= found.u_adjusted <= high


def test_unrelated_columns_are_zero_on_average_however_many_values_they_have():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x, y = rng.integers(0, 150, 400), rng.integers(0, 20, 400)
        found.append(measure_pair(coded("x", x), coded("y", y)).forward)
    assert np.mean([pair.u for pair in found]) > 0.35  # what the correction is for
    assert np.mean([pair.u_adjusted for pair in found]) == pytest.approx(0, abs=0.01)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(2, 400), values=st.integers(2, 400), seed=st.integers(0, 10**9))
def test_a_copy_under_other_names_gets_one(rows, values, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, rows)
    assume(len(set(x)) > 1)
    names = rng.permutation(values)
    pair = measure_pair(coded("x", x), coded("y", names[x]))
    assert pair.one_to_one
    assert pair.forward.u_adjusted == pytest.approx(1)
    assert pair.backward.u_adjusted == pytest.approx(1)


def test_the_order_of_the_rows_changes_nothing():
    rng = np.random.default_rng(0)
    x, y, order = draw(rng, 300, 5), draw(rng, 300, 6), rng.permutation(300)
    shuffled = [[column[place] for place in order] for column in (x, y)]
    one = measure_pair(coded("x", x), coded("y", y)).forward
    other = measure_pair(coded("x", shuffled[0]), coded("y", shuffled[1])).forward
    assert one.interval == pytest.approx(other.interval)


def test_the_interval_of_a_real_dependence_holds_what_many_rows_say():
    rng = np.random.default_rng(0)

    def sample(rows):
        x = rng.integers(0, 4, rows)
        y = np.where(rng.random(rows) < 0.6, x, rng.integers(0, 4, rows))
        return measure_pair(coded("x", x), coded("y", y)).forward

    truth = sample(200_000).u_adjusted
    small = [sample(80) for _ in range(60)]
    assert all(low <= truth <= high for low, high in (found.interval for found in small))
    assert np.mean([high - low for low, high in (found.interval for found in small)]) < 0.75


def test_no_common_row_says_nothing():
    found = measure_pair(coded("x", ["a", "b", None, None]), coded("y", [None, None, "c", "d"])).forward
    assert (found.rows, found.u, found.u_adjusted, found.interval) == (0, 0.0, 0.0, (0.0, 1.0))


# Continuous and cyclic columns


def test_bins_hold_equal_shares_and_say_their_ranges():
    column = coded("dose", np.random.default_rng(0).lognormal(size=1000), "continuous")
    assert column.size == bins_for(1000) == 10
    assert column.counts.tolist() == [100] * 10
    assert len(column.labels) == 10
    assert column.labels[0].split(" to ")[1] == column.labels[1].split(" to ")[0]


def test_equal_numbers_share_a_bin():
    column = coded("dose", [0.0] * 90 + list(np.linspace(0.5, 9.5, 10)), "continuous")
    assert column.counts.max() == 90
    assert column.counts.sum() == 100


def test_a_cycle_is_cut_where_data_are_fewest():
    hours = np.concatenate([np.linspace(22, 24, 100, endpoint=False), np.linspace(0, 3, 150)])
    column = code_column(pl.Series("hour", hours), "cyclic", 24.0)
    before, after = column.codes[99], column.codes[100]  # minutes before and after midnight
    assert before == after
    assert column.codes[0] != column.codes[-1]


def test_numbers_that_cannot_be_read_are_missing():
    column = coded("dose", ["1.5", "2.5", "high", None], "continuous")
    assert column.known == 2
    assert column.codes[2] == column.codes[3] == column.size


def test_a_quantity_tells_what_depends_on_it():
    rng = np.random.default_rng(0)
    dose = rng.uniform(0, 1, 600)
    table = pl.DataFrame(
        {"dose": dose, "outcome": np.where(dose > 0.5, "dead", "alive"), "noise": rng.uniform(size=600)}
    )
    audit = run_audit(table)
    assert audit.table.u("outcome", "dose").u_adjusted > 0.85
    assert not audit.table.u("outcome", "noise").is_clear


# The Human Protein Atlas


def test_the_published_figures_of_the_atlas_come_out():
    table = simulate_atlas()
    assert table.group_by("plate").agg(pl.col("antibody").n_unique())["antibody"].mean() == pytest.approx(
        25, abs=2
    )
    audit = run_audit(table, given=[("plate", "cell_line", "antibody")])
    assert audit.table.u("cell_line", "plate").u == pytest.approx(0.999, abs=0.002)
    assert audit.table.u("antibody", "plate").u == pytest.approx(0.652, abs=0.01)
    assert audit.table.u("plate", "antibody").u == pytest.approx(0.869, abs=0.01)
    assert audit.conditional[0].both.u == pytest.approx(0.652, abs=0.01)
    assert not audit.conditional[0].explained
    assert audit.advice["plate"].anchor == "antibody"
    assert audit.advice["antibody"].role == "informative candidate"
