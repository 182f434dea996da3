"""Probing during a run: before the first step, every n steps, at the end; and the choice of the best checkpoint."""

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from openfino.evaluation.comparison import Change, changes, comparison_table
from openfino.evaluation.probes import probe_model
from openfino.evaluation.results import MEASURES, METHODS, READINGS, Method, ProbeReport
from openfino.evaluation.splits import rows_of_split
from openfino.factors.spec import FactorSpec, resolve_specs
from openfino.images.preprocess import Preprocessing
from openfino.manifest import Manifest
from openfino.models.backbone import Backbone
from openfino.models.store import SIDECAR, LoadedModel, save_backbone
from openfino.recipe import ProbeSettings, Recipe
from openfino.runfolder import write_whole
from openfino.training.logging import read_metrics

PROBES_FILE = "probes.jsonl"
BEST = "best"
READERS = 2
# Rows read for factors alone, where the recipe sets no limit: a run that asked for no probe must not wait for one.
UNASKED_ROWS = 10_000

Record = dict[str, Any]


class Prober:
    """Keeps every probe of a run in ``probes.jsonl`` and the best backbone in ``best/``.

    The label is probed if the recipe names one; every factor is read from the features, whatever its role.

    Attributes:
        history: the records of ``probes.jsonl``, the starting backbone first.
        best_step: the step whose backbone is in ``best/``; None when there is none (no validation split).
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        preprocessing: Preprocessing,
        provenance: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.provenance = dict(provenance)
        self.device = device
        self.path = recipe.out / PROBES_FILE
        self.best = recipe.out / BEST
        self.history: list[Record] = []
        self.best_step: int | None = None

    def start(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Probe the starting backbone, or take up the earlier probes of a run that resumes at ``step``.

        Args:
            backbone: the starting one, also when the run resumes: no checkpoint is restored into it yet.
            step: where the run goes on; later records are dropped, their steps run again.

        Returns:
            The numbers of the starting backbone, as :meth:`probe`, if it was probed just now; else none.
        """
        self.history = [record for record in read_metrics(self.path) if record["step"] <= step]
        if not self.history:
            return self.probe(backbone, 0)
        self._write()
        self._settle_best(backbone)
        return {}

    def probe(self, backbone: Backbone, step: int, *, full: bool = True) -> dict[str, float]:
        """Probe ``backbone`` now; keep it in ``best/`` if it is the best so far on the validation split.

        Args:
            backbone: as it is after ``step`` steps.
            step: finished steps. A step that was probed as fully before is not probed again.
            full: run every method, and measure without what is to be erased; else only ``probe.method``, the one that
                selects, and factors by their neighbours.

        Returns:
            One number per name, see :meth:`flat`.
        """
        probe = self.recipe.probe
        methods: tuple[Method, ...] = METHODS if full else (probe.method,)
        readers: tuple[Method, ...] = METHODS if full else ("knn",)
        if self.history and self.history[-1]["step"] == step:
            if _holds(self.history[-1], methods, readers):
                return self.flat(self.history[-1])
            self.history.pop()
        report = probe_model(
            LoadedModel(backbone, self.preprocessing, self.provenance, None),
            self.manifest,
            self._settings,
            device=self.device,
            factors=self._specs,
            erase=self._erased if full else {},
            seed=self.recipe.seed,
            methods=methods,
            leakage_methods=readers,
            workers=READERS,
        )
        record = {
            "step": step,
            "readers": list(readers),
            **report.to_json(),
            "selection": self._selection(report),
        }
        # Weights before their record: a kill in between leaves no record whose weights are nowhere.
        if self._is_best(record["selection"]):
            self._keep(backbone, record)
        self.history.append(record)
        self._write()
        return self.flat(record)

    def before_and_after(self, step: int | None = None) -> dict[str, Any]:
        """The probes of the starting backbone (retention, ``before``) and of a later one (``after``).

        Args:
            step: of the later one; ``after`` is left out if it was not probed. The latest probe when not given.
        """
        if not self.history:
            return {}
        found = {"before": self.history[0]}
        later = [record for record in self.history if step is None or record["step"] == step]
        return found | ({"after": later[-1]} if later else {})

    @staticmethod
    def flat(record: Mapping[str, Any]) -> dict[str, float]:
        """One number per name, for the log: ``probe/test/knn/macro_f1``, ``probe/leakage/plate/knn_accuracy``, beside
        which stand what reading without features scores (``majority``, ``chance``, ``constant_cosine``)."""
        numbers: dict[str, float] = {}
        for split, result in (record["label"] or {"splits": {}})["splits"].items():
            for method, scores in result["scores"].items():
                numbers |= {f"probe/{split}/{method}/{metric}": value for metric, value in scores.items()}
        for factor, reading in record["leakage"].items():
            measured = {measure: reading.get(measure) for measure in MEASURES}
            numbers |= {
                f"probe/leakage/{factor}/{measure}": value
                for measure, value in measured.items()
                if value is not None
            }
        return numbers

    def describe_baseline(self) -> str:
        """One line about the starting backbone; empty before :meth:`start`."""
        return f"starting backbone: {self._headline(self.history[0])}" if self.history else ""

    def line(self, step: int) -> str:
        """One line about the probe at ``step``; empty if there was none."""
        found = [record for record in self.history if record["step"] == step]
        if not found:
            return ""
        best = "; best so far" if self.best_step == step else ""
        return f"probe at step {step}: {self._headline(found[-1])}{best}"

    def table(self) -> str:
        """Starting against adapted backbone and what projections leave; with what training did not do, in words."""
        if not self.history:
            return ""
        return comparison_table(self.history[0], self.history[-1], self._roles)

    def changes(self) -> list[Change]:
        """What became of every factor between the first and the last probe, reader by reader."""
        return changes(self.history[0], self.history[-1], self._roles) if self.history else []

    @property
    def _roles(self) -> dict[str, str]:
        return {name: factor.role for name, factor in self.recipe.factors.items()}

    @cached_property
    def _erased(self) -> dict[str, FactorSpec]:
        """The factors that ``probe.erase`` names; the spurious ones when it names none."""
        given = self.recipe.probe.erase
        return {
            name: spec
            for name, spec in self._specs.items()
            if (spec.role == "spurious" if given is None else name in given)
        }

    @cached_property
    def _specs(self) -> dict[str, FactorSpec]:
        return resolve_specs(self.manifest, self.recipe.factors)[0]

    @cached_property
    def _settings(self) -> ProbeSettings:
        """The recipe's probe settings, with the validation split scored too.

        Without a label only the rows matter: those of ``probe.train``, or all if the table knows no such split;
        at most ``UNASKED_ROWS`` of them unless ``probe.max_rows`` says otherwise.
        """
        probe = self.recipe.probe
        if probe.label is None:
            limit = probe.max_rows or UNASKED_ROWS
            known = len(rows_of_split(self.manifest.table, probe, probe.train)) > 0
            return ProbeSettings(
                split=probe.split if known else None, train=probe.train, k=probe.k, max_rows=limit
            )
        if probe.val is None or probe.val in probe.tests or not probe.tests:
            return probe
        return probe.model_copy(update={"tests": [probe.val, *probe.tests]})

    def _selection(self, report: ProbeReport) -> float | None:
        probe = self.recipe.probe
        if probe.val is None:
            return None
        return report.score(probe.val, probe.method, probe.metric)

    def _headline(self, record: Mapping[str, Any]) -> str:
        """The scores that select, on every split, and every factor."""
        probe = self.recipe.probe
        chosen = (f"/{probe.method}/{probe.metric}", *(f"/{measure}" for measure in READINGS))
        shown = {name: value for name, value in self.flat(record).items() if name.endswith(chosen)}
        return ", ".join(f"{name.removeprefix('probe/')} {value:.3f}" for name, value in shown.items())

    def _is_best(self, selection: float | None) -> bool:
        kept = [record["selection"] for record in self.history if record["step"] == self.best_step]
        return selection is not None and (not kept or selection > kept[-1])

    def _keep(self, backbone: Backbone, record: Record) -> None:
        """Put ``backbone`` into ``best/`` with its ``record``."""
        step = record["step"]
        probes = {"before": (self.history or [record])[0], "after": record}
        facts = {**self.provenance, "steps": step, "probes": probes}
        save_backbone(self.best, backbone, self.preprocessing, facts)
        self.best_step = step

    def _settle_best(self, backbone: Backbone) -> None:
        """See that ``best/`` holds what a record of the history tells of.

        A kill can leave there the backbone of a step that runs again, or nothing: the one before it is lost then.
        The starting backbone takes its place until a probe does better.
        """
        scored = {record["step"] for record in self.history if record["selection"] is not None}
        stored = self._step_in_best()
        if stored in scored:
            self.best_step = stored
        elif 0 in scored:
            self._keep(backbone, self.history[0])
        else:
            shutil.rmtree(self.best, ignore_errors=True)

    def _step_in_best(self) -> int | None:
        try:
            stored = json.loads((self.best / SIDECAR).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        step: int | None = stored["provenance"].get("steps")
        return step

    def _write(self) -> None:
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in self.history))


def _holds(record: Mapping[str, Any], methods: tuple[Method, ...], readers: tuple[Method, ...]) -> bool:
    """Whether ``record`` has the scores of every one of ``methods``, and the factors by every one of ``readers``."""
    splits = (record["label"] or {"splits": {}})["splits"].values()
    known = all(method in result["scores"] for result in splits for method in methods)
    return known and set(readers) <= set(record.get("readers", ["knn"]))
