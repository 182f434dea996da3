"""What two unrelated columns seem to say about each other: mutual information under random pairing.

Under the permutation model (the rows of Y are shuffled, so that both columns keep the number of rows of each value) a
cell's count n is hypergeometric, and the expected mutual information follows without drawing anything (Vinh, Epps and
Bailey, JMLR 11, 2010). The exact sum runs over every pair of values and every count; here equal pairs are summed once,
large cells use moments, and rare ones the Poisson limit, so that millions of cells take a fraction of a second.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LARGE = 60.0  # expected counts from which moments are used
_RARE = 0.03  # shares of the rows below which the Poisson limit is close
_EXACT_ROWS = 2000  # tables with fewer rows are summed exactly
_TERMS = 1 << 20  # of the exact sum at a time
_MOST_MARGINS = 1500
_GRID = 20_000


@dataclass(frozen=True)
class Chance:
    """The mutual information of a pair under random pairing, in nats.

    Attributes:
        mean: its expectation.
        variance: approximate, cells taken as independent Poisson counts with given margins.
    """

    mean: float
    variance: float

    def upper(self, probability: float) -> float:
        """What it exceeds with ``probability``, from a gamma distribution with these moments.

        One over a 2 x 2 table this is the chi-square distribution of the G test.
        """
        from scipy.special import gammaincinv

        if self.mean <= 0 or self.variance <= 0:
            return self.mean
        shape = self.mean**2 / self.variance
        return float(gammaincinv(shape, 1 - probability) * self.variance / self.mean)


def by_chance(x_rows: NDArray[np.int64], y_rows: NDArray[np.int64]) -> Chance:
    """Mean and variance of the mutual information of two columns with these rows per value, [Kx] and [Ky]."""
    rows = float(x_rows.sum())
    a, a_times = _margins(x_rows)
    b, b_times = _margins(y_rows)
    if len(a) == 0 or len(b) == 0:
        return Chance(0.0, 0.0)
    times = np.outer(a_times, b_times).ravel()
    a, b = (side.ravel() for side in np.meshgrid(a, b, indexing="ij"))
    mean = float(times @ _expected_terms(a, b, rows)) / rows
    spread = _residual_variance(a * b / rows) * (1 - a / rows) * (1 - b / rows)
    return Chance(mean, float(times @ spread) / rows**2)


def _margins(counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Distinct row counts and how often each occurs; nearly equal ones are merged where there are very many."""
    values, times = np.unique(counts[counts > 0].astype(np.float64), return_counts=True)
    if len(values) <= _MOST_MARGINS:
        return values, times.astype(np.float64)
    place = np.linspace(0, _MOST_MARGINS - 1e-9, len(values)).astype(int)
    merged: Floats = np.bincount(place, weights=times).astype(np.float64)
    return np.bincount(place, weights=times * values) / merged, merged


def _expected_terms(a: Floats, b: Floats, rows: float) -> Floats:
    """E[n ln(n N / (a b))] for a hypergeometric n: ``a`` rows drawn out of N of which ``b`` are of a kind, [P]."""
    expected = a * b / rows
    rare = (a < _RARE * rows) & (b < _RARE * rows)
    large = expected >= _LARGE
    exact = ~large & ((rows <= _EXACT_ROWS) | ~rare)
    poisson = ~large & ~exact
    terms = np.empty_like(expected)
    terms[large] = _by_moments(a[large], b[large], rows)
    terms[exact] = _by_sum(a[exact], b[exact], rows)
    terms[poisson] = _by_poisson(a[poisson], b[poisson], rows)
    return terms


def _by_moments(a: Floats, b: Floats, rows: float) -> Floats:
    """Taylor series of n ln(n / m) about the mean m up to relative order m^-2."""
    m, p, q = a * b / rows, a / rows, b / rows
    second = m * (1 - p) * (1 - q) * rows / max(rows - 1, 1)
    third = second * (1 - 2 * p) * (1 - 2 * q) * rows / max(rows - 2, 1)
    fourth = 3 * second**2 + second * (1 - 6 * p * (1 - p)) * (1 - 6 * q * (1 - q))
    series = second / (2 * m) - third / (6 * m**2) + fourth / (12 * m**3)
    return series - 10 * second * third / (20 * m**4) + 15 * second**3 / (30 * m**5)


