"""What the teacher sees in the same few images, probe after probe."""

import numpy as np
import torch

from openfino.diagnostics.diagnosis import diagnose
from openfino.diagnostics.sheet import draw_panels, draw_sheet, write_png
from openfino.errors import OpenfinoError
from openfino.evaluation.features import Rows, extract_features, patch_grid
from openfino.evaluation.splits import probe_generator
from openfino.images.display import as_colours
from openfino.images.preprocess import Preprocessing
from openfino.images.read import read_image
from openfino.manifest import Manifest
from openfino.models.backbone import Backbone
from openfino.models.store import LoadedModel
from openfino.recipe import Recipe
from openfino.training.logging import RunLog

FOLDER = "pictures"
TAG = "pictures/features"
SIDE = 160  # smaller panels than those of `openfino viz`: there may be hundreds of sheets


class Pictures:
    """Draws ``pictures/step_000300.png`` of a run, and the same for TensorBoard.

    No number is drawn that training would miss, and the backbone is left as it was: a run with pictures and one
    without take the same steps.

    Attributes:
        rows: of the images that are drawn, int64 [n].
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        training_rows: Rows,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.device = device
        self.folder = recipe.out / FOLDER
        self.rows = picture_rows(recipe, manifest, training_rows)

    def draw(self, backbone: Backbone, step: int, log: RunLog) -> None:
        """Draw what ``backbone`` sees after ``step`` steps, unless that is drawn already.

        Images that cannot be used are left out; if none can, the log says so and the run goes on.
        """
        path = self.folder / f"step_{step:06d}.png"
        if path.exists() or not len(self.rows):
            return
        model = LoadedModel(backbone, self.preprocessing, {}, None)
        try:
            # Compiled blocks would be compiled once more, for these few images.
            with torch.compiler.set_stance("force_eager"):
                features = extract_features(
                    model, self.manifest, self.rows, device=self.device, tokens=("patches",)
                )
        except OpenfinoError as error:
            log.say(f"[yellow]no pictures at step {step}:[/] {error}")
            return
        diagnosis = diagnose(features, patch_grid(model))
        images = [as_colours(read_image(self.manifest.paths(int(row)))) for row in diagnosis.rows]
        panels = [draw_panels(diagnosis, position, image, SIDE) for position, image in enumerate(images)]
        names = [str(self.manifest.table[self.manifest.path_columns[0]][int(row)]) for row in diagnosis.rows]
        sheet = draw_sheet(diagnosis, panels, names, f"teacher after {step} steps")
        # With the numbers of the last of these steps: what a resumed run drops and draws again is the same for both.
        log.picture(max(step - 1, 0), TAG, sheet)
        write_png(path, sheet)

    def forget_after(self, step: int) -> None:
        """Delete the pictures of later steps than ``step``, where a run resumes: those steps run again."""
        for path in self.folder.glob("step_*.png"):
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()


def picture_rows(recipe: Recipe, manifest: Manifest, training_rows: Rows) -> Rows:
    """A keyed draw of ``probe.pictures`` rows, ascending, of the first of these that has any: the split ``probe.val``,
    the splits ``probe.tests``, all rows that do not train, all rows. Of the splits, what trains takes no part.
    """
    probe = recipe.probe
    others = np.setdiff1d(np.arange(len(manifest), dtype=np.int64), training_rows)
    named = [] if probe.split is None else [[probe.val] if probe.val else [], probe.tests]
    splits = [manifest.rows_where(probe.split, values) for values in named if probe.split]
    pools = [*(np.intersect1d(rows, others) for rows in splits), others, training_rows]
    pool = next((rows for rows in pools if len(rows)), others)
    return np.sort(probe_generator(recipe.seed, "pictures").permutation(pool)[: probe.pictures])
