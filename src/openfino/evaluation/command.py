"""``openfino probe`` and ``openfino embed``: from the words on the command line to a report."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openfino.distributed import choose_device
from openfino.errors import InputProblemsError, Problem
from openfino.evaluation.embed import EmbedReport, embed
from openfino.evaluation.features import Progress as ProgressCallback
from openfino.evaluation.full_probe import Reader
from openfino.evaluation.full_results import FullReport
from openfino.evaluation.leakage import known_values
from openfino.evaluation.plan import DEFAULT_PROBES, PROBES, Asked, plan_full, uses_of
from openfino.evaluation.probes import probe_model
from openfino.evaluation.results import ErasedReport, ProbeReport
from openfino.evaluation.shared_images import shared_images
from openfino.evaluation.splits import HELD_OUT, check_probe, plan_splits
from openfino.evaluation.tasks import Kind, kind_of
from openfino.factors.infer import infer_kind
from openfino.factors.spec import FactorSpec, resolve_specs
from openfino.manifest import Manifest, read_manifest
from openfino.models.store import LoadedModel, load_model
from openfino.recipe import FactorSettings, ProbeGridSettings, ProbeSettings
from openfino.tables import value_keys

READERS = 2
DEFAULT_SPLIT = "split"


def probe_command(
    model: str,
    manifest: Path | str,
    *,
    label: str | None = None,
    kind: str | None = None,
    split: str = DEFAULT_SPLIT,
    train: str = "train",
    val: str | None = None,
    tests: Sequence[str] = (),
    group: str | None = None,
    cluster: str | None = None,
    probes: Sequence[str] | None = None,
    k: int | Sequence[int] = 20,
    cluster_by: str | None = None,
    masks: str | None = None,
    windows: int | None = None,
    cache: Path | str | None = None,
    leakage: Sequence[str] = (),
    erase: Sequence[str] = (),
    grid: ProbeGridSettings | None = None,
    batch_size: int = 64,
    device: str = "auto",
    path_columns: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> ProbeReport | FullReport:
    """Probe ``model`` on ``manifest``; without ``tests`` every other split than ``train`` and ``val`` is scored.

    A manifest without the customary column ``split`` is probed on a held-out fifth of its rows. ``leakage`` names
    factors of the model's recipe, or columns, and so does ``erase``: these are read too, and everything is measured
    once more without each of them.

    The quick probe tells one class per image by kNN and by logistic regression, without intervals; what the model's run
    measured of its starting backbone, on the same rows, stands in ``before`` of its report. As soon as more is asked
    (another kind of label, ``probes``, several ``k``, ``val``, ``cluster``, ``cluster_by``, ``masks``, ``windows``,
    ``cache`` or ``grid``), it is the full probe: see :class:`openfino.evaluation.plan.Asked` for the arguments.

    Args:
        windows: read larger images as at most this many overlapping windows a side.
        cache: folder where features are kept for the next call.

    Raises:
        InputProblemsError: with everything that the manifest does not hold.
        OpenfinoError: if the manifest or the model cannot be read.
    """
    ks = (k,) if isinstance(k, int) else tuple(k)
    problems = _word_problems(label, kind, probes, ks, masks)
    if problems:
        raise InputProblemsError(problems)
    loaded = open_model(model)
    table = read_table_for(loaded, Path(manifest), path_columns, missing)
    known_split = split in table.table.columns
    if not known_split and (split != DEFAULT_SPLIT or tests or val):
        raise InputProblemsError([table.absent(split, "--split")])
    others = _other_splits(table, split, (train, val)) if known_split else []
    asked = Asked(
        label=label,
        kind=cast("Kind | None", kind),
        split=split if known_split else None,
        train=train,
        val=val,
        tests=tuple(tests or others),
        group=group,
        cluster=cluster,
        probes=DEFAULT_PROBES if probes is None else tuple(name for name in PROBES if name in probes),
        ks=ks,
        cluster_by=cluster_by,
        masks=masks,
        grid=grid or ProbeGridSettings(),
    )
    more = (probes, val, cluster, cluster_by, masks, windows, cache, grid)
    if len(ks) == 1 and all(option is None for option in more) and _is_class(table, asked):
        return _quick(loaded, table, asked, leakage, erase, batch_size, device)
    place = Path(cache) if cache is not None else None
    return _full(loaded, table, asked, leakage, erase, windows, place, batch_size, device)


def parse_numbers(text: str) -> tuple[int, ...]:
    """``10,20`` as numbers.

    Raises:
        InputProblemsError: if one is none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        remedy = "Write --k 20, or --k 10,20"
        raise InputProblemsError([Problem("--k", f"{text!r} is no list of numbers", remedy)]) from None


