"""Probing during a run: before the first step, every n steps, at the end; and the choice of the best checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table

from openfino.evaluation.probes import Method, ProbeReport, probe_model
from openfino.images.preprocess import Preprocessing
from openfino.manifest import Manifest
from openfino.models.backbone import Backbone
from openfino.models.store import LoadedModel, save_backbone
from openfino.recipe import Recipe

PROBES_FILE = "probes.jsonl"


class Prober:
    """Keeps every probe of a run in ``probes.jsonl`` and the best backbone in ``best/``."""

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
        self.history: list[dict[str, Any]] = []

    def start(self, backbone: Backbone, step: int) -> None:
        """Probe the starting backbone, or read the earlier probes of a run that resumes at ``step``."""
        if self.path.is_file():
            records = [
                json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines() if line
            ]
            self.history = [record for record in records if record["step"] <= step]
            self._write()
        if not self.history:
            self.probe(backbone, 0)

    def probe(self, backbone: Backbone, step: int) -> dict[str, float]:
        """Probe ``backbone`` now; keep it in ``best/`` if it is the best so far on the validation split."""
        if self.history and self.history[-1]["step"] == step:
            return _flat(self.history[-1])
        model = LoadedModel(backbone, self.preprocessing, self.provenance, None)
        discrete = [name for name, kind in self._discrete_factors()]
        report = probe_model(
            model,
            self.manifest,
            self._settings(),
            device=self.device,
            leakage_columns=discrete,
            seed=self.recipe.seed,
        )
        record = {"step": step, **report.to_json()}
        selected = self._selection(report)
        record["selection"] = selected
        is_best = selected is not None and selected > max(
            (old["selection"] for old in self.history if old["selection"] is not None), default=float("-inf")
        )
        self.history.append(record)
        self._write()
        if is_best:
            facts = {**self.provenance, "steps": step, "probes": self.before_and_after()}
            save_backbone(self.recipe.out / "best", backbone, self.preprocessing, facts)
        return _flat(record)

    def before_and_after(self) -> dict[str, Any]:
        """The probes of the starting backbone (retention) and of the latest one."""
        if not self.history:
            return {}
        return {"before": self.history[0], "after": self.history[-1]}

    @property
    def best_step(self) -> int | None:
        """The step whose backbone is in ``best/``; None without a validation split."""
        scored = [
            (record["selection"], -record["step"])
            for record in self.history
            if record["selection"] is not None
        ]
        return -max(scored)[1] if scored else None

    def describe_baseline(self) -> str:
        """One line about the starting backbone."""
        scores = {
            name: value
            for name, value in _flat(self.history[0]).items()
            if name.endswith(self.recipe.probe.metric)
        }
        return "starting backbone: " + ", ".join(f"{name[6:]} {value:.3f}" for name, value in scores.items())

    def table(self) -> Table:
        """Starting against adapted backbone, every score and every factor."""
        before, after = (_flat(self.history[index]) for index in (0, -1))
        table = Table(title="frozen features, before and after", title_justify="left")
        for column in ("probe", "starting", "adapted", "change"):
            table.add_column(column, justify="left" if column == "probe" else "right")
        for name, old in before.items():
            new = after[name]
            table.add_row(name[6:], f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        return table

    def _settings(self) -> Any:
        """The recipe's probe settings, with the validation split scored too."""
        probe = self.recipe.probe
        if probe.val is None or probe.val in probe.tests or not probe.tests:
            return probe
        return probe.model_copy(update={"tests": [probe.val, *probe.tests]})

    def _discrete_factors(self) -> list[tuple[str, str]]:
        factors: dict[str, dict[str, str]] = self.provenance["factors"]
        return [(name, factor["kind"]) for name, factor in factors.items() if factor["kind"] == "discrete"]

    def _selection(self, report: ProbeReport) -> float | None:
        probe = self.recipe.probe
        if probe.val is None:
            return None
        method: Method = probe.method
        return report.score(probe.val, method, probe.metric)

    def _write(self) -> None:
        self.path.write_text("".join(json.dumps(record) + "\n" for record in self.history), encoding="utf-8")


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    """One number per name, for the log: ``probe/test_ood/knn/macro_f1``, ``probe/leakage/plate/knn_accuracy``."""
    flat: dict[str, float] = {}
    for split, result in (record["label"] or {"splits": {}})["splits"].items():
        for method, scores in result["scores"].items():
            flat |= {f"probe/{split}/{method}/{metric}": value for metric, value in scores.items()}
    for factor, reading in record["leakage"].items():
        if reading["knn_accuracy"] is not None:
            flat[f"probe/leakage/{factor}/knn_accuracy"] = reading["knn_accuracy"]
    return flat
