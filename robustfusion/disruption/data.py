"""Disruption of raw samples: in a dataset, or in a collate function."""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustfusion._optional import import_pillow, is_pillow
from robustfusion._text import is_missing
from robustfusion._validation import check_keys
from robustfusion.disruption._draws import SampleId, canonical_id, sample_generator
from robustfusion.disruption.features import PARTIAL
from robustfusion.disruption.images import ImageCorruption
from robustfusion.disruption.plan import DisruptionPlan
from robustfusion.disruption.protocol import Disruption
from robustfusion.disruption.texts import TextCorruption

Corruption: TypeAlias = Callable[[Any, np.random.Generator], Any]
Sample: TypeAlias = dict[str, Any]
Batch: TypeAlias = dict[str, Any]


def placeholder(value: Any) -> Any:
    """Return a neutral value for a missing input: the type and shape of `value`, no content.

    Tensors become zeros, strings empty, PIL images black. In a mapping with `input_ids` every
    entry becomes zero except the first of `attention_mask`, because a transformer that attends to
    nothing returns NaN. Anything else raises ``TypeError``.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import placeholder
        >>> placeholder(torch.ones(3)), placeholder("so very good")
        (tensor([0., 0., 0.]), '')
        >>> placeholder({"input_ids": torch.tensor([101, 7]), "attention_mask": torch.ones(2)})
        {'input_ids': tensor([0, 0]), 'attention_mask': tensor([1., 0.])}
    """
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, str):
        return ""
    if isinstance(value, Mapping):
        result: Any = copy.copy(value)
        for key, entry in value.items():
            result[key] = placeholder(entry)
            if key == "attention_mask" and isinstance(entry, Tensor) and entry.numel():
                result[key][..., 0] = 1
        return result
    if is_pillow(value):
        return import_pillow().new(value.mode, value.size)
    raise TypeError(f"no placeholder for an input of type {type(value).__name__}")


def collate(
    samples: Sequence[Mapping[str, Any]], *, placeholders: Mapping[str, Any] | None = None
) -> Batch:
    """Make a batch of samples, in which any modality may be missing.

    An input is missing if it is `None`, a text of blanks or NaN, if its key is absent, or if the
    sample's `available` is False for it. A `placeholder` takes its place, made from the first
    input of the batch that is not missing.

    Args:
        samples: Mappings with `inputs` (a mapping from modality to input) and, optionally,
            `available`, `corrupted` (mappings from modality to bool), `label` and `id`.
        placeholders: For each modality that may be missing in a whole batch, the input of one
            sample, which gives type and shape.

    Returns:
        A dict: `inputs[name]`, a stacked tensor (B, ...), a dict of them, or a list where inputs
        are not tensors; `available[name]`, bool (B,); `corrupted[name]`, bool (B,), if the samples
        have it; `label`, long (B,), or floats (B, C) if the labels are tensors (C,); `id`, a list.

    Raises:
        ValueError: If there are no samples, they differ in what they hold, tensors of one
            modality differ in shape, or a batch lacks a modality and no placeholder is given.
        TypeError: If a label is no integer.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import collate
        >>> samples = [
        ...     {"inputs": {"image": torch.ones(2), "text": "good"}, "label": 1},
        ...     {"inputs": {"image": None, "text": "bad"}, "label": 0},
        ... ]
        >>> batch = collate(samples)
        >>> batch["inputs"]["image"].tolist(), batch["available"]["image"], batch["label"]
        ([[1.0, 1.0], [0.0, 0.0]], tensor([ True, False]), tensor([1, 0]))
    """
    if not samples:
        raise ValueError("samples must not be empty")
    for key in ("label", "id", "corrupted"):
        holders = sum(key in sample for sample in samples)
        if 0 < holders < len(samples):
            raise ValueError(f"{key} must be in all {len(samples)} samples or none, got {holders}")
    examples = placeholders or {}
    names = dict.fromkeys([*(name for s in samples for name in s["inputs"]), *examples])
    batch: Batch = {"inputs": {}, "available": {}}
    for name in names:
        values = [sample["inputs"].get(name) for sample in samples]
        present = [is_there(sample, name) for sample in samples]
        like = next((value for value in values if not is_missing(value)), examples.get(name))
        if like is None:  # an empty text is its own placeholder
            like = next((value for value in values if isinstance(value, str)), None)
        if like is None:
            raise ValueError(
                f'inputs["{name}"] is missing in all {len(samples)} rows of a batch: pass one row '
                f'of the right shape in placeholders["{name}"]'
            )
        filled = [placeholder(like) if is_missing(value) else value for value in values]
        batch["inputs"][name] = _stack(f'inputs["{name}"]', filled)
        batch["available"][name] = torch.tensor(present)
    if "corrupted" in samples[0]:
        batch["corrupted"] = {
            name: torch.tensor([bool(sample["corrupted"].get(name)) for sample in samples])
            for name in names
        }
    if "label" in samples[0]:
        labels = [_label(sample["label"]) for sample in samples]
        tensors = isinstance(labels[0], Tensor)
        batch["label"] = torch.stack(labels) if tensors else torch.tensor(labels)
    if "id" in samples[0]:
        batch["id"] = [sample["id"] for sample in samples]
    return batch


