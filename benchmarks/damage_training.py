"""You know what will break: learn trust from damage, train on damage, or both?

    python benchmarks/damage_training.py --output-dir runs/damage --seeds 30 31 32

Trains the encoders of the main job with DRF and with concatenation on generated posts: intact,
with an input of half of the posts damaged anew in each epoch, and the same without three kinds of
damage. Measures all on damaged test posts. A seed makes its own posts, splits and models, and its
scores are kept in `--output-dir`. Writes `results/damage_training.json`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import commit, write_record
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from main_job.damaged_posts import DamagedPosts
from main_job.reading import (
    EncodedSamples,
    chosen_ids,
    damage_kinds,
    generate_posts,
    open_data,
    prepare_split,
)
from main_job.settings import VAL_SEED, Settings, make_encoders, make_model, recipe_of
from main_job.training import clean_batches, train, validation_score

from robustfusion import calibrate
from robustfusion.calibration import refresh
from robustfusion.disruption import damage
from robustfusion.evaluation import damage_report

SHARE = 0.5  # share of the training posts to damage
LEFT_OUT = ("occlusion", "noise", "truncate")
ONE_COLOR = ("black", "white", "gray", "random_color")
SEVERITIES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
Kinds = Mapping[str, list[str]]


class Lab:
    """The posts of a seed, and models that are trained on them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.settings = Settings(
            data=None,
            image_column="image",
            text_column="text",
            label_column="label",
            image_root=None,
            image_encoder="small",
            text_encoder="small",
            frozen=[],
            recipe="default",
            epochs=None,
            batch_size=None,
            limit=None,
            seed=seed,
            device="cpu",
            threads=1,
        )
        self.folder = folder
        self.encoders = make_encoders(self.settings)
        dataset, splits = open_data(
            generate_posts(self.settings, folder), self.settings, self.encoders
        )
        self.num_classes = len(dataset.class_names)
        parts = (splits.train, splits.val, splits.open_test("damage in training"))
        self.raw = [dataset.select(chosen_ids(dataset, part, self.settings)) for part in parts]
        prepare = partial(prepare_split, dataset, encoders=self.encoders, settings=self.settings)
        self.train, self.val = prepare(parts[0]), prepare(parts[1], seeds=(VAL_SEED,))

    def samples(self, part: int) -> EncodedSamples:
        """Return the raw training (0), validation (1) or test posts (2)."""
        return EncodedSamples(self.raw[part], self.encoders, self.settings)

    def trained(self, head: str, kinds: Kinds | None, name: str) -> nn.Module:
        """Train on intact posts, or on posts of which a share is damaged by these kinds."""
        seed = self.settings.seed
        model = make_model(head, make_encoders(self.settings), self.num_classes, self.settings)
        posts: Any = self.train
        if kinds is not None:
            posts = DamagedPosts(posts, self.raw[0], self.encoders, kinds, SHARE, seed)
        train(
            model,
            posts,
            partial(validation_score, posts=self.val, seed=VAL_SEED, device="cpu"),
            recipe_of(self.settings),
            self.folder / "training" / f"{seed}-{name}",
            seed=seed,
            title=name,
        )
        if kinds is not None and head == "drf":
            # The queue shall hold intact posts, so that damage is unusual.
            refresh(model, clean_batches(self.train, "cpu"))
        print(f"seed {seed}: {name} trained", flush=True)
        return model.eval()

    def calibrated(self, model: nn.Module, kinds: Kinds | None) -> nn.Module:
        """Return a calibrated copy, with trust learned from these kinds of damage."""
        model = copy.deepcopy(model)
        copies = None if kinds is None else damage(self.samples(1), kinds)
        calibrate(model, clean_batches(self.val, "cpu"), copies)
        return model


def measure(seed: int, folder: Path) -> list[dict[str, str]]:
    """Return the scores of all ways of one seed, a row a cell."""
    lab, kinds = Lab(seed, folder), damage_kinds("all")
    known = {m: [k for k in names if k not in LEFT_OUT] for m, names in kinds.items()}
    intact = lab.trained("drf", None, "drf")
    damaged = lab.trained("drf", kinds, "drf-damaged")
    fewer = lab.trained("drf", known, "drf-left-out")
    models = {
        "intact": lab.calibrated(intact, None),
        "intact, trust": lab.calibrated(intact, kinds),
        "damaged": lab.calibrated(damaged, None),
        "damaged, trust": lab.calibrated(damaged, kinds),
        "concatenation": lab.trained("concatenation", None, "concatenation"),
        "concatenation, damaged": lab.trained("concatenation", kinds, "concatenation-damaged"),
        "left out: intact, trust": lab.calibrated(intact, known),
        "left out: damaged": lab.calibrated(fewer, None),
        "left out: damaged, trust": lab.calibrated(fewer, known),
        "left out: concatenation, damaged": lab.trained(
            "concatenation", known, "concatenation-left-out"
        ),
    }
    report = damage_report(models, lab.samples(2), kinds, severities=SEVERITIES)
    return list(csv.DictReader(io.StringIO(report.to_csv())))


