"""Writes ``docs/fidelity.md``: what was held against the authors' modules, and how closely it agrees.

Run by ``make fidelity`` (it needs the reference values beside the project).
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import all_components  # noqa: E402, F401
from comparisons import COMPONENTS, Component, agreements  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
SMALLEST = 1e-7  # a row never claims more than float32 can hold
SMALLEST_DOUBLE = 1e-13
COLUMNS = ("component", "ours", "source", "reference cases", "float32", "float64", "deviation and why")
FLOAT32, FLOAT64 = COLUMNS.index("float32"), COLUMNS.index("float64")
HEADER = """# Fidelity

Every part below was given the stored inputs of the authors' own modules (facebookresearch/dinov3, branch FINO), and
its values and gradients were held against their outputs. The errors are upper limits, rounded up to a power of ten: the
largest absolute difference over the largest absolute value of the reference tensor, over all cases of the row. In
float32 the tests allow 1e-5, or ten times the rounding noise of the authors' own float32 run where that is larger.
No limit is given below 1e-7 (1e-13 in float64), where agreement to the last bit is not told apart from less. "-" under
float64: the authors' module was stored in float32 only, or ours computes in float32 by design.

Where the authors' code and their paper differ, our default is the paper, and the last column names the option that
gives their code's behaviour. `preset: authors` sets those options by which the FINO recipes that they released
differ from the paper. The other options in the column stand for switches of their code that these recipes leave
alone. Where their code is wrong, we do the right thing, and the column says so.

Written by `make fidelity`; `make test` fails when a row is stale.
"""
FOOTER = """
## Differences that no reference value shows

None of these has an option.

- Stage 1. Theirs sets rate and weight decay of the frozen backbone to 0 but goes on computing its gradients: they
  fill AdamW's moments for the moment of unfreezing, and they count in the norm by which the gradients of the patch
  embedding, which does train, are clipped. Ours computes none, so that the backbone's moments begin where it unfreezes.
- Blur. Theirs hands 1 - p to a function that takes the probability to apply it: the two global crops are blurred with
  probability 0 and 0.9 instead of 1 and 0.1 as written (local crops: 0.5 either way). Ours does as written.
- Log. The loss that theirs logs and checks for NaN leaves guidance out; ours is what is minimised.
- Starting weights. Theirs loads what matches by name and goes on without a word when nothing does; ours says how much
  matched and refuses under 99 % (`docs/models.md`).
"""


def limit(errors: list[float], smallest: float) -> str:
    """The smallest power of ten that no error exceeds, but never below ``smallest``."""
    if not errors:
        return "-"
    return f"1e{math.ceil(math.log10(max(*errors, smallest)) - 1e-9):d}"


def row(number: int, chosen: Component) -> tuple[str, ...]:
    """The cells of one component; errors are empty where the reference values are absent."""
    found = agreements(number)
    single = [one.error for one in found if not one.double]
    double = [one.error for one in found if one.double]
    return (
        *described(chosen),
        limit(single, SMALLEST),
        limit(double, SMALLEST_DOUBLE),
        chosen.deviation,
    )


def described(chosen: Component) -> tuple[str, ...]:
    """The cells that need no reference values."""
    places = "; ".join(
        f"{file.split('.')[0]}: {', '.join(patterns)}" for file, patterns in chosen.cases.items()
    )
    return (chosen.name, f"`{chosen.ours}`", chosen.source, places)


def page() -> str:
    """The whole page."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [row(number, chosen) for number, chosen in enumerate(COMPONENTS)]
    return HEADER + "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n" + FOOTER


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; takes no arguments."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
