"""The dependence table: U(Y|X) for every ordered pair, raw and corrected for chance, with an interval.

U(Y|X) = 1 - H(Y|X) / H(Y) (FINO, App. A.3). A column with many values removes uncertainty about anything, because
small groups are uniform by chance. The corrected coefficient measures against chance instead of against no groups:

    U_adj(Y|X) = (I - E I) / (H(Y) - E I) = 1 - H(Y|X) / E H(Y|X),

with E over random pairings of the same columns (:mod:`openfino.audit.chance`). It is 0 on average for unrelated columns
of whatever cardinality and 1 where X determines Y. Decisions use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from openfino.audit.chance import Chance, by_chance
from openfino.audit.coding import Coded
from openfino.audit.contingency import Contingency, count_joint, count_pair
from openfino.audit.rare import FEW, accident_probability, odd_rows

# A table shows dozens of pairs at once: at 99.9 % each, one false alarm in a thousand pairs.
CONFIDENCE = 0.999
_TAIL = (1 - CONFIDENCE) / 2
_Z = 3.2905
_NOTHING = 1e-12


@dataclass(frozen=True)
class Dependence:
    """What X says about Y.

    Attributes:
        given: X; two names for a conditional U(Y|X,Z).
        of: Y.
        u: U(Y|X) as counted.
        u_adjusted: corrected for chance.
        interval: of ``u_adjusted``, 99.9 %.
        bits: mutual information above chance.
        rows: where all are known.
    """

    given: tuple[str, ...]
    of: str
    u: float
    u_adjusted: float
    interval: tuple[float, float]
    bits: float
    rows: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"U({self.of} | {', '.join(self.given)}) = {self.u:.3f}, corrected {self.u_adjusted:.3f} "
            f"[{low:.3f}, {high:.3f}], {self.rows:,} rows"
        )


@dataclass(frozen=True)
class Pair:
    """Both directions of a pair of columns, and whether their values correspond one to one."""

    forward: Dependence
    backward: Dependence
    one_to_one: bool


def measure_pair(x: Coded, y: Coded) -> Pair:
    """U(Y|X) and U(X|Y) from one count of the rows."""
    table = count_pair(x, y)
    chance = by_chance(table.x_rows, table.y_rows)
    forward = _dependence((x.name,), y.name, table, chance)
    backward = _dependence((y.name,), x.name, table.swapped, chance)
    if (forward.is_clear or backward.is_clear) and _is_accident(table):
        forward, backward = _including_zero(forward), _including_zero(backward)
    return Pair(forward, backward, table.is_one_to_one)


def measure_given(given: Sequence[Coded], y: Coded) -> Dependence:
    """U(Y|X,Z): what X and Z together say about Y."""
    table = count_joint(given, y)
    chance = by_chance(table.x_rows, table.y_rows)
    found = _dependence(tuple(column.name for column in given), y.name, table, chance)
    return _including_zero(found) if found.is_clear and _is_accident(table) else found


def measure_all(columns: Sequence[Coded]) -> dict[tuple[str, str], Pair]:
    """Every pair, each counted once; keys are (X, Y) in the order of ``columns``."""
    return {(x.name, y.name): measure_pair(x, y) for x, y in combinations(columns, 2)}


def _is_accident(table: Contingency) -> bool:
    return odd_rows(table) <= FEW and accident_probability(table) > _TAIL


def _including_zero(found: Dependence) -> Dependence:
    return replace(found, interval=(min(found.interval[0], 0.0), found.interval[1]))


def _dependence(given: tuple[str, ...], of: str, table: Contingency, chance: Chance) -> Dependence:
    rows = table.rows
    if rows == 0:
        return Dependence(given, of, 0.0, 0.0, (0.0, 1.0), 0.0, 0)
    share_y = table.y_rows / rows
    log_y = np.log(np.where(share_y > 0, share_y, 1.0))
    entropy = float(-(share_y @ log_y))
    joint = table.counts / rows
    log_cell_y = log_y[table.y]
    # ln(n N / (a b)) of each cell
    surprise = np.log(table.counts / table.x_rows[table.x]) - log_cell_y
    information = float(joint @ surprise)
    u = float(np.clip(information / entropy, 0.0, 1.0)) if entropy > _NOTHING else 0.0
    room = entropy - chance.mean
    if entropy <= _NOTHING or room <= 1e-9 * entropy:
        # Chance explains everything: each value of X (or nearly) stands in one row.
        return Dependence(given, of, u, float(table.is_one_to_one), (0.0, 1.0), 0.0, rows)
    adjusted = float(np.clip((information - chance.mean) / room, -1.0, 1.0))
    influence = surprise + adjusted * log_cell_y
    variance = max(float(joint @ influence**2) - float(joint @ influence) ** 2, 0.0) / rows
    by_accident = chance.upper(_TAIL) - chance.mean
    below = np.hypot(by_accident, _Z * np.sqrt(variance)) / room
    above = _Z * np.sqrt(variance + chance.variance) / room
    interval = (max(float(adjusted - below), -1.0), min(float(adjusted + above), 1.0))
    bits = (information - chance.mean) / np.log(2)
    return Dependence(given, of, u, float(adjusted), interval, float(bits), rows)
