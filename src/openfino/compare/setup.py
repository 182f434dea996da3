"""From the arms' recipe to everything that all arms share: table, splits, label, arms, domain."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openfino.compare.arms import ADAPTED, ERASED, EVERY, KINDS, METHODS, RANDOM, Trained, title_of, why_not
from openfino.compare.fractions import nested_rows
from openfino.errors import InputProblemsError, Problem
from openfino.evaluation.splits import at_most, encode_column, probe_generator, rows_of_split
from openfino.evaluation.tasks import Targets, Task, label_problems, resolve_task
from openfino.factors.spec import FactorSpec
from openfino.jobs.folder import ARMS_FOLDER
from openfino.manifest import Manifest
from openfino.preflight import Preflight, preflight
from openfino.recipe import Recipe

Rows = NDArray[np.int64]

SHOWN_TESTS, SHOWN_TRAIN = 2_000, 5_000


@dataclass(frozen=True)
class Setup:
    """What all arms share.

    Attributes:
        base: the arms' recipe: on the arms' table, with its splits.
        ready: its preflight.
        task: of the label.
        targets: the label of every row of the table.
        metric: by which is chosen, and which the table shows.
        rows: the rows of each split that are used: ``train`` (labelled), ``val``, and the tests by name.
        domain: column of the domains, if there is one.
        erased: what the erased arms take out, if there is anything.
        factors: everything whose leakage is read, by name.
    """

    base: Recipe
    ready: Preflight
    task: Task
    targets: Targets
    metric: str
    rows: dict[str, Rows]
    domain: str | None
    erased: str | None
    factors: dict[str, FactorSpec]

    @property
    def out(self) -> Path:
        """The folder of the comparison."""
        return self.base.out

    @property
    def manifest(self) -> Manifest:
        """The arms' table."""
        return self.ready.manifest

    @property
    def tests(self) -> dict[str, Rows]:
        """Rows that are read once, by split."""
        return {name: self.rows[name] for name in self.base.probe.tests}

    @property
    def tested(self) -> Rows:
        """Rows of all tests, one split behind the other."""
        return np.concatenate(list(self.tests.values()))

    @cached_property
    def shown(self) -> tuple[Rows, Rows]:
        """Rows whose features the pictures show, of the tests and of those that train: keyed draws, in rising order."""
        return tuple(
            np.sort(probe_generator(self.base.seed, f"compare shown {name}").permutation(rows)[:most])
            for name, rows, most in (
                ("tests", self.tested, SHOWN_TESTS),
                ("train", self.rows["train"], SHOWN_TRAIN),
            )
        )  # type: ignore[return-value]

    @property
    def seeds(self) -> list[int]:
        """Of every arm."""
        return list(range(self.base.seed, self.base.seed + self.base.compare.seeds))

    @cached_property
    def not_run(self) -> dict[str, str]:
        """Arms that are left out, with the reason."""
        wanted = self.base.compare.arms
        reasons = {
            arm: "not asked for"
            if wanted is not None and arm not in wanted
            else why_not(arm, self.base, domain=self.domain, erased=self.erased)
            for arm in EVERY
        }
        return {arm: reason for arm, reason in reasons.items() if reason is not None}

    @property
    def arms(self) -> list[str]:
        """The arms of the table."""
        return [arm for arm in EVERY if arm not in self.not_run]

    def title(self, arm: str) -> str:
        """Of an arm, for the reader."""
        return title_of(arm, self.erased)

    def codes(self, column: str | None) -> Rows | None:
        """The values of a column as numbers, of every row, -1 where missing; None without a column."""
        return None if column is None else encode_column(self.manifest.table[column])

    @property
    def cluster(self) -> str | None:
        """Column whose rows are drawn together."""
        return self.base.compare.cluster or self.base.probe.group

    @property
    def fractions(self) -> list[float]:
        """Shares of the labels below all of them."""
        return [share for share in self.base.compare.fractions if share < 1]

    def reads_fractions(self, arm: str) -> bool:
        """Whether an arm is read at every share of the labels."""
        return arm in self.base.compare.fraction_arms and bool(self.base.compare.fractions)

    def labelled(self, fraction: float, seed: int) -> Rows:
        """The training rows whose label is known at this share."""
        rows = self.rows["train"]
        if fraction == 1:
            return rows
        return nested_rows(rows, self.targets.at(rows), self.task, [fraction], seed)[fraction]

    def trained(self) -> list[Trained]:
        """What there is to train and read, seed by seed, the references first."""
        arms = self.arms
        needed = list(dict.fromkeys(ERASED.get(arm, arm) for arm in arms))
        if "frozen" not in needed and any(arm in (*ADAPTED, *METHODS) for arm in needed):
            needed = ["frozen", *needed]  # what they started from
        if self.base.model.source is not None and {"frozen", "fino_scratch", "scratch"} & set(needed):
            needed = [RANDOM, *needed]
        jobs = []
        for seed in self.seeds:
            jobs += [Trained(arm, seed) for arm in needed]
            jobs += [
                Trained(arm, seed, share)
                for arm in needed
                if KINDS.get(arm) == "supervised" and self.reads_fractions(arm)
                for share in self.fractions
            ]
        return jobs

    def place(self, trained: Trained) -> Path:
        """The folder of one of them."""
        return self.out / ARMS_FOLDER / trained.name