def is_there(sample: Mapping[str, Any], name: str) -> bool:
    """Return whether a sample has a modality and does not call it unavailable."""
    declared = (sample.get("available") or {}).get(name, True)
    return bool(declared) and not is_missing(sample["inputs"].get(name))


def ids_of(dataset: Any, ids: Sequence[SampleId] | None) -> Sequence[SampleId]:
    """Return the ids passed, or else those of the dataset, or else 0 .. N-1."""
    if ids is None:
        ids = getattr(dataset, "ids", None)
    return range(len(dataset)) if ids is None else ids


def _label(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim:  # several labels, or numbers
        return value
    try:
        return operator.index(value)  # not int(), which would make a class 0 of 0.7
    except TypeError:
        raise TypeError(f"label must be an integer, got {value!r}") from None


def _stack(where: str, values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {
            key: _stack(f'{where}["{key}"]', [value[key] for value in values]) for key in values[0]
        }
    if not isinstance(values[0], Tensor):
        return values
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"{where} has rows of different shapes, {sorted(shapes)[:3]}: bring them to one "
            f"shape before, say in transforms"
        )
    return torch.stack(values)


class DisruptedDataset(Dataset[Sample]):
    """A map-style dataset whose inputs are corrupted or made missing as a `Disruption` says.

    The plan is drawn at construction from the ids, without reading a sample; `plan.counts()` are
    the realized counts. A sample that turns out to lack a modality, by the rules of `collate`, is
    planned again, so that its last modality stays. Pass `available` to have such samples in the
    counts, too.

    Args:
        dataset: Gives mappings with `inputs` (a mapping from modality to input) and, optionally,
            `label`, `id` and `available`; other entries are passed on.
        disruption: The protocol.
        corruptions: For each modality that may be corrupted, a function of (input, generator).
        ids: Names of the samples; if None `dataset.ids`, or else the indices 0, 1, ...
        transforms: For each modality, a function of the disrupted input, say from a PIL image to a
            normalised tensor.
        available: For each modality, bool (N,), which inputs were observed in the first place.

    Raises:
        ValueError: If ids are not unique or not as many as samples, if a sample's own `id`
            differs, or if a modality is to be corrupted and has no corruption.

    Example:
        >>> import torch
        >>> from robustfusion.disruption import DisruptedDataset, Disruption, TextCorruption
        >>> posts = [{"inputs": {"image": torch.ones(3, 4, 4), "text": "so very good"}}]
        >>> disruption = Disruption(
        ...     ("image", "text"), setting="C", strategy="fixed", modality="text"
        ... )
        >>> data = DisruptedDataset(posts, disruption, {"text": TextCorruption(severity=1.0)})
        >>> data[0]["inputs"]["text"], data[0]["available"], data[0]["corrupted"]["text"]
        ('[MASK] [MASK] [MASK]', {'image': True, 'text': True}, True)
    """

    def __init__(
        self,
        dataset: Any,
        disruption: Disruption,
        corruptions: Mapping[str, Corruption] | None = None,
        *,
        ids: Sequence[SampleId] | None = None,
        transforms: Mapping[str, Callable[[Any], Any]] | None = None,
        available: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.dataset = dataset
        self.disruption = disruption
        self.corruptions = dict(corruptions or {})
        self.transforms = dict(transforms or {})
        check_keys(self.corruptions, disruption.modalities, "corruptions")
        check_keys(self.transforms, disruption.modalities, "transforms")
        ids = ids_of(dataset, ids)
        if len(ids) != len(dataset):
            raise ValueError(f"ids must name {len(dataset)} samples, got {len(ids)}")
        self.plan: DisruptionPlan = disruption.plan(ids, available)
        if len(set(self.plan.ids)) < len(ids):
            twice, _ = Counter(self.plan.ids).most_common(1)[0]
            raise ValueError(f"ids must be unique, {twice!r} occurs more than once")
        for name, mask in self.plan.corrupted.items():
            if name not in self.corruptions and disruption.setting != "P" and bool(mask.any()):
                count = int(mask.sum())
                raise ValueError(
                    f'corruptions["{name}"] is needed: {count} samples are to be corrupted'
                )

    def __len__(self) -> int:
        return len(self.plan.ids)

    def __getitem__(self, index: int) -> Sample:
        sample, disruption = self.dataset[index], self.disruption
        plan, row, sample_id = self.plan, index, self.plan.ids[index]
        if "id" in sample and canonical_id(sample["id"]) != sample_id:
            raise ValueError(
                f"sample {index} has the id {sample['id']!r}, but was planned as {sample_id!r}: "
                "give the samples' own names as ids"
            )
        if not set(sample["inputs"]) <= set(disruption.modalities):
            raise ValueError(
                f"inputs must have the keys {disruption.modalities}, got {tuple(sample['inputs'])}"
            )
        observed = {name: is_there(sample, name) for name in disruption.modalities}
        if not all(observed.values()):
            masks = {name: torch.tensor([seen]) for name, seen in observed.items()}
            plan, row = disruption.plan([sample_id], masks), 0
        available = {name: bool(mask[row]) for name, mask in plan.available.items()}
        corrupted = {name: bool(mask[row]) for name, mask in plan.corrupted.items()}
        inputs: dict[str, Any] = {}
        for name in disruption.modalities:
            value = sample["inputs"].get(name)
            if is_missing(value) and not isinstance(value, str):
                # `collate` makes the placeholder from another sample of the batch.
                inputs[name] = None
                continue
            if not available[name]:
                value = placeholder(value)
            elif corrupted[name]:
                noise = sample_generator(disruption.seed, sample_id, name)
                value = self._corruption(name, value)(value, noise)
            inputs[name] = self.transforms[name](value) if name in self.transforms else value
        changed = {"inputs": inputs, "available": available, "corrupted": corrupted}
        return {**sample, **changed, "id": sample_id}

    def _corruption(self, name: str, value: Any) -> Corruption:
        if self.disruption.setting != "P":
            if name not in self.corruptions:
                raise ValueError(f'corruptions["{name}"] is needed: the sample is to be corrupted')
            return self.corruptions[name]
        if isinstance(value, str):
            return TextCorruption(kind="truncate")
        if is_pillow(value) or (isinstance(value, Tensor) and value.ndim == 3):
            return ImageCorruption(kind="occlusion")
        if isinstance(value, Tensor) and value.is_floating_point():
            return PARTIAL
        raise TypeError(f'inputs["{name}"]: setting "P" has no part of a {type(value).__name__}')
