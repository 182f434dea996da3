"""The command line. Heavy packages are imported inside the commands, so that ``--help`` answers at once."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from openfino import cli_options as options
from openfino.errors import InputProblemsError, OpenfinoError

app = typer.Typer(
    help="Adapt pretrained vision transformers to specialised images, guided by the metadata they already carry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs, report and results.json.")] = Path("demo"),
    overwrite: options.Overwrite = False,
    seed: Annotated[int, typer.Option(help="Seed of the training arms.")] = 0,
    as_json: options.Json = False,
) -> None:
    """See the whole thing work on a drawn data set, in minutes on two CPU cores."""
    from rich.console import Console

    from openfino.demo import run_demo

    results = run_demo(out, overwrite=overwrite, seed=seed, console=Console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(results, indent=1))


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder for images and manifest.csv.")],
    images: Annotated[int, typer.Option(min=20, help="How many images.")] = 2400,
    size: Annotated[int, typer.Option(min=16, help="Side of an image in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another screen.")] = 0,
    masks: Annotated[
        bool, typer.Option("--masks", help="Also write what every pixel shows: column mask.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw the sample data set: four-channel fluorescence images with batch effects, and their table."""
    from openfino.sampledata import draw_sample

    cores = min(os.cpu_count() or 1, 2)
    manifest = draw_sample(
        out, images=images, size=size, seed=seed, workers=cores, masks=masks, overwrite=overwrite
    )
    typer.echo(json.dumps({"manifest": str(manifest), "images": images}) if as_json else f"wrote {manifest}")


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe (.yaml), or a manifest.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, laid over the recipe.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Read every image to the end (slow).")] = False,
    path_column: options.PathColumns = None,
    missing: options.Missing = None,
    as_json: options.Json = False,
) -> None:
    """List every problem of a table, its files and its factors at once. Exit code 1 if there are any."""
    from openfino.check import check_source
    from openfino.evaluation.command import shown_progress

    with shown_progress("looking at files") as progress:
        problems, summary = check_source(
            recipe,
            overrides or [],
            decode=decode,
            path_columns=path_column or [],
            missing=missing or [],
            progress=progress,
        )
    if as_json:
        listed = [{"where": item.where, "what": item.what, "remedy": item.remedy} for item in problems]
        typer.echo(json.dumps({"summary": summary, "problems": listed}, indent=1))
    else:
        typer.echo(summary)
        for number, problem in enumerate(problems, start=1):
            typer.echo(f"  {number}. {problem}")
        typer.echo(f"{len(problems)} problems" if problems else "no problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def audit(
    manifest: Annotated[Path, typer.Argument(help="The table, or a folder of images.")],
    label: Annotated[
        str | None, typer.Option(help="The task's column, to warn of columns that give it away.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Column that names the splits. Default: found by name.")
    ] = None,
    train: Annotated[str | None, typer.Option(help="The split that trains. Default: found by name.")] = None,
    kind: options.Kinds = None,
    given: options.Given = None,
    keep: options.Keep = None,
    forget: options.Forget = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Column whose values belong on one side of a split; may be repeated."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Write a recipe with the advised roles.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="Write everything as one page.")] = None,
    path_column: options.PathColumns = None,
    missing: options.Missing = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Which columns are entangled, and which role is safe for each? Reads the table, no image."""
    from rich.console import Console

    from openfino.audit.analysis import run_audit
    from openfino.audit.command import check_outputs, parse_given, parse_kinds, write_outputs
    from openfino.audit.terminal import print_audit

    check_outputs(write, html, overwrite=overwrite)
    found = run_audit(
        manifest,
        label=label,
        split=split,
        train=train,
        kinds=parse_kinds(kind or []),
        given=parse_given(given or []),
        keep=keep or [],
        forget=forget or [],
        groups=group or [],
        path_columns=path_column or [],
        missing=missing or [],
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        print_audit(found, Console())
    for written in write_outputs(found, manifest, recipe=write, page=html):
        typer.echo(f"wrote {written}", err=as_json)


@app.command()
def adapt(
    recipe: Annotated[Path, typer.Argument(help="The recipe (.yaml).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, laid over the recipe: train.steps=100 factors.plate=spurious"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the folder and start anew.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Adapt a backbone to the images of a manifest. Also starts under torchrun."""
    from rich.console import Console

    from openfino.adapt import adapt as run_adapt
    from openfino.distributed import current_world, leave_world
    from openfino.recipe import load_recipe

    try:
        console = Console(stderr=as_json)
        summary = run_adapt(
            load_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite, console=console
        )
        if as_json and current_world().is_main:
            typer.echo(json.dumps(summary, indent=1))
    finally:
        leave_world()


@app.command()
def compass(
    recipe: Annotated[Path, typer.Argument(help="The recipe (.yaml); the roles in it do not matter.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, laid over the recipe.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for arms and result. Default: the recipe's, with -compass.")
    ] = None,
    factors: Annotated[
        str | None, typer.Option(metavar="A,B", help="The factors to try. Default: all of the recipe.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of every arm, two or more.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of every arm; stages and warm-ups shrink in proportion."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Column whose values come as a whole, such as the plate: unseen ones are validation."
        ),
    ] = None,
    val_in: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Split to choose on, in distribution.")
    ] = None,
    val_out: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Split to choose on, out of distribution.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Which role helps? Trains every factor alone as informative and as spurious, against no guidance.

    The same command goes on where it was stopped; several processes or machines may run it on one folder.
    """
    from rich.console import Console

    from openfino.compass.command import run_compass
    from openfino.compass.terminal import print_compass

    found = run_compass(
        recipe,
        overrides or [],
        out=out,
        factors=[name.strip() for name in (factors or "").split(",") if name.strip()],
        seeds=seeds,
        steps=steps,
        group=group,
        val_in=val_in,
        val_out=val_out,
        overwrite=overwrite,
        console=Console(stderr=as_json),
    )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        print_compass(found, Console())
        typer.echo(f"wrote compass.html, compass.png, compass.json and recommended.yaml into {found.out}")


@app.command()
def compare(
    recipe: Annotated[
        Path, typer.Argument(help="The recipe (.yaml): model, splits, factors with their roles.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, laid over the recipe.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Column with the task label. Default: the recipe's probe.label.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for arms and result. Default: the recipe's, with -compare.")
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B", help="Default: all that the recipe allows.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of every arm. Default: 3.")] = None,
    fractions: Annotated[
        str | None,
        typer.Option(metavar="0.01,0.1,1", help="Shares of the labels; 'none' for all labels alone."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes of this machine that share the arms.")] = 1,
    small: Annotated[
        bool, typer.Option("--small", help="Minutes for the whole table, whose numbers then say nothing.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Did it help? Frozen, SSL, FINO, supervised, DANN, CORAL, Group-DRO and more in one table, several seeds.

    The same command goes on where it was stopped; several processes or machines may run it on one folder.
    """
    from rich.console import Console

    from openfino.compare.command import parse_fractions, run_compare
    from openfino.compare.terminal import print_compared

    found = run_compare(
        recipe,
        overrides or [],
        label=label,
        out=out,
        arms=[name.strip() for name in arms.split(",") if name.strip()] if arms is not None else None,
        seeds=seeds,
        fractions=parse_fractions(fractions),
        jobs=jobs,
        small=small,
        overwrite=overwrite,
        console=Console(stderr=as_json),
    )
    if as_json:
        typer.echo(json.dumps(found.result, indent=1))
    else:
        print_compared(found.result, Console())
        typer.echo(f"wrote {found.page} and compare.json beside it")


@app.command()
def probe(
    model: options.Model,
    manifest: Annotated[Path, typer.Option(help="The table.")],
    label: options.Label = None,
    kind: options.Kind = None,
    split: Annotated[str, typer.Option(help="Column that names the split of each row.")] = "split",
    train: Annotated[str, typer.Option(help="Split on which probes are fitted.")] = "train",
    val: options.Val = None,
    test: options.Tests = None,
    group: Annotated[str | None, typer.Option(help="Column for worst-group accuracy.")] = None,
    cluster: options.Cluster = None,
    probes: options.Probes = None,
    k: Annotated[str, typer.Option(metavar="K,K", help="Neighbours of kNN: 20, or 10,20.")] = "20",
    cluster_by: options.ClusterBy = None,
    masks: options.Masks = None,
    leakage: options.Leakage = None,
    erase: options.Erase = None,
    steps: options.Steps = None,
    windows: options.Windows = None,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps features for the next call.")] = None,
    path_column: options.PathColumns = None,
    missing: options.Missing = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure frozen features: kNN and linear probes, in and out of distribution, and what leaks.

    With --probes, or another kind of label: every metric with 95 % intervals, by heads chosen on validation rows.
    """
    from openfino.evaluation.command import parse_numbers, probe_command
    from openfino.recipe import ProbeGridSettings

    report = probe_command(
        model,
        manifest,
        label=label,
        kind=kind,
        split=split,
        train=train,
        val=val,
        tests=test or [],
        group=group,
        cluster=cluster,
        probes=None if probes is None else [name.strip() for name in probes.split(",")],
        k=parse_numbers(k),
        cluster_by=cluster_by,
        masks=masks,
        windows=windows,
        cache=cache,
        leakage=leakage or [],
        erase=erase or [],
        grid=None if steps is None else ProbeGridSettings(steps=steps),
        batch_size=batch_size,
        device=device,
        path_columns=path_column or [],
        missing=missing or [],
    )
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else report.table())


@app.command()
def embed(
    model: options.Model,
    manifest: Annotated[Path, typer.Argument(help="The table, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    patches: Annotated[bool, typer.Option("--patches", help="Write patch tokens too.")] = False,
    path_column: options.PathColumns = None,
    missing: options.Missing = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write features as Parquet: every column of the manifest, CLS and mean of the patches."""
    from openfino.evaluation.command import embed_command

    report = embed_command(
        model,
        manifest,
        out,
        patches=patches,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
        path_columns=path_column or [],
        missing=missing or [],
    )
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))


