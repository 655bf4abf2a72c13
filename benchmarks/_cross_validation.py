"""Folds, conditions, cached trainings, and paired differences of cross-validated predictions."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cache import digest
from _data import Split, conflicting_views
from _pools import Pool
from _train import Training, train
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion import Standardize, calibrate
from robustfusion._files import replace_file
from robustfusion.disruption import Disruption, disrupt_features

Floats = NDArray[np.float64]
Head = Callable[[Split, int], nn.Module]  # takes the training samples and the seed


def fold_of(pool: Pool, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each sample: stratified, groups whole."""
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.empty(len(pool.split), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = splitter.split(fold[:, None], pool.split.labels.numpy(), pool.groups)
    for number, (_, held_out) in enumerate(parts):
        fold[held_out] = number
    return fold


def standardized(split: Split, reference: Split) -> Split:
    """Features in units of the reference's moments."""
    masks = reference.masks()
    scales = {
        m: Standardize(x.shape[1]).fit(x, masks[m]).eval() for m, x in reference.features.items()
    }
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
    """Intact; each modality missing, from three on each as the only one; each corrupted."""
    names = tuple(split.features)
    missing = [f"{m} D" for m in names]
    if len(names) > 2:
        missing += [f"only {m}" for m in names]
    return ["clean", *missing, *([f"{m} C" for m in split.corrupted] if corrupted else [])]


def protocol_of(split: Split) -> dict[str, Disruption | None]:
    """Conditions of several modalities at once, uneven rates and parts; None is the conflict."""
    names, count = tuple(split.features), len(split.features)
    each = partial(Disruption, names, strategy="independent")
    uneven = tuple(float(rate) for rate in np.linspace(0.1, 0.9, count))
    conditions: dict[str, Disruption | None] = {
        f"each missing, {rate:g}": each(setting="D", rate=rate) for rate in (0.2, 0.5, 0.8)
    }
    conditions["missing, 0.1 to 0.9"] = each(setting="D", rate=uneven)
    conditions["missing, 0.9 to 0.1"] = each(setting="D", rate=uneven[::-1])
    if len(split.corrupted) == count:
        conditions["all corrupted"] = each(setting="C", rate=1.0)
        conditions["each corrupted or missing, 0.5"] = each(setting="C+D", rate=0.5)
    conditions["a part of one missing"] = Disruption(names, setting="P", strategy="random")
    conditions["a part of each missing"] = each(setting="P", rate=1.0)
    if count > 2 and not split.available:
        conditions["conflict"] = None
    return conditions


def inputs_of(split: Split, cell: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Features and masks that a head gets in a cell."""
    features, available = dict(split.features), split.masks()
    none = torch.zeros(len(split), dtype=torch.bool)
    if cell.endswith(" D"):
        available[cell[:-2]] = none
    elif cell.startswith("only "):
        available = {m: mask if m == cell[5:] else none for m, mask in available.items()}
    elif cell.endswith(" C"):
        features[cell[:-2]] = split.corrupted[cell[:-2]][0]
    elif cell == "conflict":
        features = conflicting_views(split, 0)[0]
    elif cell != "clean":
        condition = protocol_of(split)[cell]
        assert condition is not None
        disrupted = disrupt_features(
            condition, split.ids, features, split.corrupted, available=available
        )
        return disrupted.inputs, disrupted.available
    return features, available


@torch.no_grad()
def predict(head: nn.Module, split: Split, cells: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Log-probabilities (N, C) by cell.

    Raises:
        ValueError: the head predicts NaN.
    """
    log_probs: dict[str, NDArray[Any]] = {}
    for cell in cells:
        values = head(*inputs_of(split, cell)).logits.log_softmax(-1)
        if values.isnan().any():
            rows = int(values.isnan().any(-1).sum())
            raise ValueError(
                f"logits of {type(head).__name__} must be numbers, got NaN in {rows} of "
                f"{len(values)} samples in the condition {cell!r}"
            )
        log_probs[cell] = values.numpy()
    return log_probs


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
    """Cross-validated log-probabilities, (seeds, N, C) by cell.

    A job is one head under one fold and one seed, which sets folds, initial weights and order.
    With ``held_out`` that share of the training samples is not trained on, and the head is
    calibrated on it. A finished job is read from the cache if nothing has changed that could
    change its predictions; the number of such jobs is printed.
    """
    shape = (len(seeds), len(pool.split), pool.split.num_classes)
    log_probs = {cell: np.full(shape, np.nan) for cell in cells}
    training, cached = training or pool.training, 0
    for index, seed in enumerate(seeds):
        for fold in range(folds):
            inside, outside, rows = fold_data(pool, folds, seed, fold)
            shuffled = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))
            rest = inside.rows(shuffled[: int(held_out * len(inside))])
            inside = inside.rows(shuffled[len(rest) :]) if held_out else inside
            torch.manual_seed(seed)
            where = fold_of(pool, folds, seed).tolist()
            settings = (training, seed, fold, where, pool.rows, held_out, tuple(cells))
            key = digest(make(inside, seed), (pool.split,), inside, settings)
            path = cache_dir / f"{folds}-{seed}-{fold}-{key}.npz"
            cached += path.exists()
            if not path.exists():
                head = train(partial(make, inside, seed), inside, training, seed)
                if held_out:
                    calibrate(head, [{"inputs": rest.features, "label": rest.labels}])
                _save(path, predict(head, outside, cells) | {"rows": rows.numpy()})
            with np.load(path) as file:
                for cell in cells:
                    log_probs[cell][index, file["rows"]] = file[cell]
    if cached:
        print(f"  {cache_dir}: {cached} of {len(seeds) * folds} jobs from cache", flush=True)
    return log_probs


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    replace_file(path, buffer.getvalue())


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
    log_probs: Mapping[str, Floats], labels: NDArray[np.int64]
) -> dict[str, dict[str, Floats]]:
    """Measures by cell, means over missing and over corrupted cells, and the mean of all three."""
    scores = {cell: measures(values, labels) for cell, values in log_probs.items()}
    groups = {
        "missing": [c for c in log_probs if c.endswith(" D") or c.startswith("only ")],
        "corrupted": [c for c in log_probs if c.endswith(" C")],
        "mean": ["clean", "missing", "corrupted"],
    }
    for name, cells in groups.items():
        present = [scores[c] for c in cells if c in scores]
        if present:
            keys = scores["clean"]
            scores[name] = {key: np.mean([m[key] for m in present], axis=0) for key in keys}
    return scores


