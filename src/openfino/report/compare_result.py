"""What ``compare.json`` holds, as the report reads it: any part may be absent, and every number knows its place."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

GUIDED, START = "fino", "frozen"
KINDS = ("reference", "ssl", "guided", "supervised", "post hoc")
KIND_NAMES = {
    "reference": "nothing trained",
    "ssl": "self-supervised",
    "guided": "guided by metadata",
    "supervised": "trained on labels",
    "post hoc": "changed afterwards",
}
# CSS class and colour (on white) of each kind of arm; the demo's page has the first three.
CLASSES = {
    "reference": "frozen",
    "ssl": "ssl",
    "guided": "fino",
    "supervised": "supervised",
    "post hoc": "posthoc",
}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "worst_group_accuracy": "worst-group accuracy",
    "macro_auroc": "macro-AUROC",
    "map": "mAP",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "calibration_error": "calibration error",
}
PROBES = {"attentive": "attentive", "linear": "linear", "knn10": "kNN, k = 10", "knn20": "kNN, k = 20"}
LOWER_IS_BETTER = {"calibration_error"}
_UNSEEN = ("ood", "unseen", "out")

Key = str | int
Form = Callable[[float], str]


def score(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def change(value: float) -> str:
    """Three decimals with a sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def brief(value: float) -> str:
    """As few digits as it has."""
    return f"{value:g}"


def metric_name(metric: str) -> str:
    """A metric in words."""
    return METRICS.get(metric, metric.replace("_", " "))


def probe_name(probe: str) -> str:
    """A probe in words."""
    return PROBES.get(probe, probe.replace("_", " "))


def share_name(fraction: str | float) -> str:
    """A share of the labels, in percent."""
    return f"{100 * float(fraction):g} %"


@dataclass(frozen=True)
class Difference:
    """One entry of ``differences``, and its number in the list."""

    number: int
    mean: float
    low: float
    high: float
    beyond_noise: bool

    @classmethod
    def read(cls, number: int, entry: Mapping[str, Any]) -> "Difference | None":
        """The entry; None where it has no value."""
        names = ("difference", "low", "high")
        if not all(is_number(entry.get(name)) for name in names):
            return None
        mean, low, high = (float(entry[name]) for name in names)
        return cls(number, mean, low, high, bool(entry.get("beyond_noise")))


@dataclass(frozen=True)
class Comparison:
    """The content of ``compare.json``."""

    result: Mapping[str, Any]

    def at(self, *keys: Key) -> Any:
        """What lies under the nested ``keys``; None where there is nothing."""
        found: Any = self.result
        for key in keys:
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, Sequence) and isinstance(key, int) and key < len(found):
                found = found[key]
            else:
                return None
        return found

    def number(self, *keys: Key) -> float | None:
        """The number there; None where there is none, or it is not finite."""
        found = self.at(*keys)
        return float(found) if is_number(found) else None

    def show(self, *keys: Key, form: Form = score) -> str:
        """The number there as markup that says its exact value and its place (RFC 6901); a dash where there is none."""
        value = self.number(*keys)
        if value is None:
            return "\N{EN DASH}"
        return f"<data value='{value!r}' data-at='{pointer(*keys)}'>{form(value)}</data>"

    @property
    def arms(self) -> list[str]:
        """The arms that have scores, kind by kind."""
        names = list(self.at("arms") or {})
        return sorted(names, key=lambda arm: (KINDS.index(self.kind(arm)), names.index(arm)))

    def ordered(self, *keys: Key) -> list[str]:
        """The arms under ``keys``, in the order of the table, with those that the table does not have at the end."""
        found = list(self.at(*keys) or {})
        places = {arm: place for place, arm in enumerate(self.arms)}
        return sorted(found, key=lambda arm: places.get(arm, len(places)))

    def title(self, arm: str) -> str:
        """Name of an arm; text."""
        return str(self.at("titles", arm) or arm)

    def name(self, arm: str) -> str:
        """Name of an arm; markup."""
        return escape(self.title(arm))

    def kind(self, arm: str) -> str:
        """One of ``KINDS``."""
        kind = self.at("kinds", arm)
        return kind if kind in KINDS else "post hoc"

    def style(self, arm: str) -> str:
        """CSS class that gives an arm its colour."""
        return CLASSES[self.kind(arm)]

    @property
    def metric(self) -> str:
        """The metric of the headline."""
        return str(self.at("metric") or "macro_f1")

    @property
    def splits(self) -> list[str]:
        """The splits that arms were scored on, that of the headline first."""
        scored = {split for arm in self.arms for split in self.at("arms", arm) or {}}
        names = [name for name in self.at("splits") or {} if name in scored]
        names += sorted(scored - set(names))
        unseen = [name for name in names if any(word in name.lower() for word in _UNSEEN)]
        first = self.at("headline_split")
        chosen = first if first in scored else next(iter(unseen or names), None)
        return sorted(names, key=lambda name: name != chosen)

    @property
    def split(self) -> str:
        """The split of the headline: out of distribution where there is such a split."""
        return next(iter(self.splits), "")

    def metrics(self, split: str) -> list[str]:
        """What was measured on ``split``, the headline's metric first."""
        found = {
            metric: None
            for arm in self.arms
            for metric in self.at("arms", arm, split) or {}
            if self.number("arms", arm, split, metric, "mean") is not None
        }
        order = list(METRICS)
        places = {metric: order.index(metric) if metric in order else len(order) for metric in found}
        return sorted(found, key=lambda metric: (metric != self.metric, places[metric]))

    def difference(self, arm: str, than: str, split: str, metric: str) -> Difference | None:
        """``arm`` minus ``than`` where it was measured, in whichever direction the result has it."""
        wanted = {"arm": arm, "than": than, "split": split, "metric": metric}
        for number, entry in enumerate(self.at("differences") or []):
            if all(entry.get(key) == value for key, value in wanted.items()):
                return Difference.read(number, entry)
        return None

    def best(self, split: str, metric: str) -> float | None:
        """The best mean of any arm."""
        values = [self.number("arms", arm, split, metric, "mean") for arm in self.arms]
        known = [value for value in values if value is not None]
        return (min if metric in LOWER_IS_BETTER else max)(known, default=None)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def pointer(*keys: Key) -> str:
    """JSON pointer (RFC 6901) to the nested ``keys``, safe in an attribute."""
    return escape("".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in keys))


def is_better(difference: Difference, metric: str) -> bool:
    """Whether the first arm is the better of the two."""
    return (difference.mean < 0) if metric in LOWER_IS_BETTER else (difference.mean > 0)
