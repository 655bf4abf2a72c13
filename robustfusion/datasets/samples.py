"""What a post looks like as a sample."""

from typing import Any, TypedDict


class Sample(TypedDict):
    """One post: ``inputs`` and ``available`` have the keys "image" and "text".

    :func:`robustfusion.disruption.collate` puts posts side by side as a batch.

    Example:
        >>> post: Sample = {
        ...     "id": "7",
        ...     "inputs": {"image": "a decoded image", "text": "sunny"},
        ...     "available": {"image": True, "text": True},
        ...     "label": 0,
        ...     "label_name": "positive",
        ... }
        >>> sorted(post["inputs"]) == sorted(post["available"])
        True
    """

    id: str
    inputs: dict[str, Any]
    available: dict[str, bool]
    label: int
    label_name: str
