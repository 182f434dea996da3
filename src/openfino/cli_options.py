"""Options that several commands share, and those of the longest ones."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
PathColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--path-column", help="Column with image paths; may be repeated. Default: the run's, else inferred."
    ),
]
Missing = Annotated[
    list[str] | None,
    typer.Option("--missing", help='Token that means "no value"; may be repeated. Default: the run\'s.'),
]

Kinds = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=KIND", help="dose=continuous, angle=cyclic:360; may be repeated."),
]

# Of the audit.
Given = Annotated[
    list[str] | None, typer.Option(metavar="Y|X,Z", help="Show U(Y|X,Z) of these three; may be repeated.")
]
Keep = Annotated[
    list[str] | None, typer.Option(help="Column that says what the image shows; may be repeated.")
]
Forget = Annotated[list[str] | None, typer.Option(help="Column that says how it was taken; may be repeated.")]

# Of probes.
Model = Annotated[str, typer.Argument(help="tiny, a run, a model folder, a hub name or a weights file.")]
Label = Annotated[
    str | None, typer.Option(help="Column with the task label: a class, several labels, or a number.")
]
Kind = Annotated[str | None, typer.Option(help="single, multi or regression. Default: told from the column.")]
Val = Annotated[str | None, typer.Option(help="Split on which heads are chosen. Default: a fifth of train.")]
Tests = Annotated[
    list[str] | None, typer.Option(help="Split to score; may be repeated. Default: all others.")
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Column whose images resemble each other, such as the plate: honest intervals."),
]
Probes = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Of knn, linear, attentive: chosen on --val, with intervals."),
]
ClusterBy = Annotated[
    str | None,
    typer.Option(help="k-means on features averaged over this column, against the label: ARI, V-measure."),
]
Masks = Annotated[
    str | None,
    typer.Option(help="Column with mask files of class numbers: linear segmentation of patches, mIoU."),
]
Leakage = Annotated[
    list[str] | None, typer.Option(help="Factors of the model, or columns, to read from the features: a,b.")
]
Erase = Annotated[
    list[str] | None,
    typer.Option(help="Factors or columns to erase by LEACE, one at a time, and measure without: a,b."),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Of every head; the grid trains together. Default: 2,000.")
]
Windows = Annotated[
    int | None, typer.Option(min=1, help="Read larger images as up to this many overlapping windows a side.")
]
