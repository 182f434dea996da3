"""Frozen features before and after, and what erasing a factor by projection would have done instead, side by side.

Works on the records of ``probes.jsonl`` (:meth:`openfino.evaluation.results.ProbeReport.to_json`), those of older
versions included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

Record = Mapping[str, Any]
Verdict = Literal["fell", "rose", "level"]

# Standard errors of a difference that count as noise: 95 % of differences by chance alone stay within.
NOISE = 1.96
# What a reading is judged by, the first that it holds, and what reading without features scores.
JUDGED = {"accuracy": "majority", "cosine": "constant_cosine", "r2": None}
TITLES = {"accuracy": "accuracy", "cosine": "cosine", "r2": "R^2"}
READERS = {"knn": "kNN", "linear": "linear"}


@dataclass(frozen=True)
class Change:
    """One factor read by one method before and after.

    Attributes:
        factor, role: of the recipe.
        method: knn or linear.
        measure: accuracy (discrete), cosine (cyclic) or r2.
        guess: the measure without features: of the most common value, of the mean direction, or 0.
        before, after: the measure.
        noise: 1.96 standard errors of the difference, both readings taken as independent. They share their rows,
            so it is rather too large.
        verdict: whether the change is larger than the noise, and where to.
        flagged: spurious, did not fall, and is still read better than by guessing; or informative, did not rise,
            and was not read without a fault to begin with. "Did not" means: not by more than the noise.
    """

    factor: str
    role: str
    method: str
    measure: str
    guess: float
    before: float
    after: float
    noise: float
    verdict: Verdict
    flagged: bool

    def __str__(self) -> str:
        wanted = "fall" if self.role == "spurious" else "rise"
        against = {"fell": "it fell", "rose": "it rose", "level": f"the noise is +-{self.noise:.3f}"}[
            self.verdict
        ]
        return (
            f"{self.factor} ({self.role}) did not {wanted}: {READERS[self.method]} {TITLES[self.measure]} "
            f"{self.before:.3f} before, {self.after:.3f} after ({against}; without features {self.guess:.3f})"
        )


def changes(before: Record, after: Record, roles: Mapping[str, str]) -> list[Change]:
    """Every factor that was read in both records, by every method that read it twice.

    Args:
        before, after: records.
        roles: role of each factor; one that is not named is watched.
    """
    found = []
    for name, new in after["leakage"].items():
        old = before["leakage"].get(name) or {}
        for method in READERS:
            for measure in JUDGED:
                key = f"{method}_{measure}"
                if old.get(key) is not None and new.get(key) is not None:
                    found.append(_change(name, roles.get(name, "watched"), method, measure, old, new))
                    break
    return found


def _change(name: str, role: str, method: str, measure: str, old: Record, new: Record) -> Change:
    key = f"{method}_{measure}"
    before, after, guess = old[key], new[key], new.get(JUDGED[measure] or "") or 0.0
    errors = [reading.get("errors", {}).get(key, 0.0) for reading in (old, new)]
    noise = NOISE * sqrt(sum(error**2 for error in errors))
    verdict: Verdict = "level"
    if abs(after - before) > noise:
        verdict = "rose" if after > before else "fell"
    unread = _unread(new, method, measure, guess)
    flagged = role == "spurious" and verdict != "fell" and not unread
    flagged |= role == "informative" and verdict != "rose" and before + noise < 1
    return Change(name, role, method, measure, guess, before, after, noise, verdict, flagged)


def _unread(reading: Record, method: str, measure: str, guess: float) -> bool:
    """Whether a reading is no better than one without features; of classes, by their mean accuracy too."""
    errors = reading.get("errors", {})
    key, balanced = f"{method}_{measure}", f"{method}_balanced"
    unread = bool(reading[key] <= guess + NOISE * errors.get(key, 0.0))
    if reading.get(balanced) is None:
        return unread
    return unread and bool(reading[balanced] <= reading["chance"] + NOISE * errors.get(balanced, 0.0))


def scores(record: Record) -> dict[str, float]:
    """Every score of a record by the name of its line: of the label by split, of each factor as it is judged."""
    label = record.get("label") or {}
    found = {
        f"{label.get('label', 'label')}, {split}: {READERS.get(method, method)} {metric}": value
        for split, result in (label.get("splits") or {}).items()
        for method, metrics in result["scores"].items()
        for metric, value in metrics.items()
    }
    for change in changes(record, record, {}):
        found[_line_name(change.factor, "", change)] = change.after
    return found


def comparison_table(before: Record, after: Record, roles: Mapping[str, str]) -> str:
    """Everything measured twice, line by line: before, after, the change, its verdict, and what erasures leave."""
    judged = {_line_name(change.factor, "", change): change for change in changes(before, after, roles)}
    columns = {"starting": scores(before), "adapted": scores(after)} | _erased_columns(
        {"starting": before, "adapted": after}
    )
    old, new, *others = columns.values()
    titles = ["starting", "adapted", "change", "noise", "", "guess", *list(columns)[2:]]
    lines = [["frozen features", *titles]]
    for name in [name for name in old if name in new]:
        change = judged.get(name)
        verdict = ["", "", ""]
        shown = name
        if change is not None:
            mark = f"{change.verdict} !" if change.flagged else change.verdict
            verdict = [f"{change.noise:.3f}", mark, f"{change.guess:.3f}"]
            shown = _line_name(change.factor, change.role, change)
        values = [f"{old[name]:.3f}", f"{new[name]:.3f}", f"{new[name] - old[name]:+.3f}", *verdict]
        lines.append([shown, *values, *(_number(other.get(name)) for other in others)])
    parts = [aligned(lines)] if len(lines) > 1 else []
    parts += [f"! {change}" for change in judged.values() if change.flagged]
    parts += _erasure_notes({"starting": before, "adapted": after})
    return "\n".join(parts)


def erasure_table(report: Record) -> str:
    """Every score of a report as it is and once a factor is erased; those of its ``before`` too, where known."""
    records = (
        {"starting": report["before"], "this model": report}
        if report.get("before")
        else {"this model": report}
    )
    columns = {title: scores(record) for title, record in records.items()} | _erased_columns(records)
    lines = [["frozen features", *columns]]
    lines += [[name, *(_number(column.get(name)) for column in columns.values())] for name in scores(report)]
    return "\n".join([aligned(lines), *_erasure_notes({"this model": report})])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width: the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(pairs)
        )
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _line_name(factor: str, role: str, change: Change) -> str:
    described = f"{factor} ({role})" if role else factor
    return f"read {described}: {READERS[change.method]} {TITLES[change.measure]}"


def _erased_columns(records: Mapping[str, Record]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for record in records.values() for name in record.get("erased") or {})
    return {
        f"{title} - {name}": scores(record["erased"][name])
        for name in names
        for title, record in records.items()
        if name in (record.get("erased") or {})
    }


def _erasure_notes(records: Mapping[str, Record]) -> list[str]:
    """What the columns with a minus are, and what each erasure took."""
    taken: dict[str, list[str]] = {}
    for title, record in records.items():
        for name, erased in (record.get("erased") or {}).items():
            taken.setdefault(name, []).append(f"{erased['dimensions']} of {erased['of']} ({title})")
    return [
        f"- {name}: erased afterwards by LEACE, the smallest linear change of the features that leaves no linear trace "
        f"of {name} in the rows it is fitted on; dimensions of CLS taken: {', '.join(parts)}"
        for name, parts in taken.items()
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
