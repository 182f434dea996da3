"""``tiny`` from nothing: draw the table, pretrain, refine if asked to, and pack the backbone into the package.

    python benchmarks/build_tiny.py                        # hours; goes on where it was stopped
    python benchmarks/build_tiny.py --refine               # with recipes/refine-tiny.yaml after it
    python benchmarks/build_tiny.py --package runs/tiny/pretrain

``--package`` only packs a run that is there: its weights in float16, compared with those in float32 on procedural
images, their SHA-256, the recipes and logs of this run and of those that it started from, and the card. It refuses a
run that saw anything else than procedural images, or that started from somebody else's weights.
"""

import argparse
import copy
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from fashion_mnist import SOURCE
from openfino import tiny
from openfino.adapt import adapt
from openfino.errors import OpenfinoError
from openfino.images.preprocess import Preprocessing
from openfino.models.backbone import Backbone
from openfino.models.store import LoadedModel, load_model, save_backbone
from openfino.procedural import draw_image
from openfino.recipe import load_recipe
from openfino.runfolder import claim_workspace
from tiny_card import Closeness, tiny_card
from tiny_data import IMAGES, write_tiny_data
from tiny_stages import Stage, stages_of, write_stage

ROOT = Path(__file__).parents[1]
RECIPES = {
    "pretrain": ROOT / "recipes" / "pretrain-tiny.yaml",
    "refine": ROOT / "recipes" / "refine-tiny.yaml",
}
WORK = ROOT / "runs" / "tiny"
MAX_BYTES = 10_000_000
MIN_COSINE = 0.9999
COMPARED = 16


def build(
    work: Path, *, refine: bool, source: Path = SOURCE, images: int = IMAGES, overrides: tuple[str, ...] = ()
) -> Path:
    """Make the table and run the recipes in ``work``, as far as that was not done; returns the last run.

    Args:
        work: folder of the table and the runs.
        refine: whether to run the second recipe, too.
        source: of Fashion-MNIST, on which training is watched.
        images: procedural images in the table.
        overrides: of the first recipe.
    """
    data = work / "data"
    if not (data / "manifest.parquet").is_file():
        claim_workspace(data, overwrite=True)
        write_tiny_data(data, source, images)
    table, first, second = f"manifest={data / 'manifest.parquet'}", work / "pretrain", work / "refine"
    adapt(load_recipe(RECIPES["pretrain"], [table, f"out={first}", *overrides]), resume=True)
    if not refine:
        return first
    adapt(load_recipe(RECIPES["refine"], [table, f"out={second}", f"model={first}"]), resume=True)
    return second


def package(run: Path, into: Path) -> str:
    """Pack the model of ``run`` into the folder ``into``; what else lies there, if it is no data, stays.

    Returns:
        What was written, in a few lines.

    Raises:
        OpenfinoError: if the run may not be packed, is too large, or its features change in float16.
    """
    stages = stages_of(run)
    model = load_model(run)
    if model.backbone.own_state():
        raise OpenfinoError(f"{run}: its model has parameters that transformers does not know")
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder) / tiny.NAME
        closeness = _write(staging, model, stages)
        size = sum(path.stat().st_size for path in staging.iterdir())
        if size > MAX_BYTES:
            raise OpenfinoError(f"{run}: {size:,} bytes in float16 are more than {MAX_BYTES:,}")
        _refuse_places(staging, stages)
        into.mkdir(parents=True, exist_ok=True)
        for path in into.iterdir():
            if path.is_file() and path.suffix != ".py":
                path.unlink()
        for path in sorted(staging.iterdir()):
            shutil.copyfile(path, into / path.name)  # not copy(): a temporary file is for its owner alone
    return f"wrote {into}: {size:,} bytes\n{closeness}\nSHA-256 {tiny.sha256(into / tiny.WEIGHTS)}"


def _write(staging: Path, model: LoadedModel, stages: list[Stage]) -> Closeness:
    """Every file of the package."""
    preprocessing = model.preprocessing
    if len(preprocessing.channels) == 3:
        colours = ["red", "green", "blue"]
        preprocessing = preprocessing.model_copy(update={"channels": colours})
    own = {"source": tiny.PUBLIC_NAME, "licence": tiny.LICENCE}
    provenance = {"source": tiny.PUBLIC_NAME, "parent": own}
    save_backbone(staging, half_precision(model.backbone), preprocessing, provenance)
    closeness = compare(model.backbone, load_model(staging).backbone, preprocessing)
    if not closeness.cosine >= MIN_COSINE:
        raise OpenfinoError(f"the features are others in float16: {closeness}")
    for stage in stages:
        write_stage(stage, staging)
    digest = tiny.sha256(staging / tiny.WEIGHTS)
    (staging / tiny.SUMS).write_text(f"{digest}  {tiny.WEIGHTS}\n", encoding="utf-8")
    card = tiny_card(model.backbone, preprocessing, stages, closeness, digest)
    (staging / "README.md").write_text(card, encoding="utf-8")
    return closeness


def half_precision(backbone: Backbone) -> Backbone:
    """A copy whose parameters are float16.

    Raises:
        OpenfinoError: if one of them is too large for it.
    """
    halved = copy.deepcopy(backbone).half()
    names = [name for name, value in halved.named_parameters() if not bool(value.isfinite().all())]
    if names:
        raise OpenfinoError(f"too large for float16: {', '.join(names[:3])}")
    return halved


@torch.inference_mode()
def compare(one: Backbone, other: Backbone, preprocessing: Preprocessing) -> Closeness:
    """The tokens of two backbones on the first procedural images of another seed than training's."""
    drawn = [torch.from_numpy(draw_image(1, index, 96)).float() / 255 for index in range(COMPARED)]
    images = torch.stack([preprocessing.apply(image) for image in drawn])
    here, there = (
        torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1).double()
        for tokens in (one(images), other(images))
    )
    return Closeness(
        largest=float((here - there).abs().max()),
        scale=float(here.square().mean().sqrt()),
        cosine=float(torch.nn.functional.cosine_similarity(here, there, dim=-1).min()),
        images=COMPARED,
    )


def _refuse_places(staging: Path, stages: list[Stage]) -> None:
    """Nothing in the package may say where things lay on the disk of whoever trained it."""
    places = {str(stage.folder.resolve()) for stage in stages} | {str(ROOT), str(Path.home())}
    for path in staging.iterdir():
        found = [place for place in places if path.suffix != ".safetensors" and place in path.read_text()]
        if found:
            raise OpenfinoError(f"{path.name} would name {found[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="key=value, laid over the recipe of pretraining")
    parser.add_argument("--package", type=Path, metavar="RUN", help="only pack this run")
    parser.add_argument("--into", type=Path, default=tiny.FOLDER, help="folder of the package's data")
    parser.add_argument("--refine", action="store_true", help="run recipes/refine-tiny.yaml, too")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the table and the runs")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--images", type=int, default=IMAGES, help="procedural images in the table")
    asked = parser.parse_args()
    try:
        run = asked.package or build(
            asked.work.absolute(),
            refine=asked.refine,
            source=asked.source,
            images=asked.images,
            overrides=tuple(asked.overrides),
        )
        Console().print(package(run, asked.into), highlight=False, soft_wrap=True)
    except OpenfinoError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
