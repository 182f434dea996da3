"""``compare.json``: everything that was read, weighed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openfino.compare.arms import ADAPTED, ERASED, KINDS, METHODS, Trained, uses_labels, uses_metadata
from openfino.compare.learned import learned, random_weights
from openfino.compare.reading import HEADLINE, OWN_HEAD, REFITTED
from openfino.compare.readings import Named, Readings, difference_of, tested_rows, value_of, values_of, weigh
from openfino.compare.setup import Setup, unseen_labels
from openfino.evaluation.scores import Bootstrap
from openfino.report.compare_answer import answer_of
from openfino.tables import value_keys

FORMAT = 1
MOST_GROUPS = 40
GROUP_METRICS = {"single": "accuracy", "multi": "accuracy", "regression": "r2"}
START = "frozen"
GUIDED = "fino"


def result_of(readings: Readings) -> dict[str, Any]:
    """The content of ``compare.json`` but for its pictures."""
    setup = readings.setup
    weighed, others, shares, groups = {}, {}, {}, {}
    for split in setup.tests:
        weighed[split] = weigh(readings, split, _headlines(readings))
        others[split] = weigh(readings, split, _probes(readings), [setup.metric, "accuracy"])
        shares[split] = weigh(readings, split, _shares(readings), [setup.metric])
        groups[split] = _by_group(readings, split)
    arms = {arm: {split: values_of(weighed[split], arm) for split in weighed} for arm in setup.arms}
    result: dict[str, Any] = {
        "format": FORMAT,
        "recipe": "",
        "label": setup.task.label,
        "task": setup.task.kind,
        "metric": setup.metric,
        "headline_probe": HEADLINE,
        "splits": {name: {"rows": len(rows)} for name, rows in setup.rows.items()},
        "seeds": setup.seeds,
        "group": setup.base.probe.group,
        "cluster": setup.cluster,
        "domain": setup.domain,
        "spurious": setup.erased,
        "roles": {name: spec.role for name, spec in setup.ready.specs.items() if spec.role != "watched"},
        "arms": arms,
        "titles": {arm: setup.title(arm) for arm in KINDS},
        "kinds": dict(KINDS),
        "not_run": setup.not_run,
        "probes": _by_probe(arms, others),
        "differences": _differences(setup, weighed),
        "learned": learned(readings, START),
        "random_weights": random_weights(readings),
        "fractions": _by_share(shares, arms, setup),
        "per_group": {
            arm: {split: groups[split][arm] for split in groups if groups[split]} for arm in setup.arms
        }
        if setup.base.probe.group
        else {},
        "per_group_metric": GROUP_METRICS[setup.task.kind],
        "leakage": {arm: _leakage(readings, arm) for arm in setup.arms},
        "chosen": {arm: _chosen(readings, arm) for arm in setup.arms},
        "cost": {arm: _cost(readings, arm) for arm in setup.arms},
        "curves": {
            arm: {str(seed): readings.records[Trained(arm, seed)]["curve"] for seed in setup.seeds}
            for arm in setup.arms
            if arm in (*ADAPTED, *METHODS)
        },
        "unseen_labels": unseen_labels(setup),
        "unreadable_rows": sorted(
            {row for record in readings.records.values() for row in record["unreadable"]}
        ),
        "left_out_tests": int((~readings.kept).sum()),
    }
    answer = answer_of(result)
    result["answer"] = {**answer, "details": [*answer["details"], *_cautions(result)]}
    return plain(result)


def _cautions(result: Mapping[str, Any]) -> list[str]:
    """What a reader would not see in the table: random weights that do as well, arms that learned nothing."""
    metric, said = result["metric"], []
    for split, own in result["random_weights"].items():
        start = result["arms"].get(START, {}).get(split, {}).get(metric)
        if start is not None and metric in own and own[metric]["mean"] >= start["mean"]:
            said.append(
                f"On {split} random weights read by the same head score {own[metric]['mean']:.3f}, no less than the "
                f"frozen start ({start['mean']:.3f}): what the head sees there owes little to pretraining."
            )
    idle = [
        f"{result['titles'][arm]} ({split}{_elsewhere(probes)})"
        for arm, splits in result["learned"].items()
        for split, probes in splits.items()
        if HEADLINE in probes and probes[HEADLINE]["after"] <= probes[HEADLINE]["before"]
    ]
    if idle:
        said.append(f"No better than before they were trained: {'; '.join(idle)}.")
    for split, rows in result["unseen_labels"].items():
        said.append(
            f"{rows} images of {split} have a label that no training image has, and can only count as wrong."
        )
    return said


def plain(value: Any) -> Any:
    """As JSON has it: what is not defined is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _elsewhere(probes: Mapping[str, Any]) -> str:
    """The other probes by which an arm beats its own start."""
    better = [name for name, own in probes.items() if name != HEADLINE and own["after"] > own["before"]]
    return f", but better by {', '.join(better)}" if better else ""


def _headlines(readings: Readings) -> Named:
    found = {arm: readings.predictions(arm, HEADLINE) for arm in readings.setup.arms}
    return {arm: said for arm, said in found.items() if said is not None}


def _probes(readings: Readings) -> Named:
    setup = readings.setup
    names = ["linear", *(f"knn{k}" for k in setup.base.compare.neighbours), OWN_HEAD, REFITTED]
    found = {f"{arm}|{name}": readings.predictions(arm, name) for arm in setup.arms for name in names}
    return {key: said for key, said in found.items() if said is not None}