def _word_problems(
    label: str | None, kind: str | None, probes: Sequence[str] | None, ks: Sequence[int], masks: str | None
) -> list[Problem]:
    """What is wrong with the words alone, whatever the table holds."""
    problems = []
    if label is None and masks is None:
        remedy = "Name the column of the label with --label, or one of mask files with --masks"
        problems.append(Problem("--label", "there is nothing to probe", remedy))
    kinds = get_args(Kind)
    if kind is not None and kind not in kinds:
        problems.append(Problem("--kind", f"there is no kind {kind!r}", f"There are {', '.join(kinds)}"))
    unknown = [name for name in probes or () if name not in PROBES]
    if unknown or (probes is not None and not probes):
        what = f"there is no probe {unknown[0]!r}" if unknown else "no probe is named"
        problems.append(Problem("--probes", what, f"There are {', '.join(PROBES)}"))
    if not ks or min(ks) < 1:
        problems.append(
            Problem("--k", f"{list(ks)} are no numbers of neighbours", "Write --k 20, or --k 10,20")
        )
    return problems


def _is_class(manifest: Manifest, asked: Asked) -> bool:
    """Whether the label is one class per image; a column that is not there is refused by the quick probe."""
    if asked.label is None or asked.label not in manifest.table.columns:
        return asked.label is not None
    return (asked.kind or kind_of(manifest.table[asked.label])) == "single"


def _quick(
    loaded: LoadedModel,
    table: Manifest,
    asked: Asked,
    leakage: Sequence[str],
    erase: Sequence[str],
    batch_size: int,
    device: str,
) -> ProbeReport:
    """kNN and logistic regression of one class, as a run probes itself."""
    settings = ProbeSettings(
        label=asked.label,
        split=asked.split,
        train=asked.train,
        tests=list(asked.tests),
        group=asked.group,
        k=asked.ks[0],
    )
    factors, erased, problems = _factors(loaded, table, leakage, erase)
    found = check_probe(table, settings)
    if not found and asked.label is not None:
        fitted, tested = plan_splits(table.table, settings, asked.label, 0)
        parts = uses_of(fitted.rows, {name: part.rows for name, part in tested.items()})
        found = shared_images(table, parts)
    if problems or found:
        raise InputProblemsError([*problems, *found])
    with shown_progress("reading features") as progress:
        report = probe_model(
            loaded,
            table,
            settings,
            batch_size=batch_size,
            device=choose_device(device),
            factors=factors,
            erase=erased,
            workers=READERS,
            progress=progress,
        )
    return dataclasses.replace(report, before=recorded_before(loaded, settings, report))


def _full(
    loaded: LoadedModel,
    table: Manifest,
    asked: Asked,
    leakage: Sequence[str],
    erase: Sequence[str],
    windows: int | None,
    cache: Path | None,
    batch_size: int,
    device: str,
) -> FullReport:
    """Everything that was asked, by heads that are chosen on validation rows."""
    factors, erased, problems = _factors(loaded, table, leakage, erase)
    plan, more = plan_full(table, asked)
    if plan is not None:
        more = [
            Problem("--erase", f"no row that trains has a value of {name}", "Name another factor")
            for name, spec in erased.items()
            if not known_values(table.table, spec, plan.train).valid.any()
        ]
    if problems or more or plan is None:
        raise InputProblemsError([*problems, *more])
    with shown_progress("reading features, fitting heads") as progress:
        reader = Reader(
            loaded,
            table,
            plan,
            factors,
            erased,
            windows=windows,
            batch_size=batch_size,
            device=choose_device(device),
            workers=READERS,
            progress=progress,
        )
        return reader.read(cache)


