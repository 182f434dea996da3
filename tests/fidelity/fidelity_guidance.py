"""Prototypes, classifiers, regressors, reversal, balancing and the whole guidance term against the authors' modules."""

from collections.abc import Iterator

import polars as pl
import torch
from comparisons import Compared, authors_recipe, component, leaf
from torch import Tensor, nn
from torch.nn import functional as F

from golden_data import Case
from openfino.factors.batch import FactorBatch
from openfino.factors.encode import Vocabulary, encode
from openfino.factors.spec import FactorSpec
from openfino.objectives.base import Views
from openfino.objectives.guidance.balance import gradient_norms
from openfino.objectives.guidance.classification import Classifier, binary_cross_entropy
from openfino.objectives.guidance.concentration import ConcentrationBank
from openfino.objectives.guidance.guidance import Guidance, GuidedFactor, build_balance
from openfino.objectives.guidance.mlp import KeyedMlp
from openfino.objectives.guidance.prototypes import prototype_logits
from openfino.objectives.guidance.regression import Regressor, squared_errors, target_map
from openfino.objectives.guidance.reversal import ramp, scale_gradient

RAMPS = {"sigmoid": "dann", "linear": "linear", "constant": "constant"}


@component(
    "ramp of guidance",
    ours="objectives.guidance.reversal.ramp",
    source="FINO sec. 3",
    cases={"lambda_schedule.safetensors": ["*"]},
    deviation=(
        "Theirs counts from the first iteration (plus a warm-up that their recipes leave at 0), so that guidance is at "
        "0.63 to 0.96 when the backbone unfreezes; ours counts from there, as the paper says "
        "(`objective.guidance.ramp_from: start` counts as theirs). Past the end their linear ramp goes on (1.1 at 1100 "
        "of 1000), ours stays at 1; training ends before."
    ),
)
def ramps(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    settings = case.hparams
    steps = case["iterations"].tolist() if "iterations" in case else range(settings["max_iterations"] + 1)
    start, length = settings["warmup_steps"], settings["max_iterations"] - settings["warmup_steps"]
    values = [ramp(RAMPS[settings["schedule_type"]], step - start, length) for step in steps]
    yield Compared("values", torch.tensor(values, dtype=torch.float64))


def bank_of(case: Case, centroids: Tensor, dtype: torch.dtype) -> ConcentrationBank:
    """Our bank at the start of a case; what the case does not say, and their recipes' momentum, is the preset's."""
    hparams = case.hparams
    own = {"temperature": hparams["base_temperature"]}
    if "centroid_momentum" in hparams and case.name != "update_sequence_m0.999":
        own["momentum"] = hparams["centroid_momentum"]
    settings = authors_recipe(objective={"guidance": own}).objective.guidance
    bank = ConcentrationBank(*centroids.shape, settings.temperature, settings.momentum, hparams["phi_min"])
    bank = bank.to(dtype)
    bank.centroids.copy_(centroids)
    return bank


@component(
    "prototype loss",
    ours="objectives.guidance.prototypes.prototype_logits",
    source="FINO eq. 1",
    cases={"prototypical_head.safetensors": ["forward_*"]},
    double=True,
    deviation=(
        "Theirs divides by a concentration of each value's own, ours by one temperature, as the paper; here their "
        "concentration is divided into our prototypes (`objective.guidance.bank: concentration` does it as theirs)."
    ),
)
def prototype_loss(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    concentration = case["concentration"].to(dtype).clamp(min=case.hparams["phi_min"])
    prototypes = F.normalize(case["centroids"].to(dtype), dim=-1) / concentration[:, None]
    seen = torch.ones(len(prototypes), dtype=torch.bool)
    for key, factor in (("p1", 1.0), ("p037", 0.37), ("m1", -1.0)):
        features = leaf(case, "student_cls", dtype)
        logits = prototype_logits(scale_gradient(features, factor), prototypes, seen, temperature=1.0)
        loss = F.cross_entropy(logits, case["labels"])
        loss.backward()
        yield Compared(f"lambda_{key}/loss", loss)
        yield Compared(f"lambda_{key}/grad_student_cls", features.grad)
    yield Compared("accuracy", (logits.argmax(dim=-1) == case["labels"]).double().mean())


@component(
    "prototype bank of the authors",
    ours="objectives.guidance.concentration.ConcentrationBank",
    source="FINO eq. 1 and 2, as released",
    cases={"prototypical_head.safetensors": ["*"]},
    double=True,
    deviation=(
        "An option, `objective.guidance.bank: concentration`; the default is the paper's bank. Theirs never puts a "
        "moved prototype back on the sphere, takes the mean of a value's first images as it is, moves twice per step "
        "(once per crop; momentum 0.999 in their recipes, 0.99 in the paper: `objective.guidance.momentum`), lets a "
        "concentration per value run away from the temperature (0.023 to 0.7), and pushes images away from random "
        "vectors of values that nobody has seen, other ones on each rank; ours does all of it with the same vectors "
        "everywhere. The paper's bank is held against float64 loops on the same inputs "
        "(tests/objectives/test_prototypes.py): within five steps theirs shrink to 0.72 and point 1.9e-2 elsewhere."
    ),
)
def concentration_bank(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    if case.name.startswith("forward"):
        yield from _bank_forward(case, dtype)
    elif case.name.startswith("update"):
        yield from _bank_sequence(case, dtype)
    else:
        yield from _bank_of_two_crops(case, dtype)


def _bank_forward(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    bank = bank_of(case, case["centroids"], dtype)
    bank.concentration.copy_(case["concentration"])
    valid = torch.ones(len(case["labels"]), dtype=torch.bool)
    for key, factor in (("p1", 1.0), ("p037", 0.37), ("m1", -1.0)):
        features = leaf(case, "student_cls", dtype)
        losses, correct = bank(scale_gradient(features[None], factor), case["labels"], valid)
        losses.mean().backward()
        yield Compared(f"lambda_{key}/loss", losses.mean())
        yield Compared(f"lambda_{key}/grad_student_cls", features.grad)
    yield Compared("accuracy", correct.double().mean())


def _bank_sequence(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    bank = bank_of(case, case["initial_centroids"], dtype)
    features = leaf(case, "student_cls", dtype)
    losses, states = [], []
    for student, teacher, labels in zip(features, case["teacher_cls"], case["labels"], strict=True):
        valid = torch.ones(len(labels), dtype=torch.bool)
        loss = bank(student[None], labels, valid)[0].mean()
        loss.backward()
        losses.append(loss.detach())
        bank.update(bank.embed(teacher[None]), labels, valid)
        states.append({name: buffer.clone() for name, buffer in bank.named_buffers()})
    yield Compared("student_loss", torch.stack(losses))
    yield Compared("grad_student_cls", features.grad)
    for name in ("centroids", "concentration", "counts"):
        yield Compared(name, torch.stack([state[name] for state in states]))


def _bank_of_two_crops(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    bank = bank_of(case, case["initial_centroids"], dtype)
    bank.counts.copy_(case["initial_counts"])
    features, labels = leaf(case, "student_cls", dtype), case["labels"]
    valid = torch.ones(len(labels), dtype=torch.bool)
    losses, correct = bank(scale_gradient(features, case.hparams["lambda_value"]), labels, valid)
    losses.mean().backward()
    bank.update(bank.embed(case["teacher_cls"]), labels, valid)
    yield Compared("loss", losses.mean())
    yield Compared("grad_student_cls", features.grad)
    yield Compared("accuracy", correct.double().mean())
    for name, buffer in bank.named_buffers():
        yield Compared(name, buffer)


def load_layers(mlp: KeyedMlp, case: Case, prefix: str) -> None:
    """The stored weights into our layers; theirs count activation and dropout too."""
    for number, layer in enumerate(mlp.layers):
        layer.load_state_dict({part: case[f"{prefix}.{3 * number}.{part}"] for part in ("weight", "bias")})


def layer_gradients(mlp: KeyedMlp, prefix: str) -> Iterator[Compared]:
    for number, layer in enumerate(mlp.layers):
        yield Compared(f"{prefix}.{3 * number}.weight", layer.weight.grad)
        yield Compared(f"{prefix}.{3 * number}.bias", layer.bias.grad)


def outputs_at(head: nn.Module, case: Case, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The outputs of a head for the case's embeddings, and these as a leaf."""
    features = leaf(case, "cls_input", dtype)
    images = features.shape[1]
    outputs = head.to(dtype).eval()(scale_gradient(features, factor), 0, torch.arange(images), images)
    return outputs, features


@component(
    "classifier of a discrete factor",
    ours="objectives.guidance.classification.Classifier",
    source="FINO sec. 4 (ablation)",
    cases={"guide_mlp_heads.safetensors": ["classifier_*"]},
    double=True,
    deviation=(
        "An option, `objective.guidance.discrete_head: classifier` or `binary_classifier`; the default is prototypes. "
        "Theirs logs the accuracy of the first crop, ours of both, and a missing label crashes theirs and counts as "
        "absent in ours. A factor of ours has one value per image: the labels of our `binary_classifier` are one-hot, "
        "and its accuracy is that of the largest logit; theirs are multi-hot, and all of an image's must be right."
    ),
)
def classifier(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    settings, labels = case.hparams, case["labels"]
    for key, factor in (("p05", 0.5), ("m05", -0.5)):
        head = Classifier(
            settings["num_classes"],
            settings["input_dim"],
            hidden=settings["hidden_dim"],
            binary=settings["use_bce"],
        )
        load_layers(head.classifier, case, "params/classifier")
        logits, features = outputs_at(head, case, factor, dtype)
        if settings["use_bce"]:
            losses = binary_cross_entropy(logits, labels)
            correct = ((logits > 0) == labels.bool()).all(dim=-1)
        else:
            losses, correct = head.judge(logits, labels, torch.ones(len(labels), dtype=torch.bool))
        losses.mean().backward()
        yield Compared(f"lambda_{key}/loss", losses.mean())
        yield Compared(f"lambda_{key}/grad_cls", features.grad)
        yield from layer_gradients(head.classifier, "grad_params/classifier")
    yield Compared("logits", logits)
    yield Compared("accuracy", correct[0].double().mean())


@component(
    "regressor",
    ours="objectives.guidance.regression.Regressor",
    source="FINO eq. 3",
    cases={"guide_mlp_heads.safetensors": ["regressor_*"]},
    double=True,
    deviation=(
        "A target outside the given (minimum, maximum) lies outside the range of the output in theirs; ours takes it "
        "to the nearer end when the table is encoded, and counts it. Here the loss is that of their targets, and our "
        "encoded ones are held against theirs, clamped. Ours takes the range from the table; theirs is given it (and "
        "adds 1e-8 to its width), or uses the labels as they are."
    ),
)
def regressor(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    settings = case.hparams
    output = "identity" if settings["output_activation"] == "none" else settings["output_activation"]
    double = dtype == torch.float64
    targets = case["normalized_targets_f64" if double else "normalized_targets"]
    for key, factor in (("p05", 0.5), ("m05", -0.5)):
        head = Regressor(
            settings["input_dim"], settings["n_outputs"], hidden=settings["hidden_dim"], output=output
        )
        load_layers(head, case, "params/regressor")
        outputs, features = outputs_at(head, case, factor, dtype)
        losses = squared_errors(outputs, targets)
        losses.mean().backward()
        yield Compared(f"lambda_{key}/loss", losses.mean())
        yield Compared(f"lambda_{key}/grad_cls", features.grad)
        yield from layer_gradients(head, "grad_params/regressor")
    to_target = target_map("vector", output)
    # Without a range theirs takes labels as they are, which is what a range of the output itself amounts to.
    given = settings["output_min"] is not None
    low = case["params/output_min"].double() if given else torch.full((2,), to_target.offset).double()
    high = case["params/output_max"].double() if given else torch.ones(2).double()
    ends = (to_target(torch.zeros(())).item(), to_target(torch.ones(())).item())
    expected = case["normalized_targets"].clamp(*ends)
    yield Compared("normalized_targets", to_target(_encoded(case["labels"], low, high)), expected)
    yield Compared("outputs", outputs)
    yield Compared("mse", losses[0].detach().double().mean())
    decoded = low + (high - low) * to_target.decode(outputs[0])
    yield Compared("denormalized_outputs_crop0", decoded.to(dtype))


def _encoded(labels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """What our tables make of ``labels`` [B] or [B, n] with a stored range [n]."""
    columns = {f"d{number}": column.tolist() for number, column in enumerate(labels.view(len(labels), -1).T)}
    spec = FactorSpec("age", tuple(columns), "vector", "informative")
    vocabulary = Vocabulary(
        "vector", minimum=low.tolist(), maximum=high.tolist(), is_time=[False] * len(columns)
    )
    return encode(pl.DataFrame(columns), spec, vocabulary).values


@component(
    "balancing of factors",
    ours="objectives.guidance.balance.GradientBalance",
    source="FINO Alg. A.3",
    cases={"grad_norm_equalization.safetensors": ["*"]},
    deviation=(
        "Theirs measures the weighted losses, so that the users' weights cancel and every factor pulls alike (also a "
        "spurious one, whose weight they divide by 10), takes the norms of one step without the paper's moving "
        "average and of each rank alone; ours balances the unweighted losses, keeps the weights, smooths, and measures "
        "the global batch. `objective.guidance.balance_weighted_losses: true` and `balance_momentum: 0` do as theirs, "
        "but for the global batch."
    ),
)
def balancing(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    weights, x = case.hparams["weights"], leaf(case, "x", dtype)
    weighted = []
    for weight, kind, target in zip(weights, case.hparams["kinds"], case["targets"], strict=True):
        own = 0.5 / x.numel() * (x - target).square().sum() if kind == "quadratic" else x.new_tensor(0.25)
        weighted.append(weight * own)
    gradients = [
        torch.autograd.grad(loss, x, retain_graph=True)[0] if loss.requires_grad else torch.zeros_like(x)
        for loss in weighted
    ]
    norms = gradient_norms(gradients)
    names = [str(number) for number in range(len(weights))]
    balance = build_balance(names, authors_recipe().objective.guidance)
    balance.commit(torch.ones(len(names)))  # another step before, of which theirs remembers nothing
    scales = balance.scales(norms)
    total = (scales * torch.stack(weighted)).sum()
    total.backward()
    yield Compared("weighted_losses", torch.stack(weighted))
    yield Compared("weighted_grads", torch.stack(gradients))
    yield Compared("norms", norms)
    yield Compared("scales", scales)
    if "target" in case:
        yield Compared("target", balance.target(norms))
    yield Compared("total", total)
    yield Compared("grad_total_x", x.grad)


GUIDES = (
    GuidedFactor("guide", "informative", "discrete", 4, weight=0.03),
    GuidedFactor("guide", "spurious", "discrete", 4, weight=0.03),
    GuidedFactor("guide", "informative", "discrete", 4, weight=0.1),
    GuidedFactor("guide", "informative", "continuous", 1, weight=0.05, output="sigmoid"),
)


@component(
    "guidance as a whole",
    ours="objectives.guidance.guidance.Guidance",
    source="FINO eq. 4",
    cases={"total_loss.safetensors": ["guides_*"]},
    deviation=(
        "With the options of `preset: authors`: `bank: concentration`, `ramp_from: start` and `reversed_weight: 0.1` "
        "(theirs divides the weight of a spurious factor by 10; in the paper and in ours it is the user's)."
    ),
)
def guides(case: Case, dtype: torch.dtype) -> Iterator[Compared]:
    values, losses, gradients = [], [], []
    for number, factor in enumerate(GUIDES):
        guidance = _guidance_at_start(case, number, factor)
        views = _views_of(case, _batch_of(case, number), dtype)
        guidance.begin(views.teacher_cls, views.factors)
        value = guidance(views)
        value.backward()
        guidance.commit(views.teacher_cls, views.factors)
        values.append(value)
        losses.append(guidance.metrics()["guidance/guide/loss"])
        gradients.append(views.global_cls.grad)
        if number < 2:
            yield Compared(f"centroids_{number}_after", guidance.head("guide").centroids)
    yield Compared("lambda", guidance.metrics()["guidance/ramp"].double())
    yield Compared("losses", torch.stack(losses))
    yield Compared("weighted", torch.stack(values))
    yield Compared("grad_cls_per_guide", torch.stack(gradients))


def _guidance_at_start(case: Case, number: int, factor: GuidedFactor) -> Guidance:
    settings = case.hparams
    chosen = {
        "temperature": settings["base_temperature"],
        "momentum": settings["centroid_momentum"],
        "regressor_hidden": settings["hidden_dim"],
        "discrete_head": "classifier" if number == 2 else "prototypes",
    }
    guidance = Guidance(
        {"guide": factor},
        settings["D"],
        authors_recipe(objective={"guidance": chosen}).objective.guidance,
        seed=0,
        unfreeze_step=100,
        total_steps=settings["total_iterations"],
    ).eval()
    head = guidance.head("guide")
    if isinstance(head, ConcentrationBank):
        head.centroids.copy_(case[f"initial_centroids_{number}"])
    elif isinstance(head, Classifier):
        load_layers(head.classifier, case, "classifier_params/classifier")
    else:
        load_layers(head, case, "regressor_params/regressor")
    return guidance


def _views_of(case: Case, batch: FactorBatch, dtype: torch.dtype) -> Views:
    """What guidance sees; it reads nothing of the other terms'."""
    images, nothing = case.hparams["B"], torch.zeros(0)
    others = ("global_patches", "global_logits", "bottleneck", "local_logits", "masked_logits")
    targets = ("masks", "teacher_probs", "teacher_masked_probs")
    return Views(
        step=case.hparams["iteration"],
        global_cls=leaf(case, "student_cls", dtype),
        teacher_cls=case["teacher_cls"],
        slots=torch.arange(images),
        batch_size=images,
        factors={"guide": batch},
        valid_counts={"guide": batch.valid.sum()},
        **dict.fromkeys((*others, *targets), nothing),
    )


def _batch_of(case: Case, number: int) -> FactorBatch:
    labels = case[f"labels_{number}"]
    valid = torch.ones(len(labels), dtype=torch.bool)
    if number < 3:
        return FactorBatch(labels, valid)
    low, high = case["regressor_params/output_min"], case["regressor_params/output_max"]
    return FactorBatch(_encoded(labels, low, high), valid)
