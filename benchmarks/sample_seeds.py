"""The demonstration's comparison over seeds, with the roles and weights that it does not show.

    python benchmarks/sample_seeds.py --seeds 3 --out runs/sample-seeds

Arms: ssl; fino (antibody informative, weight 0.3); fino_paper_weight (0.03); fino_plate_spurious (both, 0.3). All start
from `tiny` and differ from the demonstration in nothing else. Prints Markdown and writes
results.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from arms import collect_scores, markdown_table, run_name, summarise, train_two_at_a_time
from openfino.demo import ARMS, Budget, write_recipe
from openfino.errors import OpenfinoError
from openfino.runfolder import claim_workspace
from openfino.sampledata import draw_sample

ANTIBODY: dict[str, Any] = ARMS["fino"]["antibody"]
PLATE: dict[str, Any] = ARMS["fino"]["plate"]
VARIANTS = {
    **ARMS,
    "fino_paper_weight": {"antibody": {**ANTIBODY, "weight": 0.03}, "plate": PLATE},
    "fino_plate_spurious": {"antibody": ANTIBODY, "plate": {**PLATE, "role": "spurious", "weight": 0.3}},
}
COLUMNS = {
    "test_id kNN": "test_id/knn/macro_f1",
    "test_id linear": "test_id/linear/macro_f1",
    "test_ood kNN": "test_ood/knn/macro_f1",
    "test_ood linear": "test_ood/linear/macro_f1",
    "plate by kNN": "leakage/plate",
    "antibody by kNN": "leakage/antibody",
}


def main() -> None:
    """Draw the sample, train every arm with every seed, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/sample-seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=Budget().steps)
    parser.add_argument("--images", type=int, default=Budget().images)
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    console = Console()
    claim_workspace(arguments.out, overwrite=arguments.overwrite)
    draw_sample(arguments.out / "data", images=arguments.images, seed=0, workers=2)
    budget = Budget(images=arguments.images, steps=arguments.steps)
    seeds = range(arguments.seeds)
    recipes = {
        run_name(arm, seed): write_recipe(arguments.out, run_name(arm, seed), VARIANTS[arm], seed, budget)
        for seed in seeds
        for arm in arguments.arms
    }
    train_two_at_a_time(recipes, arguments.steps, console)
    summary = summarise(collect_scores(arguments.out, arguments.arms, list(seeds)))
    (arguments.out / "results.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    console.print(markdown_table(summary, COLUMNS), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    try:
        main()
    except OpenfinoError as error:
        sys.exit(f"error: {error}")
