"""The answer of a comparison in words: did guidance help out of distribution, by how much, beyond noise or not?"""

from collections.abc import Mapping
from typing import Any

from openfino.report.compare_result import (
    GUIDED,
    START,
    Comparison,
    Difference,
    is_better,
    metric_name,
    probe_name,
)

# What FINO is without its metadata: with the same SIGReg, else with KoLeo, else nothing was trained at all.
CONTROLS = {
    "ssl_sigreg": "the same training without metadata",
    "ssl": "self-supervision without metadata",
    START: "the frozen start",
}


def answer_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """``headline``: one sentence. ``details``: sentences on the other arms, where FINO did not win, and trust.

    Args:
        result: as in ``compare.json``; ``answer`` itself is not read.
    """
    comparison = Comparison(result)
    control = next((arm for arm in CONTROLS if _scored(comparison, arm)), None)
    if not _scored(comparison, GUIDED) or control is None:
        absent = "FINO" if control else "what it would be held against"
        return {"headline": f"No answer: {absent} was not run.", "details": _trust(comparison)}
    return {
        "headline": _headline(comparison, control),
        "details": [
            *_others(comparison, control),
            *_elsewhere(comparison, control),
            *_other_probes(comparison, control),
            *_trust(comparison),
        ],
    }


def _headline(comparison: Comparison, control: str) -> str:
    split, metric = comparison.split, comparison.metric
    own, other = _mean(comparison, GUIDED), _mean(comparison, control)
    found = comparison.difference(GUIDED, control, split, metric)
    scores = (
        f"on {split}, {metric_name(metric)} of {comparison.at('label')} is {own:.3f} with FINO and {other:.3f} with "
        f"{CONTROLS[control]}"
    )
    if found is None:
        return f"Whether guidance helped was not measured: {scores}; there is no interval of the difference."
    if not found.beyond_noise:
        return f"Guidance made no difference beyond noise: {scores} ({_said(found)})."
    verdict = "Yes, guidance helped" if is_better(found, metric) else "No, guidance hurt"
    return f"{verdict}: {scores} ({_said(found)}, beyond noise)."


def _others(comparison: Comparison, control: str) -> list[str]:
    """Every other arm by what the difference to FINO says; where FINO did not win comes first."""
    groups: dict[str, list[str]] = {"below": [], "level with": [], "above": []}
    for arm in comparison.arms:
        found = comparison.difference(GUIDED, arm, comparison.split, comparison.metric)
        if arm in (GUIDED, control) or found is None:
            continue
        side = "above" if is_better(found, comparison.metric) else "below"
        groups[side if found.beyond_noise else "level with"].append(comparison.title(arm))
    return [
        f"{comparison.title(GUIDED)} is {side}: {'; '.join(arms)}." for side, arms in groups.items() if arms
    ]


def _elsewhere(comparison: Comparison, control: str) -> list[str]:
    """The same question on the other splits."""
    sentences = []
    for split in comparison.splits[1:]:
        found = comparison.difference(GUIDED, control, split, comparison.metric)
        if found is not None:
            noise = "beyond noise" if found.beyond_noise else "within noise"
            sentences.append(f"On {split} the difference is {_said(found)}, {noise}.")
    return sentences


def _other_probes(comparison: Comparison, control: str) -> list[str]:
    """Probes with less to learn: a head that learns the task by itself hides what the features gained."""
    split, metric = comparison.split, comparison.metric
    arms = list(dict.fromkeys([GUIDED, control, START]))
    said = []
    for probe in comparison.at("probes", GUIDED) or {}:
        values = [comparison.number("probes", arm, probe, split, metric, "mean") for arm in arms]
        if probe == comparison.at("headline_probe") or None in values:
            continue
        said.append(f"{probe_name(probe)} {' / '.join(f'{value:.3f}' for value in values)}")
    names = " / ".join(comparison.title(arm) for arm in arms)
    return [f"By other probes on {split} ({names}): {'; '.join(said)}."] if said else []


def _trust(comparison: Comparison) -> list[str]:
    seeds = comparison.at("seeds") or []
    if len(seeds) == 1:
        return ["One seed only: how much another seed would change is not in the intervals."]
    return []


def _scored(comparison: Comparison, arm: str) -> bool:
    return comparison.number("arms", arm, comparison.split, comparison.metric, "mean") is not None


def _mean(comparison: Comparison, arm: str) -> float:
    return float(comparison.at("arms", arm, comparison.split, comparison.metric, "mean"))


def _said(found: Difference) -> str:
    return f"{found.mean:+.3f}, 95 % interval {found.low:+.3f} to {found.high:+.3f}"