def _by_poisson(a: Floats, b: Floats, rows: float) -> Floats:
    """m E[ln((1 + k) / m)], k the count of a table with one row less (n P(n) = m P(k = n - 1)), nearly Poisson."""
    m = a * b / rows
    mean = (a - 1) * (b - 1) / (rows - 1)
    excess = mean * ((1 - (a - 1) / (rows - 1)) * (1 - (b - 1) / (rows - 1)) - 1)
    grid, logs, curvature, _ = _poisson_tables()
    at = np.log1p(mean)
    return m * (np.interp(at, grid, logs) + excess / 2 * np.interp(at, grid, curvature) - np.log(m))


def _by_sum(a: Floats, b: Floats, rows: float) -> Floats:
    """The defining sum, over the counts that occur with any probability to speak of."""
    from scipy.special import gammaln

    m = a * b / rows
    reach = 9 * np.sqrt(m) + 20
    low = np.maximum(np.maximum(a + b - rows, np.floor(m - reach)), 1)
    length = (np.minimum(np.minimum(a, b), np.ceil(m + reach)) - low + 1).astype(np.int64)
    out = np.zeros(len(a))
    ends = np.cumsum(length)
    start = 0
    while start < len(a):
        stop = max(int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _TERMS)), start + 1)
        pair = np.repeat(np.arange(start, stop), length[start:stop])
        first = np.cumsum(length[start:stop]) - length[start:stop]
        n = np.arange(len(pair)) - np.repeat(first, length[start:stop]) + low[pair]
        left, right = a[pair], b[pair]
        log_p = (
            gammaln(left + 1)
            + gammaln(right + 1)
            + gammaln(rows - left + 1)
            + gammaln(rows - right + 1)
            - gammaln(rows + 1)
            - gammaln(n + 1)
            - gammaln(left - n + 1)
            - gammaln(right - n + 1)
            - gammaln(rows - left - right + n + 1)
        )
        weights = np.exp(log_p) * n * np.log(n / m[pair])
        out[start:stop] = np.bincount(pair - start, weights=weights, minlength=stop - start)
        start = stop
    return out


def _residual_variance(mean: Floats) -> Floats:
    """Var(n ln n) of a Poisson count that its linear dependence on n does not explain; 1/2 for large means."""
    grid, _, _, residual = _poisson_tables()
    return np.where(mean < _LARGE, np.interp(np.log1p(mean), grid, residual), 0.5)


@cache
def _poisson_tables() -> tuple[Floats, Floats, Floats, Floats]:
    """For k ~ Poisson(m), over a grid of ln(1 + m): E ln(1 + k), E of its second difference, residual variance."""
    from scipy.special import gammaln

    grid = np.linspace(0, np.log1p(_LARGE * 1.2), _GRID // 10)
    mean = np.expm1(grid)[:, None]
    k = np.arange(int(_LARGE * 1.2 + 12 * np.sqrt(_LARGE * 1.2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.exp(np.where(k == 0, 0.0, k * np.log(mean)) - mean - gammaln(k + 1))
    p[0] = k == 0
    logs = np.log1p(k)
    curvature = np.log(k + 3) - 2 * np.log(k + 2) + np.log(k + 1)
    g = k * np.log(np.maximum(k, 1))
    expected_g = p @ g
    covariance = p @ (g * k) - expected_g * mean[:, 0]
    residual = p @ g**2 - expected_g**2 - covariance**2 / np.maximum(mean[:, 0], 1e-300)
    fine = np.linspace(0, grid[-1], _GRID)
    columns = [p @ logs, p @ curvature, np.maximum(residual, 0.0)]
    smooth = [_refined(fine, grid, column) for column in columns]
    return fine, smooth[0], smooth[1], smooth[2]


def _refined(fine: Floats, grid: Floats, values: Floats) -> Floats:
    from scipy.interpolate import CubicSpline

    refined: Floats = CubicSpline(grid, values)(fine)
    return refined
