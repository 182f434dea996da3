"""``openfino compare``: from a recipe to one table of every arm."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

import openfino
from openfino.compare.pictures import with_pictures
from openfino.compare.readings import collect
from openfino.compare.result import result_of
from openfino.compare.setup import Setup, domain_of, erased_of, open_setup, resolved_task
from openfino.compare.small import smaller
from openfino.compare.splits import COLUMN, Splits, plan_splits
from openfino.compare.working import ArmJob
from openfino.errors import InputProblemsError, Problem
from openfino.evaluation.shared_images import shared_images
from openfino.jobs.folder import Workplace, with_absolute_paths, write_bytes
from openfino.jobs.processes import helpers
from openfino.jobs.running import Say, run_jobs
from openfino.locks import lock
from openfino.manifest import Manifest
from openfino.preflight import Preflight, preflight, with_source_normalization
from openfino.recipe import Recipe, build_recipe, dump_recipe, load_settings
from openfino.recipe.compare import ArmName
from openfino.report.compare_page import write_compare_page
from openfino.runfolder import write_whole
from openfino.settings_layers import merge

WORD = "comparison"
RESULT_FILE, RECIPE_FILE, HELPERS_FOLDER = "compare.json", "arms.yaml", "helpers"
# Keys on which processes that share a folder, and a call that goes on, need not agree.
_FREE = ("out", "manifest", "entangled")
_FREE_TRAIN = ("workers", "threads", "log_every", "checkpoint_every", "keep_checkpoints", "device")
_FREE_PROBE = ("every", "erase", "pictures")
_FREE_COMPARE = ("arms", "seeds", "fractions", "fraction_arms", "draws", "umap", "keep_features", "cluster")


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        out: its folder.
        result: the content of ``compare.json``.
        page: the report.
    """

    out: Path
    result: dict[str, Any]
    page: Path


