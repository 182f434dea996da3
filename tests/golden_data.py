"""Reads the reference values of the authors' modules, where they are beside the project."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@dataclass(frozen=True)
class Case:
    """One case of a golden file: ``case["loss"]`` is the tensor, ``case.noise("loss")`` its float32 rounding."""

    file: str
    name: str
    hparams: dict
    tensors: dict

    def __getitem__(self, tensor):
        if self.file.endswith(".json"):
            return golden_json(self.file)[self.name][tensor]
        with safe_open(GOLDEN / self.file, framework="pt") as opened:
            return opened.get_tensor(f"{self.name}/{tensor}")

    def __contains__(self, tensor):
        return f"{self.name}/{tensor}" in self.tensors

    def noise(self, tensor):
        return self.tensors.get(f"{self.name}/{tensor}", {}).get("max_abs_diff_to_f64", 0.0)


@functools.cache
def _index():
    return json.loads((GOLDEN / "index.json").read_text())


def require_golden():
    """Skip the test where the reference values are absent."""
    if not (GOLDEN / "index.json").is_file():
        pytest.skip(f"reference values of the authors' modules are not at {GOLDEN}")


@functools.cache
def golden_cases(file):
    """Every case of ``file``; skips the test where the reference values are absent.

    A case of a JSON file has no tensors; ``case["rows"]`` is what the file holds under that key.
    """
    require_golden()
    if file.endswith(".json"):
        return [Case(file, name, data.get("hparams", {}), {}) for name, data in golden_json(file).items()]
    cases = _index()["files"][file]["cases"]
    return [Case(file, name, case["hparams"], case["tensors"]) for name, case in cases.items()]


def golden_files():
    require_golden()
    return sorted(_index()["files"])


@functools.cache
def golden_json(file):
    require_golden()
    return json.loads((GOLDEN / file).read_text())
