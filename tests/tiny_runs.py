"""Small runs for the tests of the whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console

from conftest import TINY
from openfino.adapt import adapt
from openfino.recipe import build_recipe
from openfino.settings_layers import merge

HEAD = {"prototypes": 16, "hidden": 32, "bottleneck": 16}
SETTINGS = {
    "preset": "small",
    "model": {"config": TINY},
    "train_split": ["train"],
    "views": {"global_size": 32, "local_size": 16, "local_count": 2},
    "factors": {"site": "informative", "dose": "spurious"},
    "objective": {
        "dino": {"head": HEAD},
        "ibot": {"head": HEAD},
        "guidance": {"regressor_hidden": [16, 16]},
        "sigreg": {"directions": 32},
    },
    "train": {
        "steps": 8,
        "batch_size": 8,
        "warmup_steps": 0,
        "log_every": 1,
        "checkpoint_every": 3,
        "workers": 0,
        "threads": 1,
    },
    "probe": {"split": "split", "pictures": 1},
}


COMPARED = ("loss/", "gradient_norm", "guidance/", "watch/", "dino/")


def tiny_settings(manifest, out, **changes):
    """The settings of a run of a few seconds."""
    return merge({**SETTINGS, "manifest": str(manifest), "out": str(out)}, changes)


def run_tiny(manifest, out, *, resume=False, **changes):
    """Train in this process, silently."""
    recipe = build_recipe(tiny_settings(manifest, out, **changes))
    return adapt(recipe, resume=resume, console=Console(quiet=True))


def losses(out):
    """Every logged loss by step, as written."""
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return {
        record["step"]: {key: value for key, value in record.items() if key.startswith(COMPARED)}
        for record in records
        if "loss/total" in record
    }


def recipe_file(folder, settings):
    path = Path(folder) / f"{Path(settings['out']).name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    return path


def command(recipe, *options):
    return [sys.executable, "-m", "openfino.cli", "adapt", str(recipe), *options]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_at_step(recipe, out, step):
    """Start a run in another process and kill it with SIGKILL as soon as ``step`` is logged."""
    # Into a file: workers that outlive their parent for a moment would keep a pipe open.
    said = Path(out).with_suffix(".log")
    with said.open("w") as stream:
        process = subprocess.Popen(command(recipe), env=environment(), stdout=stream, stderr=stream)
    deadline = time.monotonic() + 120
    log = Path(out) / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and f'"step": {step},' in log.read_text():
            break
        time.sleep(0.005)
    finished = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not finished, f"the run ended before it could be killed:\n{said.read_text()}"
