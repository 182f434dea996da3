"""Arms over seeds: train two at a time, summarise their probes, show them as Markdown."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from openfino.demo import train_arms
from openfino.evaluation.results import READINGS
from openfino.prober import PROBES_FILE

Scores = dict[str, float]
Summary = dict[str, dict[str, dict[str, Any]]]


def run_name(arm: str, seed: int) -> str:
    """Name of the recipe and of the run folder of ``arm``."""
    return f"{arm}-{seed}"


def train_two_at_a_time(recipes: Mapping[str, Path], steps: int, console: Console) -> None:
    """Train every recipe (by the name of its run) in the order given, two side by side.

    Raises:
        OpenfinoError: with the last lines of its log, if a run fails.
    """
    names = list(recipes)
    for first in range(0, len(names), 2):
        train_arms({name: recipes[name] for name in names[first : first + 2]}, steps, console)


def collect_scores(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Scores]]:
    """Scores of every arm, one per seed; ``frozen`` is the start, which is the same for all arms of a seed."""
    probes = {(arm, seed): _probes(out / run_name(arm, seed)) for arm in arms for seed in seeds}
    frozen = [_flat(probes[arms[0], seed][0]) for seed in seeds]
    return {"frozen": frozen} | {arm: [_flat(probes[arm, seed][-1]) for seed in seeds] for arm in arms}


def summarise(scores: Mapping[str, Sequence[Scores]]) -> Summary:
    """Mean, sample standard deviation (None with one seed) and values of every score of every arm."""
    return {
        arm: {name: _spread([one[name] for one in over_seeds]) for name in sorted(over_seeds[0])}
        for arm, over_seeds in scores.items()
    }


def markdown_table(summary: Summary, columns: Mapping[str, str]) -> str:
    """Arms by scores, as ``mean +- sd``.

    Args:
        summary: of :func:`summarise`; where an arm lacks a score, the cell is empty.
        columns: heading -> name of the score.
    """
    lines = [["arm", *columns], ["---", *("---:" for _ in columns)]]
    lines += [
        [arm, *(_cell(scores.get(name)) for name in columns.values())] for arm, scores in summary.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _probes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / PROBES_FILE).read_text(encoding="utf-8").splitlines()]


def _flat(record: Mapping[str, Any]) -> Scores:
    """One number per name: ``test_ood/knn/macro_f1``, ``leakage/scanner`` (accuracy; of a quantity R^2)."""
    flat = {
        f"{split}/{method}/{metric}": value
        for split, result in record["label"]["splits"].items()
        for method, scores in result["scores"].items()
        for metric, value in scores.items()
    }
    for factor, reading in record["leakage"].items():
        known = [reading[measure] for measure in READINGS if reading.get(measure) is not None]
        flat |= {f"leakage/{factor}": value for value in known}
    return flat


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": list(values)}


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    spread = f" +- {score['sd']:.3f}" if score["sd"] is not None else ""
    return f"{score['mean']:.3f}{spread}"
