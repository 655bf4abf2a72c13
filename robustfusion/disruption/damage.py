"""Damaged copies of samples: many kinds of damage, at severities over their whole range."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustfusion._optional import is_pillow
from robustfusion._text import is_missing
from robustfusion._tree import map_tensors
from robustfusion._validation import check_keys, check_positive
from robustfusion.disruption._draws import SampleId, Severity, check_severity, sample_generator
from robustfusion.disruption.cached_features import CachedFeatures
from robustfusion.disruption.data import is_there
from robustfusion.disruption.features import FeatureCorruption, FeatureKind
from robustfusion.disruption.images import ImageCorruption, ImageKind
from robustfusion.disruption.raw_samples import RawSamples
from robustfusion.disruption.texts import TextCorruption, TextKind

IMAGE_DAMAGE: tuple[str, ...] = get_args(ImageKind)
TEXT_DAMAGE: tuple[str, ...] = get_args(TextKind)
FEATURE_DAMAGE: tuple[str, ...] = ("mask", "noise", "shuffle", "scale", "mean", "swapped")

PAIRED_KINDS = ("swapped", "mean")  # kinds that need a second input

# A function of (input, severity, generator), for a kind of one's own.
Damage: TypeAlias = Callable[[Any, float, np.random.Generator], Any]
Kinds: TypeAlias = Mapping[str, Sequence[str] | Mapping[str, Damage]]
Samples: TypeAlias = RawSamples | CachedFeatures | Sequence[Mapping[str, Any]]
_Key: TypeAlias = tuple[int, str, str]  # row, modality, kind


def damage(
    samples: Samples,
    kinds: Kinds,
    *,
    severity: Severity = (0.02, 1.0),
    batch_size: int = 64,
    seed: int = 0,
) -> "DamagedBatches":
    """Return batches in which one modality of every sample is damaged, for each kind of damage.

    Each sample occurs once for each modality and kind that you name, with a severity of its own,
    drawn uniformly from the range. The draws depend on (seed, sample id, modality, kind) alone, so
    they are the same in any order, batch size and process. A sample that lacks the modality is
    left out of the batches in which this would be damaged. The result can be iterated over again.

    Args:
        samples: Raw samples as mappings with `inputs`, `label` and, optionally, `id` and
            `available`; :class:`RawSamples`, which also hold transforms and a collate function;
            or :class:`CachedFeatures`, of which features, or pixels, are damaged.
        kinds: For each modality to damage, names: `IMAGE_DAMAGE`, `TEXT_DAMAGE` or some of them,
            see :class:`ImageCorruption` and :class:`TextCorruption`, or `FEATURE_DAMAGE` for
            features; or a mapping from a name to your own function of (input, severity,
            generator).
        severity: A number, or a range (low, high), within [0, 1].
        batch_size: Samples in a batch; one batch has one kind of damage.
        seed: Seed of all draws.

    Returns:
        An iterable of dicts: `inputs`, `available`, `label` and `id` as `collate` makes them, and
        `modality`, `kind` (strings) and `severity`, a tensor (B,).

    Raises:
        ValueError: If a modality or kind is unknown, or the severity is not in [0, 1].
        TypeError: If an input cannot be damaged.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import damage
        >>> posts = [
        ...     {"inputs": {"image": torch.rand(3, 8, 8), "text": "so very good"}, "label": 1},
        ...     {"inputs": {"image": torch.rand(3, 8, 8), "text": "rain again"}, "label": 0},
        ... ]
        >>> damaged = damage(posts, {"image": ["black"], "text": ["blank"]}, severity=1.0)
        >>> for batch in damaged:
        ...     print(batch["modality"], batch["kind"], float(batch["inputs"]["image"].min()) == 0)
        image black True
        text blank False
    """
    raw = as_raw_samples(samples)
    check_keys(kinds, raw.modalities, "kinds")
    if not any(kinds.values()):
        raise ValueError("kinds must name a kind of damage for at least one modality")
    check_severity(severity)
    check_positive(batch_size, "batch_size")
    first = raw.dataset[0]["inputs"]
    for modality, names in kinds.items():
        if isinstance(names, str):
            raise TypeError(f'kinds["{modality}"] must be a sequence of names, got {names!r}')
        if not isinstance(names, Mapping) and not is_missing(first.get(modality)):
            for kind in names:
                corruption_of(first[modality], modality, kind, 0.0)
    return DamagedBatches(raw, kinds, severity, batch_size, seed)


class DamagedBatches:
    """Batches of damaged samples, made anew in each iteration; `damage` returns it.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import FEATURE_DAMAGE, CachedFeatures, damage
        >>> data = CachedFeatures(
        ...     {"image": torch.randn(6, 8), "text": torch.randn(6, 4)}, torch.arange(6) % 2
        ... )
        >>> batches = damage(data, {"image": FEATURE_DAMAGE})
        >>> [batch["kind"] for batch in batches]
        ['mask', 'noise', 'shuffle', 'scale', 'mean', 'swapped']
    """

    def __init__(
        self, raw: RawSamples, kinds: Kinds, severity: Severity, batch_size: int, seed: int
    ) -> None:
        self.raw, self.kinds, self.severity = raw, kinds, severity
        self.batch_size, self.seed = batch_size, seed
        # The partner of a sample in a swap depends on the ids, and not on the order of the data.
        self._rows = sorted(range(len(raw.ids)), key=lambda row: _sortable(raw.ids[row]))
        self._means: dict[str, Any] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches: list[list[_Key]] = []
        for modality, names in self.kinds.items():
            if "mean" in names and not isinstance(names, Mapping):
                self._mean(modality)  # before workers start, each of which would compute it
            for kind in names:
                keys = [(row, modality, kind) for row in range(len(self.raw.ids))]
                size = self.batch_size
                batches += [keys[start : start + size] for start in range(0, len(keys), size)]
        loader: DataLoader[Any] = DataLoader(
            self,  # type: ignore[arg-type]  # it has __getitem__, which is all that is needed
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.raw.num_workers,
            # Otherwise the loader draws its workers' seed from the global generator.
            generator=torch.Generator().manual_seed(self.seed),
        )
        yield from (batch for batch in loader if batch is not None)

    def __getitem__(self, key: _Key) -> dict[str, Any] | None:
        """Return one damaged sample, or None if it lacks the modality."""
        row, modality, kind = key
        sample, sample_id = self.raw.dataset[row], self.raw.ids[row]
        if not is_there(sample, modality):
            return None
        generator = sample_generator(self.seed, sample_id, f"damage:{modality}:{kind}")
        draw, severity = float(generator.random()), self.severity
        if isinstance(severity, tuple):
            severity = severity[0] + (severity[1] - severity[0]) * draw
        value, names = sample["inputs"][modality], self.kinds[modality]
        if isinstance(names, Mapping):
            value = names[kind](value, severity, generator)
        else:
            corruption = corruption_of(value, modality, kind, severity)
            other = self._other(row, modality, kind, generator)
            value = corruption(value, generator, other)
        inputs = {**sample["inputs"], modality: value}
        for name, transform in self.raw.transforms.items():
            if not is_missing(inputs.get(name)):
                inputs[name] = transform(inputs[name])
        damaged = {"modality": modality, "kind": kind, "severity": float(severity)}
        return {**sample, "inputs": inputs, "id": sample_id, **damaged}

    def _other(self, row: int, modality: str, kind: str, generator: np.random.Generator) -> Any:
        """Return the second input that some kinds need: of another sample, or the mean of all."""
        if kind == "mean":
            return self._mean(modality)
        if kind != "swapped":
            return None
        start = int(generator.integers(len(self._rows)))
        for other in (*self._rows[start:], *self._rows[:start]):
            if other != row and is_there(sample := self.raw.dataset[other], modality):
                return sample["inputs"][modality]
        raise ValueError(f'kind="swapped" needs two samples with {modality}, got one')

    def _mean(self, modality: str) -> Any:
        if modality not in self._means:
            self._means[modality] = self._compute_mean(modality)
        return self._means[modality]

    def _compute_mean(self, modality: str) -> Any:
        samples = (self.raw.dataset[row] for row in range(len(self.raw.ids)))
        values = [s["inputs"][modality] for s in samples if is_there(s, modality)]
        if not values or not isinstance(values[0], Tensor):
            return None
        return torch.stack(values).mean(0)

    def _collate(self, samples: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
        rows = [sample for sample in samples if sample is not None]
        if not rows:
            return None
        severity = torch.tensor([sample["severity"] for sample in rows])
        facts = {"modality": rows[0]["modality"], "kind": rows[0]["kind"], "severity": severity}
        plain = [{k: v for k, v in sample.items() if k not in facts} for sample in rows]
        return {**self.raw.collate_fn(plain), "id": [sample["id"] for sample in rows], **facts}


def as_raw_samples(samples: Samples) -> RawSamples:
    """Return any form of samples as `RawSamples`."""
    if isinstance(samples, CachedFeatures):
        return RawSamples(_Rows(samples), ids=samples.ids, class_names=samples.class_names)
    if isinstance(samples, RawSamples):
        return samples
    has_ids = isinstance(samples, list | tuple) and samples and "id" in samples[0]
    return RawSamples(samples, ids=[sample["id"] for sample in samples] if has_ids else None)


def corruption_of(value: Any, modality: str, kind: str, severity: Severity) -> Any:
    """Return the corruption of that kind which fits an input: an image, a text or features."""
    corruption: Any = TextCorruption
    if isinstance(value, str):
        known = TEXT_DAMAGE
    elif is_pillow(value) or (isinstance(value, Tensor) and value.ndim == 3):
        corruption, known = ImageCorruption, IMAGE_DAMAGE
    elif isinstance(value, Tensor) and value.is_floating_point():
        corruption, known = FeatureCorruption, get_args(FeatureKind)
    else:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f'inputs["{modality}"] must be an image, a text or a floating tensor to be damaged, '
            f"got {got}: pass functions of your own in kinds"
        )
    if kind not in known:
        raise ValueError(f'kinds["{modality}"] must be among {known}, got {kind!r}')
    return corruption(kind=kind, severity=severity)


class _Rows:
    """Cached features as single samples."""

    def __init__(self, data: CachedFeatures) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        data, label = self.data, self.data.labels[row]
        return {
            "inputs": {m: map_tensors(lambda x: x[row], x) for m, x in data.features.items()},
            "available": {m: bool(mask[row]) for m, mask in data.available.items()},
            "label": label if label.is_floating_point() else int(label),
        }


def _sortable(sample_id: SampleId) -> tuple[str, str]:
    return type(sample_id).__name__, str(sample_id)
