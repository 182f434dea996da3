"""Results of ``openfino compare`` with invented numbers of many digits, so that a rounded or swapped one shows."""

import base64
import io

import numpy as np
from PIL import Image

EVIL = "<script>alert('x & \"y\"')</script>"
ARMS = {
    "frozen": ("frozen backbone", "reference", 0.422),
    "ssl": ("SSL (KoLeo)", "ssl", 0.531),
    "ssl_sigreg": ("SSL (SIGReg), no metadata", "ssl", 0.528),
    "fino": ("FINO", "guided", 0.604),
    "fino_koleo": ("FINO with KoLeo", "guided", 0.594),
    "fino_scratch": ("FINO, no pretraining", "guided", 0.514),
    "fino_mlp": ("FINO, MLP classifier", "guided", 0.512),
    "finetune": ("supervised fine-tuning", "supervised", 0.526),
    "scratch": ("supervised from scratch", "supervised", 0.401),
    "dann": ("DANN", "supervised", 0.497),
    "coral": ("CORAL", "supervised", 0.431),
    "frozen_erased": ("frozen, plate erased", "post hoc", 0.437),
    "fino_erased": ("FINO, plate erased", "post hoc", 0.606),
}
SPLITS = {"test_id": 0.11, "test_ood": 0.0}
METRICS = {
    "macro_f1": 0.0,
    "accuracy": 0.06,
    "balanced_accuracy": 0.015,
    "worst_group_accuracy": -0.15,
    "macro_auroc": 0.25,
    "calibration_error": None,
}
SEEDS = [0, 1, 2]
LABELS = ("nucleoli", "vesicles", "plasma_membrane", "mitochondria")


def interval(mean, spread, generator, seeds=SEEDS):
    values = [float(mean + spread * generator.normal()) for _ in seeds]
    middle = sum(values) / len(values)
    return {
        "mean": middle,
        "low": middle - 1.9 * spread - 0.0001234,
        "high": middle + 2.1 * spread + 0.0004321,
        "seeds": values,
    }


def _learned(after, generator):
    """Before and after by two probes, one of them beyond noise."""
    found = {}
    for probe, beyond_noise in (("attentive", True), ("knn20", False)):
        before = float(generator.uniform(0.05, 0.2))
        difference = after - before
        found[probe] = {
            "before": before,
            "after": after,
            "difference": difference,
            "low": difference - 0.1,
            "high": difference + 0.1,
            "beyond_noise": beyond_noise,
        }
    return found


def make_result(arms=ARMS, metrics=METRICS, splits=SPLITS, metric="macro_f1", **changes):
    """A whole result; ``changes`` replace parts, and those that are None go."""
    generator = np.random.default_rng(7)
    scored = {
        arm: {split: _scores(arm, level + shift, metrics, generator) for split, shift in splits.items()}
        for arm, (_, _, level) in arms.items()
    }
    result = {
        "format": 1,
        "recipe": "cells.yaml",
        "label": "localization",
        "task": "single",
        "metric": metric,
        "headline_probe": "attentive",
        "splits": {"val": {"rows": 212}, **{split: {"rows": 431 + 17 * n} for n, split in enumerate(splits)}},
        "seeds": SEEDS,
        "arms": scored,
        "titles": {arm: title for arm, (title, _, _) in ARMS.items()} | {"groupdro": "Group-DRO"},
        "kinds": {arm: kind for arm, (_, kind, _) in arms.items()} | {"groupdro": "supervised"},
        "not_run": {"groupdro": f"the recipe has no domain column, see {EVIL}"},
        "probes": _probes(scored, metric, generator),
        "differences": _differences(scored),
        "learned": {
            arm: {split: _learned(scored[arm][split][metric]["mean"], generator) for split in splits}
            for arm in arms
        },
        "fractions": _fractions(arms, splits, metric, generator),
        "per_group_metric": metric,
        "group": "plate",
        "cluster": "plate",
        "left_out_tests": 3,
        "unseen_labels": {"test_ood": 11},
        "per_group": _groups(arms, generator),
        "leakage": {arm: _leakage(n) for n, arm in enumerate(arms)},
        "roles": {"antibody": "informative", "plate": "spurious", "dose": "informative"},
        "chosen": {
            arm: [{"seed": s, "lr": 1e-4 * 3**s, "weight_decay": 0.05} for s in SEEDS] for arm in arms
        },
        "cost": _cost(arms),
        "curves": _curves(arms, generator),
        "spurious": "plate",
        "umap": {arm: _umap(arm, generator) for arm in ("frozen", "ssl", "fino") if arm in arms},
        "gallery": _gallery(),
        "maps": _maps(),
        "answer": {
            "headline": "Yes, guidance helped: on test_ood, macro-F1 of localization is 0.604 with FINO.",
            "details": ["FINO is above most.", f"A name is text: {EVIL}"],
        },
    }
    result |= changes
    return {key: value for key, value in result.items() if value is not None}