def run_compare(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    *,
    label: str | None = None,
    out: Path | str | None = None,
    arms: Sequence[str] | None = None,
    seeds: int | None = None,
    fractions: Sequence[float] | None = None,
    jobs: int = 1,
    small: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> Compared:
    """Train and read every arm, and write the table, the page and ``compare.json``.

    The same call on the same folder goes on where another was stopped, or joins one that is at work.

    Args:
        recipe: with model, splits and factors.
        overrides: ``key=value``, laid over it.
        label: column of the task, in place of ``probe.label``.
        out: folder of arms and result; the recipe's ``out`` with ``-compare`` when not given.
        arms: in place of ``compare.arms``.
        seeds: in place of ``compare.seeds``.
        fractions: in place of ``compare.fractions``.
        jobs: processes of this machine that share the arms.
        small: shrink every budget until the whole takes minutes; its numbers say nothing.
        overwrite: forget what an earlier comparison left in ``out``.
        console: for progress.

    Raises:
        InputProblemsError: with everything that is wrong, before anything is written.
        OpenfinoError: if the folder holds something else, or an arm fails.
    """
    say = _sayer(console or Console())
    given = _given(recipe, overrides, label=label, arms=arms, seeds=seeds, fractions=fractions)
    folder = Path(out or given.out.with_name(f"{given.out.name}-compare")).absolute()
    if small:
        given = smaller(given)
    splits, ready = _checked(given, jobs)
    place = Workplace(folder, WORD)
    place.refuse_inside(given.manifest)
    table = with_absolute_paths(ready.manifest).with_columns(splits.column)
    base = _base(given, splits, folder)
    place.claim(_plan(base), table, overwrite=overwrite)
    setup = open_setup(base)
    _announce(setup, splits, say)
    _work(setup, jobs, say)
    return _finish(setup, Path(recipe).name, say)


def parse_fractions(text: str | None) -> list[float] | None:
    """``0.01,0.1,1`` as numbers; ``none`` is an empty list.

    Raises:
        InputProblemsError: if one is no number.
    """
    if text is None:
        return None
    try:
        return [] if text.strip() == "none" else [float(part) for part in text.split(",")]
    except ValueError:
        what = f"{text!r} is no list of numbers"
        raise InputProblemsError([Problem("--fractions", what, "Write 0.01,0.1,1 or none")]) from None


def _given(recipe: Path | str, overrides: Sequence[str], **asked: Any) -> Recipe:
    """The user's recipe with what the command line says beside it."""
    settings = load_settings(recipe, overrides)
    if asked["label"] is not None:
        settings = merge(settings, {"probe": {"label": asked["label"]}})
    changes = {key: asked[key] for key in ("arms", "seeds", "fractions") if asked[key] is not None}
    if "arms" in changes:
        known = get_args(ArmName)
        unknown = [name for name in changes["arms"] if name not in known]
        if unknown:
            remedy = f"There are {', '.join(known)}"
            raise InputProblemsError(
                [Problem("--arms", f"there is no arm {name!r}", remedy) for name in unknown]
            )
        changes["arms"] = list(dict.fromkeys(changes["arms"]))
    if "fractions" in changes:
        changes["fractions"] = sorted(set(changes["fractions"]))
    return with_source_normalization(build_recipe(merge(settings, {"compare": changes})))


def _checked(given: Recipe, jobs: int) -> tuple[Splits, Preflight]:
    """Everything that can be refused is refused here, all problems at once.

    Raises:
        InputProblemsError: with every problem found.
    """
    problems = _asked_problems(given, jobs)
    try:
        ready = preflight(given)
    except InputProblemsError as error:
        raise InputProblemsError([*problems, *error.problems]) from None
    manifest = ready.manifest
    if given.probe.label is None:
        raise InputProblemsError(problems)
    for key, column in {
        "compare.domain": domain_of(ready.specs, given),
        "compare.cluster": given.compare.cluster,
        "compare.erase": erased_of(ready.specs, given),
    }.items():
        if column is not None and column not in (*manifest.table.columns, *given.factors):
            problems.append(manifest.absent(column, key))
    problems += resolved_task(manifest, given)[1]
    group = given.compare.cluster or given.probe.group
    if group is not None and group not in manifest.table.columns:
        raise InputProblemsError(problems)
    splits, more = plan_splits(manifest, given, group)
    problems += more
    if splits is None:
        raise InputProblemsError(problems)
    problems += shared_images(manifest, _parts(manifest, splits))
    if problems:
        raise InputProblemsError(problems)
    return splits, ready


def _asked_problems(given: Recipe, jobs: int) -> list[Problem]:
    problems = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = "a comparison was started by torchrun, and trains every arm in one process"
        remedy = "Start it without, once for each device: processes that share a folder share the arms"
        problems.append(Problem("torchrun", what, remedy))
    if given.probe.label is None:
        what = "no column with the task label, and every arm is scored on one"
        problems.append(Problem("probe.label", what, "Write --label COLUMN, or probe: {label: COLUMN}"))
    if jobs < 1:
        problems.append(Problem("--jobs", f"{jobs} processes can do nothing", "Write --jobs 1 or more"))
    return problems


def _parts(manifest: Manifest, splits: Splits) -> dict[str, Any]:
    """Rows by what they are used for: training of any kind, choice, tests."""

    def rows(names: Sequence[str]) -> Any:
        return splits.column.is_in(list(names)).arg_true().to_numpy()

    return {
        "training": rows([*splits.training, splits.train]),
        f"validation ({splits.val})": rows([splits.val]),
        f"test ({', '.join(splits.tests)})": rows(splits.tests),
    }


def _base(given: Recipe, splits: Splits, folder: Path) -> Recipe:
    """The recipe of the arms: on their own table, with its splits."""
    changes = {
        "manifest": str(folder / "table.parquet"),
        "out": str(folder),
        "train_split": splits.training,
        "probe": {
            "split": COLUMN,
            "train": splits.train,
            "val": splits.val,
            "tests": splits.tests,
            "every": None,
            "erase": [],
            "pictures": 0,
        },
    }
    return build_recipe(merge(given.model_dump(mode="json"), changes))


def _plan(base: Recipe) -> dict[str, Any]:
    """What all processes on one folder, and a call that goes on, must agree on. Arms, seeds and shares may be added."""
    plan = base.model_dump(mode="json")
    for section, keys in (
        (plan, _FREE),
        (plan["train"], _FREE_TRAIN),
        (plan["probe"], _FREE_PROBE),
        (plan["compare"], _FREE_COMPARE),
    ):
        for key in keys:
            del section[key]
    return {"openfino": openfino.__version__, "recipe": plan}


def _announce(setup: Setup, splits: Splits, say: Say) -> None:
    counts = ", ".join(f"{name} {len(rows):,}" for name, rows in setup.rows.items())
    say(f"{len(setup.arms)} arms, seeds {', '.join(map(str, setup.seeds))}, in {setup.out}")
    say(f"labelled images: {counts} ({splits.how}); chosen by {setup.metric} on {splits.val}")
    for arm, reason in setup.not_run.items():
        if reason != "not asked for":
            say(f"! {setup.title(arm)} is not run: {reason}")


def _work(setup: Setup, jobs: int, say: Say) -> None:
    """Do all jobs, with ``jobs - 1`` more processes."""
    threads = setup.base.train.threads or max((os.cpu_count() or 1) // jobs, 1)
    import torch

    if jobs > 1 or setup.base.train.threads:
        torch.set_num_threads(threads)
    work = [ArmJob(setup, trained) for trained in setup.trained()]
    count = min(jobs, sum(not job.finished() for job in work)) - 1
    if count < 1:
        run_jobs(work, say)
        return
    # Each call of the command has its own file: another machine may have asked for other seeds.
    recipe = setup.out / HELPERS_FOLDER / f"{os.getpid()}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_whole(recipe, dump_recipe(setup.base))
    arguments = [str(recipe), str(threads)]
    with helpers("openfino.compare.worker", arguments, count, setup.out / HELPERS_FOLDER, threads):
        run_jobs(work, say)
    recipe.unlink()


def _finish(setup: Setup, name: str, say: Say) -> Compared:
    """Weigh, draw and write; one process at a time."""
    with lock(setup.out / "result.lock", wait=True):
        write_whole(setup.out / RECIPE_FILE, dump_recipe(setup.base))
        say("weighing")
        readings = collect(setup)
        result = {**result_of(readings), "recipe": name}
        result = with_pictures(result, readings)
        write_bytes(setup.out / RESULT_FILE, json.dumps(result, indent=1).encode())
        page = write_compare_page(setup.out, result)
    return Compared(setup.out, result, page)


def _sayer(console: Console) -> Say:
    return lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)