def open_setup(base: Recipe) -> Setup:
    """Resolve the arms' recipe; the image files have been looked for by the command.

    Raises:
        InputProblemsError: with every problem found.
    """
    ready = preflight(base, read_images="none")
    task, problems = resolved_task(ready.manifest, base)
    domain, erased = domain_of(ready.specs, base), erased_of(ready.specs, base)
    named = {
        "compare.domain": domain,
        "compare.erase": erased if erased not in ready.specs else None,
        "compare.cluster": base.compare.cluster,
    }
    columns = ready.manifest.table.columns
    problems += [
        ready.manifest.absent(column, key)
        for key, column in named.items()
        if column is not None and column not in columns
    ]
    if problems or task is None:
        raise InputProblemsError(problems)
    targets = task.targets(ready.manifest.table, np.arange(len(ready.manifest)))
    rows, more = _rows(ready.manifest, base, targets, task)
    if more:
        raise InputProblemsError(more)
    factors = dict(ready.specs)
    for name in (domain, erased):
        if name is not None and not any(name in (key, *spec.columns) for key, spec in factors.items()):
            factors[name] = FactorSpec(name, (name,), "discrete", "watched")
    metric = base.compare.metric or ("r2" if task.kind == "regression" else base.probe.metric)
    return Setup(base, ready, task, targets, metric, rows, domain, erased, factors)


def resolved_task(manifest: Manifest, base: Recipe) -> tuple[Task | None, list[Problem]]:
    """The task of the label, scaled by the rows that train."""
    label = str(base.probe.label)
    try:
        train = rows_of_split(manifest.table, base.probe, base.probe.train)
        return resolve_task(manifest, label, base.compare.task, rows=train), []
    except InputProblemsError as error:
        return None, error.problems


def domain_of(specs: dict[str, FactorSpec], recipe: Recipe) -> str | None:
    """The column of the domains: the one that is named, else of the first spurious discrete factor, else the group."""
    spurious = [
        spec.columns[0] for spec in specs.values() if spec.role == "spurious" and spec.kind == "discrete"
    ]
    return recipe.compare.domain or next(iter(spurious), recipe.probe.group)


def erased_of(specs: dict[str, FactorSpec], recipe: Recipe) -> str | None:
    """Factor or column to erase: the one that is named, else the first spurious factor, else the domain."""
    spurious = [name for name, spec in specs.items() if spec.role == "spurious"]
    return recipe.compare.erase or next(iter(spurious), domain_of(specs, recipe))


def _rows(
    manifest: Manifest, base: Recipe, targets: Targets, task: Task
) -> tuple[dict[str, Rows], list[Problem]]:
    """The labelled rows of every split, at most ``probe.max_rows`` of each."""
    probe, table = base.probe, manifest.table
    names = {"train": probe.train, "val": str(probe.val), **{name: name for name in probe.tests}}
    rows = {}
    for key, name in names.items():
        own = rows_of_split(table, probe, name)
        rows[key] = at_most(own[targets.valid[own]], probe, base.seed, name)
    return rows, label_problems(task, targets, rows, names)


def unseen_labels(setup: Setup) -> dict[str, int]:
    """Rows of a test whose class no training row has: they can only count as wrong."""
    if setup.task.kind != "single":
        return {}
    known = np.unique(setup.targets.values[setup.rows["train"]])
    counts = {
        name: int((~np.isin(setup.targets.values[rows], known)).sum()) for name, rows in setup.tests.items()
    }
    return {name: count for name, count in counts.items() if count}


def column_values(table: pl.DataFrame, column: str, rows: Rows) -> list[object]:
    """Values of some rows, as JSON takes them."""
    values = table[column].gather(rows)
    return values.to_list() if values.dtype.is_numeric() else values.cast(pl.String).to_list()
