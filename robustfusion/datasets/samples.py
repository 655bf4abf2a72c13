"""What a post looks like as a sample, and posts side by side as a batch."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor


class Sample(TypedDict):
    """One post: ``inputs`` and ``available`` have the keys "image" and "text"."""

    id: str
    inputs: dict[str, Any]
    available: dict[str, bool]
    label: int
    label_name: str


class Batch(TypedDict):
    """Posts side by side: lists of inputs, bool masks (B,), labels (B,)."""

    ids: list[str]
    inputs: dict[str, list[Any]]
    available: dict[str, Tensor]
    labels: Tensor


def collate_posts(samples: Sequence[Sample]) -> Batch:
    """Put posts side by side, inputs as lists, for encoders that take lists.

    Args:
        samples: posts of a :class:`PostDataset`.

    Returns:
        ids, inputs, masks and labels, all of one length B.
    """
    modalities = list(samples[0]["inputs"]) if samples else []
    return {
        "ids": [sample["id"] for sample in samples],
        "inputs": {m: [sample["inputs"][m] for sample in samples] for m in modalities},
        "available": {
            m: torch.tensor([sample["available"][m] for sample in samples]) for m in modalities
        },
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.long),
    }
