"""How often the 95 % intervals of ``openfino.evaluation.scores`` hold the truth, in simulated test sets.

    python benchmarks/interval_coverage.py

Rows have one of three classes and one of six groups; a head whose logits are noise plus the class is scored. The truth
is its score on a million rows. ``middle`` is the middle 95 % of the draws, ``interval`` what openfino gives. Prints
what docs/probes.md reports, and the seconds that 1,000 draws of 10,000 rows and 30 classes take.
"""

import argparse
import time

import numpy as np

from openfino.evaluation.measures import METRICS
from openfino.evaluation.scores import Bootstrap, bootstrap, score_task
from openfino.evaluation.tasks import Predictions, Targets, Task

CLASSES, GROUPS = 3, 6
TASK = Task("single", "y", tuple("abc"))


def draw(rows: int, odd: float, seed: int) -> tuple[Predictions, Targets, np.ndarray]:
    """Predictions too sure of themselves, worse by ``odd`` in group 0."""
    generator = np.random.default_rng(seed)
    truth, groups = generator.integers(0, CLASSES, rows), generator.integers(0, GROUPS, rows)
    logits = generator.normal(size=(rows, CLASSES))
    logits[np.arange(rows), truth] += np.where(groups == 0, 1.0 - odd, 1.0)
    scores = np.exp(2 * logits)
    scores /= scores.sum(axis=1, keepdims=True)
    return TASK.predict_scores(scores.astype(np.float32)), Targets(truth, np.ones(rows, dtype=bool)), groups


def single_arm(rows: int, odd: float, repeats: int) -> dict[str, tuple[float, float]]:
    """Share of the simulations in which the middle of the draws, and the interval, hold the truth."""
    predictions, targets, groups = draw(1_000_000, odd, 10**6)
    truth = score_task(TASK, predictions, targets, groups)
    held = {name: np.zeros(2) for name in METRICS["single"]}
    for seed in range(repeats):
        predictions, targets, groups = draw(rows, odd, seed)
        found = Bootstrap(TASK, {"arm": [predictions]}, targets, groups=groups, draws=400, seed=seed)
        for name in held:
            middle = np.nanquantile(found.values["arm"][name][0], [0.025, 0.975])
            for number, (low, high) in enumerate((middle, found.interval("arm", name))):
                held[name][number] += low <= truth[name] <= high
    return {name: tuple(shares / repeats) for name, shares in held.items()}


def two_arms(seeds: int, spread: float, repeats: int) -> float:
    """Share in which the interval of the difference of two equal arms holds 0; their seeds differ by ``spread``."""
    held = 0
    for repeat in range(repeats):
        generator = np.random.default_rng(repeat)
        truth, ease = generator.integers(0, CLASSES, 500), generator.random(500)
        arms = {}
        for arm in "ab":
            skills = 0.65 + spread * generator.normal(size=seeds)
            right = [0.7 * ease + 0.3 * generator.random(500) < skill for skill in skills]
            chosen = [np.where(each, truth, (truth + 1) % CLASSES) for each in right]
            arms[arm] = [TASK.predict_scores(np.eye(CLASSES, dtype=np.float32)[each]) for each in chosen]
        targets = Targets(truth, np.ones(500, dtype=bool))
        found = Bootstrap(TASK, arms, targets, draws=400, seed=repeat, metrics=["accuracy"])
        difference = found.difference("a", "b", "accuracy")
        held += difference.low <= 0 <= difference.high
    return held / repeats


def seconds() -> float:
    """Of 1,000 draws of all metrics."""
    generator = np.random.default_rng(0)
    task = Task("single", "y", tuple(f"{number:02}" for number in range(30)))
    truth = generator.integers(0, 30, 10_000)
    scores = generator.random((10_000, 30), dtype=np.float32) + np.eye(30, dtype=np.float32)[truth]
    predictions = task.predict_scores(scores / scores.sum(axis=1, keepdims=True))
    start = time.perf_counter()
    targets = Targets(truth, np.ones(10_000, dtype=bool))
    bootstrap(task, predictions, targets, groups=truth % 7, clusters=np.arange(10_000) // 5, seed=0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    print("| metric of one arm | rows | groups | middle | interval |\n|---|---:|---|---:|---:|")
    for odd, which in ((0.7, "one is clearly the worst"), (0.0, "equally good")):
        for rows in (200, 1000):
            for name, (middle, interval) in single_arm(rows, odd, repeats).items():
                print(f"| {name} | {rows} | {which} | {middle:.0%} | {interval:.0%} |")
    print(
        "\n| seeds of each of two equal arms | seeds do not differ | by 0.02 | by 0.05 |\n|---:|---:|---:|---:|"
    )
    for seeds in (1, 2, 3, 5):
        shares = [two_arms(seeds, spread, repeats) for spread in (0.0, 0.02, 0.05)]
        print(f"| {seeds} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    print(f"\n{seconds():.1f} s")


if __name__ == "__main__":
    main()