@app.command()
def viz(
    model: options.Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or one folder of images, or one table.")],
    out: Annotated[Path, typer.Option(help="The folder to write: sheet.png, panels/ and viz.json.")],
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side in pixels that images are resized to, divisible by the patch size; may be larger than in "
            "training. Default: the model's own.",
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="ROW,COLUMN", help="Reference patch, from 0,0. Default: the centre."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images to draw, evenly spaced. Default: 16 of a folder or table, every named file."
        ),
    ] = None,
    path_column: options.PathColumns = None,
    batch_size: options.BatchSize = 8,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Draw what the patches show: PCA as colours, cosine to one patch and to CLS; RankMe and numbers beside it."""
    from openfino.diagnostics.command import viz_command

    report = viz_command(
        model,
        images,
        out,
        size=size,
        patch=patch,
        limit=limit,
        path_columns=path_column or [],
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
    )
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))


@app.command()
def export(
    source: options.Model,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[str, typer.Option(help="hf, timm, onnx or torch.")] = "hf",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the adapted backbone for other tools, with a model card, open it again and compare the features."""
    from openfino.export import export as run_export

    report = run_export(source, out, to=to, overwrite=overwrite)
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options before any command."""
    if version:
        from openfino import __version__

        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: user errors become one message on standard error and exit code 2."""
    try:
        return app(args=arguments)
    except OpenfinoError as error:
        # Under torchrun every process finds the same problems in the same input: one of them says so.
        if not (isinstance(error, InputProblemsError) and int(os.environ.get("RANK", "0"))):
            typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
