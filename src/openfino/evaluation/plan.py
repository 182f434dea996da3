"""What a full probe stands on: label, splits and masks of a table, checked before an image is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openfino.errors import InputProblemsError, Problem
from openfino.evaluation.classifiers import stratified_holdout
from openfino.evaluation.mask_probe import Masks, masked_rows, open_masks
from openfino.evaluation.metrics import Codes
from openfino.evaluation.shared_images import shared_images
from openfino.evaluation.sources import Rows
from openfino.evaluation.splits import (
    HELD_OUT,
    HELD_OUT_FRACTION,
    encode_column,
    held_groups,
    probe_generator,
    split_problems,
    split_rows,
)
from openfino.evaluation.tasks import Kind, Targets, Task, label_problems, resolve_task
from openfino.manifest import Manifest
from openfino.recipe import ProbeGridSettings

ProbeName = Literal["knn", "linear", "attentive"]
PROBES: tuple[ProbeName, ...] = ("knn", "linear", "attentive")
DEFAULT_PROBES: tuple[ProbeName, ...] = ("knn", "linear")
TRAIN, VAL = "train", "val"
CHOICE = "full probe choice"  # keeps the draw of the rows to choose on apart


@dataclass(frozen=True)
class Asked:
    """What is asked of a full probe.

    Attributes:
        label: column of the label; None where only masks are probed.
        kind: of the label; told from its column when not given.
        split: column of the splits; None for one split, ``train``.
        train: the split that probes are fitted on.
        val: the split that they are chosen on; a fifth of ``train`` is held out when not given.
        tests: the splits that are scored; a fifth of ``train`` is held out when there is none.
        group: column for worst-group accuracy.
        cluster: column whose rows are drawn together where intervals are bootstrapped, and held out together.
        probes: of the label.
        ks: neighbours of kNN.
        cluster_by: column over which features are averaged before k-means.
        masks: column with mask files.
        grid: of the heads; segmentation has rates of its own, and as many steps.
    """

    label: str | None = None
    kind: Kind | None = None
    split: str | None = None
    train: str = "train"
    val: str | None = None
    tests: tuple[str, ...] = ()
    group: str | None = None
    cluster: str | None = None
    probes: tuple[ProbeName, ...] = DEFAULT_PROBES
    ks: tuple[int, ...] = (20,)
    cluster_by: str | None = None
    masks: str | None = None
    grid: ProbeGridSettings = field(default_factory=ProbeGridSettings)


@dataclass(frozen=True)
class Plan:
    """A full probe that can be carried out.

    Attributes:
        asked: what was asked.
        train: rows with a label or a mask that probes are fitted on.
        val: the same to choose on.
        tests: the same to score, by split.
        chosen_on: what ``val`` is, in words.
        missing_label: rows without a label of each split, by its name; of a split that others are held out of, in all.
        task: of the label. targets: of every row of the table. Both None without a label.
        masks: None without masks.
    """

    asked: Asked
    train: Rows
    val: Rows
    tests: dict[str, Rows]
    chosen_on: str
    missing_label: dict[str, int]
    task: Task | None
    targets: Targets | None
    masks: Masks | None


def plan_full(manifest: Manifest, asked: Asked, *, seed: int = 0) -> tuple[Plan | None, list[Problem]]:
    """Rows, label and masks, or every reason why there is no such probe.

    Masks are read, and files of images that might be the same image; no image is decoded.
    """
    problems = _column_problems(manifest, asked)
    if problems:
        return None, problems
    table = manifest.table
    if asked.split is not None:
        problems += _split_problems(manifest, asked)
        if problems:
            return None, problems
    fitted = split_rows(table, asked.split, asked.train)
    task, targets = None, None
    usable = np.zeros(len(table), dtype=bool)
    if asked.label is not None:
        try:
            task = resolve_task(manifest, asked.label, asked.kind, rows=fitted)
        except InputProblemsError as error:
            return None, error.problems
        targets = task.targets(table, np.arange(len(table)))
        usable |= targets.valid
    if asked.masks is not None:
        usable |= masked_rows(manifest, asked.masks)
    single = task is not None and task.kind == "single"
    strata = targets.values.astype(np.int64) if targets is not None and single else None
    train, val, tests, chosen_on = _parts(manifest, asked, usable, strata, seed)
    rows = {TRAIN: train, VAL: val, **{f"test {name}": own for name, own in tests.items()}}
    masks = None
    if task is not None and targets is not None:
        problems += _label_problems(asked, task, targets, rows)
        problems += _cluster_problems(manifest, asked, task, targets, np.concatenate(list(rows.values())))
    if asked.masks is not None:
        masked = masked_rows(manifest, asked.masks)
        masks, more = open_masks(
            manifest, asked.masks, {name: own[masked[own]] for name, own in rows.items()}
        )
        problems += more
    problems += shared_images(manifest, _uses(asked, train, val, tests))
    if problems:
        return None, problems
    missing = {} if targets is None else _missing(manifest, asked, targets)
    return Plan(asked, train, val, tests, chosen_on, missing, task, targets, masks), []


def uses_of(train: Rows, tests: Mapping[str, Rows]) -> dict[str, Rows]:
    """Rows that must have no image in common, by what they are used for."""
    every = np.unique(np.concatenate(list(tests.values())))
    return {"training": train, f"test ({', '.join(tests)})": every}


def _uses(asked: Asked, train: Rows, val: Rows, tests: Mapping[str, Rows]) -> dict[str, Rows]:
    """Rows to choose on that are held out of training may show what training shows: that costs no test its honesty."""
    if asked.val is None:
        return uses_of(np.concatenate([train, val]), tests)
    return {f"validation ({asked.val})": val, **uses_of(train, tests)}


def _column_problems(manifest: Manifest, asked: Asked) -> list[Problem]:
    options = {
        "--label": asked.label,
        "--split": asked.split,
        "--group": asked.group,
        "--cluster": asked.cluster,
        "--cluster-by": asked.cluster_by,
        "--masks": asked.masks,
    }
    named = {option: column for option, column in options.items() if column is not None}
    table = manifest.table
    problems = [
        manifest.absent(column, option) for option, column in named.items() if column not in table.columns
    ]
    problems += [
        Problem(option, f"column {column!r} has no value", f"Fill it, or leave {option} out")
        for option, column in named.items()
        if column in table.columns and table[column].null_count() == len(table)
    ]
    problems += [
        Problem(
            option, f"column {column!r} holds {table[column].dtype}, not one value", "Name another column"
        )
        for option, column in named.items()
        if option != "--label" and column in table.columns and table[column].dtype.is_nested()
    ]
    if asked.label is None:
        problems += [
            Problem(option, "it needs a label", "Name its column with --label, or leave it out")
            for option in ("--group", "--cluster-by")
            if option in named
        ]
    return problems


def _split_problems(manifest: Manifest, asked: Asked) -> list[Problem]:
    scored = [("--val", asked.val)] if asked.val is not None else []
    scored += [("--test", name) for name in asked.tests]
    problems = split_problems(manifest.table[str(asked.split)], ("--train", asked.train), scored)
    if asked.val in asked.tests:
        what = f"{asked.val!r} is the split that probes are chosen on"
        problems.append(Problem("--test", what, "Name another split"))
    return problems


def _parts(
    manifest: Manifest, asked: Asked, usable: NDArray[np.bool_], strata: Codes | None, seed: int
) -> tuple[Rows, Rows, dict[str, Rows], str]:
    """Rows that train, rows to choose on, rows to score, and what those to choose on are."""

    def rows(name: str) -> Rows:
        own = split_rows(manifest.table, asked.split, name)
        return own[usable[own]]

    def without(own: Rows, purpose: str) -> tuple[Rows, Rows]:
        codes = np.zeros(len(own), dtype=np.int64) if strata is None else strata[own]
        held = stratified_holdout(codes, HELD_OUT_FRACTION, probe_generator(seed, purpose))
        return own[~held], own[held]

    train = rows(asked.train)
    tests = {name: rows(name) for name in asked.tests}
    if not tests:
        train, tests[HELD_OUT] = without(train, HELD_OUT)
    if asked.val is not None:
        return train, rows(asked.val), tests, f"split {asked.val}"
    if asked.cluster is not None:
        groups = encode_column(manifest.table[asked.cluster])[train]
        some, few = held_groups(groups, seed, asked.cluster, share=HELD_OUT_FRACTION, purpose=CHOICE)
        if not few:
            held = np.isin(groups, some)
            words = f"all rows of {len(some)} values of {asked.cluster}, held out of {asked.train}"
            return train[~held], train[held], tests, words
    train, val = without(train, CHOICE)
    return train, val, tests, f"a fifth of {asked.train}, held out"


def _label_problems(asked: Asked, task: Task, targets: Targets, rows: Mapping[str, Rows]) -> list[Problem]:
    names = {TRAIN: asked.train, VAL: asked.val or f"{asked.train} (held out to choose on)"}
    names |= {key: key.removeprefix("test ") for key in rows if key not in names}
    return label_problems(task, targets, {key: own[targets.valid[own]] for key, own in rows.items()}, names)


def _cluster_problems(
    manifest: Manifest, asked: Asked, task: Task, targets: Targets, rows: Rows
) -> list[Problem]:
    """Why k-means could not be compared with the label."""
    if asked.cluster_by is None:
        return []
    if task.kind != "single":
        what = f"clusters are compared with one class for each image, and {task.label!r} is {task.kind}"
        return [Problem("--cluster-by", what, "Name another label, or leave it out")]
    groups = encode_column(manifest.table[asked.cluster_by])[rows]
    known = (groups >= 0) & targets.valid[rows]
    units, labels = (len(np.unique(codes[known])) for codes in (groups, targets.values[rows]))
    if units > labels:
        return []
    what = f"{units} values of {asked.cluster_by!r} for {labels} labels; more values than labels are needed"
    return [Problem("--cluster-by", what, "Name a column with more values, such as a well, or leave it out")]


def _missing(manifest: Manifest, asked: Asked, targets: Targets) -> dict[str, int]:
    names: Sequence[str] = [asked.train, *([asked.val] if asked.val is not None else []), *asked.tests]
    return {
        name: int((~targets.valid[split_rows(manifest.table, asked.split, name)]).sum()) for name in names
    }
