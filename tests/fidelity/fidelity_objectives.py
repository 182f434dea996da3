"""DINO, iBOT, KoLeo, SIGReg, their targets and their sum against the authors' modules."""

from collections.abc import Iterator

import torch
from comparisons import Compared, component, leaf
from torch.nn import functional as F

from golden_data import Case
from openfino.objectives.centering import SoftmaxCentering
from openfino.objectives.dino import cross_entropy
from openfino.objectives.ibot import masked_patch_cross_entropy, weighted_patch_cross_entropy
from openfino.objectives.koleo import koleo, nearest_rows
from openfino.objectives.sigreg import sigreg
from openfino.objectives.sinkhorn import sinkhorn


@component(
    "Sinkhorn-Knopp targets",
    ours="objectives.sinkhorn.sinkhorn",
    source="DINOv3 sec. 3.1",
    cases={"dino_loss.safetensors": ["sk_*"], "ibot_patch_loss.safetensors": ["sk_*"]},
    deviation=(
        "Theirs exponentiates without subtracting a maximum: NaN for a logit above 88.7 temperatures, and "
        "when a whole row underflows. Our first pass works on logarithms and stays finite. Their iBOT form needs a "
        "process group and overwrites the caller's count of masked patches; the count cancels, ours takes none."
    ),
)
def sinkhorn_targets(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    settings = case.hparams
    yield Compared(
        "probs", sinkhorn(case["teacher_logits"], settings["teacher_temp"], settings["n_iterations"])
    )


@component(
    "softmax centring",
    ours="objectives.centering.SoftmaxCentering",
    source="DINO (arXiv 2104.14294) sec. 3.1",
    cases={
        "dino_loss.safetensors": ["softmax_centering_*"],
        "ibot_patch_loss.safetensors": ["softmax_centering"],
    },
    double=True,
    deviation=(
        "Neither paper nor recipes use it; `objective.centering: softmax` does. Theirs takes the mean of the ranks' "
        "means, ours the mean over all samples of all ranks, and of a step that was skipped nothing."
    ),
)
def centering(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    logits = case["teacher_logits"].to(dtype)
    module = SoftmaxCentering(logits.shape[-1], case.hparams["center_momentum"]).to(dtype)
    probs, centers = [], [module.center.clone()]
    for step in logits:
        probs.append(module(step.flatten(0, -2), case.hparams["teacher_temp"]).view_as(step))
        module.commit()
        centers.append(module.center.clone())
    yield Compared("probs", torch.stack(probs))
    if "centers" in case:
        yield Compared("centers", torch.stack(centers))
    else:
        yield Compared("center_step1", centers[1])


@component(
    "DINO loss",
    ours="objectives.dino.cross_entropy",
    source="DINOv3 sec. 3.1",
    cases={"dino_loss.safetensors": ["ce_*"]},
    double=True,
    deviation=(
        "Neither compares a global crop with itself by default; their `global_ignore_diagonal: false` is our "
        "`objective.dino.same_crop_pairs: true`."
    ),
)
def dino(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    student = leaf(case, "student_logits", dtype)
    teacher = case["teacher_probs"].to(dtype)
    settings = case.hparams
    loss = cross_entropy(
        student, teacher, settings["student_temp"], skip_same_crop=settings["ignore_diagonal"]
    )
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_student_logits", student.grad)


@component(
    "iBOT loss",
    ours="objectives.ibot.masked_patch_cross_entropy",
    source="DINOv3 sec. 3.1",
    cases={"ibot_patch_loss.safetensors": ["masked_*", "forward_dense"]},
    double=True,
    deviation=(
        "Both divide by all crops, so that with half of them masked the value is halved: the weight 1 belongs to that. "
        "Theirs gets padded rows, ours has none: here the padding is cut off and gets no gradient."
    ),
)
def ibot(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    student, teacher = leaf(case, "student_logits", dtype), case["teacher_probs"].to(dtype)
    masks, temperature = case["masks"], case.hparams["student_temp"]
    if student.dim() == 3:
        rows, targets = student[masks], teacher[masks]
    else:
        rows, targets = student[: masks.sum()], teacher[: masks.sum()]
    if case.hparams.get("weights") == "given":
        weights = case["masks_weight"].to(dtype)
        loss = weighted_patch_cross_entropy(rows, targets, weights, len(masks), temperature)
    else:
        loss = masked_patch_cross_entropy(rows, targets, masks, temperature)
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_student_logits", student.grad)


@component(
    "KoLeo",
    ours="objectives.koleo.koleo",
    source="DINOv3 sec. 3.1, app. C",
    cases={"koleo_loss.safetensors": ["*"]},
    double=True,
    deviation=(
        "The DINOv3 paper spreads the first global crop only, its code both, summed. Ours is the paper's; "
        "`objective.koleo.every_crop: true` is the code's. The paper looks for neighbours in groups of 16 images, as "
        "ours does by default; the code's FINO recipes among all images of one GPU, so that the value depends on the "
        "number of GPUs: `objective.koleo.group_size: null` is theirs on one GPU, and the images per GPU as "
        "`group_size` are theirs on several. A single image is its own neighbour in theirs (17.08); in ours it has "
        "none and the term is zero."
    ),
)
def koleo_term(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    embeddings = leaf(case, "x", dtype)
    loss = koleo(embeddings, case.hparams.get("loss_group_size"), case.hparams.get("topk", 1))
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_x", embeddings.grad)
    if "nearest" in case:
        points = F.normalize(embeddings.detach(), dim=-1)
        yield Compared("nearest", nearest_rows(points, len(points), 1).squeeze(1))


@component(
    "SIGReg",
    ours="objectives.sigreg.sigreg",
    source="eq. 6",
    cases={"sigreg.safetensors": ["*"]},
    double=True,
    deviation=(
        "Eq. 6 is a mean over the crops; their total sums over them, which makes the weight 0.1: "
        "`objective.sigreg.sum_crops: true`. On W ranks their gradient is W times too small, because their all-reduce "
        "has no derivative; ours is that of the global batch. They draw the directions on the training device in its "
        "precision, ours on the CPU in float32, so that the device changes nothing; here theirs are given."
    ),
)
def sigreg_term(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    samples = leaf(case, "z", dtype)
    directions = F.normalize(case["A_raw"].to(dtype), dim=0)
    loss = sigreg(samples, directions, case.hparams["n_knots"], case.hparams["range_max"])
    loss.backward()
    yield Compared("loss", loss)
    yield Compared("grad_z", samples.grad)
