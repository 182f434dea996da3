"""``openfino check``: every problem of a manifest, or of a whole recipe, at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from openfino.errors import InputProblemsError, Problem
from openfino.images.check import check_manifest
from openfino.manifest import read_manifest
from openfino.preflight import preflight
from openfino.recipe import load_recipe


def check_source(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    decode: bool = False,
    path_columns: Sequence[str] = (),
    missing: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Problem], str]:
    """Problems of ``source`` and a line that describes it.

    Args:
        source: a recipe (.yaml, .yml), else a manifest or a folder of images.
        overrides: ``key=value`` laid over a recipe.
        decode: read every image to its end instead of looking whether the file is there.
        path_columns: of a manifest without a recipe: columns that hold image paths; inferred when not given.
        missing: of a manifest without a recipe: tokens that mean "no value".
        progress: called with (files done, files in all).
    """
    level: Literal["exist", "decode"] = "decode" if decode else "exist"
    if source.suffix.lower() not in (".yaml", ".yml"):
        manifest = read_manifest(source, path_columns=list(path_columns) or None, missing=list(missing))
        problems = check_manifest(
            manifest, factors={}, required_columns={}, read_images=level, progress=progress
        )
        return problems, f"{source}: {len(manifest):,} rows, {len(manifest.table.columns)} columns"
    recipe = load_recipe(source, overrides)
    try:
        ready = preflight(recipe, read_images=level, progress=progress)
    except InputProblemsError as error:
        return error.problems, f"{source}: manifest {recipe.manifest}"
    lines = [
        f"{source}: {len(ready.rows):,} of {len(ready.manifest):,} rows train; {', '.join(ready.channels)}"
    ]
    lines += [
        f"  {name}: {spec.role}, {spec.kind}. {ready.reasons[name]}" for name, spec in ready.specs.items()
    ]
    return [], "\n".join(lines)
