"""One post: where its image and its text are, and as what a data set returns it."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NotRequired, TypedDict

from torch import Tensor

from robustfusion.datasets.cells import shorten


class PostRow(NamedTuple):
    """One post of a :class:`PostDataset`: its id, its label, and where its image and text are.

    A ``Path``, relative to the folder of the data set, is a file. An image may also be the
    ``bytes`` of one, a text a ``str``. None is missing.

    Example:
        >>> from pathlib import Path
        >>> from robustfusion.datasets import PostRow
        >>> PostRow("7", "yes", image=Path("7.jpg"), text="sunny").text
        'sunny'
    """

    id: str
    label_name: str | None  #: None for a post without a label
    image: Any
    text: Any
    text_label: str = ""  #: label of the text, where the data set has labels of either side
    image_label: str = ""
    origin: str = "post"  #: name of the row in messages, such as "row 3"
    cells: Mapping[str, Any] = {}  #: all columns of the row
    target: tuple[float, ...] | None = None  #: labels or numbers (C,), in the place of a class
    weight: float = 1.0  #: of the post in the training loss

    @classmethod
    def of_files(cls, post_id: str, label_name: str) -> "PostRow":
        """Return the row of a post whose files are ``{id}.jpg`` and ``{id}.txt``."""
        return cls(
            post_id,
            label_name,
            Path(f"{post_id}.jpg"),
            Path(f"{post_id}.txt"),
            label_name,
            label_name,
            f"post {post_id}",
        )

    def describe(self, modality: str) -> str:
        """Name one modality in messages: a file by its path, a cell by its row."""
        if modality == "table":
            return f"the table of {self.origin}"
        cell = getattr(self, modality)
        is_file = isinstance(cell, PurePath)
        return shorten(str(cell)) if is_file else f"the {modality} of {self.origin}"


class Sample(TypedDict):
    """One post: ``inputs`` and ``available`` have the keys "image" and "text", maybe "table".

    ``posts[0]`` of a :class:`PostDataset` is a sample, see the example there;
    :func:`robustfusion.disruption.collate` makes a batch of several. A post without a label has
    neither ``label`` nor ``label_name``. Several labels, or numbers, are a float tensor (C,).
    """

    id: str
    inputs: dict[str, Any]
    available: dict[str, bool]
    label: NotRequired[int | Tensor]
    label_name: NotRequired[str]