def regression_result():
    """A regression without accuracy, spurious factor, UMAP, one arm and most optional parts; one seed."""
    arms = {arm: (title, kind, level - 0.45) for arm, (title, kind, level) in ARMS.items() if arm != "ssl"}
    return make_result(
        arms,
        {"r2": 0.0},
        {"test": 0.0},
        "r2",
        label="dose",
        task="regression",
        not_run={"ssl": "stopped by the user", "dann": "no domain"},
        per_group=None,
        fractions={},
        spurious=None,
        umap={},
        gallery=None,
        maps=None,
        curves={},
        leakage={},
        roles=None,
        answer=None,
        not_drawn={"umap": "umap-learn is not installed: pip install 'openfino[report]'"},
    )


def make_pictures():
    """The data addresses behind the gallery and the maps of :func:`make_result`."""
    generator = np.random.default_rng(1)
    names = [f"row{row}" for row in range(40)]
    names += [f"pca/{arm}/{row}" for arm in ("frozen", "ssl", "fino") for row in range(3)]
    return {name: picture(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for name in names}


def picture(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _scores(arm, level, metrics, generator):
    found = {}
    for metric, shift in metrics.items():
        mean = 0.31 - 0.4 * level if shift is None else level + shift
        found[metric] = interval(mean, 0.012, generator)
    if arm == "coral" and "macro_auroc" in found:
        found["macro_auroc"] = {"mean": None, "low": None, "high": None, "seeds": [None] * 3}
    return found


def _probes(scored, metric, generator):
    probes = {}
    for arm, splits in scored.items():
        if arm in ("finetune", "scratch", "dann", "coral"):
            probes[arm] = {"attentive": splits}
            continue
        others = {
            name: {
                split: {metric: interval(scores[metric]["mean"] - shift, 0.01, generator)}
                for split, scores in splits.items()
            }
            for name, shift in {"linear": 0.03, "knn10": 0.07, "knn20": 0.08}.items()
        }
        probes[arm] = {"attentive": splits, **others}
    return probes


def _differences(scored):
    found = []
    pairs = [("fino", arm) for arm in scored if arm != "fino"] + [(arm, "frozen") for arm in scored]
    for arm, than in dict.fromkeys(pair for pair in pairs if pair[0] != pair[1] and set(pair) <= set(scored)):
        for split, metrics in scored[arm].items():
            for metric, own in metrics.items():
                other = scored[than][split][metric]["mean"]
                if own["mean"] is None or other is None:
                    continue
                gap = own["mean"] - other
                low, high = gap - 0.0271, gap + 0.0263
                found.append(
                    {
                        "arm": arm,
                        "than": than,
                        "split": split,
                        "metric": metric,
                        "difference": gap,
                        "low": low,
                        "high": high,
                        "beyond_noise": low > 0 or high < 0,
                    }
                )
    return found


def _fractions(arms, splits, metric, generator):
    loss = {"frozen": 0.05, "ssl": 0.06, "fino": 0.045, "finetune": 0.11}
    return {
        arm: {
            str(share): {
                split: {metric: interval(arms[arm][2] + shift + lost * np.log10(share), 0.009, generator)}
                for split, shift in splits.items()
            }
            for share in (0.01, 0.02, 0.05, 0.1, 0.5, 1)
        }
        for arm, lost in loss.items()
        if arm in arms
    }


def _groups(arms, generator):
    groups = [f"PL-{number:02d}" for number in range(5)] + [EVIL]
    offsets = generator.normal(size=len(groups)) * 0.08
    found = {}
    for arm, (_, _, level) in arms.items():
        found[arm] = {"test_ood": {}}
        for group, offset in zip(groups, offsets, strict=True):
            reading = interval(level + offset, 0.02, generator)
            found[arm]["test_ood"][group] = {key: reading[key] for key in ("mean", "low", "high")} | {
                "rows": 71
            }
    return found


def _leakage(number):
    discrete = {"rows": 211, "knn_r2": None}
    return {
        "antibody": {
            **discrete,
            "knn_accuracy": 0.1234567 + 0.03 * number,
            "linear_accuracy": 0.2345678 + 0.03 * number,
            "majority": 0.0456789,
            "chance": 1 / 6,
        },
        "plate": {
            **discrete,
            "knn_accuracy": 0.4567891 - 0.02 * number,
            "linear_accuracy": 0.5678912 - 0.02 * number,
            "majority": 0.0789123,
            "chance": 0.25,
        },
        "dose": {
            "rows": 211,
            "knn_accuracy": None,
            "knn_r2": 0.3141592 + 0.01 * number,
            "linear_r2": -0.0271828,
        },
    }


def _cost(arms):
    return {
        arm: {
            "images": 0 if arm.startswith("frozen") else 52_800 * (3 if kind == "supervised" else 1),
            "probe_seconds": 4.4321 + number,
            "seconds": 12.3456 if arm.startswith("frozen") else 321.098 + 7.5 * number,
            "trials": 3 if kind == "supervised" else 1,
            "uses_labels": kind == "supervised",
            "uses_metadata": kind == "guided" or arm in ("dann", "coral", "frozen_erased", "fino_erased"),
        }
        for number, (arm, (_, kind, _)) in enumerate(arms.items())
    }


def _curves(arms, generator):
    steps = range(0, 1650, 10)
    return {
        arm: {
            str(seed): [
                {"step": step, "loss": float(4.1 + 3 * np.exp(-step / 400) + 0.05 * generator.normal())}
                for step in steps
            ]
            for seed in SEEDS
        }
        for arm, (_, kind, _) in arms.items()
        if kind in ("ssl", "guided", "supervised")
    }


def _umap(arm, generator):
    labels = [LABELS[n % 4] for n in range(300)]
    plates = [f"PL-{n % 13:02d}" if n % 29 else None for n in range(300)]
    by_label, by_plate = (1, 3) if arm == "frozen" else (4, 1)
    centres = np.array([[by_label * (n % 4), by_plate * (n % 13) / 3] for n in range(300)])
    points = centres + generator.normal(size=(300, 2)) * 0.4
    return {"points": points.round(4).tolist(), "label": labels, "spurious": plates}


def _gallery():
    def tile(row, query=None, right=None):
        found = {"row": row, "image": f"row{row}", "label": LABELS[row % 4], "spurious": f"PL-{row % 7}"}
        return found if query is None else found | {"right": right, "label": LABELS[(query + 1 - right) % 4]}

    return {
        "bank": 600,
        "queries": [
            {
                **tile(query),
                "found": {
                    arm: [tile(10 + (query * 5 + n) % 30, query, n < hits) for n in range(5)]
                    for arm, hits in {"frozen": 2, "ssl": 3, "fino": 4}.items()
                },
            }
            for query in range(8)
        ],
        "right": {"frozen": 16, "ssl": 24, "fino": 32},
        "shown": {"frozen": 40, "ssl": 40, "fino": 40},
    }


def _maps():
    arms = ("frozen", "ssl", "fino")
    return {
        "recipe": "PCA of the patch tokens.",
        "explained": {arm: [0.41234, 0.21, 0.1] for arm in arms},
        "images": [
            {
                "row": row,
                "image": f"row{row}",
                "label": LABELS[row % 4],
                "pca": {arm: f"pca/{arm}/{row}" for arm in arms},
            }
            for row in range(3)
        ],
    }
