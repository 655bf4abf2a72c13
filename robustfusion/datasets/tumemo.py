"""TumEmo from the files of its official release."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustfusion.datasets.labels import (
    check_id,
    count_lines,
    find_folder,
    read_lines,
    usable_rows,
)
from robustfusion.datasets.post_dataset import OnBad, PostDataset
from robustfusion.datasets.post_row import PostRow

EMOTIONS = ("angry", "bored", "calm", "fear", "happy", "love", "sad")
LABEL_FILE = "all_data_id_and_label.txt"


class TumEmo(PostDataset):
    r"""Tumblr posts of an image and a text, each under one of seven emotions.

    The release is a label file, ``all_data_id_and_label.txt``, and an archive of all posts whose
    file names are the ids: ``0.txt`` and ``0.jpg``, ``1.txt`` and so on. The release documents no
    more than that, so this is assumed: each line of the label file is an id and an emotion with
    blanks, a tab or a comma between them; a first line that is neither is a header; letter case
    does not matter; the archive was unpacked to ``all_data`` (its own name) or ``data`` next to
    the label file. A file that is laid out otherwise is an error that says so.

    The errors are those of :class:`PostDataset`, and so are the arguments; ``root`` is the folder
    with the label file and the unpacked archive. With 195,265 posts, ``verify=False`` saves
    minutes at the start.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from robustfusion.datasets import TumEmo
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "all_data").mkdir()
        >>> Image.new("RGB", (8, 8)).save(root / "all_data" / "0.jpg")
        >>> _ = (root / "all_data" / "0.txt").write_text("rain again")
        >>> _ = (root / "all_data_id_and_label.txt").write_text("ID label\n0 Sad\n")
        >>> TumEmo(root)[0]["label_name"]
        'sad'

    Reference:
        Yang et al., Image-text multimodal emotion classification via multi-view attentional
        network, IEEE Transactions on Multimedia 2021.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        on_bad: OnBad = "skip",
        image_transform: Callable[[Any], Any] | None = None,
        verify: bool = True,
        allow_outside: bool = False,
    ) -> None:
        folder, path = find_folder(Path(root), ("all_data", "data")), Path(root) / LABEL_FILE
        labels, problems = usable_rows(path, _read_labels(path))
        super().__init__(
            [*(PostRow.of_files(i, label) for i, label in labels.items()), *problems],
            folder,
            class_names=EMOTIONS,
            on_bad=on_bad,
            image_transform=image_transform,
            verify=verify,
            allow_outside=allow_outside,
        )
        self.root, self.path = Path(root), path
        self._gate = count_lines(path, len(labels), len(problems))


def _read_labels(path: Path) -> Iterator[tuple[int, str, str, str | None]]:
    lines = [(number, line) for number, line in read_lines(path) if line]
    for position, (number, line) in enumerate(lines):
        fields = line.replace(",", " ").split() or [line]
        label, reason = fields[-1].lower(), check_id(fields[0])
        if position == 0 and label not in EMOTIONS and not fields[0].isdigit():
            continue
        if len(fields) != 2:
            reason = f"expected an id and an emotion, got {line[:40]!r}"
        elif label not in EMOTIONS:
            reason = f"unknown emotion {label[:40]!r}, expected one of {', '.join(EMOTIONS)}"
        yield number, fields[0], label, reason