def _factors(
    loaded: LoadedModel, table: Manifest, leakage: Sequence[str], erase: Sequence[str]
) -> tuple[dict[str, FactorSpec], dict[str, FactorSpec], list[Problem]]:
    """Everything to read from the features by name, what of it to erase, and what there is not."""
    leakage, erase = separate_names(loaded, table, leakage), separate_names(loaded, table, erase)
    factors, problems = leakage_specs(loaded, table, leakage, "--leakage")
    erased, more = leakage_specs(loaded, table, [name for name in erase if name not in leakage], "--erase")
    factors |= erased
    return factors, {name: factors[name] for name in erase if name in factors}, [*problems, *more]


def embed_command(
    model: str,
    manifest: Path,
    out: Path,
    *,
    patches: bool,
    batch_size: int,
    device: str,
    overwrite: bool,
    path_columns: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> EmbedReport:
    """Write the features of every row of ``manifest`` to ``out``.

    Raises:
        OpenfinoError: if the manifest or the model cannot be read, or ``out`` exists.
    """
    loaded = open_model(model)
    table = read_table_for(loaded, manifest, path_columns, missing)
    with shown_progress("embedding") as progress:
        return embed(
            loaded,
            table,
            out,
            tokens=("cls", "mean", "patches") if patches else ("cls", "mean"),
            batch_size=batch_size,
            device=choose_device(device),
            workers=READERS,
            overwrite=overwrite,
            progress=progress,
        )


def read_table_for(
    model: LoadedModel, manifest: Path, path_columns: Sequence[str] = (), missing: Sequence[str] = ()
) -> Manifest:
    """Read ``manifest`` as the run of ``model`` read its own, unless told otherwise.

    Args:
        model: its recipe, where it carries one, names the path columns and the tokens that mean "no value".
        manifest: a table, or a folder of images.
        path_columns: columns with image paths, in place of the recipe's.
        missing: tokens that mean "no value", in place of the recipe's.

    Raises:
        OpenfinoError: as :func:`openfino.manifest.read_manifest`.
    """
    recipe = _recipe(model)
    recorded = None if manifest.is_dir() else (recipe.get("images") or {}).get("path_columns")
    try:
        return read_manifest(
            manifest,
            path_columns=list(path_columns) or recorded,
            missing=list(missing) or recipe.get("missing") or [],
        )
    except InputProblemsError as error:
        raise InputProblemsError([_in_options(problem) for problem in error.problems]) from None


def _in_options(problem: Problem) -> Problem:
    """A problem of the recipe's path columns in the words of the command line."""
    if problem.where != "images.path_columns":
        return problem
    remedy = f"Name the columns with --path-column (by default those of the model's recipe). {problem.remedy}"
    return dataclasses.replace(problem, where="--path-column", remedy=remedy)


def separate_names(model: LoadedModel, manifest: Manifest, given: Sequence[str]) -> list[str]:
    """The names in ``given``, each once; ``a,b`` is two, unless a factor or column is called so."""
    known = {*(_recipe(model).get("factors") or {}), *manifest.table.columns}
    parts = [[name] if name in known else name.split(",") for name in given]
    return list(dict.fromkeys(name.strip() for names in parts for name in names if name.strip()))


def leakage_specs(
    model: LoadedModel, manifest: Manifest, names: Sequence[str], option: str
) -> tuple[dict[str, FactorSpec], list[Problem]]:
    """What to read from the features: factors of the model's recipe by name, and columns.

    A column of timestamps or decimal numbers is a quantity, any other is read value by value.
    """
    recorded = _recipe(model).get("factors") or {}
    kinds = model.provenance.get("factors") or {}
    specs: dict[str, FactorSpec] = {}
    problems: list[Problem] = []
    for name in names:
        if name in recorded:
            known = {"kind": kinds[name]["kind"]} if name in kinds else {}
            settings = FactorSettings.model_validate({**recorded[name], **known})
            (column, *_) = settings.columns or [name]
            if settings.kind == "discrete" and column in manifest.table.columns:
                specs[name] = FactorSpec(name, (column,), "discrete", settings.role)
                continue
            try:
                specs |= resolve_specs(manifest, {name: settings})[0]
            except InputProblemsError as error:
                problems += error.problems
        elif name in manifest.table.columns:
            specs[name] = _column_spec(manifest, name)
        else:
            problems.append(manifest.absent(name, option))
    return specs, problems


def _column_spec(manifest: Manifest, name: str) -> FactorSpec:
    column = manifest.table[name]
    whole = column.dtype.is_numeric() and bool((column == column.cast(pl.Float64).floor()).all())
    if whole or column.dtype.is_nested() or column.drop_nulls().n_unique() < 2:
        return FactorSpec(name, (name,), "discrete", "watched")
    return FactorSpec(name, (name,), infer_kind(column).kind, "watched")


def recorded_before(
    model: LoadedModel, settings: ProbeSettings, report: ProbeReport
) -> dict[str, Any] | None:
    """The starting backbone's probes that the model's run recorded, as far as they scored the same rows."""
    record = (model.provenance.get("probes") or {}).get("before")
    recipe = _recipe(model)
    probe = recipe.get("probe") or {}
    same = ("label", "split", "train", "k")
    if not record or report.label is None or any(probe.get(key) != getattr(settings, key) for key in same):
        return None
    label, own = record["label"], report.label
    drawn_alike = recipe.get("seed") == 0  # the seed of this command

    def same_rows(part: Mapping[str, Any], ours: ProbeReport | ErasedReport) -> dict[str, Any]:
        of_label = (part.get("label") or {"splits": {}})["splits"] if ours.label else {}
        splits = {
            name: {"scores": _without_group(result["scores"], probe.get("group") == settings.group)}
            for name, result in of_label.items()
            if ours.label
            and name in ours.label.splits
            and result["rows"] == ours.label.splits[name].rows
            and (drawn_alike or name != HELD_OUT)
        }
        leakage = {
            name: reading
            for name, reading in part["leakage"].items()
            if drawn_alike and name in ours.leakage and reading["rows"] == ours.leakage[name].rows
        }
        return {"label": {"label": settings.label, "splits": splits}, "leakage": leakage}

    found = same_rows(record, report)
    if label["train_rows"] != own.train_rows or not (found["label"]["splits"] or found["leakage"]):
        return None
    if drawn_alike:
        parts = {name: part for name, part in (record.get("erased") or {}).items() if name in report.erased}
        found["erased"] = {
            name: {**part, **same_rows(part, report.erased[name])} for name, part in parts.items()
        }
    return found


def _without_group(
    scores: Mapping[str, Mapping[str, float]], same_group: bool
) -> dict[str, dict[str, float]]:
    """``scores`` without the metric of another grouping."""
    return {
        method: {
            metric: value
            for metric, value in metrics.items()
            if same_group or metric != "worst_group_accuracy"
        }
        for method, metrics in scores.items()
    }


def _recipe(model: LoadedModel) -> dict[str, Any]:
    """The recipe that the model carries; empty if it was not made by a run."""
    return model.provenance.get("recipe") or {}


def open_model(model: str) -> LoadedModel:
    """The model, with a word on standard error about what became of its weights."""
    loaded = load_model(model)
    Console(stderr=True).print(str(loaded.report), highlight=False, markup=False, soft_wrap=True)
    return loaded


def _other_splits(manifest: Manifest, split: str, named: Sequence[str | None]) -> list[str]:
    present = value_keys(manifest.table[split]).drop_nulls().unique().sort().to_list()
    return [value for value in present if value not in named]


@contextmanager
def shown_progress(title: str) -> Iterator[ProgressCallback]:
    """A progress bar on standard error, where it does not mix with the report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
