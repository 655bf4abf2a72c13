"""What a post looks like as a sample."""

from typing import Any, TypedDict


class Sample(TypedDict):
    """One post: ``inputs`` and ``available`` have the keys "image" and "text".

    :func:`robustfusion.disruption.collate` puts posts side by side as a batch.
    """

    id: str
    inputs: dict[str, Any]
    available: dict[str, bool]
    label: int
    label_name: str