def summarize(
    log_probs: Mapping[str, Floats], baseline: Mapping[str, Floats], pool: Pool
) -> dict[str, dict[str, float]]:
    """Accuracy, macro-F1 and NLL by cell and by mean of cells, compared with the baseline's."""
    labels = pool.split.labels.numpy()
    ours, theirs = by_cell(log_probs, labels), by_cell({c: baseline[c] for c in log_probs}, labels)
    summary = {}
    for cell, values in ours.items():
        gap, error = paired(values["right"], theirs[cell]["right"], pool.groups)
        nll_gap, nll_error = paired(values["nll"], theirs[cell]["nll"], pool.groups)
        summary[cell] = {
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
    return summary


def recoverability(split: Split, rows: int = 800) -> dict[str, float]:
    """Held-out R² of ridge regression: each modality from all others together."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import cross_val_predict

    part = split.rows(
        torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:rows]
    )
    scaled = standardized(part, part).features
    r2 = {}
    for target, x in scaled.items():
        others = torch.cat([scaled[m] for m in scaled if m != target], 1).numpy()
        guess = cross_val_predict(RidgeCV(10.0 ** np.arange(0, 6)), others, x.numpy(), cv=3)
        r2[target] = float(r2_score(x.numpy(), guess, multioutput="variance_weighted"))
    return r2
