"""The page that ``openfino demo`` leaves: what it did, and whether guidance helped. One file, no network."""

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import openfino
from openfino.manifest import Manifest, read_manifest
from openfino.pages import fill_page
from openfino.recipe import Recipe, load_recipe
from openfino.report.answer import details, headline, reading_list, score_table
from openfino.report.curves import curves
from openfino.report.neighbours import NEIGHBOURS, Gallery, find_neighbours, neighbour_section
from openfino.report.roles import role_section

PAGE_FILE = "report.html"
TRAINED = ("ssl", "fino")


def write_demo_page(out: Path, manifest: Path, results: Mapping[str, Any]) -> Path:
    """Write ``out/report.html``, one self-contained page, and return its path.

    Args:
        out: the demo's folder: ``start`` (a model), ``ssl`` and ``fino`` (runs).
        manifest: the table of the sample.
        results: as in ``out/results.json``.

    Raises:
        OpenfinoError: if the manifest, a recipe or a model cannot be read. Absent curves are left out.
    """
    table = read_manifest(manifest)
    recipes = {arm: load_recipe(out / arm / "recipe.yaml") for arm in TRAINED}
    recipe, arms = recipes["fino"], results["arms"]
    label, split = recipe.probe.label or "localization", recipe.probe.split or "split"
    tested, train = (table.rows_where(split, [name]) for name in ("test_ood", recipe.probe.train))
    plates = table.table["plate"].gather(tested).drop_nulls().n_unique()
    models = {"frozen": out / "start", **{arm: out / arm for arm in TRAINED}}
    gallery = find_neighbours(table, models, label, tested, train, recipe.seed)
    page = fill_page(
        "openfino.report",
        "page.html",
        headline=headline(arms, recipe, len(tested), plates),
        details=details(arms, len(tested)),
        scores=score_table(arms, table, recipe),
        reading=reading_list(arms, recipe),
        method=_method(table, recipes, len(tested), plates),
        roles=role_section(table, recipes),
        curves=curves(out, recipes),
        neighbours_intro=_neighbours_intro(gallery),
        neighbours=neighbour_section(table, gallery, label),
        export=_export(Path(results["export"]), recipe),
        made=_made(out, results, recipe, len(table)),
    )
    path = out / PAGE_FILE
    path.write_text(page, encoding="utf-8")
    return path


def _method(table: Manifest, recipes: Mapping[str, Recipe], images: int, plates: int) -> str:
    recipe = recipes["fino"]
    known = len(table.rows_where(recipe.probe.split or "split", ["test_id"]))
    spreads = {arm: _spreading_terms(own) for arm, own in recipes.items()}
    difference = "the roles alone"
    if spreads["ssl"] != spreads["fino"]:
        terms = f"{spreads['ssl']} in SSL, {spreads['fino']} in FINO"
        difference = f"the roles and in the term that spreads features ({terms})"
    return (
        f"<b>test_id</b>: {known} other images of the training plates. <b>test_ood</b>: {images} images of {plates} "
        "plates that training never saw, with antibodies that it did see. Both trained arms start from the frozen "
        f"start, see the same images and differ in {difference}. Probes read frozen features: <b>kNN</b> "
        f"(k = {recipe.probe.k}) the CLS token, <b>linear</b> (logistic regression) CLS and mean patch token; both are "
        "fitted on the train split. <b>Macro-F1</b> is the mean F1 over the patterns, rare ones counting as much as "
        "common ones. The bold number is the best of its column."
    )


def _spreading_terms(recipe: Recipe) -> str:
    weights = {"KoLeo": recipe.koleo_weight, "SIGReg": recipe.sigreg_weight}
    return (
        " and ".join(f"{name} at weight {weight:g}" for name, weight in weights.items() if weight) or "none"
    )


def _neighbours_intro(gallery: Gallery) -> str:
    return (
        f"{len(gallery.queries)} images of unseen plates, drawn by key and not by success, every pattern once before "
        f"any comes twice; with each come its {NEIGHBOURS} nearest neighbours (cosine of the CLS token) among "
        f"{len(gallery.bank)} training images. Green and &#10003;: same pattern; red and &#10007;: another. Pointing "
        "at an image shows antibody and plate. Colours: protein green, nucleus blue, microtubules red, ER yellow."
    )


def _export(folder: Path, recipe: Recipe) -> str:
    height, width = recipe.views.global_size
    channels = recipe.images.channels or []
    shape = f"1, {len(channels)}, {height}, {width}"
    hugging_face = (
        "from transformers import AutoModel\n\n"
        f"model = AutoModel.from_pretrained({str(folder)!r}).eval()\n"
        f"features = model(pixel_values=pixels).last_hidden_state[:, 0]  # pixels: float32 [{shape}]"
    )
    own = (
        "from pathlib import Path\nfrom openfino.models.store import load_model\n\n"
        f"model = load_model({str(folder)!r})\n"
        'pixels = model.preprocessing.load([Path("image.tif")])[None]  # resized, normalised\n'
        "features = model.backbone(pixels).cls"
    )
    command = f"openfino embed {shlex.quote(str(folder))} manifest.csv --out features.parquet"
    return (
        f"<p>The FINO backbone lies in <code>{escape(str(folder))}</code>, with its licence, recipe and probes in "
        f"<code>README.md</code>. It takes {len(channels)} channels ({escape(', '.join(channels))}).</p>"
        f"<p>With transformers:</p><pre>{escape(hugging_face)}</pre>"
        f"<p>With openfino, which prepares the pixels as in training:</p><pre>{escape(own)}</pre>"
        f"<p>A whole table at once:</p><pre>{escape(command)}</pre>"
    )


def _made(out: Path, results: Mapping[str, Any], recipe: Recipe, images: int) -> str:
    took = f" in {results['seconds']:.0f} seconds" if "seconds" in results else ""
    return (
        f"Made by openfino {escape(openfino.__version__)}{took}: {images:,} drawn images, {recipe.train.steps:,} steps "
        f"of {recipe.train.batch_size} images for each arm, seed {recipe.seed}. The recipes are "
        f"<code>{escape(str(out / 'ssl.yaml'))}</code> and <code>{escape(str(out / 'fino.yaml'))}</code>, the numbers "
        f"<code>{escape(str(out / 'results.json'))}</code>."
    )