def _shares(readings: Readings) -> Named:
    """Predictions by arm and share of the labels, below all of them."""
    setup, found = readings.setup, {}
    for arm in setup.arms:
        for share in setup.fractions if setup.reads_fractions(arm) else []:
            name = f"{share:g}"
            if arm in METHODS:
                found[f"{arm}|{name}"] = readings.predictions(arm, HEADLINE, fraction=share)
            else:
                found[f"{arm}|{name}"] = readings.predictions(arm, name)
    return {key: said for key, said in found.items() if said is not None}


def _by_probe(arms: Mapping[str, Any], others: Mapping[str, Bootstrap | None]) -> dict[str, Any]:
    probes: dict[str, Any] = {arm: {HEADLINE: splits} for arm, splits in arms.items()}
    for split, weighed in others.items():
        for key in weighed.estimates if weighed else []:
            arm, name = key.split("|")
            probes[arm].setdefault(name, {})[split] = values_of(weighed, key)
    return probes


def _by_share(
    shares: Mapping[str, Bootstrap | None], arms: Mapping[str, Any], setup: Setup
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split, weighed in shares.items():
        for key in weighed.estimates if weighed else []:
            arm, share = key.split("|")
            found.setdefault(arm, {}).setdefault(share, {})[split] = values_of(weighed, key)
    for arm, splits in arms.items():
        if setup.reads_fractions(arm) and 1.0 in setup.base.compare.fractions:
            whole = {
                split: {setup.metric: own[setup.metric]}
                for split, own in splits.items()
                if setup.metric in own
            }
            found.setdefault(arm, {})["1"] = whole
    return found


def _differences(setup: Setup, weighed: Mapping[str, Bootstrap | None]) -> list[dict[str, Any]]:
    """FINO against every arm, and every arm against the frozen start."""
    arms = setup.arms
    pairs = [(GUIDED, arm) for arm in arms if arm != GUIDED and GUIDED in arms]
    pairs += [(arm, START) for arm in arms if arm != START and START in arms and (arm, START) not in pairs]
    found = []
    for arm, than in pairs:
        for split, own in weighed.items():
            if own is None:
                continue
            both = [metric for metric in own.estimates[arm] if metric in own.estimates[than]]
            found += [
                {
                    "arm": arm,
                    "than": than,
                    "split": split,
                    "metric": metric,
                    **difference_of(own, arm, than, metric),
                }
                for metric in both
            ]
    return found


def _by_group(readings: Readings, split: str) -> dict[str, dict[str, Any]]:
    """The arms group by group, the largest ``MOST_GROUPS`` of them."""
    setup, column = readings.setup, readings.setup.base.probe.group
    if column is None:
        return {}
    inside, rows = tested_rows(readings, split)
    names = np.array(value_keys(setup.manifest.table[column].gather(rows)).fill_null("").to_list())
    values, counts = np.unique(names[names != ""], return_counts=True)
    largest = sorted(values[np.argsort(-counts, kind="stable")[:MOST_GROUPS]].tolist())
    metric, headlines = GROUP_METRICS[setup.task.kind], _headlines(readings)
    found: dict[str, dict[str, Any]] = {arm: {} for arm in headlines}
    for name in largest:
        own = np.flatnonzero(names == name)
        weighed = Bootstrap(
            setup.task,
            {arm: [said.at(inside[own]) for said in every] for arm, every in headlines.items()},
            setup.targets.at(rows[own]),
            draws=setup.base.compare.draws,
            seed=setup.base.seed,
            metrics=[metric],
        )
        for arm in headlines:
            if metric in weighed.estimates[arm]:
                value = value_of(weighed, arm, metric)
                kept = {key: value[key] for key in ("mean", "low", "high")}
                found[arm][name] = {**kept, "rows": len(own)}
    return found


def _own(readings: Readings, arm: str) -> list[dict[str, Any]]:
    """The records of an arm by seed."""
    return [readings.records[Trained(ERASED.get(arm, arm), seed)] for seed in readings.setup.seeds]


def _leakage(readings: Readings, arm: str) -> dict[str, Any]:
    """Of the first seed's features."""
    found: dict[str, Any] = _own(readings, arm)[0]["leakage"].get(arm, {})
    return found


def _chosen(readings: Readings, arm: str) -> list[dict[str, Any]]:
    chosen = []
    for seed, record in zip(readings.setup.seeds, _own(readings, arm), strict=True):
        own = record["chosen"].get(arm, {}).get(HEADLINE, {})
        chosen.append({"seed": seed, **{key: value for key, value in own.items() if key != "points"}})
    return chosen


def _cost(readings: Readings, arm: str) -> dict[str, Any]:
    """Of one seed, on average: every trial of its grid, and beside it the reading."""
    records = _own(readings, arm)
    return {
        "images": round(float(np.mean([record["images"] for record in records]))),
        "seconds": float(np.mean([record["seconds"] for record in records])),
        "probe_seconds": float(np.mean([record["probe_seconds"] for record in records])),
        "trials": int(records[0]["trials"]),
        "uses_labels": uses_labels(arm),
        "uses_metadata": uses_metadata(arm),
    }
