"""``openfino probe`` and ``openfino embed``: from the words on the command line to a report."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openfino.distributed import choose_device
from openfino.errors import InputProblemsError
from openfino.evaluation.embed import EmbedReport, embed
from openfino.evaluation.features import Progress as ProgressCallback
from openfino.evaluation.probes import probe_model
from openfino.evaluation.results import ProbeReport
from openfino.manifest import Manifest, read_manifest
from openfino.models.store import load_model
from openfino.recipe import ProbeSettings
from openfino.tables import value_keys

READERS = 2
DEFAULT_SPLIT = "split"


def probe_command(
    model: str,
    manifest: Path,
    *,
    label: str,
    split: str,
    train: str,
    tests: Sequence[str],
    group: str | None,
    leakage: Sequence[str],
    k: int,
    batch_size: int,
    device: str,
) -> ProbeReport:
    """Probe ``model`` on ``manifest``; without ``tests`` every other split than ``train`` is scored.

    A manifest without the customary column ``split`` is probed on a held-out fifth of its rows.

    Raises:
        InputProblemsError: with everything that the manifest does not hold.
        OpenfinoError: if the manifest or the model cannot be read.
    """
    table = read_manifest(manifest)
    known_split = split in table.table.columns
    if not known_split and (split != DEFAULT_SPLIT or tests):
        raise InputProblemsError([table.absent(split, "--split")])
    settings = ProbeSettings(
        label=label,
        split=split if known_split else None,
        train=train,
        tests=list(tests) or (_other_splits(table, split, train) if known_split else []),
        group=group,
        k=k,
    )
    with _shown_progress("reading features") as progress:
        return probe_model(
            load_model(model),
            table,
            settings,
            batch_size=batch_size,
            device=choose_device(device),
            leakage_columns=leakage,
            workers=READERS,
            progress=progress,
        )


def embed_command(
    model: str, manifest: Path, out: Path, *, patches: bool, batch_size: int, device: str, overwrite: bool
) -> EmbedReport:
    """Write the features of every row of ``manifest`` to ``out``.

    Raises:
        OpenfinoError: if the manifest or the model cannot be read, or ``out`` exists.
    """
    table = read_manifest(manifest)
    with _shown_progress("embedding") as progress:
        return embed(
            load_model(model),
            table,
            out,
            tokens=("cls", "mean", "patches") if patches else ("cls", "mean"),
            batch_size=batch_size,
            device=choose_device(device),
            workers=READERS,
            overwrite=overwrite,
            progress=progress,
        )


def _other_splits(manifest: Manifest, split: str, train: str) -> list[str]:
    present = value_keys(manifest.table[split]).drop_nulls().unique().sort().to_list()
    return [value for value in present if value != train]


@contextmanager
def _shown_progress(title: str) -> Iterator[ProgressCallback]:
    """A progress bar on standard error, where it does not mix with the report."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