def scores_of_seed(seed: int, folder: Path) -> list[dict[str, str]]:
    """Return the scores of a seed, measured where no file of this commit has them."""
    path = folder / f"seed-{seed}.json"
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["commit"] == commit():
            return list(saved["rows"])
    rows = measure(seed, folder)
    path.write_text(json.dumps({"commit": commit(), "rows": rows}), encoding="utf-8")
    return rows


def percent(rows: list[dict[str, str]], key: str) -> float:
    """Return the mean of a score in percent."""
    return 100 * float(np.mean([float(row[key] or "nan") for row in rows]))


def scores(rows: list[dict[str, str]]) -> dict[str, float]:
    """Return the scores of one model with one seed, in percent."""
    cells = [row for row in rows if row["kind"] not in ("intact", "missing")]
    intact = [row for row in rows if row["kind"] == "intact"]
    left_out = [row for row in cells if row["kind"] in LEFT_OUT]
    plain = [row for row in cells if row["kind"] in ONE_COLOR and float(row["severity"]) == 1]
    groups = {
        "intact": intact[:1],
        "damaged": cells,
        "image damaged": [row for row in cells if row["modality"] == "image"],
        "text damaged": [row for row in cells if row["modality"] == "text"],
        "kinds left out": left_out,
        "one color": plain,
    }
    result = {f"{name}, accuracy": percent(part, "accuracy") for name, part in groups.items()}
    result |= {f"{name}, macro-F1": percent(part, "macro_f1") for name, part in groups.items()}
    for row in rows:
        if row["kind"] == "missing":
            result[f"{row['modality']} missing, accuracy"] = percent([row], "accuracy")
    if intact[0]["alarms"]:
        result |= {f"false alarms, {row['modality']}": percent([row], "alarms") for row in intact}
        result |= {f"alarms, {row['kind']}": percent([row], "alarms") for row in plain}
    return result


def cells_below(rows: list[dict[str, str]]) -> dict[str, int]:
    """Count the damaged cells of "damaged, trust" below the two bounds minus two points."""
    where = {(r["model"], r["modality"], r["kind"], r["severity"]): r for r in rows}
    ours = [r for r in rows if r["model"] == "damaged, trust"]
    missing = {r["modality"]: float(r["accuracy"]) for r in ours if r["kind"] == "missing"}
    cells = [r for r in ours if r["kind"] not in ("intact", "missing")]
    gaps = []
    for row in cells:
        other = where["concatenation", row["modality"], row["kind"], row["severity"]]
        bound = max(float(other["accuracy"]), missing[row["modality"]]) - 0.02
        gaps.append(float(row["accuracy"]) - bound)
    return {"below": sum(gap < -1e-9 for gap in gaps), "cells": len(gaps)}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True, help="where scores are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[30, 31, 32])
    parser.add_argument("--only", action="store_true", help="measure the seeds, write no record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    seeds = [scores_of_seed(seed, options.output_dir) for seed in options.seeds]
    if options.only:
        return
    models: dict[str, dict[str, list[float]]] = {}
    for name in dict.fromkeys(row["model"] for row in seeds[0]):
        by_seed = [scores([row for row in rows if row["model"] == name]) for rows in seeds]
        models[name] = {key: [round(s[key], 2) for s in by_seed] for key in by_seed[0]}
    results = {
        "share": SHARE,
        "severities": list(SEVERITIES),
        "left_out": list(LEFT_OUT),
        "below_bound": [cells_below(rows) for rows in seeds],
        "models": models,
    }
    for name, table in models.items():
        print(name, {key: round(float(np.mean(v)), 1) for key, v in table.items()})
    write_record(
        "damage_training", results, data="generated posts, others a seed", seeds=options.seeds
    )


if __name__ == "__main__":
    main()
