import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from openfino.audit.chance import Chance, by_chance
from openfino.audit.coding import code_column
from openfino.audit.contingency import count_pair
from openfino.audit.rare import accident_probability, odd_rows


def expected(a, b):
    x, y = np.repeat(np.arange(len(a)), a), np.repeat(np.arange(len(b)), b)
    return expected_mutual_information(contingency_matrix(x, y, sparse=True), len(x))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(2, 8), st.integers(0, 10**6))
def test_small_tables_agree_with_scikit_learn(a, parts, seed):
    a = np.array(a)
    b = np.bincount(np.random.default_rng(seed).integers(0, parts, a.sum()))
    assert by_chance(a, b).mean == pytest.approx(expected(a, b[b > 0]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "x_values", "y_values"),
    [(20_000, 3, 5), (20_000, 2, 4000), (15_000, 120, 900), (9_000, 3000, 4000)],
)
def test_large_tables_agree_with_scikit_learn(rows, x_values, y_values):
    rng = np.random.default_rng(0)
    a = np.bincount((rng.pareto(1.0, rows) * 5).astype(int) % x_values)
    b = np.bincount(rng.integers(0, y_values, rows))
    assert by_chance(a, b).mean == pytest.approx(expected(a[a > 0], b[b > 0]), rel=5e-5)


def test_very_many_margins_are_merged_without_harm():
    rng = np.random.default_rng(0)
    a = np.sort(rng.integers(1, 100_000, 3000))
    b = np.full(10, a.sum() // 10)
    b[0] += a.sum() - b.sum()
    # Independence of 3,000 x 10 values: (Kx - 1)(Ky - 1) / 2N, nearly.
    assert by_chance(a, b).mean == pytest.approx(2999 * 9 / (2 * a.sum()), rel=0.02)


@pytest.mark.parametrize(("rows", "x_values", "y_values"), [(300, 4, 6), (2000, 50, 80), (3000, 2, 900)])
def test_mean_and_spread_are_those_of_shuffled_columns(rows, x_values, y_values):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, x_values, rows), rng.integers(0, y_values, rows)
    drawn = [mutual_info_score(x, rng.permutation(y)) for _ in range(400)]
    chance = by_chance(np.bincount(x), np.bincount(y))
    assert np.mean(drawn) == pytest.approx(chance.mean, rel=0.06)
    assert np.std(drawn) == pytest.approx(chance.variance**0.5, rel=0.15)


def test_the_upper_bound_of_a_two_by_two_table_is_that_of_the_chi_square():
    chance = Chance(1 / 2000, 2 / 2000**2)  # N = 1,000: 2 N I has mean 1 and variance 2
    assert 2000 * chance.upper(0.001) == pytest.approx(chi2.ppf(0.999, 1), rel=1e-6)
    assert Chance(0.0, 0.0).upper(0.001) == 0.0


def test_a_perfect_match_of_few_odd_rows_is_known_to_be_an_accident():
    import polars as pl

    x = code_column(pl.Series("x", list("aaaab")), "discrete")
    y = code_column(pl.Series("y", list("ccccd")), "discrete")
    table = count_pair(x, y)
    assert odd_rows(table) == 1
    # The odd one of five meets the odd one of the other column once in five shuffles.
    assert accident_probability(table) == pytest.approx(0.2, abs=0.03)
