"""Tables that several tests of the audit need."""

import numpy as np
import polars as pl

PLATES, LINES, ANTIBODIES = 1457, 35, 14_678


def simulate_atlas(seed=0, images_per_well=2):
    """A screen with the published counts of the Human Protein Atlas (FINO, App. A.3), about 25 antibodies per plate.

    Every antibody is stained on two or three plates, a few plates carry two cell lines.
    """
    rng = np.random.default_rng(seed)
    capacity = rng.uniform(0.5, 1.6, PLATES)
    stained = rng.choice([2, 3], size=ANTIBODIES, p=[0.38, 0.62])
    antibody = np.repeat(np.arange(ANTIBODIES), stained)
    plate = rng.permutation(
        np.repeat(
            np.arange(PLATES),
            np.diff(np.append(0, np.round(np.cumsum(capacity) / capacity.sum() * len(antibody)))).astype(int),
        )
    )
    line = rng.integers(0, LINES, PLATES)[plate]
    second = (plate < 3) & (rng.random(len(plate)) < 0.5)
    line = np.where(second, (line + 1) % LINES, line)
    rows = np.repeat(np.arange(len(plate)), images_per_well)
    return pl.DataFrame(
        {
            "antibody": [f"AB{code}" for code in antibody[rows]],
            "plate": [f"P{code}" for code in plate[rows]],
            "cell_line": [f"L{code}" for code in line[rows]],
        }
    )
