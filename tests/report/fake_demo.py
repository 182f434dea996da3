"""A demo folder without training: random models, drawn noise and invented metrics."""

import json

import numpy as np
import polars as pl

from openfino.models.store import save_backbone
from openfino.recipe import build_recipe, dump_recipe
from tiny_models import tiny_model

LABELS = ("nucleoli", "vesicles", "plasma_membrane")
EVIL = "<script>alert('AB & \"co\"')</script>"
STEPS = 40
FACTORS = {
    "ssl": {"antibody": "watched", "plate": "watched"},
    "fino": {"antibody": {"role": "informative", "weight": 0.3}, "plate": "watched"},
}


def make_table(folder, images=60):
    """Six antibodies, two of each pattern; four train plates and two others; 4-channel images."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(images):
        split = ("train", "train", "train", "test_id", "test_ood")[number % 5]
        antibody = number % 6
        name = EVIL if antibody == 0 else f"AB-{antibody}"
        plate = f"new & {number % 2}" if split == "test_ood" else f"PL-{number % 4}"
        rows.append(
            {
                "path": f"images/{number:03d}.npy",
                "antibody": None if number % 10 == 7 else name,
                "localization": LABELS[antibody % 3],
                "cell_line": "U-2 OS" if plate in ("PL-0", "PL-1") else "MCF-7",
                "plate": plate,
                "split": split,
            }
        )
        image = generator.integers(0, 200, (4, 24, 24), dtype=np.uint8)
        np.save(folder / rows[-1]["path"], image)
    pl.DataFrame(rows).write_csv(folder / "manifest.csv")
    return folder / "manifest.csv"


def make_results(export, fino=0.571234567):
    """Scores with many digits, so that a rounded or swapped one shows."""
    scores = {"frozen": 0.2112345, "ssl": 0.3323456, "fino": fino}
    arms = {}
    for number, (arm, base) in enumerate(scores.items()):
        arms[arm] = {
            split: {"knn": {"macro_f1": base + shift}, "linear": {"macro_f1": base + shift + 0.0611111}}
            for split, shift in (("test_id", 0.1017), ("test_ood", 0.0))
        }
        arms[arm]["leakage"] = {
            "antibody": {"knn_accuracy": 0.1234 + 0.1 * number, "majority": 0.0456, "chance": 1 / 6},
            "plate": {"knn_accuracy": 0.4567 - 0.01 * number, "majority": 0.0789, "chance": 0.25},
        }
    return {"arms": arms, "export": str(export), "seconds": 401.2}


def make_demo(folder, with_records=True):
    """The folder that ``openfino demo`` leaves, as far as the page needs it; returns manifest and results."""
    manifest = make_table(folder / "data")
    results = make_results(folder / "export <&>")
    models = {"start": "start", "ssl": "ssl/model", "fino": "fino/model"}
    for seed, place in enumerate(models.values()):
        (folder / place).parent.mkdir(exist_ok=True)
        model = tiny_model(channels=4, normalization="zscore", size=(16, 16), seed=seed)
        save_backbone(folder / place, model.backbone, model.preprocessing, {})
    for arm, factors in FACTORS.items():
        (folder / arm / "recipe.yaml").write_text(dump_recipe(make_recipe(factors, manifest, folder / arm)))
        if with_records:
            write_lines(folder / arm / "metrics.jsonl", make_metrics(arm))
            write_lines(folder / arm / "probes.jsonl", make_probes(arm, results))
    return manifest, results


def make_recipe(factors, manifest="manifest.csv", out="run"):
    channels = ["nucleus", "protein", "microtubules", "er"]
    return build_recipe(
        {
            "preset": "small",
            "manifest": str(manifest),
            "out": str(out),
            "model": {"config": {"hidden_size": 32}},
            "images": {"channels": channels, "normalization": "zscore"},
            "views": {"global_size": 48, "local_size": 24},
            "factors": factors,
            "train": {"steps": STEPS, "batch_size": 8},
            "probe": {"label": "localization", "split": "split", "tests": ["test_id", "test_ood"]},
        }
    )


def make_metrics(arm):
    """One record every ten steps; the probes' own records lie between them, as in a run."""
    records = []
    for step in range(0, STEPS, 10):
        record = {"step": step, "watch/feature_rank": 20.0 + step / 10}
        record |= {f"loss/{term}": 5.0 - step / 20 for term in ("total", "dino", "ibot")}
        if arm == "fino":
            record |= {
                "loss/sigreg": None if step == 10 else 0.4,
                "guidance/antibody/accuracy": 0.1 + step / 100,
            }
        records += [record, {"step": step + 5, "probe/test_ood/knn/macro_f1": 0.9}]
    return records


def make_probes(arm, results):
    """From the frozen scores at step 0 to those of ``arm``."""
    ends = (results["arms"]["frozen"], results["arms"][arm])
    records = []
    for step, share in ((0, 0.0), (20, 0.5), (STEPS, 1.0)):
        splits, leakage = {}, {}
        for split in ("test_id", "test_ood"):
            scores = {
                method: {"macro_f1": mix([end[split][method]["macro_f1"] for end in ends], share)}
                for method in ("knn", "linear")
            }
            splits[split] = {"rows": 12, "scores": scores}
        for name in ("antibody", "plate"):
            reading = {"majority": ends[0]["leakage"][name]["majority"], "chance": 0.1}
            reading["knn_accuracy"] = mix([end["leakage"][name]["knn_accuracy"] for end in ends], share)
            leakage[name] = reading
        records.append({"step": step, "label": {"splits": splits}, "leakage": leakage})
    return records


def mix(ends, share):
    return ends[0] if share == 0 else ends[1] if share == 1 else ends[0] + share * (ends[1] - ends[0])


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
