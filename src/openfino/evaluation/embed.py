"""Features of every image of a manifest as one Parquet file (ecosystem.md section 4.5)."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

import openfino
from openfino.errors import OpenfinoError
from openfino.evaluation.features import (
    Features,
    Progress,
    check_tokens,
    patch_grid,
    require_usable,
    stream_features,
)
from openfino.manifest import Manifest
from openfino.models.backbone import Backbone
from openfino.models.licence import parent_of
from openfino.models.store import LoadedModel

ROW_GROUP_BYTES = 64 * 2**20
SHOWN_CAUSES = 5


@dataclass(frozen=True)
class EmbedReport:
    """What was written.

    Attributes:
        file: the Parquet file.
        rows: its rows, all those of the manifest.
        dimensions: D.
        unreadable: rows whose features are null.
        causes: why, for the first few of them.
    """

    file: Path
    rows: int
    dimensions: int
    unreadable: int
    causes: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "file": str(self.file)}

    def __str__(self) -> str:
        text = f"wrote {self.file}: {self.rows:,} rows, {self.dimensions} dimensions"
        if self.unreadable:
            text += f"; {self.unreadable:,} rows have no features, such as: " + "; ".join(self.causes)
        return text


def embed(
    model: LoadedModel,
    manifest: Manifest,
    out: Path,
    *,
    tokens: Sequence[str] = ("cls", "mean"),
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EmbedReport:
    """Write the manifest with the features of its images as columns.

    Columns: those of the manifest as read; ``cls`` and ``mean``, fixed_size_list<float32>[D]; with
        ``patches``
    also ``patches``, list<fixed_size_list<float32>[D]> row by row, and ``patch_h``, ``patch_w``. The features
    of an unusable image are null. The metadata of the file (keys ``openfino.*``) names the model, the hash of
    its weights, the preprocessing, the dtype, the version and the licence. Row group by row group: memory
    does not grow with the manifest. The file appears under its name only when it is complete.

    Args:
        model: its backbone is moved to ``device``.
        manifest: the table.
        out: the file to write.
        tokens: which of ``cls``, ``mean`` and ``patches``.
        batch_size: images per forward pass.
        device: where the backbone runs.
        workers: threads that read images ahead.
        overwrite: replace ``out`` if it exists.
        progress: called with (rows done, rows in all).

    Raises:
        OpenfinoError: if ``out`` exists, a token is unknown, a column of the manifest has the name of a
            feature, or not one image is usable.
    """
    check_tokens(tokens)
    if out.exists() and not overwrite:
        raise OpenfinoError(f"{out} exists already; choose another file or allow overwriting")
    columns = manifest.table.to_arrow(compat_level=pl.CompatLevel.oldest())
    schema = _schema(model, columns.schema, tokens, manifest.file or manifest.root)
    chunks = stream_features(
        model,
        manifest,
        np.arange(len(manifest), dtype=np.int64),
        batch_size=batch_size,
        device=device,
        tokens=tokens,
        workers=workers,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    group_rows = max(ROW_GROUP_BYTES // _row_bytes(model, tokens), batch_size)
    try:
        usable, causes = _write(partial, schema, columns, model, chunks, group_rows, progress)
        require_usable(usable, len(manifest), causes)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return EmbedReport(out, len(manifest), model.backbone.embed_dim, len(manifest) - usable, causes)


def _write(
    file: Path,
    schema: pa.Schema,
    columns: pa.Table,
    model: LoadedModel,
    chunks: Iterable[Features],
    group_rows: int,
    progress: Progress | None,
) -> tuple[int, list[str]]:
    """Write the rows in groups of about ``group_rows``; returns how many have features, and why some do not."""
    done = usable = 0
    causes: list[str] = []
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(file, schema, use_dictionary=columns.column_names) as writer:
        for chunk in chunks:
            rows = columns.slice(done, len(chunk) + len(chunk.unreadable))
            waiting.append(_chunk_table(model, rows, chunk, done, schema))
            done, usable = done + len(rows), usable + len(chunk)
            causes += chunk.causes[: SHOWN_CAUSES - len(causes)]
            if sum(map(len, waiting)) >= group_rows or done == len(columns):
                writer.write_table(pa.concat_tables(waiting), row_group_size=group_rows)
                waiting.clear()
            if progress is not None:
                progress(done, len(columns))
    return usable, causes


def weights_hash(backbone: Backbone) -> str:
    """SHA-256 over name, dtype, shape and values of every tensor: equal weights have equal hashes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _schema(model: LoadedModel, manifest: pa.Schema, tokens: Sequence[str], where: Path) -> pa.Schema:
    """Columns and metadata of the file.

    Raises:
        OpenfinoError: if a feature would have the name of a manifest column.
    """
    vector = pa.list_(pa.float32(), model.backbone.embed_dim)
    fields = [pa.field(name, vector) for name in ("cls", "mean") if name in tokens]
    if "patches" in tokens:
        fields.append(pa.field("patches", pa.list_(vector)))
        fields += [pa.field(name, pa.int32()) for name in ("patch_h", "patch_w")]
    taken = [field.name for field in fields if field.name in manifest.names]
    if taken:
        raise OpenfinoError(f"{where}: columns {', '.join(taken)} have the names of features; rename them")
    parent = parent_of(model.provenance, model.backbone.config)
    facts = {
        "model": model.name,
        "parent": parent.source or "random weights",
        "licence": parent.licence or "none",
        "weights_sha256": weights_hash(model.backbone),
        "transform": json.dumps(model.preprocessing.to_json()),
        "layer": "last, after the final norm",
        "dtype": "float32",
        "version": openfino.__version__,
    }
    return pa.schema(
        [*manifest, *fields], metadata={f"openfino.{key}": value for key, value in facts.items()}
    )


def _row_bytes(model: LoadedModel, tokens: Sequence[str]) -> int:
    """Bytes of the features of one row."""
    height, width = patch_grid(model)
    vectors = sum(height * width if token == "patches" else 1 for token in tokens)
    return 4 * model.backbone.embed_dim * vectors


def _chunk_table(
    model: LoadedModel, columns: pa.Table, chunk: Features, start: int, schema: pa.Schema
) -> pa.Table:
    """The manifest's rows from ``start`` beside their features, null where there are none."""
    present = np.isin(np.arange(start, start + len(columns)), chunk.rows)
    arrays = dict(zip(columns.column_names, columns.columns, strict=True))
    for name, values in (("cls", chunk.cls), ("mean", chunk.mean)):
        if name not in arrays and name in schema.names:
            arrays[name] = _vectors(values, present)
    if chunk.patches is not None:
        height, width = patch_grid(model)
        flat = chunk.patches.reshape(-1, model.backbone.embed_dim)
        ends = np.cumsum(present * height * width)
        arrays["patches"] = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], ends]), pa.int32()),
            _vectors(flat, np.ones(len(flat), dtype=bool)),
            mask=pa.array(~present),
        )
        arrays["patch_h"] = pa.array(np.full(len(columns), height), pa.int32())
        arrays["patch_w"] = pa.array(np.full(len(columns), width), pa.int32())
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _vectors(values: NDArray[np.float32], present: NDArray[np.bool_]) -> pa.Array:
    """Rows of ``values`` at the positions that are present, null elsewhere."""
    full = np.zeros((len(present), values.shape[1]), dtype=np.float32)
    full[present] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(full.ravel()), values.shape[1], mask=pa.array(~present))
